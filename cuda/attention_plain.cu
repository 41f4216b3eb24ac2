// Attention without tensor cores, for fp32 and for head sizes that the tensor kernels do not take. A warp has a row, of
// queries or of keys, and meets the rows that it has to do with 32 at a time, one a lane; these lie in shared memory as
// fp32, shared by the neighbouring rows of the block's warps. Sums over the head are kept in shared memory, so that
// its size is bounded by that alone.
#include <string>

#include "cuda/attention.h"
#include "cuda/element.h"
#include "cuda/reduce.h"

namespace polaron::cuda {
namespace {

constexpr int kWarps = 8;  // rows of a block
constexpr int kThreads = 32 * kWarps;
constexpr int kLanes = 32;

// Shared memory of a block: `tiles` tiles of 32 rows, then for each warp `vectors` rows and `weights` times 32 numbers.
struct Layout {
  int head_size, tiles, vectors, weights;

  __host__ __device__ int stride() const { return head_size + 1; }  // lanes read the same column: all banks
  __host__ __device__ std::size_t bytes() const {
    return static_cast<std::size_t>(tiles * kLanes * stride() + kWarps * (vectors * head_size + weights * kLanes)) *
           sizeof(float);
  }
  __device__ float* tile(int i) const { return dynamic_shared<float>() + i * kLanes * stride(); }
  __device__ float* vector(int warp, int i) const {
    return tile(tiles) + warp * (vectors * head_size + weights * kLanes) + i * head_size;
  }
  __device__ float* weight(int warp, int i) const { return vector(warp, vectors) + i * kLanes; }
};

// Rows below `there`; zeros beyond. By all threads of the block.
template <class T>
__device__ void fill_tile(const Layout& layout, int i, const T* from, std::int64_t stride, int there) {
  float* const tile = layout.tile(i);
  for (int n = static_cast<int>(threadIdx.x); n < kLanes * layout.head_size; n += kThreads) {
    const int row = n / layout.head_size, c = n % layout.head_size;
    float value[1] = {0.0F};
    if (row < there) load(from + row * stride + c, value);
    tile[row * layout.stride() + c] = value[0];
  }
}

// By the lanes of a warp; other lanes see it after __syncwarp.
template <class T>
__device__ void fill_vector(float* to, const T* from, int size) {
  for (int c = static_cast<int>(threadIdx.x % 32); c < size; c += 32) {
    float value[1];
    load(from + c, value);
    to[c] = value[0];
  }
}
template <class T>
__device__ void store_vector(T* to, const float* from, int size, float factor) {
  for (int c = static_cast<int>(threadIdx.x % 32); c < size; c += 32) {
    const float value[1] = {from[c] * factor};
    store(to + c, value);
  }
}

__device__ __forceinline__ float dot(const float* x, const float* y, int size) {
  float sum = 0.0F;
  for (int c = 0; c < size; ++c) sum += x[c] * y[c];
  return sum;
}

// to = to * factor + sum over lanes of weights[lane] * row `lane` of the tile.
__device__ __forceinline__ void add_weighted(float* to, float factor, const float* weights, const float* tile,
                                             const Layout& layout) {
  for (int c = static_cast<int>(threadIdx.x % 32); c < layout.head_size; c += 32) {
    float sum = to[c] * factor;
    for (int lane = 0; lane < kLanes; ++lane) sum += weights[lane] * tile[lane * layout.stride() + c];
    to[c] = sum;
  }
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, offset));
  return x;
}

// The query row of this warp, and the keys that it sees: [first, last]; none where the sequence ends before it.
struct QueryRow {
  int h, kv_head, b, block_row, t;  // block_row: of the block's first warp
  bool there;
  int first, last;
};
template <class T>
__device__ __forceinline__ QueryRow query_row(const Packed<const T>& qkv, const FirstKeys& first_keys) {
  QueryRow row{};
  row.h = static_cast<int>(blockIdx.y);
  row.kv_head = row.h / (qkv.heads / qkv.kv_heads);
  row.b = static_cast<int>(blockIdx.z);
  row.block_row = static_cast<int>(blockIdx.x) * kWarps;
  row.t = row.block_row + static_cast<int>(threadIdx.x / 32);
  row.there = row.t < qkv.length;
  row.first = row.there ? first_keys.of(row.b, row.t) : qkv.length;
  row.last = row.there ? row.t : -1;
  return row;
}

