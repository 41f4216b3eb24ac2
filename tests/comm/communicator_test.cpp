// What Communicator promises, on however many processes run this program (see processes.h), in the host's memory and
// staged from a device's. Alone every claim is that nothing changes.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "place.h"

namespace polaron::test {
namespace {

class CommunicatorIn : public testing::TestWithParam<Place> {
 protected:
  Setting setting_{GetParam()};
  Communicator& all_ = setting_.all();
};
INSTANTIATE_TEST_SUITE_P(Memory, CommunicatorIn, testing::ValuesIn(places()),
                         [](const auto& chosen) { return name_of(chosen.param); });

// Transfers go in pieces of 1 MB: sizes on both sides of one piece and of a batch of pieces, and small odd ones.
constexpr std::int64_t kPiece = (1 << 20) / sizeof(float);
constexpr std::int64_t kSizes[] = {1, 3, 64, 1000, kPiece - 1, kPiece, kPiece + 1, 9 * kPiece + 5, 0, 7};
constexpr float kUntouched = -12345.0F;

// What process `rank` brings as element i: whole numbers, whose sums are exact in any order.
float brought(int rank, std::int64_t i) { return static_cast<float>((i * 7 + rank * 13) % 101 - 50); }
float summed(int processes, std::int64_t i) {
  float sum = 0;
  for (int rank = 0; rank < processes; ++rank) sum += brought(rank, i);
  return sum;
}

// Numbers between segments of several sizes and owners: element i of `values` is what it says everywhere.
template <class T>
struct Segments {
  Segments(const Setting& setting, DType dtype, T untouched) : values(setting, length(), untouched) {
    std::int64_t first = 1;
    int owner = 0;
    for (const std::int64_t size : kSizes) {
      list.push_back({values.data() + first, dtype, size, owner++ % processes().size()});
      begins.push_back(first);
      first += size + 1;
    }
  }
  static std::size_t length() {
    std::int64_t end = 1;
    for (const std::int64_t size : kSizes) end += size + 1;
    return static_cast<std::size_t>(end);
  }
  // Calls body(index, owner) for every element of a segment.
  template <class Body>
  void for_each(Body&& body) const {
    for (std::size_t s = 0; s < list.size(); ++s) {
      for (std::int64_t i = begins[s]; i < begins[s] + list[s].elements; ++i) body(i, list[s].owner);
    }
  }
  T& operator[](std::int64_t i) { return values.host[static_cast<std::size_t>(i)]; }
  // Elements between the segments.
  std::vector<T> gaps() const {
    std::vector<T> found = {values.host.front()};
    for (std::size_t s = 0; s < list.size(); ++s) {
      found.push_back(values.host[static_cast<std::size_t>(begins[s] + list[s].elements)]);
    }
    return found;
  }

