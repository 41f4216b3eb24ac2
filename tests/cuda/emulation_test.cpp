// The emulation itself: what it must catch, and that it computes what CUDA defines.
#include "emulation/emulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "cuda/launch.h"
#include "cuda/mma.h"
#include "support/errors.h"

namespace polaron::cuda {
namespace {

using emulation::Fault;
using emulation::Options;
using emulation::Order;
using emulation::WithOptions;
using test::contains;

constexpr Order kOrders[] = {Order::forward, Order::reverse, Order::random};

template <class Body>
std::string fault_of(Body&& body) {
  try {
    body();
  } catch (const Fault& fault) {
    return fault.what();
  }
  return "";
}

__global__ void write_indices(int* out, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) out[i] = static_cast<int>(i * 10 + gridDim.x);
}

TEST(Emulation, every_thread_of_every_block_runs_once) {
  for (const Order order : kOrders) {
    const WithOptions with({.order = order});
    std::vector<int> out(1000, -1);
    launch<write_indices>({dim3(8), dim3(128)}, out.data(), 1000);
    for (int i = 0; i < 1000; ++i) EXPECT_EQ(out[i], i * 10 + 8);
  }
}

__global__ void write_3d(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  ++out[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

TEST(Emulation, blocks_and_grids_have_three_dimensions) {
  std::vector<int> out(2 * 3 * 4 * 8 * 2 * 3, 0);
  launch<write_3d>({dim3(2, 3, 4), dim3(8, 2, 3)}, out.data());
  EXPECT_EQ(std::count(out.begin(), out.end(), 1), static_cast<std::ptrdiff_t>(out.size()));
}

struct Reversed {
  int values[256];
};
template <bool with_barrier>
__global__ void reverse_in_shared(const int* in, int* out) {
  Reversed& shared = static_shared<Reversed>();
  shared.values[threadIdx.x] = in[threadIdx.x];
  if constexpr (with_barrier) __syncthreads();
  out[threadIdx.x] = shared.values[blockDim.x - 1 - threadIdx.x];
}

template <bool with_barrier>
std::vector<int> reversed(Order order) {
  const WithOptions with({.order = order});
  std::vector<int> in(256), out(256);
  std::iota(in.begin(), in.end(), 0);
  launch<reverse_in_shared<with_barrier>>({dim3(1), dim3(256)}, in.data(), out.data());
  return out;
}

TEST(Emulation, with_its_barrier_a_kernel_gives_the_same_for_every_order) {
  for (const Order order : kOrders) {
    const std::vector<int> out = reversed<true>(order);
    for (int i = 0; i < 256; ++i) ASSERT_EQ(out[i], 255 - i);
  }
}

#if !defined(__SANITIZE_THREAD__)  // which reports the race, rightly
TEST(Emulation, a_missing_barrier_shows_in_results_that_depend_on_the_order) {
  const std::vector<int> forward = reversed<false>(Order::forward);
  EXPECT_NE(forward, reversed<false>(Order::reverse));
  EXPECT_NE(forward, reversed<false>(Order::random));
  EXPECT_NE(forward, reversed<true>(Order::forward));
}
#endif

__global__ void take_turns(int* out, int* turn) { out[threadIdx.x] = atomicAdd(turn, 1); }

TEST(Emulation, random_orders_are_the_same_for_the_same_seed_only) {
  const auto order = [](std::uint64_t seed) {
    const WithOptions with({.order = Order::random, .seed = seed});
    std::vector<int> places(64);
    int next = 0;
    int* const counter = &next;
    launch<take_turns>({dim3(1), dim3(64)}, places.data(), counter);
    return places;
  };
  EXPECT_EQ(order(1), order(1));
  EXPECT_NE(order(1), order(2));
}

struct Floats {
  float values[40];
};
__global__ void read_shared(float* out) {
  out[0] = static_shared<Floats>().values[39];
  out[1] = dynamic_shared<float>()[9];
  __syncthreads();
  static_shared<Floats>().values[39] = 1.0F;
  dynamic_shared<float>()[9] = 1.0F;
}

TEST(Emulation, shared_memory_is_nan_at_the_start_of_every_block) {
  for (int round = 0; round < 2; ++round) {
    float out[2] = {};
    float* const to = out;
    launch<read_shared>({dim3(1), dim3(1), nullptr, 40}, to);
    EXPECT_TRUE(out[0] != out[0] && out[1] != out[1]);
  }
}

__global__ void diverge(int kind) {
  const bool odd = threadIdx.x == 5;
  if (kind == 0 && odd) return;
  if (kind == 1) {
    if (odd) {
      __syncthreads();
    } else {
      __syncthreads();
    }
    return;
  }
  if (kind == 2 && odd) __syncwarp(1U << 5U);
  if (kind == 3 && odd) __syncwarp(3U << 5U);
  __syncthreads();
}

TEST(Emulation, a_divergent_barrier_is_reported_with_kernel_block_and_thread) {
  for (const Order order : kOrders) {
    const WithOptions with({.order = order});
    const std::string returned = fault_of([] { launch<diverge>({dim3(3), dim3(64)}, 0); });
    EXPECT_TRUE(contains(returned, "diverge"));
    EXPECT_TRUE(contains(returned, "block ("));
    EXPECT_TRUE(contains(returned, "thread (5, 0, 0) has returned"));
    EXPECT_TRUE(contains(returned, "waits at emulation_test.cpp:"));
    EXPECT_TRUE(contains(fault_of([] { launch<diverge>({dim3(1), dim3(64)}, 1); }), "divergent __syncthreads"));
    EXPECT_EQ(fault_of([] { launch<diverge>({dim3(1), dim3(64)}, 2); }), "");
    EXPECT_TRUE(contains(fault_of([] { launch<diverge>({dim3(1), dim3(64)}, 3); }), "(__syncwarp)"));
    EXPECT_EQ(fault_of([] { launch<diverge>({dim3(1), dim3(64)}, 4); }), "");  // and the next launch is well again
  }
}

struct Shuffled {
  int index[32], up[32], down[32], exclusive_or[32], segment[32], over[32];
};
__global__ void shuffle(Shuffled* out) {
  const auto lane = static_cast<int>(threadIdx.x), value = 100 + lane;
  out->index[lane] = __shfl_sync(~0U, value, 7);
  out->up[lane] = __shfl_up_sync(~0U, value, 3);
  out->down[lane] = __shfl_down_sync(~0U, value, 30);
  out->exclusive_or[lane] = __shfl_xor_sync(~0U, value, 16);
  out->segment[lane] = __shfl_sync(~0U, value, 9, 8);
  out->over[lane] = __shfl_up_sync(~0U, value, 1, 4);
}

TEST(Emulation, shuffles_read_the_lanes_that_cuda_defines) {
  for (const Order order : kOrders) {
    const WithOptions with({.order = order});
    Shuffled out{};
    Shuffled* const to = &out;
    launch<shuffle>({dim3(1), dim3(32)}, to);
    for (int lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(out.index[lane], 107);
      EXPECT_EQ(out.up[lane], lane < 3 ? 100 + lane : 97 + lane);
      EXPECT_EQ(out.down[lane], lane < 2 ? 130 + lane : 100 + lane);
      EXPECT_EQ(out.exclusive_or[lane], 100 + (lane ^ 16));
      EXPECT_EQ(out.segment[lane], 100 + lane / 8 * 8 + 1);
      EXPECT_EQ(out.over[lane], lane % 4 == 0 ? 100 + lane : 99 + lane);
    }
  }
}

__global__ void vote(unsigned* out) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned ballot = __ballot_sync(~0U, lane % 3 == 0);
  const int any = __any_sync(~0U, lane == 31), all = __all_sync(~0U, lane < 31);
  unsigned half = 0;
  if (lane < 16) half = __ballot_sync(0xffffU, lane % 2);  // a part of the warp by itself
  const unsigned sum = __reduce_add_sync(~0U, lane);
  unsigned* const to = out + threadIdx.x * 5;
  to[0] = ballot, to[1] = any, to[2] = all, to[3] = half, to[4] = sum;
}

TEST(Emulation, votes_count_the_lanes_of_their_mask) {
  for (const Order order : kOrders) {
    const WithOptions with({.order = order});
    std::vector<unsigned> out(64 * 5);
    launch<vote>({dim3(1), dim3(64)}, out.data());
    for (unsigned thread = 0; thread < 64; ++thread) {
      EXPECT_EQ(out[thread * 5], 0x49249249U);
      EXPECT_EQ(out[thread * 5 + 1], 1U);
      EXPECT_EQ(out[thread * 5 + 2], 0U);
      EXPECT_EQ(out[thread * 5 + 3], thread % 32 < 16 ? 0xAAAAU : 0U);
      EXPECT_EQ(out[thread * 5 + 4], 496U);
    }
  }
}

__global__ void misuse(int kind, int* out) {
  const auto lane = static_cast<int>(threadIdx.x);
  if (kind == 0 && lane < 4) *out = __shfl_sync(0xfU, lane, 5);
  if (kind == 1) *out = __shfl_sync(1U, lane, 0);
  if (kind == 2) *out = __shfl_sync(~0U, lane, 0);
  if (kind == 3) *out = lane < 16 ? __shfl_sync(~0U, lane, 0) : static_cast<int>(__ballot_sync(~0U, 1));
}

__global__ void copy_16_bytes(uint4* to, const uint4* from) { __stcs(to, __ldcs(from)); }

TEST(Emulation, vector_accesses_must_be_aligned) {
  alignas(16) std::byte memory[64] = {};
  const auto copy = [&](int to, int from) {
    auto* const target = reinterpret_cast<uint4*>(memory + to);
    const auto* const source = reinterpret_cast<const uint4*>(memory + from);
    return fault_of([&] { launch<copy_16_bytes>({dim3(1), dim3(1)}, target, source); });
  };
  EXPECT_EQ(copy(16, 32), "");
  EXPECT_TRUE(contains(copy(4, 32), "not a multiple"));
  EXPECT_TRUE(contains(copy(16, 8), "not a multiple"));
}

struct Words {
  uint4 word[2];
};
// Each with an address in the wrong kind of memory.
__global__ void misplace(int kind, uint4* global) {
  Words& shared = static_shared<Words>();
  uint4 local{};
  std::uint32_t fragment[4];
  if (kind == 0) __stcs(&shared.word[0], local);
  if (kind == 1) *global = __ldca(&shared.word[1]);
  if (kind == 2) *global = __ldca(dynamic_shared<uint4>());
  if (kind == 3) __stwb(&local, *global);
  if (kind == 4) copy_async<16>(global, global + 1, true);
  if (kind == 5) copy_async<16>(&shared.word[0], &shared.word[1], true);
  if (kind == 6) ldmatrix_x4(fragment, global);
  if (kind == 7) {  // none is wrong
    copy_async<16>(&shared.word[0], global, true);
    copy_async<16>(dynamic_shared<uint4>(), &shared.word[1], false);
    ldmatrix_x4(fragment, dynamic_shared<uint4>());
    __stcs(global, __ldcs(global + 1));
  }
}

TEST(Emulation, an_instruction_for_one_kind_of_memory_faults_on_another) {
  alignas(16) uint4 memory[2] = {};
  uint4* const global = memory;
  const char* const expected[] = {"address in shared memory for device memory",
                                  "address in shared memory",
                                  "address in shared memory",
                                  "address of a local variable",
                                  "outside of shared memory",
                                  "address in shared memory",
                                  "outside of shared memory"};
  for (int kind = 0; kind < 7; ++kind) {
    const std::string fault = fault_of([&] { launch<misplace>({dim3(1), dim3(32), nullptr, 16}, kind, global); });
    EXPECT_TRUE(contains(fault, expected[kind])) << kind;
  }
  EXPECT_EQ(fault_of([&] { launch<misplace>({dim3(1), dim3(32), nullptr, 16}, 7, global); }), "");
}

TEST(Emulation, misused_masks_are_reported) {
  int out = 0;
  int* const to = &out;
  EXPECT_TRUE(contains(fault_of([&] { launch<misuse>({dim3(1), dim3(32)}, 0, to); }), "not in the shuffle's mask"));
  EXPECT_TRUE(contains(fault_of([&] { launch<misuse>({dim3(1), dim3(32)}, 1, to); }), "lacks its own lane"));
  EXPECT_TRUE(contains(fault_of([&] { launch<misuse>({dim3(1), dim3(24)}, 2, to); }), "do not exist"));
  const std::string diverging = fault_of([&] { launch<misuse>({dim3(1), dim3(32)}, 3, to); });
  EXPECT_TRUE(contains(diverging, "divergent warp operation: thread (0, 0, 0) waits"));
  EXPECT_TRUE(contains(diverging, "(a vote)"));
}

__global__ void count(int* sum, unsigned* most, unsigned long long* bits) {
  atomicAdd(sum, 2);
  atomicMax(most, blockIdx.x * blockDim.x + threadIdx.x);
  atomicOr(bits, 1ULL << (threadIdx.x % 64));
}

TEST(Emulation, integer_atomics_lose_nothing_between_blocks) {
  int sum = 0;
  unsigned most = 0;
  unsigned long long bits = 0;
  int* const s = &sum;
  unsigned* const m = &most;
  unsigned long long* const b = &bits;
  launch<count>({dim3(50), dim3(96)}, s, m, b);
  EXPECT_EQ(sum, 2 * 50 * 96);
  EXPECT_EQ(most, 50U * 96 - 1);
  EXPECT_EQ(bits, ~0ULL);
}

__global__ void nothing() {}

TEST(Emulation, launches_beyond_the_limits_of_a_device_are_refused) {
  EXPECT_TRUE(contains(fault_of([] { launch<nothing>({dim3(1), dim3(1025)}); }), "threads"));
  EXPECT_TRUE(contains(fault_of([] { launch<nothing>({dim3(1), dim3(1, 1, 65)}); }), "threads"));
  EXPECT_TRUE(contains(fault_of([] { launch<nothing>({dim3(0), dim3(1)}); }), "blocks"));
  EXPECT_TRUE(contains(fault_of([] { launch<nothing>({dim3(1, 65536), dim3(1)}); }), "blocks"));
  EXPECT_TRUE(contains(fault_of([] { launch<nothing>({dim3(1), dim3(1), nullptr, 49153}); }), "shared memory"));
  allow_shared<nothing>(50000);
  EXPECT_EQ(fault_of([] { launch<nothing>({dim3(1), dim3(1), nullptr, 50000}); }), "");
  EXPECT_THROW(allow_shared<nothing>(228 << 10), Error);
}

__global__ void never_ends(int barriers) {
  while (barriers != 0) __syncthreads();
  volatile int* const spin = dynamic_shared<int>();
  while (*spin != 0) {
  }
}

TEST(Emulation, a_loop_without_end_that_passes_barriers_is_reported) {
  const WithOptions with({.seconds_a_block = 0.2});
  EXPECT_TRUE(contains(fault_of([] { launch<never_ends>({dim3(1), dim3(32), nullptr, 4}, 1); }), "come to an end"));
}

TEST(EmulationDeathTest, a_loop_without_end_ends_the_process_with_a_message) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const WithOptions with({.seconds_a_block = 0.2});
  EXPECT_DEATH(launch<never_ends>({dim3(1), dim3(32), nullptr, 4}, 0),
               "never_ends.*thread \\(0, 0, 0\\) runs without end");
}

TEST(Emulation, kernels_that_ran_are_known_by_name) {
  launch<reverse_in_shared<true>>({dim3(1), dim3(1)}, std::vector<int>(1).data(), std::vector<int>(1).data());
  bool found = false;
  for (const std::string& name : emulation::launched_kernels()) {
    found = found || name.find("reverse_in_shared<true>") != std::string::npos;
  }
  EXPECT_TRUE(found);
}

TEST(EmulatedStreams, lazy_work_waits_until_something_waits_for_it) {
  const WithOptions with({.lazy_streams = true});
  cudaStream_t first = nullptr, second = nullptr;
  cudaEvent_t event = nullptr;
  check(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking), "");
  check(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking), "");
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "");
  std::vector<int> a(4, -1), b(4, -1);
  launch<write_indices>({dim3(1), dim3(4), first}, a.data(), 4);
  check(cudaEventRecord(event, first), "");
  check(cudaStreamWaitEvent(second, event, 0), "");
  check(cudaMemcpyAsync(b.data(), a.data(), 16, cudaMemcpyDeviceToDevice, second), "");
  EXPECT_EQ(a[0], -1);
  EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
  check(cudaStreamSynchronize(second), "");
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
  EXPECT_EQ(b[3], 31);
  check(cudaEventDestroy(event), "");
  check(cudaStreamDestroy(first), "");
  check(cudaStreamDestroy(second), "");
}

}  // namespace
}  // namespace polaron::cuda
