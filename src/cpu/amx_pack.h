// Blocks of bf16 matrices as tile registers read them. A tile is 1 KB: 16 rows of 16 pairs of bf16. A's tiles hold 16
// rows of A, each 16 pairs of neighbours along the depth; B's hold 16 such pairs of rows of B, each of 16 columns. A
// packed block is, for each step of 32 along the depth, the tile of its rows (or columns) 0 to 15, then that of 16 to
// 31.
#pragma once

#include "cpu/gemm_unit.h"

namespace polaron::cpu {

inline constexpr int kTileSide = 16;           // rows of a tile, and pairs in a row
inline constexpr int kTileElements = 16 * 32;  // bf16
inline constexpr int kTileRowBytes = 64;

void pack_a_tiles(const BlockSource& block, bf16* to);
void pack_b_tiles(const BlockSource& block, bf16* to);

}  // namespace polaron::cpu
