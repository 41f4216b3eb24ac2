// Tiles of heads in shared memory and the fragments that the tensor cores take from them.
#pragma once

#include <cstdint>

#include "backend/bf16.h"
#include "cuda/attention.h"
#include "cuda/element.h"
#include "cuda/mma.h"

namespace polaron::cuda {

// Rows of `cols` bf16 (64 or 128) in shared memory, in chunks of 16 bytes. Chunk c of row r lies at place c ^ (r % 8)
// of its row, so that the same chunk of eight neighbouring rows covers all banks: ldmatrix reads without conflicts.
template <int cols>
struct Tile {
  static constexpr int kChunks = cols / 8;
  static_assert(kChunks % 8 == 0);
  bf16* data;
  __device__ __forceinline__ bf16* chunk(int row, int c) const { return data + (row * kChunks + (c ^ (row & 7))) * 8; }
};

// Starts copying `rows` rows, `from` the first: of the rows below rows_there their first head_size elements, zeros
// elsewhere. By all `threads` threads of the block. stride: of rows in global memory, in elements.
template <int rows, int cols, int threads>
__device__ __forceinline__ void copy_tile(const Tile<cols>& to, const bf16* from, int stride, int rows_there,
                                          int head_size) {
  constexpr int kChunks = Tile<cols>::kChunks, kRowsAtOnce = threads / kChunks;
  static_assert(threads % kChunks == 0 && rows % kRowsAtOnce == 0 && kRowsAtOnce % 8 == 0);  // one swizzle a thread
  const int first = static_cast<int>(threadIdx.x) / kChunks, c = static_cast<int>(threadIdx.x) % kChunks;
  bf16* const target = to.chunk(first, c);
  const bf16* const source = from + first * stride + c * 8;
  const int count = c * 8 < head_size ? rows_there - first : 0;
  const int step = kRowsAtOnce * stride;
#pragma unroll
  for (int i = 0; i < rows / kRowsAtOnce; ++i) {
    const bool there = i * kRowsAtOnce < count;
    copy_async<16>(target + i * kRowsAtOnce * cols, there ? source + i * step : from, there);
  }
}

// Writes rows of a tile that this warp has to itself: `rows` from `row` on, to `to` (row `row` of the tile), without
// those from rows_there on.
template <int rows, int cols>
__device__ __forceinline__ void store_tile(const Tile<cols>& tile, int row, bf16* to, std::int64_t stride,
                                           int rows_there, int head_size) {
  constexpr int kChunks = Tile<cols>::kChunks;
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int i = 0; i < rows * kChunks / 32; ++i) {
    const int n = i * 32 + lane, r = n / kChunks, c = n % kChunks;
    if (r < rows_there && c * 8 < head_size) {
      store_word<Cache::keep, uint4>(to + r * stride + c * 8, *reinterpret_cast<const uint4*>(tile.chunk(row + r, c)));
    }
  }
}

// Where a lane's row of a fragment begins, in elements from a row that is a multiple of 8: `row` and `chunk` (0 or 1)
// are the lane's, the fragment begins at column 16 * step. Written so that four values serve all steps: the swizzle
// concerns groups of eight chunks.
template <int cols>
__device__ __forceinline__ int fragment_offset(int row, int chunk, int step) {
  return ((row * cols + (chunk ^ (row & 7)) * 8) ^ (step % 4 * 16)) + step / 4 * 64;
}
// Rows [row, row + 16) and columns [16 step, 16 step + 16) as the left factor;
template <int cols>
__device__ __forceinline__ void load_left(std::uint32_t (&to)[4], const Tile<cols>& tile, int row, int step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  ldmatrix_x4(to, tile.data + row * cols + fragment_offset<cols>(lane % 16, lane / 16, step));
}
// the transpose of the same as the right factor: to[0] and to[1] belong to rows [row, row + 8), to[2] and to[3] to the
// eight that follow;
template <int cols>
__device__ __forceinline__ void load_right_transposed(std::uint32_t (&to)[4], const Tile<cols>& tile, int row,
                                                      int step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  ldmatrix_x4(to, tile.data + row * cols + fragment_offset<cols>(lane / 16 * 8 + lane % 8, lane / 8 % 2, step));
}
// the same as the right factor: to[0] and to[1] belong to its first eight columns, to[2] and to[3] to the others.
template <int cols>
__device__ __forceinline__ void load_right(std::uint32_t (&to)[4], const Tile<cols>& tile, int row, int step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  ldmatrix_x4_trans(to, tile.data + row * cols + fragment_offset<cols>(lane % 16, lane / 16, step));
}