  Values<T> values;
  std::vector<Segment> list;
  std::vector<std::int64_t> begins;
};

Segments<float> brought_segments(const Setting& setting) {
  Segments<float> segments(setting, DType::f32, kUntouched);
  segments.for_each([&](std::int64_t i, int) { segments[i] = brought(processes().rank(), i); });
  segments.values.send();
  return segments;
}

std::int64_t wrong_sums(Segments<float>& segments, bool only_own) {
  std::int64_t wrong = 0;
  segments.for_each([&](std::int64_t i, int owner) {
    if (only_own && owner != processes().rank()) return;
    if (segments[i] != summed(processes().size(), i)) ++wrong;
  });
  return wrong;
}

TEST(Communicator, numbers_its_processes) {
  Communicator& all = processes();
  EXPECT_GE(all.rank(), 0);
  EXPECT_LT(all.rank(), all.size());
  EXPECT_LT(all.local_rank(), all.local_size());
  std::vector<double> seen(static_cast<std::size_t>(all.size()), 0.0);
  seen[static_cast<std::size_t>(all.rank())] = 1;
  all.sum_host(seen);
  EXPECT_EQ(seen, std::vector<double>(seen.size(), 1.0));
  // CTest says how many it has started: mpirun of another MPI than the library's would start each alone.
  if (const char* expected = std::getenv("POLARON_TEST_PROCESSES")) {
    EXPECT_EQ(std::to_string(all.size()), expected);
  }
}

TEST_P(CommunicatorIn, reduce_to_owners_sums_on_the_owner_and_touches_nothing_between_segments) {
  Segments<float> segments = brought_segments(setting_);
  TestStream stream(setting_);
  all_.reduce_to_owners(stream, segments.list);
  all_.finish(stream);
  segments.values.fetch(stream);
  EXPECT_EQ(wrong_sums(segments, true), 0);
  EXPECT_EQ(segments.gaps(), std::vector<float>(segments.list.size() + 1, kUntouched));
}

TEST_P(CommunicatorIn, gather_from_owners_brings_the_owners_numbers_to_all) {
  Segments<float> segments = brought_segments(setting_);
  TestStream stream(setting_);
  all_.gather_from_owners(stream, segments.list);
  all_.finish(stream);
  segments.values.fetch(stream);
  std::int64_t wrong = 0;
  segments.for_each([&](std::int64_t i, int owner) { wrong += segments[i] != brought(owner, i) ? 1 : 0; });
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(segments.gaps(), std::vector<float>(segments.list.size() + 1, kUntouched));
}

TEST_P(CommunicatorIn, gather_from_owners_brings_bf16_numbers_bit_by_bit) {
  // All bit patterns occur, those of NaN and infinity too.
  const auto bits = [](int rank, std::int64_t i) { return static_cast<std::uint16_t>(i * 40503 + rank); };
  Segments<std::uint16_t> segments(setting_, DType::bf16, 0xABCD);
  segments.for_each([&](std::int64_t i, int) { segments[i] = bits(processes().rank(), i); });
  segments.values.send();
  TestStream stream(setting_);
  all_.gather_from_owners(stream, segments.list);
  all_.finish(stream);
  segments.values.fetch(stream);
  std::int64_t wrong = 0;
  segments.for_each([&](std::int64_t i, int owner) { wrong += segments[i] != bits(owner, i) ? 1 : 0; });
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(segments.gaps(), std::vector<std::uint16_t>(segments.list.size() + 1, 0xABCD));
}

TEST_P(CommunicatorIn, sum_in_place_gives_the_same_bits_on_all_processes) {
  Communicator& all = all_;
  const auto random = [](int rank, std::size_t i) {  // of either sign, larger for higher ranks, all bits in use
    const auto hash = (static_cast<std::uint32_t>(i) + 977U * static_cast<std::uint32_t>(rank)) * 2654435761U;
    return std::ldexp(static_cast<float>(hash) - 0x1p31F, -40 + rank);
  };
  for (const std::int64_t size : kSizes) {
    const auto n = static_cast<std::size_t>(size);
    Values<float> shared(setting_, n);
    std::vector<float>& values = shared.host;
    for (std::size_t i = 0; i < n; ++i) values[i] = random(all.rank(), i);
    shared.send();
    TestStream stream(setting_);
    all.sum_in_place(stream, shared.data(), size);
    all.finish(stream);
    shared.fetch(stream);
    std::vector<float> first = values;
    all.broadcast_host(first.data(), size * 4, 0);
    EXPECT_TRUE(size == 0 || std::memcmp(first.data(), values.data(), n * 4) == 0) << size;
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < n; ++i) {
      double sum = 0, magnitude = 0;
      for (int rank = 0; rank < all.size(); ++rank) {
        sum += random(rank, i);
        magnitude += std::abs(random(rank, i));
      }
      // Each of the additions rounds once, by at most half a unit of what has been added up.
      if (!(std::abs(values[i] - sum) <= 0x1p-24 * (all.size() - 1) * magnitude)) ++wrong;
    }
    EXPECT_EQ(wrong, 0) << size;
  }
}

TEST_P(CommunicatorIn, transfers_see_the_work_that_was_queued_on_their_stream) {
  Communicator& all = all_;
  Values<float> reduced(setting_, 1000), gathered(setting_, 1000), summed_up(setting_, 1000);
  const auto filling = [&](Values<float>& values) {
    return [&values, rank = all.rank()] {
      for (std::size_t i = 0; i < 1000; ++i) values.host[i] = brought(rank, static_cast<std::int64_t>(i));
      values.send();
    };
  };
  const int last = all.size() - 1;
  TestStream a(setting_, filling(reduced)), b(setting_, filling(gathered)), c(setting_, filling(summed_up));
  all.reduce_to_owners(a, std::vector<Segment>{{reduced.data(), DType::f32, 1000, last}});
  all.gather_from_owners(b, std::vector<Segment>{{gathered.data(), DType::f32, 1000, last}});
  all.sum_in_place(c, summed_up.data(), 1000);
  for (TestStream* stream : {&a, &b, &c}) {
    all.finish(*stream);
    static_cast<Stream&>(*stream).synchronize();  // alone nobody has waited for them yet
  }
  for (Values<float>* values : {&reduced, &gathered, &summed_up}) values->look();
  for (std::int64_t i = 0; i < 1000; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (all.rank() == last) {
      EXPECT_EQ(reduced.host[at], summed(all.size(), i));
    }
    EXPECT_EQ(gathered.host[at], brought(last, i));
    EXPECT_EQ(summed_up.host[at], summed(all.size(), i));
  }
}

TEST_P(CommunicatorIn, transfers_are_carried_out_in_the_order_in_which_they_were_begun) {
  Segments<float> segments = brought_segments(setting_);
  TestStream stream(setting_);
  all_.reduce_to_owners(stream, segments.list);
  all_.gather_from_owners(stream, segments.list);  // of the sums, although nobody has waited for them
  all_.finish(stream);
  segments.values.fetch(stream);
  EXPECT_EQ(wrong_sums(segments, false), 0);
}

TEST_P(CommunicatorIn, transfers_are_complete_after_finish_while_other_threads_compute) {
  Communicator& all = all_;
  TestStream stream(setting_);
  for (int round = 0; round < 2; ++round) {
    // The gradients of later layers are written while those of earlier ones travel, and by other threads.
    std::vector<Segments<float>> layers;
    for (int layer = 0; layer < 2; ++layer) layers.emplace_back(setting_, DType::f32, kUntouched);
    for (Segments<float>& layer : layers) {
      std::thread([&] {
        layer.for_each([&](std::int64_t i, int) { layer[i] = brought(all.rank(), i); });
        layer.values.send();
      }).join();
      all.reduce_to_owners(stream, layer.list);
    }
    double own_work = 0;
    std::thread computing([&] {
      for (int i = 0; i < 200000; ++i) own_work += std::sqrt(static_cast<double>(i));
    });
    all.finish(stream);
    for (Segments<float>& layer : layers) layer.values.fetch(stream);
    for (Segments<float>& layer : layers) EXPECT_EQ(wrong_sums(layer, true), 0) << round;
    computing.join();
    EXPECT_GT(own_work, 0);
    // The memory is free again: it is written and sent at once.
    for (Segments<float>& layer : layers) {
      layer.for_each([&](std::int64_t i, int owner) { layer[i] = owner == all.rank() ? brought(owner, i) : 0; });
      layer.values.send();
      all.gather_from_owners(stream, layer.list);
    }
    all.finish(stream);
    std::int64_t wrong = 0;
    for (Segments<float>& layer : layers) {
      layer.values.fetch(stream);
      layer.for_each([&](std::int64_t i, int owner) { wrong += layer[i] != brought(owner, i) ? 1 : 0; });
    }
    EXPECT_EQ(wrong, 0) << round;
  }
}

// Not a claim of the communicator but of its check under ThreadSanitizer: this is wrong, and must be found there. With
// one process nothing travels. The pause lets the transfer start: a write before that is ordered before it by the lock
// under which finish() waits. One of many rounds is enough.
TEST(Communicator, DISABLED_a_write_into_what_travels_is_a_race) {
  std::vector<float> values(1000, 1.0F);
  const Setting setting(Place::host);
  TestStream stream(setting);
  for (int round = 0; round < 20; ++round) {
    processes().sum_in_place(stream, values.data(), 1000);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    values[500] = 2.0F;
    processes().finish(stream);
  }
}

TEST_P(CommunicatorIn, sum_host_adds_in_the_order_of_ranks) {
  Communicator& all = all_;
  // With 1e16 first the 1 is lost, with both large numbers first it stays; the values of process r, by column.
  const auto value = [&](int rank, std::size_t column) {
    const double columns[] = {1e16, 1.0, -1e16};
    return columns[(static_cast<std::size_t>(rank) + column) % 3];
  };
  std::vector<double> host(3), expected(3, 0.0);
  Values<double> device(setting_, 3);
  for (std::size_t i = 0; i < 3; ++i) {
    host[i] = device.host[i] = value(all.rank(), i);
    for (int rank = 0; rank < all.size(); ++rank) expected[i] += value(rank, i);
  }
  all.sum_host(host);
  EXPECT_EQ(host, expected);
  TestStream stream(setting_);
  device.send();
  all.sum(stream, device.data(), 3);
  device.fetch(stream);
  EXPECT_EQ(device.host, expected);
  std::vector<double> none;
  all.sum_host(none);
}

TEST(Communicator, sum_local_adds_over_the_processes_of_this_machine) {
  Communicator& all = processes();
  std::vector<double> count = {1.0, static_cast<double>(all.local_rank())};
  all.sum_local(count);
  EXPECT_EQ(count[0], all.local_size());
  EXPECT_EQ(count[1], all.local_size() * (all.local_size() - 1) / 2);
}

TEST(Communicator, broadcast_host_brings_any_process_s_bytes_to_all) {
  Communicator& all = processes();
  for (int root = 0; root < all.size(); ++root) {
    for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{3000001}}) {
      std::string text(size, static_cast<char>('a' + all.rank()));
      all.broadcast_host(text.data(), static_cast<std::int64_t>(size), root);
      EXPECT_TRUE(text == std::string(size, static_cast<char>('a' + root))) << root << ", " << size;
    }
  }
}

