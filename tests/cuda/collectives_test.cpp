// Transfers between GPUs, with a stand-in for NCCL on the emulated runtime: three ranks in this process, each with a
// device and streams of its own that do nothing until somebody waits.
#include "cuda/collectives.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/device.h"
#include "emulation/emulation.h"
#include "emulation/nccl.h"
#include "emulation/runtime.h"
#include "support/errors.h"

#if __has_include(<nccl.h>)
#include <nccl.h>
#define POLARON_TEST_NCCL_HEADER
#endif

namespace polaron::cuda {
namespace {

using emulation::fake_nccl;
using test::contains;
using test::error_of;
using test::expect_parts;

constexpr int kRanks = 3;

// Rank r brings 100 r + i as element i.
class NcclRanks : public testing::Test {
 protected:
  static constexpr std::size_t kValues = 20;

  struct Rank {
    std::unique_ptr<Device> device = make_device(0);
    std::unique_ptr<Stream> stream = device->make_stream();
    DeviceBuffer memory{*device, kValues * sizeof(float)};
    std::vector<float> back = std::vector<float>(kValues, -1.0F);
    std::unique_ptr<Collectives> collectives;
    float* values() const { return memory.as<float>(); }
  };

  NcclRanks() {
    fake_nccl().calls.clear();
    const CollectivesId id = library_.draw_id();
    for (int r = 0; r < kRanks; ++r) {
      ranks_[r].collectives.reset(library_.make(*ranks_[r].device, id, r, kRanks));
      std::vector<float> brought(kValues);
      for (std::size_t i = 0; i < kValues; ++i) brought[i] = static_cast<float>(100 * r) + static_cast<float>(i);
      ranks_[r].device->upload(*ranks_[r].stream, ranks_[r].values(), brought.data(), kValues * sizeof(float));
    }
  }
  ~NcclRanks() override {
    fake_nccl().next.clear();
    fake_nccl().asynchronous = 0;
    for (Rank& rank : ranks_) rank.collectives.reset();
    EXPECT_EQ(fake_nccl().living, 0);
    EXPECT_EQ(fake_nccl().open_groups, 0);
  }

  // begin(rank, r) and finish on all ranks, with nothing but the streams' order before and after.
  template <class Begin>
  void transfer(Begin&& begin) {
    for (int r = 0; r < kRanks; ++r) {
      begin(ranks_[r], r);
      ranks_[r].collectives->finish(*ranks_[r].stream);
      ranks_[r].device->download(*ranks_[r].stream, ranks_[r].back.data(), ranks_[r].values(), kValues * sizeof(float));
    }
    for (Rank& rank : ranks_) EXPECT_EQ(rank.back, std::vector<float>(kValues, -1.0F)) << "the host has waited";
    for (Rank& rank : ranks_) rank.stream->synchronize();
  }
  static float brought(int rank, std::size_t i) { return static_cast<float>(100 * rank) + static_cast<float>(i); }
  static float summed(std::size_t i) { return brought(0, i) + brought(1, i) + brought(2, i); }
  static std::vector<Segment> segments(const Rank& rank) {
    return {{rank.values() + 1, DType::f32, 5, 2},
            {rank.values() + 7, DType::f32, 0, 1},
            {rank.values() + 8, DType::f32, 4, 0}};
  }

