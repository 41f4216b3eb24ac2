#include "cpu/amx_pack.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "cpu/gemm_bf16.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

static_assert(kTileSide % kLanes == 0);

// Two neighbours along the depth in the halves of one lane: rows p and p + 1 of a matrix, zipped.
Vec load_zipped(const bf16* even, const bf16* odd) {
  return std::bit_cast<Vec>(load_bits(even) | (load_bits(odd) << 16));
}

// Pairs are moved about as if they were floats, without arithmetic.
Vec load_pairs(const bf16* from) {
  Vec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
void store_pairs(bf16* to, Vec value) { std::memcpy(to, &value, sizeof value); }

// [16][32] as it is.
void copy_tile(const bf16* from, int64_t stride, bf16* to) {
  for (int r = 0; r < kTileSide; ++r) {
    for (int v = 0; v < kTileSide; v += kLanes) {
      store_pairs(to + (r * kTileSide + v) * 2, load_pairs(from + r * stride + v * 2));
    }
  }
}

// Transposes squares of pairs: load(row, column) gives kLanes pairs of a source row.
template <class Load>
inline void transpose_squares(Load&& load, bf16* to) {
  for (int r = 0; r < kTileSide; r += kLanes) {
    for (int c = 0; c < kTileSide; c += kLanes) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load(r + i, c);
      transpose_detail::steps<1>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store_pairs(to + ((c + i) * kTileSide + r) * 2, square[i]);
    }
  }
}

// [16][32], 16 rows of 16 pairs, to 16 pairs of 16 rows.
void transpose_tile(const bf16* from, int64_t stride, bf16* to) {
  transpose_squares([=](int row, int pair) { return load_pairs(from + row * stride + pair * 2); }, to);
}

// [32][16] to 16 pairs of rows.
void zip_tile(const bf16* from, int64_t stride, bf16* to) {
  for (int pair = 0; pair < kTileSide; ++pair) {
    const bf16* even = from + 2 * pair * stride;
    for (int v = 0; v < kTileSide; v += kLanes) {
      store_pairs(to + (pair * kTileSide + v) * 2, load_zipped(even + v, even + stride + v));
    }
  }
}

// [32][16] to 16 columns of 16 pairs.
void zip_transpose_tile(const bf16* from, int64_t stride, bf16* to) {
  transpose_squares(
      [=](int pair, int column) {
        const bf16* even = from + 2 * pair * stride + column;
        return load_zipped(even, even + stride);
      },
      to);
}

using TilePack = void (*)(const bf16* from, int64_t stride, bf16* to);

// Tile by tile; those that stick out are read through a copy with zeros around it.
template <TilePack Along, TilePack Across>
void pack_tiles(const BlockSource& block, bf16* to) {
  const bool along = block.depth_runs_along_rows;
  const TilePack pack = along ? Along : Across;
  for (int64_t step = 0; step < block.steps(); ++step) {
    const int64_t p = step * kBlock, depth = std::min(kBlock, block.depth - p);
    for (int64_t first = 0; first < kBlock; first += kTileSide, to += kTileElements) {
      const int64_t count = std::clamp<int64_t>(block.count - first, 0, kTileSide);
      if (count == 0) {
        std::fill_n(to, kTileElements, bf16{0});
        continue;
      }
      const bf16* from = along ? block.from + first * block.stride + p : block.from + p * block.stride + first;
      if (count == kTileSide && depth == kBlock) {
        pack(from, block.stride, to);
        continue;
      }
      alignas(64) bf16 copy[kTileElements] = {};
      const int64_t rows = along ? count : depth, cols = along ? depth : count;
      const int64_t stride = along ? kBlock : kTileSide;
      for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * block.stride, cols, copy + r * stride);
      pack(copy, stride, to);
    }
  }
}

}  // namespace

void pack_a_tiles(const BlockSource& block, bf16* to) { pack_tiles<copy_tile, zip_transpose_tile>(block, to); }
void pack_b_tiles(const BlockSource& block, bf16* to) { pack_tiles<transpose_tile, zip_tile>(block, to); }

}  // namespace polaron::cpu