TEST(Communicator, a_process_can_send_to_rank_0_without_the_others) {
  Communicator& all = processes();
  for (int from = 1; from < all.size(); ++from) {
    for (const std::size_t size : {std::size_t{1}, std::size_t{3000001}}) {
      std::string text(size, static_cast<char>('a' + all.rank()));
      if (all.rank() == from) all.send_to_root(text.data(), static_cast<std::int64_t>(size));
      if (all.rank() != 0) continue;
      all.receive_at_root(text.data(), static_cast<std::int64_t>(size), from);
      EXPECT_TRUE(text == std::string(size, static_cast<char>('a' + from))) << from << ", " << size;
    }
  }
}

TEST(Communicator, a_barrier_is_passed_when_all_have_reached_it) {
  namespace fs = std::filesystem;
  Communicator& all = processes();
  std::string folder = (fs::path(testing::TempDir()) / "polaron-comm-XXXXXX").string();
  const bool made = all.rank() != 0 || ::mkdtemp(folder.data()) != nullptr;
  EXPECT_TRUE(made);
  all.broadcast_host(folder.data(), static_cast<std::int64_t>(folder.size()), 0);
  // The later the rank, the later it comes.
  std::this_thread::sleep_for(std::chrono::milliseconds(30 * all.rank()));
  std::ofstream(fs::path(folder) / std::to_string(all.rank())).flush();
  all.barrier();
  for (int rank = 0; rank < all.size(); ++rank) EXPECT_TRUE(fs::exists(fs::path(folder) / std::to_string(rank)));
  all.barrier();  // before they are removed
  if (all.rank() == 0) fs::remove_all(folder);
}