  emulation::WithOptions lazy_{{.lazy_streams = true}};
  CollectivesLibrary library_ = nccl_collectives();
  Rank ranks_[kRanks];
};

TEST_F(NcclRanks, reduce_to_owners_sums_on_the_owner_in_one_group_and_touches_nothing_between_segments) {
  transfer([](Rank& rank, int) { rank.collectives->reduce_to_owners(*rank.stream, segments(rank)); });
  for (int r = 0; r < kRanks; ++r) {
    for (std::size_t i = 0; i < kValues; ++i) {
      const int owner = i >= 1 && i < 6 ? 2 : i >= 8 && i < 12 ? 0 : -1;
      if (owner == r) {
        EXPECT_EQ(ranks_[r].back[i], summed(i));
      }
      if (owner == -1) {
        EXPECT_EQ(ranks_[r].back[i], brought(r, i));
      }
    }
  }
  const std::vector<std::string> of_rank_0 = {"group of 2", "0: reduce 5 of type 7 to 2", "0: reduce 4 of type 7 to 0"};
  EXPECT_EQ(std::vector<std::string>(fake_nccl().calls.begin(), fake_nccl().calls.begin() + 3), of_rank_0);
  EXPECT_EQ(fake_nccl().calls.size(), 9U);
}

TEST_F(NcclRanks, gather_from_owners_brings_the_owners_numbers_to_all) {
  transfer([](Rank& rank, int) { rank.collectives->gather_from_owners(*rank.stream, segments(rank)); });
  for (int r = 0; r < kRanks; ++r) {
    for (std::size_t i = 0; i < kValues; ++i) {
      const int owner = i >= 1 && i < 6 ? 2 : i >= 8 && i < 12 ? 0 : r;
      EXPECT_EQ(ranks_[r].back[i], brought(owner, i));
    }
  }
  EXPECT_EQ(fake_nccl().calls[1], "0: broadcast 20 of type 1 from 2");
}

TEST_F(NcclRanks, gather_from_owners_counts_two_bytes_a_number_of_bf16) {
  transfer([](Rank& rank, int) {
    const Segment segment{rank.values(), DType::bf16, 6, 1};  // the first three floats
    rank.collectives->gather_from_owners(*rank.stream, std::span(&segment, 1));
  });
  for (std::size_t i = 0; i < kValues; ++i) EXPECT_EQ(ranks_[2].back[i], brought(i < 3 ? 1 : 2, i));
}

TEST_F(NcclRanks, sum_in_place_is_a_sum_on_one_rank_that_all_receive) {
  transfer([](Rank& rank, int) { rank.collectives->sum_in_place(*rank.stream, rank.values() + 2, 7); });
  for (int r = 0; r < kRanks; ++r) {
    for (std::size_t i = 0; i < kValues; ++i) {
      EXPECT_EQ(ranks_[r].back[i], i >= 2 && i < 9 ? summed(i) : brought(r, i));
    }
  }
  EXPECT_EQ(fake_nccl().calls[0], "0: reduce 7 of type 7 to 0");
  EXPECT_EQ(fake_nccl().calls[1], "0: broadcast 28 of type 1 from 0");
}

TEST_F(NcclRanks, transfers_are_carried_out_in_the_order_in_which_they_were_begun) {
  transfer([](Rank& rank, int) {
    rank.collectives->reduce_to_owners(*rank.stream, segments(rank));
    rank.collectives->gather_from_owners(*rank.stream, segments(rank));  // of the sums
  });
  for (const Rank& rank : ranks_) {
    for (const std::size_t i : {1U, 5U, 8U, 11U}) EXPECT_EQ(rank.back[i], summed(i));
  }
}

TEST_F(NcclRanks, sum_adds_in_the_order_of_ranks) {
  const double values[kRanks][2] = {{1e16, 1.0}, {1.0, 1e16}, {-1e16, -1e16}};  // 0 and 0: each loses its 1
  std::vector<DeviceBuffer> memory;  // allocated before anything is queued: that waits for the emulated device
  for (Rank& rank : ranks_) memory.emplace_back(*rank.device, sizeof values[0]);
  std::vector<std::vector<double>> sums(kRanks, std::vector<double>(2, -1.0));
  for (int r = 0; r < kRanks; ++r) {
    ranks_[r].device->upload(*ranks_[r].stream, memory[r].data(), values[r], sizeof values[r]);
    ranks_[r].collectives->sum(*ranks_[r].stream, memory[r].as<double>(), 2);
    ranks_[r].device->download(*ranks_[r].stream, sums[r].data(), memory[r].data(), sizeof values[r]);
  }
  for (Rank& rank : ranks_) rank.stream->synchronize();
  double expected[2];
  for (int i = 0; i < 2; ++i) expected[i] = values[0][i] + values[1][i] + values[2][i];
  for (int r = 0; r < kRanks; ++r) EXPECT_EQ(sums[r], std::vector<double>(expected, expected + 2));
}

TEST_F(NcclRanks, a_refused_call_is_named_with_nccls_reason_and_leaves_no_group_open) {
  Rank& rank = ranks_[0];
  fake_nccl().next["ncclReduce"] = Nccl::Result{5};
  expect_parts(error_of(Exit::device, [&] { rank.collectives->reduce_to_owners(*rank.stream, segments(rank)); }),
               {"ncclReduce", "details of the stand-in", "NCCL_DEBUG"});
  EXPECT_EQ(fake_nccl().open_groups, 0);
  fake_nccl().next["ncclCommInitRank"] = Nccl::Result{5};
  EXPECT_TRUE(contains(error_of(Exit::device, [&] { library_.make(*rank.device, library_.draw_id(), 0, 1); }),
                       "ncclCommInitRank"));
  fake_nccl().next["ncclGetUniqueId"] = Nccl::Result{2};
  EXPECT_TRUE(contains(error_of(Exit::device, [&] { library_.draw_id(); }), "ncclGetUniqueId"));
}

TEST_F(NcclRanks, a_failure_on_the_way_is_told_and_ends_in_an_abort) {
  Collectives& collectives = *ranks_[1].collectives;
  EXPECT_EQ(collectives.failure(), "");
  fake_nccl().asynchronous = 7;  // in progress
  EXPECT_EQ(collectives.failure(), "");
  fake_nccl().asynchronous = 6;
  EXPECT_TRUE(contains(collectives.failure(), "an error of the stand-in (details of the stand-in)"));
  EXPECT_TRUE(contains(error_of(Exit::device, [&] { collectives.finish(*ranks_[1].stream); }), "has failed"));
  EXPECT_TRUE(contains(
      error_of(Exit::device, [&] { collectives.sum_in_place(*ranks_[1].stream, ranks_[1].values(), 1); }), "failed"));
  ranks_[1].collectives.reset();
  EXPECT_EQ(fake_nccl().calls.back(), "1: abort");
  fake_nccl().asynchronous = 0;
  ranks_[0].collectives.reset();
  EXPECT_EQ(fake_nccl().calls.back(), "0: destroy");
}

TEST_F(NcclRanks, an_exception_that_passes_gives_up_what_is_under_way) {
  try {
    const std::unique_ptr<Collectives> passed = std::move(ranks_[2].collectives);
    throw std::runtime_error("of somebody else");
  } catch (const std::runtime_error&) {
    EXPECT_EQ(fake_nccl().calls.back(), "2: abort");
  }
}

TEST(Nccl, is_set_up_for_sums_in_a_fixed_order_unless_the_user_wants_otherwise) {
  unsetenv("NCCL_ALGO");
  setenv("NCCL_PROTO", "LL", 1);
  nccl_collectives().open();
  EXPECT_STREQ(std::getenv("NCCL_ALGO"), "Ring");
  EXPECT_STREQ(std::getenv("NCCL_PROTO"), "LL");
  EXPECT_STREQ(std::getenv("NCCL_NVLS_ENABLE"), "0");
  unsetenv("NCCL_PROTO");
}

TEST(Nccl, that_cannot_be_opened_is_told_with_the_loaders_reason) {
  EXPECT_TRUE(contains(error_of(Exit::device, [] { open_nccl("/nowhere/libnccl.so.2"); }), "/nowhere/libnccl.so.2"));
  EXPECT_TRUE(contains(error_of(Exit::device, [] { open_nccl("libm.so.6"); }), "lacks the function ncclGetVersion"));
}

#ifdef POLARON_TEST_NCCL_HEADER
TEST(Nccl, is_declared_as_in_its_own_header) {
  static_assert(sizeof(Nccl::UniqueId) == sizeof(ncclUniqueId));
  static_assert(static_cast<int>(Nccl::Result::success) == ncclSuccess);
  static_assert(static_cast<int>(Nccl::Result::in_progress) == ncclInProgress);
  static_assert(static_cast<int>(Nccl::Type::uint8) == ncclUint8);
  static_assert(static_cast<int>(Nccl::Type::float32) == ncclFloat32);
  static_assert(static_cast<int>(Nccl::Type::float64) == ncclFloat64);
  static_assert(static_cast<int>(Nccl::Reduction::sum) == ncclSum);
  // The header's functions, with our types for its own.
  static_assert(std::is_same_v<decltype(&ncclReduce), ncclResult_t (*)(const void*, void*, std::size_t, ncclDataType_t,
                                                                       ncclRedOp_t, int, ncclComm_t, cudaStream_t)>);
  static_assert(
      std::is_same_v<decltype(&ncclBroadcast),
                     ncclResult_t (*)(const void*, void*, std::size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t)>);
  static_assert(std::is_same_v<decltype(&ncclAllGather), ncclResult_t (*)(const void*, void*, std::size_t,
                                                                          ncclDataType_t, ncclComm_t, cudaStream_t)>);
  static_assert(std::is_same_v<decltype(&ncclCommInitRank), ncclResult_t (*)(ncclComm_t*, int, ncclUniqueId, int)>);
  static_assert(std::is_same_v<decltype(&ncclCommGetAsyncError), ncclResult_t (*)(ncclComm_t, ncclResult_t*)>);
  static_assert(std::is_same_v<decltype(&ncclGetLastError), const char* (*)(ncclComm_t)>);
}
#endif

TEST(Nccl, of_this_machine_opens_without_a_gpu) {
  Nccl nccl{};
  try {
    nccl = open_nccl("libnccl.so.2");
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  int version = 0;
  EXPECT_EQ(nccl.get_version(&version), Nccl::Result::success);
  EXPECT_GE(version, 21300);
}

TEST(CudaDevicePinned, memory_is_copied_directly_and_asynchronously) {
  const emulation::WithOptions lazy({.lazy_streams = true});
  const std::unique_ptr<Device> device = make_device(0);
  const std::unique_ptr<Stream> stream = device->make_stream();
  const DeviceBuffer memory(*device, 8);
  const std::size_t before = emulation::pinned_bytes();
  auto* const host = static_cast<float*>(device->allocate_host(1000));
  EXPECT_EQ(emulation::pinned_bytes(), before + 1000);
  host[249] = 1.0F;
  device->upload(*stream, memory.data(), host + 249, 4);
  host[249] = 2.0F;  // read when its turn comes: there is no copy in between
  device->download(*stream, host, memory.data(), 4);
  stream->synchronize();
  EXPECT_EQ(host[0], 2.0F);
  device->release_host(host);
  EXPECT_EQ(emulation::pinned_bytes(), before);
}

}  // namespace
}  // namespace polaron::cuda
