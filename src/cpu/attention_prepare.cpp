#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/attention.h"
#include "cpu/element.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

constexpr int64_t kParallelFloats = 1 << 14;  // below, starting threads costs more than it saves

inline const float* as_floats(const float* from, int64_t, float*) { return from; }
inline const float* as_floats(const bf16* from, int64_t n, float* room) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) room[i] = load(from + i);
  return room;
}

// Calls body(x) with the floats of x[0, n), which it may change: fp32 in place, bf16 in `room` and rounded afterwards.
template <class Body>
void change_floats(float* x, int64_t, float*, Body&& body) {
  body(x);
}
template <class Body>
void change_floats(bf16* x, int64_t n, float* room, Body&& body) {
  as_floats(x, n, room);
  body(room);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(x + i, room[i]);
}

// Calls body(row, room) for each row, on all threads. A row's first `width` elements are
// meant; `room` has space for twice as many floats.
template <class Body>
void for_rows(const AttentionShape& shape, int64_t width, Body&& body) {
  const int64_t rows = shape.batch * shape.sequence_length;
#pragma omp parallel if (rows * width > kParallelFloats)
  {
    std::vector<float> room(2 * width);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) body(row, room.data());
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

// Heads at the start of a packed row that an op looks at: those of q and k, which come first and are rotated, and those
// that are normalised.
struct Heads {
  Heads(const AttentionShape& shape, HeadNorm norm, const Rotary& rotary)
      : rotated(rotary.cos ? shape.heads + shape.kv_heads : 0),
        normed(norm == HeadNorm::none ? 0 : shape.heads + (norm == HeadNorm::qk ? 1 : 2) * shape.kv_heads) {}
  int64_t count() const { return std::max(rotated, normed); }
  int64_t rotated, normed;
};

template <class T>
void prepare(const AttentionShape& shape, const Heads& heads, float eps, const Rotary& rotary, const Tensor& qkv,
             const Tensor& head_rstd) {
  const int64_t size = shape.head_size, half = size / 2, width = heads.count() * size;
  const float *cos = elements<float>(rotary.cos), *sin = elements<float>(rotary.sin);
  float* const rstd = heads.normed > 0 ? head_rstd.f32() : nullptr;
  T* const data = elements<T>(qkv);
  for_rows(shape, width, [&](int64_t row, float* room) {
    const int64_t t = row % shape.sequence_length;
    change_floats(data + row * qkv.stride, width, room, [&](float* in) {
      for (int64_t head = 0; head < heads.count(); ++head) {
        float* const x = in + head * size;
        if (head < heads.normed) {
          const float factor = 1.0F / std::sqrt(sum_of_products(x, x, size) / static_cast<float>(size) + eps);
          rstd[row * head_rstd.stride + head] = factor;
#pragma omp simd
          for (int64_t j = 0; j < size; ++j) x[j] *= factor;
        }
        if (head < heads.rotated) turn(x, half, cos + t * rotary.cos.stride, sin + t * rotary.sin.stride, 1.0F);
      }
    });
  });
}

template <class T>
void prepare_backward(const AttentionShape& shape, const Heads& heads, const Rotary& rotary, const Tensor& qkv,
                      const Tensor& head_rstd, const Tensor& d_qkv) {
  const int64_t size = shape.head_size, half = size / 2, width = heads.count() * size;
  const float *cos = elements<float>(rotary.cos), *sin = elements<float>(rotary.sin);
  const float* const rstd = heads.normed > 0 ? head_rstd.f32() : nullptr;
  const T* const result = heads.normed > 0 ? elements<T>(qkv) : nullptr;
  T* const data = elements<T>(d_qkv);
  for_rows(shape, width, [&](int64_t row, float* room) {
    const int64_t t = row % shape.sequence_length;
    // With y = R x_hat, x_hat = rstd x and g = R^T dy: dx = rstd (g - x_hat mean(g x_hat)). R keeps inner products, so
    // mean(g x_hat) = mean(dy y), and the projection can be done before turning back, on y itself.
    const float* const ys = result != nullptr ? as_floats(result + row * qkv.stride, width, room + width) : nullptr;
    change_floats(data + row * d_qkv.stride, width, room, [&](float* in) {
      for (int64_t head = 0; head < heads.count(); ++head) {
        float* const d = in + head * size;
        if (head < heads.normed) {
          const float* const y = ys + head * size;
          const float mean = sum_of_products(d, y, size) / static_cast<float>(size);
          const float factor = rstd[row * head_rstd.stride + head];
#pragma omp simd
          for (int64_t j = 0; j < size; ++j) d[j] = factor * (d[j] - y[j] * mean);
        }
        if (head < heads.rotated) turn(d, half, cos + t * rotary.cos.stride, sin + t * rotary.sin.stride, -1.0F);
      }
    });
  });
}

}  // namespace

void attention_prepare(const AttentionShape& shape, HeadNorm norm, float eps, const Rotary& rotary, const Tensor& qkv,
                       const Tensor& head_rstd) {
  const Heads heads(shape, norm, rotary);
  if (heads.count() == 0) return;
  with_element_type(qkv.dtype, "attention prepare",
                    [&](auto type) { prepare<decltype(type)>(shape, heads, eps, rotary, qkv, head_rstd); });
}

void attention_prepare_backward(const AttentionShape& shape, HeadNorm norm, const Rotary& rotary, const Tensor& qkv,
                                const Tensor& head_rstd, const Tensor& d_qkv) {
  const Heads heads(shape, norm, rotary);
  if (heads.count() == 0) return;
  with_element_type(d_qkv.dtype, "attention prepare backward",
                    [&](auto type) { prepare_backward<decltype(type)>(shape, heads, rotary, qkv, head_rstd, d_qkv); });
}

}  // namespace polaron::cpu