// Two neighbouring 16 x 8 blocks of sums, rounded to bf16, are a left factor in the registers where they are.
__device__ __forceinline__ void left_of_sums(std::uint32_t (&to)[4], const float (&low)[4], const float (&high)[4]) {
  to[0] = to_bf16_pair(low[0], low[1]);
  to[1] = to_bf16_pair(low[2], low[3]);
  to[2] = to_bf16_pair(high[0], high[1]);
  to[3] = to_bf16_pair(high[2], high[3]);
}

// sums[i][n] += left rows [row + 16 i, row + 16 i + 16) times the transpose of right rows [8 n, 8 n + 8).
template <int row_tiles, int col_tiles, int cols>
__device__ __forceinline__ void multiply_transposed(float (&sums)[row_tiles][col_tiles][4], const Tile<cols>& left,
                                                    int row, const Tile<cols>& right) {
#pragma unroll 4
  for (int step = 0; step < cols / 16; ++step) {
    std::uint32_t a[row_tiles][4];
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) load_left(a[i], left, row + 16 * i, step);
#pragma unroll
    for (int n = 0; n < col_tiles; n += 2) {
      std::uint32_t b[4];
      load_right_transposed(b, right, 8 * n, step);
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) {
        mma(sums[i][n], a[i], b[0], b[1]);
        mma(sums[i][n + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// Scores of queries [q0, ...) against keys [k0, ...) of sequence b: -infinity where a query does not see a key. Queries
// beyond T, which no one looks at, are taken for the last.
template <int row_tiles, int col_tiles>
__device__ __forceinline__ void hide_keys(float (&scores)[row_tiles][col_tiles][4], const FirstKeys& first_keys, int b,
                                          int q0, int k0) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = std::min(q0 + 16 * i + 8 * half + lane / 4, first_keys.length - 1);
      const int first = first_keys.of(b, query);
#pragma unroll
      for (int n = 0; n < col_tiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int key = k0 + 8 * n + 2 * (lane % 4) + c;
          if (key > query || key < first) scores[i][n][2 * half + c] = -INFINITY;
        }
      }
    }
  }
}

// sums += weights (rounded to bf16) times right rows [0, 8 * inner_tiles).
template <int row_tiles, int inner_tiles, int col_tiles, int cols>
__device__ __forceinline__ void multiply_add(float (&sums)[row_tiles][col_tiles][4],
                                             const float (&weights)[row_tiles][inner_tiles][4],
                                             const Tile<cols>& right) {
  static_assert(col_tiles == cols / 8);
#pragma unroll
  for (int k = 0; k < inner_tiles; k += 2) {
    std::uint32_t a[row_tiles][4];
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) left_of_sums(a[i], weights[i][k], weights[i][k + 1]);
#pragma unroll
    for (int n = 0; n < col_tiles; n += 2) {
      std::uint32_t b[4];
      load_right(b, right, 8 * k, n / 2);
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) {
        mma(sums[i][n], a[i], b[0], b[1]);
        mma(sums[i][n + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// Writes sums * factor(i, half) as bf16 to rows [row, row + 16 * row_tiles) of a tile that no other warp reads any
// more; half 1: the lower eight rows of a block of 16.
template <int row_tiles, int col_tiles, int cols, class Factor>
__device__ __forceinline__ void put_sums(const float (&sums)[row_tiles][col_tiles][4], const Tile<cols>& tile, int row,
                                         Factor&& factor) {
  static_assert(col_tiles == cols / 8);
  const int lane = static_cast<int>(threadIdx.x % 32);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float by = factor(i, half);
#pragma unroll
      for (int n = 0; n < col_tiles; ++n) {
        bf16* const to = tile.chunk(row + 16 * i + 8 * half + lane / 4, n) + 2 * (lane % 4);
        *reinterpret_cast<std::uint32_t*>(to) = to_bf16_pair(sums[i][n][2 * half] * by, sums[i][n][2 * half + 1] * by);
      }
    }
  }
  __syncwarp();
}

}  // namespace polaron::cuda
