// Attention forward on tensor cores: online softmax over blocks of keys (Milakov and Gimelshein, arXiv 1805.02867; Dao
// et al., arXiv 2205.14135; the split of a block's queries over its warps is that of Dao, arXiv 2307.08691).
//
// A block has 128 queries of a head, 32 a warp, so that every fragment of K and V that a warp reads from shared memory
// serves two products. K and V pass in blocks through two buffers, one being filled while the other is used.
#include "cuda/attention.h"
#include "cuda/attention_tile.h"
#include "cuda/reduce.h"

namespace polaron::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRowTiles = 2;  // of 16 queries, of a warp
constexpr int kWarpQueries = 16 * kRowTiles;
constexpr int kQueries = kWarps * kWarpQueries;

// For heads of 128 the sums of the outputs alone take 128 registers.
template <int size>
constexpr int kKeys = size == 64 ? 64 : 32;

template <int size>
constexpr std::size_t kShared = static_cast<std::size_t>(kQueries + 4 * kKeys<size>) * size * sizeof(bf16);

// The largest and the sum over the four lanes that share a row of a fragment.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}

template <int size>
__global__ void __launch_bounds__(kThreads) attention_forward_bf16(const AttentionForward<bf16> p) {
  constexpr int keys = kKeys<size>, key_tiles = keys / 8;
  auto* const shared = dynamic_shared<bf16>();
  const Tile<size> q_tile{shared};
  const auto k_tile = [&](int stage) { return Tile<size>{shared + (kQueries + stage * keys) * size}; };
  const auto v_tile = [&](int stage) { return Tile<size>{shared + (kQueries + (2 + stage) * keys) * size}; };
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int length = p.qkv.length, head_size = p.qkv.head_size;
  // The blocks of a head run one after the other, so that they find its keys in the cache; the long ones first, so that
  // the last of all are short.
  const int q0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  const int warp_row = warp * kWarpQueries, warp_q0 = q0 + warp_row;
  const int kv_head = h / (p.qkv.heads / p.qkv.kv_heads);
  const bf16* const k = p.qkv.k(b, kv_head);
  const int stride = static_cast<int>(p.qkv.stride), from_k_to_v = p.qkv.kv_heads * head_size;

  const int begin = p.first.range(b, q0, kQueries).x / keys * keys, end = std::min(q0 + kQueries, length);
  const auto copy_keys = [&](int k0, int stage) {
    const bf16* const from = k + k0 * p.qkv.stride;
    copy_tile<keys, size, kThreads>(k_tile(stage), from, stride, length - k0, head_size);
    copy_tile<keys, size, kThreads>(v_tile(stage), from + from_k_to_v, stride, length - k0, head_size);
    copy_async_commit();
  };
  copy_tile<kQueries, size, kThreads>(q_tile, p.qkv.q(b, h) + q0 * p.qkv.stride, stride, length - q0, head_size);
  copy_keys(begin, 0);

  const int2 warp_first = warp_q0 < length ? p.first.range(b, warp_q0, kWarpQueries) : make_int2(length, length);

  const float scale = p.scale * kLog2E;
  float sums[kRowTiles][size / 8][4] = {}, largest[kRowTiles][2], total[kRowTiles][2] = {};
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) largest[i][0] = largest[i][1] = kNoScore;

  int stage = 0;
#pragma unroll 1
  for (int k0 = begin; k0 < end; k0 += keys, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this stage is there, and no one reads the other one any more
    if (k0 + keys < end) copy_keys(k0 + keys, stage ^ 1);
    if (k0 >= warp_q0 + kWarpQueries || k0 + keys <= warp_first.x) continue;  // no query of the warp sees any of them

    float s[kRowTiles][key_tiles][4] = {};
    multiply_transposed(s, q_tile, warp_row, k_tile(stage));
    if (k0 + keys > warp_q0 + 1 || k0 < warp_first.y)
      hide_keys(s, p.first, b, warp_q0, k0);  // not all queries see all of them
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float highest = largest[i][half];
#pragma unroll
        for (int n = 0; n < key_tiles; ++n) {
          highest = fmaxf(highest, fmaxf(s[i][n][2 * half], s[i][n][2 * half + 1]));
        }
        highest = row_max(highest);
        const float factor = exp2_approximate((largest[i][half] - highest) * scale), shift = highest * scale;
        largest[i][half] = highest;
        float sum = 0.0F;  // of this lane's columns; the lanes meet at the end
#pragma unroll
        for (int n = 0; n < key_tiles; ++n) {
#pragma unroll
          for (int c = 2 * half; c < 2 * half + 2; ++c) {
            s[i][n][c] = exp2_approximate(s[i][n][c] * scale - shift);
            sum += s[i][n][c];
          }
        }
        total[i][half] = total[i][half] * factor + sum;
#pragma unroll
        for (int n = 0; n < size / 8; ++n) {
          sums[i][n][2 * half] *= factor;
          sums[i][n][2 * half + 1] *= factor;
        }
      }
    }
    multiply_add(sums, s, v_tile(stage));
  }

  float* const lse = p.lse + (static_cast<std::int64_t>(b) * p.qkv.heads + h) * length;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[i][half] = row_sum(total[i][half]);
      const int t = warp_q0 + 16 * i + 8 * half + lane / 4;
      if (lane % 4 == 0 && t < length) lse[t] = (largest[i][half] * scale + log2f(total[i][half])) * kLn2;
    }
  }
  put_sums(sums, q_tile, warp_row, [&](int i, int half) { return 1.0F / total[i][half]; });
  store_tile<kWarpQueries>(q_tile, warp_row, p.out.head(b, h) + warp_q0 * p.out.stride, p.out.stride, length - warp_q0,
                           head_size);
}

template <int size>
void run(cudaStream_t stream, const AttentionForward<bf16>& p) {
  allow_shared<attention_forward_bf16<size>>(kShared<size>);
  launch<attention_forward_bf16<size>>({blocks_of(p, kQueries, p.qkv.heads), dim3(kThreads), stream, kShared<size>}, p);
}

}  // namespace

void attention_forward_tensor(cudaStream_t stream, const AttentionForward<bf16>& p) {
  if (p.qkv.head_size <= 64) {
    run<64>(stream, p);
  } else {
    run<128>(stream, p);
  }
}

}  // namespace polaron::cuda