// body(visible) for the keys that the block's rows see, 32 at a time, one a lane: K and V are in tiles 0 and 1. Only
// warps that see one of them call it. By all threads of the block.
template <class T, class Body>
__device__ __forceinline__ void for_keys(const Layout& layout, const Packed<const T>& qkv, const FirstKeys& first_keys,
                                         const QueryRow& row, Body&& body) {
  const int begin = first_keys.range(row.b, row.block_row / FirstKeys::kRows * FirstKeys::kRows, FirstKeys::kRows).x;
  const int end = std::min(row.block_row + kWarps, qkv.length);
  for (int k0 = begin; k0 < end; k0 += kLanes) {
    __syncthreads();
    fill_tile(layout, 0, qkv.k(row.b, row.kv_head) + k0 * qkv.stride, qkv.stride, qkv.length - k0);
    fill_tile(layout, 1, qkv.v(row.b, row.kv_head) + k0 * qkv.stride, qkv.stride, qkv.length - k0);
    __syncthreads();
    if (k0 > row.last || k0 + kLanes <= row.first) continue;
    const int key = k0 + static_cast<int>(threadIdx.x % 32);
    body(key >= row.first && key <= row.last);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) attention_forward_rows(const AttentionForward<T> p) {
  const int size = p.qkv.head_size, length = p.qkv.length;
  const Layout layout{size, 2, 2, 1};
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const QueryRow row = query_row(p.qkv, p.first);
  const int h = row.h, b = row.b, t = row.t;
  float *const q = layout.vector(warp, 0), *const sums = layout.vector(warp, 1),
               *const weights = layout.weight(warp, 0);
  if (row.there) fill_vector(q, p.qkv.q(b, h) + t * p.qkv.stride, size);
  for (int c = lane; c < size; c += 32) sums[c] = 0.0F;

  const float scale = p.scale * kLog2E;
  float largest = kNoScore, total = 0.0F;
  for_keys(layout, p.qkv, p.first, row, [&](bool visible) {
    const float score = visible ? dot(q, layout.tile(0) + lane * layout.stride(), size) * scale : -INFINITY;
    const float highest = fmaxf(largest, warp_max(score)), factor = exp2f(largest - highest);
    const float weight = visible ? exp2f(score - highest) : 0.0F;
    largest = highest;
    total = total * factor + warp_sum(weight);
    weights[lane] = weight;
    __syncwarp();
    add_weighted(sums, factor, weights, layout.tile(1), layout);
  });
  if (!row.there) return;
  store_vector(p.out.head(b, h) + t * p.out.stride, sums, size, 1.0F / total);
  if (lane == 0) {
    p.lse[(static_cast<std::int64_t>(b) * p.qkv.heads + h) * length + t] = (largest + log2f(total)) * kLn2;
  }
}

// P and dS of query and key, from q . k, d_out . v and the query's statistics.
struct Pair {
  float weight, slope;
};
__device__ __forceinline__ Pair pair_of(float score, float d_weight, float lse, float delta, float scale) {
  const float weight = exp2f(score * (scale * kLog2E) - lse * kLog2E);
  return {weight, weight * (d_weight - delta)};
}

template <class T>
__global__ void __launch_bounds__(kThreads) attention_backward_query_rows(const AttentionBackward<T> p) {
  const int size = p.qkv.head_size, length = p.qkv.length;
  const Layout layout{size, 2, 3, 1};
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const QueryRow row = query_row(p.qkv, p.first);
  const int h = row.h, b = row.b, t = row.t;
  float *const q = layout.vector(warp, 0), *const d_out = layout.vector(warp, 1), *const sums = layout.vector(warp, 2);
  float* const slopes = layout.weight(warp, 0);
  const std::int64_t statistics = (static_cast<std::int64_t>(b) * p.qkv.heads + h) * length;
  const float lse = row.there ? p.lse[statistics + t] : 0.0F, delta = row.there ? p.delta[statistics + t] : 0.0F;
  if (row.there) {
    fill_vector(q, p.qkv.q(b, h) + t * p.qkv.stride, size);
    fill_vector(d_out, p.d_out.head(b, h) + t * p.d_out.stride, size);
  }
  for (int c = lane; c < size; c += 32) sums[c] = 0.0F;

  for_keys(layout, p.qkv, p.first, row, [&](bool visible) {
    float slope = 0.0F;
    if (visible) {
      slope = pair_of(dot(q, layout.tile(0) + lane * layout.stride(), size),
                      dot(d_out, layout.tile(1) + lane * layout.stride(), size), lse, delta, p.scale)
                  .slope;
    }
    slopes[lane] = slope;
    __syncwarp();
    add_weighted(sums, 1.0F, slopes, layout.tile(0), layout);
  });
  if (row.there) store_vector(p.d_qkv.q(b, h) + t * p.d_qkv.stride, sums, size, p.scale);
}

template <class T>
__global__ void __launch_bounds__(kThreads) attention_backward_key_rows(const AttentionBackward<T> p) {
  const int size = p.qkv.head_size, length = p.qkv.length, group = p.qkv.heads / p.qkv.kv_heads;
  const Layout layout{size, 2, 4, 2};
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int kv_head = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int first_row = static_cast<int>(blockIdx.x) * kWarps, key = first_row + warp;
  const bool there = key < length;
  float *const k = layout.vector(warp, 0), *const v = layout.vector(warp, 1);
  float *const d_k = layout.vector(warp, 2), *const d_v = layout.vector(warp, 3);
  float *const weights = layout.weight(warp, 0), *const slopes = layout.weight(warp, 1);
  if (there) {
    fill_vector(k, p.qkv.k(b, kv_head) + key * p.qkv.stride, size);
    fill_vector(v, p.qkv.v(b, kv_head) + key * p.qkv.stride, size);
  }
  for (int c = lane; c < size; c += 32) d_k[c] = d_v[c] = 0.0F;

  for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    const std::int64_t statistics = (static_cast<std::int64_t>(b) * p.qkv.heads + h) * length;
    for (int q0 = first_row / kLanes * kLanes; q0 < length; q0 += kLanes) {
      if (p.first.range(b, q0, kLanes).x >= first_row + kWarps) continue;
      __syncthreads();
      fill_tile(layout, 0, p.qkv.q(b, h) + q0 * p.qkv.stride, p.qkv.stride, length - q0);
      fill_tile(layout, 1, p.d_out.head(b, h) + q0 * p.d_out.stride, p.d_out.stride, length - q0);
      __syncthreads();
      if (!there) continue;
      const int t = q0 + lane;
      Pair pair{0.0F, 0.0F};
      if (t < length && key <= t && key >= p.first.of(b, t)) {
        pair = pair_of(dot(k, layout.tile(0) + lane * layout.stride(), size),
                       dot(v, layout.tile(1) + lane * layout.stride(), size), p.lse[statistics + t],
                       p.delta[statistics + t], p.scale);
      }
      weights[lane] = pair.weight;
      slopes[lane] = pair.slope;
      __syncwarp();
      add_weighted(d_v, 1.0F, weights, layout.tile(1), layout);
      add_weighted(d_k, 1.0F, slopes, layout.tile(0), layout);
    }
  }
  if (!there) return;
  store_vector(p.d_qkv.k(b, kv_head) + key * p.d_qkv.stride, d_k, size, p.scale);
  store_vector(p.d_qkv.v(b, kv_head) + key * p.d_qkv.stride, d_v, size, 1.0F);
}

