// What the sketches of low-rank orthogonalization take from the counter generator, computed where it is needed. Keys
// travel in the kernel's arguments.
#include <algorithm>

#include "cuda/element.h"
#include "cuda/matrix.h"

namespace polaron::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kKeysALaunch = 128;  // arguments of a kernel are limited to 4 KB
constexpr int kRows = 64;          // a block: enough that finding its columns costs little
constexpr std::int64_t kNumbers = 8 * kThreads;

struct Keys {
  PhiloxKey values[kKeysALaunch];
};

// Blocks: (columns of the sketch, rows, matrix). A thread keeps to its column; a row's reads are scattered, its writes
// are not.
__global__ void __launch_bounds__(kThreads)
    gather_chosen_columns(const __grid_constant__ Keys keys, std::int64_t rows, std::int64_t cols, std::int64_t among,
                          std::int64_t rank, const float* stack, float* sketches) {
  const std::int64_t j = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= rank) return;
  const std::uint32_t chosen =
      keyed_permutation(keys.values[blockIdx.z], static_cast<std::uint32_t>(among), static_cast<std::uint32_t>(j));
  const float* const x = stack + blockIdx.z * rows * cols + chosen;
  float* const y = sketches + blockIdx.z * rows * rank + j;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.y) * kRows;
  const std::int64_t end = begin + kRows < rows ? begin + kRows : rows;
#pragma unroll 4
  for (std::int64_t i = begin; i < end; ++i) y[i * rank] = x[i * cols];
}

// Blocks: (kNumbers numbers, matrix).
__global__ void __launch_bounds__(kThreads)
    fill_sketch_gaussian(const __grid_constant__ Keys keys, std::int64_t elements, float* numbers) {
  const PhiloxKey key = keys.values[blockIdx.y];
  float* const to = numbers + blockIdx.y * elements;
  const std::int64_t begin = blockIdx.x * kNumbers;
  const std::int64_t end = begin + kNumbers < elements ? begin + kNumbers : elements;
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads)
    to[i] = sketch_gaussian(key, static_cast<std::uint64_t>(i));
}

// Calls body(keys, first, count) for kKeysALaunch at a time.
template <class Body>
void in_launches(std::span<const PhiloxKey> keys, Body&& body) {
  for (std::size_t first = 0; first < keys.size(); first += kKeysALaunch) {
    const std::size_t count = std::min<std::size_t>(kKeysALaunch, keys.size() - first);
    Keys some{};
    std::copy_n(keys.begin() + static_cast<std::ptrdiff_t>(first), count, some.values);
    body(some, static_cast<std::int64_t>(first), static_cast<unsigned>(count));
  }
}

}  // namespace

void gather_columns(Stream& stream, const StackShape& shape, std::int64_t among, std::int64_t rank,
                    std::span<const PhiloxKey> keys, const float* stack, float* sketches) {
  in_launches(keys, [&](const Keys& some, std::int64_t first, unsigned count) {
    const dim3 blocks(static_cast<unsigned>(ceil_div(rank, std::int64_t{kThreads})),
                      static_cast<unsigned>(ceil_div(shape.rows, std::int64_t{kRows})), count);
    launch<gather_chosen_columns>({blocks, dim3(kThreads), handle_of(stream)}, some, shape.rows, shape.cols, among,
                                  rank, stack + first * shape.elements(), sketches + first * shape.rows * rank);
  });
}

void fill_gaussian(Stream& stream, std::int64_t cols, std::int64_t rank, std::span<const PhiloxKey> keys,
                   float* numbers) {
  const std::int64_t elements = cols * rank;
  in_launches(keys, [&](const Keys& some, std::int64_t first, unsigned count) {
    launch<fill_sketch_gaussian>(
        {dim3(static_cast<unsigned>(ceil_div(elements, kNumbers)), count), dim3(kThreads), handle_of(stream)}, some,
        elements, numbers + first * elements);
  });
}

}  // namespace polaron::cuda
