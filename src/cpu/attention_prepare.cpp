#include <cmath>

#include "cpu/attention.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

constexpr int64_t kParallelFloats = 1 << 14;  // below, starting threads costs more than it saves

// Calls body(row, t, head) with a pointer to each head of q and k, on all threads. Heads count q's first, then k's.
template <class Body>
void for_heads(const AttentionShape& shape, float* qkv, int64_t stride, Body&& body) {
  const int64_t rows = shape.batch * shape.sequence_length, heads = shape.heads + shape.kv_heads;
#pragma omp parallel for schedule(static) if (rows * heads * shape.head_size > kParallelFloats)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = 0; head < heads; ++head) {
      body(qkv + row * stride + head * shape.head_size, row, row % shape.sequence_length, head);
    }
  }
}

// direction -1 turns back.
inline void turn(float* x, int64_t half, const float* cos, const float* sin, float direction) {
#pragma omp simd
  for (int64_t j = 0; j < half; ++j) {
    const float low = x[j], high = x[j + half], s = direction * sin[j];
    x[j] = low * cos[j] - high * s;
    x[j + half] = high * cos[j] + low * s;
  }
}

inline float sum_of_products(const float* x, const float* y, int64_t n) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += x[j] * y[j];
  return sum;
}

}  // namespace

void attention_prepare(const AttentionShape& shape, bool qk_norm, float eps, const Rotary& rotary, const Tensor& qkv,
                       const Tensor& qk_rstd) {
  const int64_t size = shape.head_size, half = size / 2;
  const bool rotates = static_cast<bool>(rotary.cos);
  if (!qk_norm && !rotates) return;
  const float* cos = rotates ? rotary.cos.f32() : nullptr;
  const float* sin = rotates ? rotary.sin.f32() : nullptr;
  float* rstd = qk_norm ? qk_rstd.f32() : nullptr;
  for_heads(shape, qkv.f32(), qkv.stride, [&](float* x, int64_t row, int64_t t, int64_t head) {
    if (qk_norm) {
      const float factor = 1.0F / std::sqrt(sum_of_products(x, x, size) / static_cast<float>(size) + eps);
      rstd[row * qk_rstd.stride + head] = factor;
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) x[j] *= factor;
    }
    if (rotates) turn(x, half, cos + t * rotary.cos.stride, sin + t * rotary.sin.stride, 1.0F);
  });
}

void attention_prepare_backward(const AttentionShape& shape, bool qk_norm, const Rotary& rotary, const Tensor& qkv,
                                const Tensor& qk_rstd, const Tensor& d_qkv) {
  const int64_t size = shape.head_size, half = size / 2;
  const bool rotates = static_cast<bool>(rotary.cos);
  if (!qk_norm && !rotates) return;
  const float* cos = rotates ? rotary.cos.f32() : nullptr;
  const float* sin = rotates ? rotary.sin.f32() : nullptr;
  const float* result = qk_norm ? qkv.f32() : nullptr;
  const float* rstd = qk_norm ? qk_rstd.f32() : nullptr;
  for_heads(shape, d_qkv.f32(), d_qkv.stride, [&](float* d, int64_t row, int64_t t, int64_t head) {
    // With y = R x_hat, x_hat = rstd x and g = R^T dy: dx = rstd (g - x_hat mean(g x_hat)). R keeps inner products, so
    // mean(g x_hat) = mean(dy y), and the projection can be done before turning back, on y itself.
    if (qk_norm) {
      const float* y = result + row * qkv.stride + head * size;
      const float mean = sum_of_products(d, y, size) / static_cast<float>(size);
      const float factor = rstd[row * qk_rstd.stride + head];
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) d[j] = factor * (d[j] - y[j] * mean);
    }
    if (rotates) turn(d, half, cos + t * rotary.cos.stride, sin + t * rotary.sin.stride, -1.0F);
  });
}

}  // namespace polaron::cpu