constexpr std::size_t kMostShared = 99 << 10;  // of a block on every device from sm_80 on

template <auto kernel, class Arguments>
void run(cudaStream_t stream, const Layout& layout, int heads, const Arguments& p) {
  const std::size_t bytes = layout.bytes();
  if (bytes > kMostShared) {
    throw Error(Exit::usage, "Attention on CUDA: heads of " + std::to_string(layout.head_size) +
                                 " elements are too large for shared memory: choose more heads, or --device cpu.");
  }
  allow_shared<kernel>(bytes);
  launch<kernel>({blocks_of(p, kWarps, heads), dim3(kThreads), stream, bytes}, p);
}

}  // namespace

template <class T>
void attention_forward_plain(cudaStream_t stream, const AttentionForward<T>& p) {
  run<attention_forward_rows<T>>(stream, {p.qkv.head_size, 2, 2, 1}, p.qkv.heads, p);
}

template <class T>
void attention_backward_plain(cudaStream_t stream, const AttentionBackward<T>& p) {
  run<attention_backward_key_rows<T>>(stream, {p.qkv.head_size, 2, 4, 2}, p.qkv.kv_heads, p);
  run<attention_backward_query_rows<T>>(stream, {p.qkv.head_size, 2, 3, 1}, p.qkv.heads, p);
}

template void attention_forward_plain(cudaStream_t, const AttentionForward<float>&);
template void attention_forward_plain(cudaStream_t, const AttentionForward<bf16>&);
template void attention_backward_plain(cudaStream_t, const AttentionBackward<float>&);
template void attention_backward_plain(cudaStream_t, const AttentionBackward<bf16>&);

}  // namespace polaron::cuda
