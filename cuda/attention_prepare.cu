// Norm of heads and rotary embedding, in place on a packed projection, and their gradient. A few lanes have a head of a
// row; they read it twice, the second time from the cache, and write it once.
#include <type_traits>

#include "cuda/attention.h"
#include "cuda/element.h"
#include "cuda/reduce.h"

namespace polaron::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;  // of a head

// Heads at the start of a packed row that an op looks at: those of q and k, which come first and are rotated, and those
// that are normalised.
struct Heads {
  Heads(const AttentionShape& shape, HeadNorm norm, const Rotary& rotary)
      : rotated(rotary.cos ? static_cast<int>(shape.heads + shape.kv_heads) : 0),
        normed(norm == HeadNorm::none
                   ? 0
                   : static_cast<int>(shape.heads + (norm == HeadNorm::qk ? 1 : 2) * shape.kv_heads)),
        size(static_cast<int>(shape.head_size)) {}
  __host__ __device__ int count() const { return std::max(rotated, normed); }
  int rotated, normed, size;
};

template <class T>
struct Prepare {
  Heads heads;
  const T* result;  // backward: what prepare made of the projection
  std::int64_t result_stride;
  T* data;  // the projection, or its gradient
  std::int64_t stride;
  float* rstd;
  std::int64_t rstd_stride;
  const float *cos, *sin;
  std::int64_t cos_stride, sin_stride;
  std::int64_t rows, length;
  float eps;
};

// Over the lanes of a head.
__device__ __forceinline__ float head_sum(float x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kWholeWarp, x, offset);
  return x;
}

// forward: x <- R (rstd x). backward, with y = R x_hat, x_hat = rstd x and g = R^T dy: dx = rstd (g - x_hat mean(g
// x_hat)). R keeps inner products, so mean(g x_hat) = mean(dy y), and the projection is done before turning back, on y.
template <class T, int pack, bool backward>
__global__ void __launch_bounds__(kThreads) attention_prepare_heads(const Prepare<T> p) {
  const std::int64_t n = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const std::int64_t row = n / p.heads.count();
  const int head = static_cast<int>(n % p.heads.count()), lane = static_cast<int>(threadIdx.x % kLanes);
  const bool there = row < p.rows, normed = there && head < p.heads.normed;
  const int size = p.heads.size;
  T* const x = p.data + row * p.stride + head * size;
  const T* const y = p.result + row * p.result_stride + head * size;

  float sum = 0.0F;
  if (normed) {
    for (int c = lane * pack; c < size; c += kLanes * pack) {
      float a[pack], b[pack];
      load(x + c, a);
      if constexpr (backward) load(y + c, b);
#pragma unroll
      for (int i = 0; i < pack; ++i) sum += a[i] * (backward ? b[i] : a[i]);
    }
  }
  const float mean = head_sum(sum) / static_cast<float>(size);
  __syncwarp();  // of a rotated head other lanes write what this one has read; the last meeting of the warp
  if (!there) return;
  float factor = 1.0F;
  if (normed) {
    float& rstd = p.rstd[row * p.rstd_stride + head];
    factor = backward ? rstd : 1.0F / sqrtf(mean + p.eps);
    if (!backward && lane == 0) rstd = factor;
  }
  const auto normalise = [&](float(&values)[pack], int c) {
    float of_result[pack];
    if (backward && normed) load(y + c, of_result);
#pragma unroll
    for (int i = 0; i < pack; ++i) {
      if (backward && normed) values[i] -= of_result[i] * mean;
      values[i] *= factor;
    }
  };

  if (head >= p.heads.rotated) {
    for (int c = lane * pack; c < size; c += kLanes * pack) {
      float values[pack];
      load(x + c, values);
      normalise(values, c);
      store(x + c, values);
    }
    return;
  }
  const int half = size / 2;
  const float *const cos = p.cos + row % p.length * p.cos_stride, *const sin = p.sin + row % p.length * p.sin_stride;
  for (int c = lane * pack; c < half; c += kLanes * pack) {
    float low[pack], high[pack], cosine[pack], sine[pack];
    load(x + c, low);
    load(x + half + c, high);
    load(cos + c, cosine);
    load(sin + c, sine);
    normalise(low, c);
    normalise(high, half + c);
#pragma unroll
    for (int i = 0; i < pack; ++i) {
      const float s = backward ? -sine[i] : sine[i], before = low[i];
      low[i] = before * cosine[i] - high[i] * s;
      high[i] = high[i] * cosine[i] + before * s;
    }
    store(x + c, low);
    store(x + half + c, high);
  }
}

template <bool backward>
void run(cudaStream_t stream, const AttentionShape& shape, HeadNorm norm, float eps, const Rotary& rotary,
         const Tensor& result, const Tensor& head_rstd, const Tensor& data) {
  const Heads heads(shape, norm, rotary);
  if (heads.count() == 0) return;
  with_element_type(data.dtype, backward ? "attention prepare backward" : "attention prepare", [&](auto type) {
    using T = decltype(type);
    const Prepare<T> p{heads,
                       elements<T>(result),
                       result.stride,
                       elements<T>(data),
                       data.stride,
                       heads.normed > 0 ? elements<float>(head_rstd) : nullptr,
                       head_rstd.stride,
                       elements<float>(rotary.cos),
                       elements<float>(rotary.sin),
                       rotary.cos.stride,
                       rotary.sin.stride,
                       shape.batch * shape.sequence_length,
                       shape.sequence_length,
                       eps};
    const std::int64_t part = rotary.cos ? shape.head_size / 2 : shape.head_size;  // what begins on its own
    const bool aligned = aligned_rows({data, result, rotary.cos, rotary.sin}) && part % kPack<T> == 0;
    with_pack<T>(aligned, [&](auto pack) {
      const std::int64_t blocks = ceil_div(p.rows * heads.count() * kLanes, std::int64_t{kThreads});
      launch<attention_prepare_heads<T, pack(), backward>>(
          {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream}, p);
    });
  });
}

}  // namespace

void attention_prepare(cudaStream_t stream, const AttentionShape& shape, HeadNorm norm, float eps, const Rotary& rotary,
                       const Tensor& qkv, const Tensor& head_rstd) {
  run<false>(stream, shape, norm, eps, rotary, {}, head_rstd, qkv);
}

void attention_prepare_backward(cudaStream_t stream, const AttentionShape& shape, HeadNorm norm, const Rotary& rotary,
                                const Tensor& qkv, const Tensor& head_rstd, const Tensor& d_qkv) {
  run<true>(stream, shape, norm, 0.0F, rotary, norm == HeadNorm::none ? Tensor{} : qkv, head_rstd, d_qkv);
}

}  // namespace polaron::cuda
