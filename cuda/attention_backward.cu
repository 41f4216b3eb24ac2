// Attention backward on tensor cores. With S = scale q k^T, P = exp(S - lse), delta = rowsum(d_out * out):
//   dV = P^T dO;   dS = P * (dO V^T - delta);   dQ = scale dS K;   dK = scale dS^T Q
// (Dao et al., arXiv 2205.14135, appendix B.2).
//
// Two kernels, one for dK and dV of a block of keys and one for dQ of a block of queries, so that every sum stays in
// the registers of one warp and has a fixed order, without atomics and without sums between blocks, grouped queries
// included. The price: S and dO V^T are computed in both, 7 products where 5 would do. P and dS go from the registers
// that one product leaves them in to the next product, rounded to bf16; the kernel for dK and dV computes their
// transposes for that.
#include "cuda/attention.h"
#include "cuda/attention_tile.h"

namespace polaron::cuda {
namespace {

template <int size>
constexpr std::size_t tile_bytes(int rows) {
  return static_cast<std::size_t>(rows * size) * sizeof(bf16);
}

// --- dK and dV: a block has 128 keys of a key head and meets all queries of its group that see any of them

constexpr int kOwnKeys = 128;
constexpr int kPassingQueries = 32;
// Both sums of 32 keys with heads of 128 would not fit into registers; 16 keys a warp use each fragment once only.
template <int size>
constexpr int kKeyTiles = size == 64 ? 2 : 1;  // of 16 keys, of a warp
template <int size>
constexpr int kKeyThreads = kOwnKeys / (16 * kKeyTiles<size>)*32;
template <int size>
constexpr std::size_t kKeyShared = tile_bytes<size>(2 * kOwnKeys + 4 * kPassingQueries) +
                                   4 * kPassingQueries * sizeof(float);

template <int size>
__global__ void __launch_bounds__(kKeyThreads<size>) attention_backward_keys_bf16(const AttentionBackward<bf16> p) {
  constexpr int key_tiles = kKeyTiles<size>, warp_keys = 16 * key_tiles, queries = kPassingQueries,
                query_tiles = queries / 8, threads = kKeyThreads<size>;
  auto* const shared = dynamic_shared<bf16>();
  const Tile<size> k_tile{shared}, v_tile{shared + kOwnKeys * size};
  const auto q_tile = [&](int stage) { return Tile<size>{shared + (2 * kOwnKeys + stage * queries) * size}; };
  const auto d_out_tile = [&](int stage) { return Tile<size>{shared + (2 * kOwnKeys + (2 + stage) * queries) * size}; };
  auto* const lse_and_delta = reinterpret_cast<float*>(shared + (2 * kOwnKeys + 4 * queries) * size);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int kv_head = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int length = p.qkv.length, head_size = p.qkv.head_size, group = p.qkv.heads / p.qkv.kv_heads;
  const int stride = static_cast<int>(p.qkv.stride);
  const int k0 = static_cast<int>(blockIdx.x) * kOwnKeys;  // early keys have many queries: long blocks first
  const int warp_row = warp * warp_keys, warp_k0 = k0 + warp_row;

  // Blocks of queries that see any key of the block, head by head.
  struct Place {
    int head, q0;
  };
  const int end_head = (kv_head + 1) * group;
  const auto from = [&](Place at) {
    while (at.head < end_head) {
      if (at.q0 >= length) {
        at = {at.head + 1, k0};
      } else if (p.first.range(b, at.q0, queries).x < k0 + kOwnKeys) {
        break;
      } else {
        at.q0 += queries;
      }
    }
    return at;
  };
  const auto copy_queries = [&](const Place& at, int stage) {
    const std::int64_t row = at.q0;
    copy_tile<queries, size, threads>(q_tile(stage), p.qkv.q(b, at.head) + row * p.qkv.stride, stride, length - at.q0,
                                      head_size);
    copy_tile<queries, size, threads>(d_out_tile(stage), p.d_out.head(b, at.head) + row * p.d_out.stride,
                                      static_cast<int>(p.d_out.stride), length - at.q0, head_size);
    const auto i = static_cast<int>(threadIdx.x);
    if (i < 2 * queries) {
      const float* const values =
          (i < queries ? p.lse : p.delta) + (static_cast<std::int64_t>(b) * p.qkv.heads + at.head) * length;
      const int t = at.q0 + i % queries;
      copy_async<4>(lse_and_delta + stage * 2 * queries + i, values + std::min(t, length - 1), t < length);
    }
    copy_async_commit();
  };
  copy_tile<kOwnKeys, size, threads>(k_tile, p.qkv.k(b, kv_head) + k0 * p.qkv.stride, stride, length - k0, head_size);
  copy_tile<kOwnKeys, size, threads>(v_tile, p.qkv.v(b, kv_head) + k0 * p.qkv.stride, stride, length - k0, head_size);
  Place at = from({kv_head * group, k0});  // every key is seen by its own query: there is one
  copy_queries(at, 0);

  const float scale = p.scale * kLog2E;
  float d_k[key_tiles][size / 8][4] = {}, d_v[key_tiles][size / 8][4] = {};
#pragma unroll 1
  for (int stage = 0; at.head < end_head; stage ^= 1) {
    const Place next = from({at.head, at.q0 + queries});
    copy_async_wait<0>();
    __syncthreads();  // this stage is there, and no one reads the other one any more
    if (next.head < end_head) copy_queries(next, stage ^ 1);
    const int q0 = at.q0;
    at = next;
    const int2 first = p.first.range(b, q0, queries);
    if (q0 + queries <= warp_k0 || first.x >= warp_k0 + warp_keys) continue;  // no query sees any key of the warp
    const bool all_visible = q0 + 1 >= warp_k0 + warp_keys && first.y <= warp_k0;
    // Queries beyond T: rows of zeros with lse and delta 0, which add nothing.
    const float* const lse = lse_and_delta + stage * 2 * queries;
    const float* const delta = lse + queries;

    float s[key_tiles][query_tiles][4] = {}, d_s[key_tiles][query_tiles][4];
    multiply_transposed(s, k_tile, warp_row, q_tile(stage));
    if (!all_visible) {
#pragma unroll
      for (int n = 0; n < query_tiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int query = q0 + 8 * n + 2 * (lane % 4) + c;
          const int first_key = p.first.of(b, std::min(query, length - 1));
#pragma unroll
          for (int i = 0; i < key_tiles; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int key = warp_k0 + 16 * i + 8 * half + lane / 4;
              if (key > query || key < first_key) s[i][n][2 * half + c] = -INFINITY;
            }
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < query_tiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float mean = delta[8 * n + 2 * (lane % 4) + c];
#pragma unroll
        for (int i = 0; i < key_tiles; ++i) d_s[i][n][c] = d_s[i][n][2 + c] = -mean;
      }
    }
    multiply_transposed(d_s, v_tile, warp_row, d_out_tile(stage));
#pragma unroll
    for (int n = 0; n < query_tiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float shift = lse[8 * n + 2 * (lane % 4) + c] * kLog2E;
#pragma unroll
        for (int i = 0; i < key_tiles; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float &weight = s[i][n][2 * half + c], &slope = d_s[i][n][2 * half + c];
            weight = exp2_approximate(weight * scale - shift);
            slope *= weight;
          }
        }
      }
    }
    multiply_add(d_v, s, d_out_tile(stage));
    multiply_add(d_k, d_s, q_tile(stage));
  }

