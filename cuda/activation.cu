#include "cuda/activation.h"

#include <stdexcept>

#include "cuda/device.h"
#include "cuda/element.h"

namespace polaron::cuda {
namespace {

// Both are bound by memory: each element is read and written once, a pack a thread.
constexpr int kThreads = 256;
constexpr float kLog2E = 1.44269504F;

// 1 / (1 + 2^t), and with it e = 2^t, so that 1 - sigmoid = e * sigmoid loses nothing to cancellation. Beyond t = 100
// it is 0.
struct Sigmoid {
  float value, e;
};
__device__ __forceinline__ Sigmoid sigmoid_exp2(float t) {
  const float e = exp2f(t > 100.0F ? 100.0F : t);
  return {t > 100.0F ? 0.0F : 1.0F / (1.0F + e), e};
}

// (1 + tanh u) / 2, u = sqrt(2/pi) (x + 0.044715 x^3), is the sigmoid of 2u.
struct GeluTanh {
  static constexpr float kLinear = 1.5957691216F;    // 2 sqrt(2/pi)
  static constexpr float kCubic = 0.0713548162726F;  // 0.044715 times that
  static __device__ float value(float x) { return x * sigmoid_exp2(-kLog2E * x * (kLinear + kCubic * x * x)).value; }
  static __device__ float derivative(float x) {
    const float low = x < -10.0F ? -10.0F : x;  // beyond +-10 it is 0 or 1 to the last bit; x^2 must not overflow
    const float c = low > 10.0F ? 10.0F : low;
    const Sigmoid s = sigmoid_exp2(-kLog2E * c * (kLinear + kCubic * c * c));
    return s.value + c * (s.e * s.value) * s.value * (kLinear + 3.0F * kCubic * c * c);
  }
};

struct GeluErf {
  static constexpr float kRootHalf = 0.70710678F;
  static __device__ float value(float x) { return 0.5F * x * (1.0F + erff(x * kRootHalf)); }
  static __device__ float derivative(float x) {
    constexpr float kDensity = 0.39894228F;  // 1 / sqrt(2 pi)
    const float low = x < -20.0F ? -20.0F : x;
    const float c = low > 20.0F ? 20.0F : low;
    return 0.5F * (1.0F + erff(c * kRootHalf)) + c * kDensity * exp2f(-0.5F * kLog2E * c * c);
  }
};

struct Relu2 {
  static __device__ float positive(float x) { return x < 0.0F ? 0.0F : x; }
  static __device__ float value(float x) { return positive(x) * positive(x); }
  static __device__ float derivative(float x) { return 2.0F * positive(x); }
};

// The gate's side of silu(gate) * up; silu'(g) = s + g s (1 - s).
struct Silu {
  static __device__ float value(float g) { return g * sigmoid_exp2(-kLog2E * g).value; }
  static __device__ float derivative(float g) {
    const Sigmoid s = sigmoid_exp2(-kLog2E * g);
    return s.value + g * s.value * (s.e * s.value);
  }
};

template <class T>
struct Shape {
  T *pre, *d_pre, *activated;  // activated: of backward, its gradient
  std::int64_t pre_stride, d_pre_stride, activated_stride, width, packs_a_row, packs;
};

// Which pack a thread handles; false beyond the last one.
template <class T, int pack>
__device__ __forceinline__ bool place(const Shape<T>& p, std::int64_t& row, std::int64_t& column) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  row = i / p.packs_a_row;
  column = (i - row * p.packs_a_row) * pack;
  return i < p.packs;
}

template <class F, class T, int pack>
__global__ void __launch_bounds__(kThreads) activation_forward(const Shape<T> p) {
  std::int64_t n, c;
  if (!place<T, pack>(p, n, c)) return;
  float x[pack];
  load(p.pre + n * p.pre_stride + c, p.width - c, x);
#pragma unroll
  for (int i = 0; i < pack; ++i) x[i] = F::value(x[i]);
  if constexpr (std::is_same_v<F, Silu>) {
    float up[pack];
    // The upper half of a row begins at any column: no wide access where the width is no multiple of a pack (host
    // checks).
    load(p.pre + n * p.pre_stride + p.width + c, p.width - c, up);
#pragma unroll
    for (int i = 0; i < pack; ++i) x[i] *= up[i];
  }
  store(p.activated + n * p.activated_stride + c, p.width - c, x);
}

template <class F, class T, int pack>
__global__ void __launch_bounds__(kThreads) activation_backward(const Shape<T> p) {
  std::int64_t n, c;
  if (!place<T, pack>(p, n, c)) return;
  const std::int64_t count = p.width - c;
  float x[pack], d[pack], d_x[pack];
  load(p.pre + n * p.pre_stride + c, count, x);
  load<Cache::stream>(p.activated + n * p.activated_stride + c, count, d);
  if constexpr (std::is_same_v<F, Silu>) {
    float up[pack], d_up[pack];
    load(p.pre + n * p.pre_stride + p.width + c, count, up);
#pragma unroll
    for (int i = 0; i < pack; ++i) {
      d_up[i] = d[i] * F::value(x[i]);
      d_x[i] = d[i] * up[i] * F::derivative(x[i]);
    }
    store(p.d_pre + n * p.d_pre_stride + p.width + c, count, d_up);
  } else {
#pragma unroll
    for (int i = 0; i < pack; ++i) d_x[i] = d[i] * F::derivative(x[i]);
  }
  store(p.d_pre + n * p.d_pre_stride + c, count, d_x);
}

template <class Body>
void with_activation(Activation activation, Body&& body) {
  switch (activation) {
    case Activation::gelu_tanh:
      return body(GeluTanh{});
    case Activation::gelu_erf:
      return body(GeluErf{});
    case Activation::relu2:
      return body(Relu2{});
    case Activation::swiglu:
      return body(Silu{});
    case Activation::none:
      break;
  }
  throw std::logic_error("an activation kernel needs an activation");
}

// Calls body(kind, type, pack, shape, grid).
template <class Body>
void run(Stream& stream, Activation activation, const Tensor& pre, const Tensor& activated, const Tensor& d_pre,
         Body&& body) {
  with_activation(activation, [&](auto kind) {
    with_element_type(pre.dtype, "activation", [&](auto type) {
      using T = decltype(type);
      const bool halves = activation != Activation::swiglu || activated.cols % kPack<T> == 0;
      with_pack<T>(halves && aligned_rows({pre, activated, d_pre}), [&](auto pack) {
        const std::int64_t width = activated.cols, packs_a_row = ceil_div(width, pack());
        const Shape<T> shape{elements<T>(pre),
                             elements<T>(d_pre),
                             elements<T>(activated),
                             pre.stride,
                             d_pre.stride,
                             activated.stride,
                             width,
                             packs_a_row,
                             packs_a_row * pre.rows};
        const Grid grid{dim3(static_cast<unsigned>(ceil_div(shape.packs, kThreads))), dim3(kThreads),
                        handle_of(stream)};
        body(kind, type, pack, shape, grid);
      });
    });
  });
}

}  // namespace

void activate(Stream& stream, Activation activation, const Tensor& pre, const Tensor& activated) {
  run(stream, activation, pre, activated, {}, [](auto kind, auto type, auto pack, const auto& shape, const Grid& grid) {
    launch<activation_forward<decltype(kind), decltype(type), pack()>>(grid, shape);
  });
}

void differentiate(Stream& stream, Activation activation, const Tensor& pre, const Tensor& d_activated,
                   const Tensor& d_pre) {
  run(stream, activation, pre, d_activated, d_pre,
      [](auto kind, auto type, auto pack, const auto& shape, const Grid& grid) {
        launch<activation_backward<decltype(kind), decltype(type), pack()>>(grid, shape);
      });
}

}  // namespace polaron::cuda
