// The parts of the CUDA backend's MatrixOps (backend/optimizer_ops.h has their contracts). Matrices are row-major; all
// those of a group are worked on by the same launches. Nothing here waits for the device.
#pragma once

#include <cstdint>
#include <span>

#include "backend/optimizer_ops.h"
#include "cuda/device.h"
#include "cuda/gemm.h"

namespace polaron::cuda {

// One matrix of a group each `batch_stride` elements, rows `stride` elements apart.
struct MatrixBatch {
  void* data;
  DType dtype;
  std::int64_t stride, batch_stride;

  float* f32() const { return static_cast<float*>(data); }
  operator GemmMatrix() const { return {data, dtype, stride, batch_stride}; }
  GemmMatrix transposed() const { return {data, dtype, stride, batch_stride, true}; }
};

// Contiguous [rows, cols] matrices of fp32, as stacks are.
inline MatrixBatch stacked(const float* data, std::int64_t rows, std::int64_t cols) {
  return {const_cast<float*>(data), DType::f32, cols, rows * cols};
}

// c [m, n] = op(a) [m, k] op(b) [k, n] for `count` matrices.
inline GemmCall product_of(std::int64_t count, std::int64_t m, std::int64_t n, std::int64_t k, const GemmMatrix& a,
                           const GemmMatrix& b, const MatrixBatch& c) {
  GemmCall call;
  call.m = m;
  call.n = n;
  call.k = k;
  call.batch = count;
  call.a = a;
  call.b = b;
  call.c = c.data;
  call.c_dtype = c.dtype;
  call.c_stride = c.stride;
  call.c_batch_stride = c.batch_stride;
  return call;
}

// --- momentum_update.cu

// gradients and parameters are of one shape up to transposition.
void momentum_to_stack(Stream& stream, const MomentumRule& rule, const StepGate& gate,
                       std::span<const MatrixView> gradients, std::span<float* const> momentum, float* stack);
void update_dense(Stream& stream, const MatrixOps::UpdateRule& rule, const StepGate& gate, const float* stack,
                  std::span<const float> scales, std::span<const MatrixView> parameters);

// --- normalize.cu

// What the matrices of a stack are divided by: norm * factor + eps, or max(norm, eps), with the Frobenius norm of each,
// found in fp64. A zero matrix stays zero.
struct Divisor {
  float factor = 1.0F, eps = 0.0F;
  bool clamp = false;
};

class Normalizer {
 public:
  explicit Normalizer(Device& device) : sums_(device) {}
  // to = from / divisor, rounded to `to`'s type. from: stacked fp32 [rows, cols]; `to` may be the same memory.
  void operator()(Stream& stream, const Divisor& divisor, const StackShape& shape, const float* from,
                  const MatrixBatch& to);
  static std::int64_t scratch_bytes(const StackShape& shape);

 private:
  Scratch sums_;
};

// to (stacked fp32) = from (bf16).
void widen(Stream& stream, const StackShape& shape, const MatrixBatch& from, float* to);

// --- newton_schulz.cu

std::int64_t newton_schulz_floats(const StackShape& shape, DType dtype);
void newton_schulz(Stream& stream, Gemm& gemm, Normalizer& normalize, const StackShape& shape,
                   const NewtonSchulzSpec& spec, float* stack, float* scratch);

// --- cholesky.cu

// For `count` matrices gram [rank, rank], symmetric: inverse = length * L^-1 with zeros above the diagonal, where
// L L^T = gram + shift I, shift = 1e-6 trace + 1e-30. A pivot that rounding has made zero or negative makes its row and
// column of the inverse zero. length: sqrt(1 + shift) where `lengthen`, else 1. NaN where gram has NaN.
// scratch: inverse_factor_floats(count, rank) floats.
std::int64_t inverse_factor_floats(std::int64_t count, std::int64_t rank);
void inverse_cholesky_factor(Stream& stream, std::int64_t count, std::int64_t rank, bool lengthen, const float* gram,
                             float* inverse, float* scratch);

// --- sketch.cu

// sketches [rows, rank] = columns of the stack's matrices, chosen among the first `among` ones by the keyed permutation
// of each.
void gather_columns(Stream& stream, const StackShape& shape, std::int64_t among, std::int64_t rank,
                    std::span<const PhiloxKey> keys, const float* stack, float* sketches);
// numbers [cols, rank] of each key: sketch_gaussian(key, element).
void fill_gaussian(Stream& stream, std::int64_t cols, std::int64_t rank, std::span<const PhiloxKey> keys,
                   float* numbers);

}  // namespace polaron::cuda