  put_sums(d_k, k_tile, warp_row, [&](int, int) { return p.scale; });
  put_sums(d_v, v_tile, warp_row, [&](int, int) { return 1.0F; });
  store_tile<warp_keys>(k_tile, warp_row, p.d_qkv.k(b, kv_head) + warp_k0 * p.d_qkv.stride, p.d_qkv.stride,
                        length - warp_k0, head_size);
  store_tile<warp_keys>(v_tile, warp_row, p.d_qkv.v(b, kv_head) + warp_k0 * p.d_qkv.stride, p.d_qkv.stride,
                        length - warp_k0, head_size);
}

// --- dQ: a block has 128 queries of a head and meets all keys that any of them sees

constexpr int kOwnQueries = 128;
constexpr int kQueryTiles = 2;  // of 16 queries, of a warp
constexpr int kWarpQueries = 16 * kQueryTiles;
constexpr int kQueryThreads = kOwnQueries / kWarpQueries * 32;
template <int size>
constexpr int kPassingKeys = 32;
template <int size>
constexpr std::size_t kQueryShared = tile_bytes<size>(2 * kOwnQueries + 4 * kPassingKeys<size>);

template <int size>
__global__ void __launch_bounds__(kQueryThreads) attention_backward_queries_bf16(const AttentionBackward<bf16> p) {
  constexpr int keys = kPassingKeys<size>, key_tiles = keys / 8;
  auto* const shared = dynamic_shared<bf16>();
  const Tile<size> q_tile{shared}, d_out_tile{shared + kOwnQueries * size};
  const auto k_tile = [&](int stage) { return Tile<size>{shared + (2 * kOwnQueries + stage * keys) * size}; };
  const auto v_tile = [&](int stage) { return Tile<size>{shared + (2 * kOwnQueries + (2 + stage) * keys) * size}; };
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int length = p.qkv.length, head_size = p.qkv.head_size;
  const int q0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kOwnQueries;
  const int warp_row = warp * kWarpQueries, warp_q0 = q0 + warp_row;
  const int kv_head = h / (p.qkv.heads / p.qkv.kv_heads);
  const bf16 *const k = p.qkv.k(b, kv_head), *const v = p.qkv.v(b, kv_head);
  const int stride = static_cast<int>(p.qkv.stride);

  const int begin = p.first.range(b, q0, kOwnQueries).x / keys * keys, end = std::min(q0 + kOwnQueries, length);
  const auto copy_keys = [&](int k0, int stage) {
    copy_tile<keys, size, kQueryThreads>(k_tile(stage), k + k0 * p.qkv.stride, stride, length - k0, head_size);
    copy_tile<keys, size, kQueryThreads>(v_tile(stage), v + k0 * p.qkv.stride, stride, length - k0, head_size);
    copy_async_commit();
  };
  copy_tile<kOwnQueries, size, kQueryThreads>(q_tile, p.qkv.q(b, h) + q0 * p.qkv.stride, stride, length - q0,
                                              head_size);
  copy_tile<kOwnQueries, size, kQueryThreads>(d_out_tile, p.d_out.head(b, h) + q0 * p.d_out.stride,
                                              static_cast<int>(p.d_out.stride), length - q0, head_size);
  copy_keys(begin, 0);

  // Of the rows that this lane has a part of. Queries beyond T have the last one's and are not written.
  const std::int64_t statistics = (static_cast<std::int64_t>(b) * p.qkv.heads + h) * length;
  float shift[kQueryTiles][2], mean[kQueryTiles][2];
#pragma unroll
  for (int i = 0; i < kQueryTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = std::min(warp_q0 + 16 * i + 8 * half + lane / 4, length - 1);
      shift[i][half] = p.lse[statistics + t] * kLog2E;
      mean[i][half] = p.delta[statistics + t];
    }
  }
  const int2 warp_first = warp_q0 < length ? p.first.range(b, warp_q0, kWarpQueries) : make_int2(length, length);

  const float scale = p.scale * kLog2E;
  float d_q[kQueryTiles][size / 8][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int k0 = begin; k0 < end; k0 += keys, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this stage is there, and no one reads the other one any more
    if (k0 + keys < end) copy_keys(k0 + keys, stage ^ 1);
    if (k0 >= warp_q0 + kWarpQueries || k0 + keys <= warp_first.x) continue;  // no query of the warp sees any of them
    const bool all_visible = k0 + keys <= warp_q0 + 1 && k0 >= warp_first.y;

    float s[kQueryTiles][key_tiles][4] = {}, d_s[kQueryTiles][key_tiles][4];
    multiply_transposed(s, q_tile, warp_row, k_tile(stage));
    if (!all_visible) hide_keys(s, p.first, b, warp_q0, k0);
#pragma unroll
    for (int i = 0; i < kQueryTiles; ++i) {
#pragma unroll
      for (int n = 0; n < key_tiles; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) d_s[i][n][c] = -mean[i][c / 2];
      }
    }
    multiply_transposed(d_s, d_out_tile, warp_row, v_tile(stage));
