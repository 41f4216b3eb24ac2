#include "cpu/activation.h"

#include <stdexcept>

#include "cpu/gemm_tile.h"
#include "cpu/simd_math.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

constexpr float kLog2E = 1.44269504F;

// 1 / (1 + 2^t), and with it e = 2^t, so that 1 - sigmoid = e * sigmoid loses nothing to cancellation. Beyond t = 100
// the sigmoid is 0: its products would soon be denormal numbers, which cost a hundred times the cycles.
struct Sigmoid {
  float value, e;
};
inline Sigmoid sigmoid_exp2(float t) {
  const float e = simd_exp2(t > 100.0F ? 100.0F : t);
  return {t > 100.0F ? 0.0F : 1.0F / (1.0F + e), e};
}

// tanh's argument in GELU is u = sqrt(2/pi) (x + 0.044715 x^3), and (1 + tanh u) / 2 is the sigmoid of 2u.
struct GeluTanh {
  static constexpr float kLinear = 1.5957691216F;    // 2 sqrt(2/pi)
  static constexpr float kCubic = 0.0713548162726F;  // 0.044715 times that
  static float value(float x) { return x * sigmoid_exp2(-kLog2E * x * (kLinear + kCubic * x * x)).value; }
  static float derivative(float x) {
    // Beyond +-10 the derivative is 0 or 1 to the last bit; x^2 must not overflow.
    const float low = x < -10.0F ? -10.0F : x;
    const float c = low > 10.0F ? 10.0F : low;
    const Sigmoid s = sigmoid_exp2(-kLog2E * c * (kLinear + kCubic * c * c));
    return s.value + c * (s.e * s.value) * s.value * (kLinear + 3.0F * kCubic * c * c);
  }
};

struct GeluErf {
  static constexpr float kRootHalf = 0.70710678F;
  static float value(float x) { return 0.5F * x * (1.0F + simd_erf(x * kRootHalf)); }
  static float derivative(float x) {
    constexpr float kDensity = 0.39894228F;  // 1 / sqrt(2 pi)
    const float low = x < -20.0F ? -20.0F : x;
    const float c = low > 20.0F ? 20.0F : low;
    return 0.5F * (1.0F + simd_erf(c * kRootHalf)) + c * kDensity * simd_exp2(-0.5F * kLog2E * c * c);
  }
};

struct Relu2 {
  static float positive(float x) { return x < 0.0F ? 0.0F : x; }
  static float value(float x) { return positive(x) * positive(x); }
  static float derivative(float x) { return 2.0F * positive(x); }
};

// Calls body(c) for c < cols, with a number of turns that the compiler knows for the usual block. No turn depends on
// another one, even where a body writes what it has read.
template <class Body>
inline void for_columns(int64_t cols, Body&& body) {
  if (cols == kTileCols) {
#pragma omp simd
    for (int c = 0; c < kTileCols; ++c) body(c);
  } else {
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) body(c);
  }
}

template <class F>
void activate_rows(const ActivationBlock& block, float* activated, int64_t stride) {
  for (int64_t r = 0; r < block.rows; ++r) {
    const float* pre = block.pre + r * block.pre_stride;
    float* to = activated + r * stride;
    for_columns(block.cols, [=](int64_t c) { to[c] = F::value(pre[c]); });
  }
}

template <class F>
void differentiate_rows(const ActivationBlock& block, const float* d_activated, int64_t d_activated_stride,
                        float* d_pre, int64_t d_pre_stride) {
  for (int64_t r = 0; r < block.rows; ++r) {
    const float* pre = block.pre + r * block.pre_stride;
    const float* d = d_activated + r * d_activated_stride;
    float* to = d_pre + r * d_pre_stride;
    for_columns(block.cols, [=](int64_t c) { to[c] = d[c] * F::derivative(pre[c]); });
  }
}

void swiglu_rows(const ActivationBlock& block, float* activated, int64_t stride) {
  for (int64_t r = 0; r < block.rows; ++r) {
    const float *gate = block.pre + r * block.pre_stride, *up = block.up + r * block.pre_stride;
    float* to = activated + r * stride;
    for_columns(block.cols, [=](int64_t c) { to[c] = gate[c] * sigmoid_exp2(-kLog2E * gate[c]).value * up[c]; });
  }
}

// silu'(g) = s + g s (1 - s).
void differentiate_swiglu_rows(const ActivationBlock& block, const float* d_activated, int64_t d_activated_stride,
                               float* d_gate, float* d_up, int64_t d_pre_stride) {
  for (int64_t r = 0; r < block.rows; ++r) {
    const float *gate = block.pre + r * block.pre_stride, *up = block.up + r * block.pre_stride;
    const float* d = d_activated + r * d_activated_stride;
    float *to_gate = d_gate + r * d_pre_stride, *to_up = d_up + r * d_pre_stride;
    for_columns(block.cols, [=](int64_t c) {
      const float g = gate[c], u = up[c], gradient = d[c];
      const Sigmoid s = sigmoid_exp2(-kLog2E * g);
      to_gate[c] = gradient * u * (s.value + g * s.value * (s.e * s.value));
      to_up[c] = gradient * g * s.value;
    });
  }
}

}  // namespace

void add_bias(int64_t rows, int64_t cols, const float* bias, float* out, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    float* to = out + r * stride;
    for_columns(cols, [=](int64_t c) { to[c] += bias[c]; });
  }
}

void activate_block(Activation activation, const ActivationBlock& block, float* activated, int64_t stride) {
  switch (activation) {
    case Activation::gelu_tanh:
      return activate_rows<GeluTanh>(block, activated, stride);
    case Activation::gelu_erf:
      return activate_rows<GeluErf>(block, activated, stride);
    case Activation::relu2:
      return activate_rows<Relu2>(block, activated, stride);
    case Activation::swiglu:
      return swiglu_rows(block, activated, stride);
    case Activation::none:
      break;
  }
  throw std::logic_error("activate_block needs an activation");
}

void differentiate_block(Activation activation, const ActivationBlock& block, const float* d_activated,
                         int64_t d_activated_stride, float* d_pre, float* d_up, int64_t d_pre_stride) {
  switch (activation) {
    case Activation::gelu_tanh:
      return differentiate_rows<GeluTanh>(block, d_activated, d_activated_stride, d_pre, d_pre_stride);
    case Activation::gelu_erf:
      return differentiate_rows<GeluErf>(block, d_activated, d_activated_stride, d_pre, d_pre_stride);
    case Activation::relu2:
      return differentiate_rows<Relu2>(block, d_activated, d_activated_stride, d_pre, d_pre_stride);
    case Activation::swiglu:
      return differentiate_swiglu_rows(block, d_activated, d_activated_stride, d_pre, d_up, d_pre_stride);
    case Activation::none:
      break;
  }
  throw std::logic_error("differentiate_block needs an activation");
}

}  // namespace polaron::cpu
