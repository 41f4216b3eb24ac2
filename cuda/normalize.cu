// Division of every matrix of a stack by its norm, and the way between fp32 stacks and bf16. Two stages without
// atomics: sums of fixed chunks, which every block that needs the norm adds up again, in the same order.
#include <algorithm>

#include "cuda/element.h"
#include "cuda/matrix.h"
#include "cuda/reduce.h"

namespace polaron::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPackOfChunk = 4;
constexpr std::int64_t kChunk = 1 << 14;  // elements a block; results depend on it

struct WarpSums {
  double values[kThreads / 32];
};

// Blocks: (chunk, matrix). sums [matrix][chunk]. Squares of fp32 are exact in fp64 and never leave its range.
__global__ void __launch_bounds__(kThreads)
    matrix_squares(const float* stack, std::int64_t elements, bool aligned, double* sums) {
  WarpSums& shared = static_shared<WarpSums>();
  const float* const x = stack + blockIdx.y * elements;
  const std::int64_t begin = blockIdx.x * kChunk, end = begin + kChunk < elements ? begin + kChunk : elements;
  double lanes[kPackOfChunk] = {};
  for (std::int64_t i = begin + threadIdx.x * kPackOfChunk; i < end; i += kThreads * kPackOfChunk) {
    float values[kPackOfChunk];
    if (aligned) {
      load(x + i, values);
    } else {
#pragma unroll
      for (int e = 0; e < kPackOfChunk; ++e) values[e] = i + e < end ? x[i + e] : 0.0F;
    }
#pragma unroll
    for (int e = 0; e < kPackOfChunk; ++e) lanes[e] += static_cast<double>(values[e]) * static_cast<double>(values[e]);
  }
  double sum[1] = {(lanes[0] + lanes[1]) + (lanes[2] + lanes[3])};
  row_sums(sum, shared.values);
  if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = sum[0];
}

struct Normalization {
  const float* from;
  const double* sums;
  std::int64_t elements, cols, stride, batch_stride;  // the last two of `to`
  Divisor divisor;
  bool aligned;  // from and to are both contiguous and made of whole packs
};

// Blocks as above. The factor is applied in fp64: it may lie outside of fp32's range.
template <class T>
__global__ void __launch_bounds__(kThreads) matrix_normalize(const Normalization n, T* to) {
  WarpSums& shared = static_shared<WarpSums>();
  double sum[1] = {0.0};
  for (std::int64_t i = threadIdx.x; i < gridDim.x; i += kThreads) sum[0] += n.sums[blockIdx.y * gridDim.x + i];
  row_sums(sum, shared.values);
  const double norm = sqrt(sum[0]), eps = n.divisor.eps;
  const double larger = norm < eps ? eps : norm;
  const double divisor = n.divisor.clamp ? larger : norm * static_cast<double>(n.divisor.factor) + eps;
  const double factor = norm == 0.0 ? 0.0 : 1.0 / divisor;
  const float* const x = n.from + blockIdx.y * n.elements;
  T* const y = to + blockIdx.y * n.batch_stride;
  const std::int64_t begin = blockIdx.x * kChunk, end = begin + kChunk < n.elements ? begin + kChunk : n.elements;
  if (n.aligned) {
    constexpr int pack = kPack<T>;
    for (std::int64_t i = begin + threadIdx.x * pack; i < end; i += kThreads * pack) {
      float values[pack];
      load(x + i, values);
#pragma unroll
      for (float& value : values) value = static_cast<float>(static_cast<double>(value) * factor);
      store(y + i, values);
    }
  } else {
    for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const float value[1] = {static_cast<float>(static_cast<double>(x[i]) * factor)};
      store(y + i / n.cols * n.stride + i % n.cols, value);
    }
  }
}

// Blocks as above.
__global__ void __launch_bounds__(kThreads)
    matrix_widen(const bf16* from, std::int64_t elements, std::int64_t cols, std::int64_t stride,
                 std::int64_t batch_stride, bool aligned, float* stack) {
  const bf16* const x = from + blockIdx.y * batch_stride;
  float* const y = stack + blockIdx.y * elements;
  const std::int64_t begin = blockIdx.x * kChunk, end = begin + kChunk < elements ? begin + kChunk : elements;
  if (aligned) {
    constexpr int pack = kPack<bf16>;
    for (std::int64_t i = begin + threadIdx.x * pack; i < end; i += kThreads * pack) {
      float values[pack];
      load(x + i, values);
      store(y + i, values);
    }
  } else {
    for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) y[i] = to_float(x[i / cols * stride + i % cols]);
  }
}

bool on_multiple_of_16(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

// Whether both sides of a copy are contiguous and whole packs of either type.
bool whole_packs(const StackShape& shape, const float* stack, const MatrixBatch& other) {
  return on_multiple_of_16(stack) && on_multiple_of_16(other.data) && shape.elements() % kPack<bf16> == 0 &&
         other.stride == shape.cols && other.batch_stride == shape.elements();
}

Grid grid_of(Stream& stream, const StackShape& shape) {
  return {dim3(static_cast<unsigned>(ceil_div(shape.elements(), kChunk)), static_cast<unsigned>(shape.count)),
          dim3(kThreads), handle_of(stream)};
}

}  // namespace

void Normalizer::operator()(Stream& stream, const Divisor& divisor, const StackShape& shape, const float* from,
                            const MatrixBatch& to) {
  if (shape.count == 0) return;
  const Grid grid = grid_of(stream, shape);
  double* const sums = sums_.room<double>(shape.count * grid.blocks.x);
  const bool packs = on_multiple_of_16(from) && shape.elements() % kPackOfChunk == 0;
  launch<matrix_squares>(grid, from, shape.elements(), packs, sums);
  const Normalization n{
      from, sums, shape.elements(), shape.cols, to.stride, to.batch_stride, divisor, whole_packs(shape, from, to)};
  with_element_type(to.dtype, "normalization", [&](auto type) {
    using T = decltype(type);
    launch<matrix_normalize<T>>(grid, n, static_cast<T*>(to.data));
  });
}

std::int64_t Normalizer::scratch_bytes(const StackShape& shape) {
  return shape.count * ceil_div(shape.elements(), kChunk) * static_cast<std::int64_t>(sizeof(double));
}

void widen(Stream& stream, const StackShape& shape, const MatrixBatch& from, float* to) {
  if (shape.count == 0) return;
  launch<matrix_widen>(grid_of(stream, shape), static_cast<const bf16*>(from.data), shape.elements(), shape.cols,
                       from.stride, from.batch_stride, whole_packs(shape, to, from), to);
}

}  // namespace polaron::cuda
