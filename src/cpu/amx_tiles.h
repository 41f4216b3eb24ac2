// The product of packed blocks in tile registers (Intel's AMX: eight tiles of 16 rows of 64 bytes, and an instruction
// that adds the product of a tile of A and one of B to a tile of C). Written over the type of the tile registers, so
// that tests can run it on ones made of plain memory:
//   Tiles::configure(const TileConfig&), Tiles::release()     before and after everything else, on each thread
//   Tiles::load<T>(from, stride), store<T>(to, stride)        tile T from and to memory, stride in bytes
//   Tiles::zero<T>()
//   Tiles::dot_bf16<C, A, B>()                                C[i][j] += sum over pairs p of
//                                                             A[i][2p] B[p][2j] + A[i][2p+1] B[p][2j+1], C in fp32
#pragma once

#include <cstdint>

#include "cpu/amx_pack.h"

namespace polaron::cpu {

// The operand of LDTILECFG, byte for byte.
struct alignas(64) TileConfig {
  std::uint8_t palette = 0;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// Eight full tiles.
constexpr TileConfig full_tiles() {
  TileConfig config;
  config.palette = 1;
  for (int t = 0; t < 8; ++t) {
    config.row_bytes[t] = kTileRowBytes;
    config.rows[t] = kTileSide;
  }
  return config;
}
inline constexpr TileConfig kFullTiles = full_tiles();

// A block of A: its first tile, whose rows are row_bytes apart, and from there to the one below and to the next step.
struct TiledA {
  const bf16* at;
  std::int64_t row_bytes, below, next;  // the last two in elements
};

// A block of C stays in tiles 0 to 3 for all steps; each step loads two tiles of A (4, 5) and two of B (6, 7) for four
// products, which is the best that eight tiles allow.
template <class Tiles>
void multiply_tiles(std::int64_t steps, const TiledA& tiled, const bf16* b, float* c, std::int64_t ldc, bool accumulate,
                    bool backwards) {
  const auto c_stride = ldc * static_cast<std::int64_t>(sizeof(float));
  float* const lower = c + kTileSide * ldc;
  const bf16* a = tiled.at;
  std::int64_t a_next = tiled.next, b_next = 2 * kTileElements;
  if (backwards && steps > 0) {
    a += (steps - 1) * a_next;
    b += (steps - 1) * b_next;
    a_next = -a_next;
    b_next = -b_next;
  }
  if (accumulate) {
    Tiles::template load<0>(c, c_stride);
    Tiles::template load<1>(c + kTileSide, c_stride);
    Tiles::template load<2>(lower, c_stride);
    Tiles::template load<3>(lower + kTileSide, c_stride);
  } else {
    Tiles::template zero<0>();
    Tiles::template zero<1>();
    Tiles::template zero<2>();
    Tiles::template zero<3>();
  }
  for (std::int64_t s = 0; s < steps; ++s) {
    Tiles::template load<4>(a, tiled.row_bytes);
    Tiles::template load<6>(b, kTileRowBytes);
    Tiles::template dot_bf16<0, 4, 6>();
    Tiles::template load<7>(b + kTileElements, kTileRowBytes);
    Tiles::template dot_bf16<1, 4, 7>();
    Tiles::template load<5>(a + tiled.below, tiled.row_bytes);
    Tiles::template dot_bf16<2, 5, 6>();
    Tiles::template dot_bf16<3, 5, 7>();
    a += a_next;
    b += b_next;
  }
  Tiles::template store<0>(c, c_stride);
  Tiles::template store<1>(c + kTileSide, c_stride);
  Tiles::template store<2>(lower, c_stride);
  Tiles::template store<3>(lower + kTileSide, c_stride);
}

template <class Tiles>
class TileUnit final : public BlockUnit {
 public:
  explicit TileUnit(const char* name) : name_(name) {}
  const char* name() const override { return name_; }
  std::int64_t packed_bytes() const override { return 2; }
  void begin() const override { Tiles::configure(kFullTiles); }
  void end() const override { Tiles::release(); }
  void pack_a(const BlockSource& block, void* to) const override { pack_a_tiles(block, static_cast<bf16*>(to)); }
  void pack_b(const BlockSource& block, void* to) const override { pack_b_tiles(block, static_cast<bf16*>(to)); }
  // Where each row of a tile is one cache line.
  bool reads_in_place(const BlockSource& block) const override {
    return block.depth_runs_along_rows && block.count == kBlock && block.depth % kBlock == 0 &&
           block.stride % kBlock == 0 && reinterpret_cast<std::uintptr_t>(block.from) % kTileRowBytes == 0;
  }
  void multiply(std::int64_t steps, const BlockOperand& a, const void* b, float* c, std::int64_t ldc, bool accumulate,
                bool backwards) const override {
    TiledA tiled{static_cast<const bf16*>(a.at), kTileRowBytes, kTileElements, 2 * kTileElements};
    if (a.stride != 0) tiled = {tiled.at, a.stride * 2, kTileSide * a.stride, kBlock};
    multiply_tiles<Tiles>(steps, tiled, static_cast<const bf16*>(b), c, ldc, accumulate, backwards);
  }
  // A product takes 64 cycles at peak; see gemm_blocks.h. Packing is counted from the instructions, with operands
  // beyond the second-level cache.
  Costs costs() const override { return {90.0, 70.0, 220.0, 220.0, 100.0}; }

 private:
  const char* name_;
};

}  // namespace polaron::cpu