TEST_P(CommunicatorIn, bytes_moved_counts_what_is_sent_to_sums_elsewhere_and_received_from_owners) {
  Communicator& all = all_;
  Values<float> values(setting_, 3 * kPiece);
  const std::vector<Segment> segments = {{values.data(), DType::f32, 1000, 0},
                                         {values.data() + 1000, DType::f32, 2 * kPiece, all.size() - 1}};
  TestStream stream(setting_);
  const auto moved_by = [&](const std::function<void()>& transfer) {
    const std::int64_t before = all.bytes_moved();
    transfer();
    all.finish(stream);
    return all.bytes_moved() - before;
  };
  const std::int64_t elsewhere =
      (all.rank() == 0 ? 0 : 4000) + (all.rank() == all.size() - 1 ? 0 : 8 * kPiece);  // owned by others
  EXPECT_EQ(moved_by([&] { all.reduce_to_owners(stream, segments); }), elsewhere);
  EXPECT_EQ(moved_by([&] { all.gather_from_owners(stream, segments); }), elsewhere);
  Values<std::uint16_t> rounded(setting_, 999);
  EXPECT_EQ(moved_by([&] {
              all.gather_from_owners(stream, std::vector<Segment>{{rounded.data(), DType::bf16, 999, 0}});
            }),
            all.rank() == 0 ? 0 : 2 * 999);

  // A sum everywhere is a sum in one place and its way back: twice the bytes for each process but one.
  double in_all = static_cast<double>(moved_by([&] { all.sum_in_place(stream, values.data(), 1001); }));
  Values<double> scalar(setting_, 1);
  EXPECT_EQ(moved_by([&] { all.sum(stream, scalar.data(), 1); }), 0);
  all.sum_host(std::span(&in_all, 1));
  EXPECT_EQ(in_all, 2.0 * 4 * 1001 * (all.size() - 1));
}

}  // namespace
}  // namespace polaron::test
