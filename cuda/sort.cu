#include "cuda/sort.h"

#include <bit>
#include <utility>

#include "cuda/element.h"
#include "cuda/reduce.h"

namespace polaron::cuda {
namespace {

// Radix sort, least significant digit first, 8 bits a pass: each block counts the digits of its tile, one block turns
// the counts into places, and each block moves its tile there. Few bytes (a micro-batch's tokens) and few launches: two
// passes for a vocabulary of 50,257. No atomics on places, so that the sort is stable.
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRounds = 8;  // of one element a thread
constexpr std::int64_t kTile = kThreads * kRounds;
constexpr int kScanThreads = 1024;

struct Pass {
  const std::int32_t* keys;
  const std::int32_t* numbers;  // null: 0, 1, 2, ...
  std::int32_t *sorted_keys, *sorted_numbers;
  std::int32_t* places;  // [kDigits][tiles]
  std::int64_t count, tiles;
  std::int32_t limit;
  int shift;

  __device__ std::int32_t key(std::int64_t i) const {
    const std::int32_t key = keys[i];
    return key < 0 || key > limit ? limit : key;
  }
  __device__ int digit(std::int32_t key) const { return key >> shift & (kDigits - 1); }
};

struct DigitCounts {
  int values[kWarps][kDigits];
};

// The lanes of `present` whose digit is mine.
__device__ unsigned lanes_with_digit(unsigned present, int digit) {
  unsigned same = present;
#pragma unroll
  for (int bit = 0; bit < kDigitBits; ++bit) {
    const bool set = (digit >> bit & 1) != 0;
    const unsigned with = __ballot_sync(kWholeWarp, set);
    same &= set ? with : ~with;
  }
  return same;
}

// counts[warp][digit] of the tile. Each warp owns kRounds * 32 neighbouring elements.
__device__ void count_digits(const Pass& p, DigitCounts& counts) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = lane; i < kDigits; i += 32) counts.values[warp][i] = 0;
  __syncwarp();
  for (int round = 0; round < kRounds; ++round) {
    const std::int64_t i = blockIdx.x * kTile + (warp * kRounds + round) * 32 + lane;
    const bool there = i < p.count;
    const int digit = there ? p.digit(p.key(i)) : 0;
    const unsigned same = lanes_with_digit(__ballot_sync(kWholeWarp, there), digit);
    if (there && __ffs(static_cast<int>(same)) - 1 == lane) counts.values[warp][digit] += __popc(same);
    __syncwarp();
  }
}

__global__ void __launch_bounds__(kThreads) sort_count(const Pass p) {
  DigitCounts& counts = static_shared<DigitCounts>();
  count_digits(p, counts);
  __syncthreads();
  int sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += counts.values[warp][threadIdx.x];
  p.places[threadIdx.x * p.tiles + blockIdx.x] = sum;
}

struct WarpTotals {
  int values[32];
};

// counts -> exclusive sums over all counts, digit by digit: where the first element of each digit of each tile goes.
__global__ void __launch_bounds__(kScanThreads) sort_scan(std::int32_t* counts, std::int64_t size) {
  WarpTotals& totals = static_shared<WarpTotals>();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int before = 0;  // sum of all earlier rounds
  for (std::int64_t first = 0; first < size; first += kScanThreads) {
    const std::int64_t i = first + threadIdx.x;
    const int value = i < size ? counts[i] : 0;
    int inclusive = value;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(kWholeWarp, inclusive, static_cast<unsigned>(offset));
      if (lane >= offset) inclusive += other;
    }
    if (lane == 31) totals.values[warp] = inclusive;
    __syncthreads();
    int before_warp = 0, all = 0;
    for (int w = 0; w < kScanThreads / 32; ++w) {
      if (w < warp) before_warp += totals.values[w];
      all += totals.values[w];
    }
    if (i < size) counts[i] = before + before_warp + inclusive - value;
    before += all;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) sort_move(const Pass p) {
  DigitCounts& places = static_shared<DigitCounts>();
  count_digits(p, places);
  __syncthreads();
  int place = p.places[threadIdx.x * p.tiles + blockIdx.x];
  for (int warp = 0; warp < kWarps; ++warp) {  // where each warp's elements of this digit go
    const int mine = places.values[warp][threadIdx.x];
    places.values[warp][threadIdx.x] = place;
    place += mine;
  }
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int round = 0; round < kRounds; ++round) {
    const std::int64_t i = blockIdx.x * kTile + (warp * kRounds + round) * 32 + lane;
    const bool there = i < p.count;
    const std::int32_t key = there ? p.key(i) : 0;
    const int digit = p.digit(key);
    const unsigned same = lanes_with_digit(__ballot_sync(kWholeWarp, there), digit);
    const int earlier = __popc(same & ((1U << lane) - 1U));
    const int to = there ? places.values[warp][digit] + earlier : 0;
    __syncwarp();
    if (there) {
      p.sorted_keys[to] = key;
      p.sorted_numbers[to] = p.numbers == nullptr ? static_cast<std::int32_t>(i) : p.numbers[i];
      if (earlier == 0) places.values[warp][digit] += __popc(same);
    }
    __syncwarp();
  }
}

}  // namespace

std::int64_t sort_scratch(std::int64_t count) { return 2 * count + kDigits * ceil_div(count, kTile); }

void sort_by_key(Stream& stream, const std::int32_t* keys, std::int64_t count, std::int32_t limit, std::int32_t* order,
                 std::int32_t* sorted, std::int32_t* scratch) {
  if (count == 0) return;
  const int bits = std::bit_width(static_cast<std::uint32_t>(limit)), passes = ceil_div(bits, kDigitBits);
  const std::int64_t tiles = ceil_div(count, kTile);
  std::int32_t *other_keys = scratch, *other_numbers = scratch + count, *const places = scratch + 2 * count;
  // The last pass must end in the caller's memory.
  std::int32_t *to_keys = sorted, *to_numbers = order;
  if (passes % 2 == 0) {
    std::swap(to_keys, other_keys);
    std::swap(to_numbers, other_numbers);
  }
  const std::int32_t* numbers = nullptr;
  const cudaStream_t handle = handle_of(stream);
  const dim3 blocks(static_cast<unsigned>(tiles));
  for (int pass = 0; pass < passes; ++pass) {
    const Pass p{keys, numbers, to_keys, to_numbers, places, count, tiles, limit, pass * kDigitBits};
    launch<sort_count>({blocks, dim3(kThreads), handle}, p);
    launch<sort_scan>({dim3(1), dim3(kScanThreads), handle}, places, kDigits * tiles);
    launch<sort_move>({blocks, dim3(kThreads), handle}, p);
    keys = to_keys;
    numbers = to_numbers;
    std::swap(to_keys, other_keys);
    std::swap(to_numbers, other_numbers);
  }
}

}  // namespace polaron::cuda
