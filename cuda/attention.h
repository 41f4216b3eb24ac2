// The parts of the CUDA backend's AttentionOps (backend/model_ops.h has their contracts).
//
// bf16 with head sizes that are multiples of 8 up to 128 runs on tensor cores, in kernels made for head sizes 64 and
// 128 (smaller heads are filled up with zeros on their way into shared memory); everything else on plain kernels,
// whose speed does not matter. Statistics and sums are fp32; exponentials are base 2, with `scale` * log2 e folded in.
// Every result has one block that computes it in a fixed order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/model_ops.h"
#include "cuda/launch.h"

namespace polaron::cuda {

inline constexpr float kLog2E = 1.44269504F;
inline constexpr float kLn2 = 0.693147181F;
// Below every score, and finite, so that the difference of two maxima is never NaN.
inline constexpr float kNoScore = -1e30F;

// Which keys a row sees: row t of sequence b those from of(b, t) to t, never none.
struct FirstKeys {
  static constexpr int kRows = 16;  // of a range

  const std::int32_t* first_key;  // of every row; may be null
  const int2* ranges;             // with first_key: smallest and largest of() of every kRows rows of a sequence
  int length, window;             // T; 0: no window

  __host__ __device__ int ranges_of_sequence() const { return (length + kRows - 1) / kRows; }
  __device__ int of(int b, int t) const {
    const int window_start = window > 0 ? std::max(t - window + 1, 0) : 0;
    if (first_key == nullptr) return window_start;
    const int given = first_key[static_cast<std::int64_t>(b) * length + t];
    return std::max(std::min(std::max(given, 0), t), window_start);
  }
  // The smallest (x) and the largest (y) of() of rows [t, t + count); t is a multiple of kRows and below T, rows beyond
  // T do not count.
  __device__ int2 range(int b, int t, int count) const {
    const int last = std::min(t + count, length) - 1;
    if (first_key == nullptr) return make_int2(of(b, t), of(b, last));
    const int2* const of_sequence = ranges + static_cast<std::int64_t>(b) * ranges_of_sequence();
    int2 all = of_sequence[t / kRows];
    for (int i = t / kRows + 1; i <= last / kRows; ++i) {
      const int2 next = of_sequence[i];
      all = make_int2(std::min(all.x, next.x), std::max(all.y, next.y));
    }
    return all;
  }
};

// A packed projection or its gradient: where q of head h, and k and v of key head h, begin in sequence b.
template <class T>
struct Packed {
  T* data;
  std::int64_t stride;  // of rows
  int length, heads, kv_heads, head_size;

  __device__ T* q(int b, int h) const { return at(b, h); }
  __device__ T* k(int b, int h) const { return at(b, heads + h); }
  __device__ T* v(int b, int h) const { return at(b, heads + kv_heads + h); }

 private:
  __device__ T* at(int b, int head) const {
    return data + static_cast<std::int64_t>(b) * length * stride + static_cast<std::int64_t>(head) * head_size;
  }
};

// A matrix [N, q_width]: where head h begins in sequence b.
template <class T>
struct PerHead {
  T* data;
  std::int64_t stride;
  int length, head_size;
  __device__ T* head(int b, int h) const {
    return data + static_cast<std::int64_t>(b) * length * stride + static_cast<std::int64_t>(h) * head_size;
  }
};

template <class T>
struct AttentionForward {
  Packed<const T> qkv;
  FirstKeys first;
  PerHead<T> out;
  float* lse;  // [B * heads, T]
  int batch;
  float scale;
};

template <class T>
struct AttentionBackward {
  Packed<const T> qkv;
  FirstKeys first;
  PerHead<const T> out, d_out;
  const float* lse;
  float* delta;  // [B * heads, T]: memory for rowsum(d_out * out)
  Packed<T> d_qkv;
  int batch;
  float scale;
};

// The blocks of a kernel: (`rows` rows of a sequence, head, sequence).
template <class Arguments>
dim3 blocks_of(const Arguments& p, int rows, int heads) {
  return dim3(static_cast<unsigned>((p.qkv.length + rows - 1) / rows), static_cast<unsigned>(heads),
              static_cast<unsigned>(p.batch));
}

// On tensor cores: head sizes that are multiples of 8 and at most kMostTensorHead, all rows on multiples of 16 bytes.
inline constexpr int kMostTensorHead = 128;
void attention_forward_tensor(cudaStream_t stream, const AttentionForward<bf16>& p);
// delta is there already.
void attention_backward_tensor(cudaStream_t stream, const AttentionBackward<bf16>& p);

void attention_prepare(cudaStream_t stream, const AttentionShape& shape, HeadNorm norm, float eps, const Rotary& rotary,
                       const Tensor& qkv, const Tensor& head_rstd);
void attention_prepare_backward(cudaStream_t stream, const AttentionShape& shape, HeadNorm norm, const Rotary& rotary,
                                const Tensor& qkv, const Tensor& head_rstd, const Tensor& d_qkv);

// Any head size whose tiles fit into shared memory; throws Error(Exit::usage) beyond.
template <class T>
void attention_forward_plain(cudaStream_t stream, const AttentionForward<T>& p);
template <class T>
void attention_backward_plain(cudaStream_t stream, const AttentionBackward<T>& p);

}  // namespace polaron::cuda