#pragma unroll
    for (int i = 0; i < kQueryTiles; ++i) {
#pragma unroll
      for (int n = 0; n < key_tiles; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          d_s[i][n][c] *= exp2_approximate(s[i][n][c] * scale - shift[i][c / 2]);
        }
      }
    }
    multiply_add(d_q, d_s, k_tile(stage));
  }

  put_sums(d_q, q_tile, warp_row, [&](int, int) { return p.scale; });
  store_tile<kWarpQueries>(q_tile, warp_row, p.d_qkv.q(b, h) + warp_q0 * p.d_qkv.stride, p.d_qkv.stride,
                           length - warp_q0, head_size);
}

template <int size>
void run(cudaStream_t stream, const AttentionBackward<bf16>& p) {
  allow_shared<attention_backward_keys_bf16<size>>(kKeyShared<size>);
  launch<attention_backward_keys_bf16<size>>(
      {blocks_of(p, kOwnKeys, p.qkv.kv_heads), dim3(kKeyThreads<size>), stream, kKeyShared<size>}, p);
  allow_shared<attention_backward_queries_bf16<size>>(kQueryShared<size>);
  launch<attention_backward_queries_bf16<size>>(
      {blocks_of(p, kOwnQueries, p.qkv.heads), dim3(kQueryThreads), stream, kQueryShared<size>}, p);
}

}  // namespace

void attention_backward_tensor(cudaStream_t stream, const AttentionBackward<bf16>& p) {
  if (p.qkv.head_size <= 64) {
    run<64>(stream, p);
  } else {
    run<128>(stream, p);
  }
}

}  // namespace polaron::cuda
