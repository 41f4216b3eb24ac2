// How a matrix product is cut over the threads (internal to gemm*.cpp).
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/gemm.h"
#include "cpu/gemm_tile.h"

namespace polaron::cpu {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// `down` x `across` parts, one a thread; columns are counted in panels. With halves even panels lie in the first half
// of C, odd ones in the second, and two neighbours stay together.
struct GemmCut {
  std::int64_t down = 1, across = 1;
  std::int64_t panels = 0;
  std::int64_t panel_unit = 1;
  std::int64_t row_unit = 1;  // parts begin at multiples of it
};

// What a kernel computes at a time, and its time in cycles per step of the depth for that and for packing the operands
// of it, which threads with the same columns or rows repeat.
struct CutCosts {
  std::int64_t rows, cols;
  std::int64_t row_unit;
  double tile;
  double copy_a, turn_a, copy_b, turn_b;  // turn: from a transposed operand
};
inline constexpr CutCosts kRegisterTileCosts{kTileRows, kTileCols, 1, kTileRows, 0.0, 4.0, 5.0, 10.0};

// The cut with the least work for the busiest thread.
GemmCut choose_cut(const GemmShape& shape, int threads, const CutCosts& costs = kRegisterTileCosts);

// First column and number of columns of panel p.
struct GemmPanel {
  std::int64_t col, cols;
};
inline GemmPanel panel_at(const GemmShape& shape, std::int64_t p, std::int64_t width = kTileCols) {
  if (!shape.halves) return {p * width, std::min(width, shape.n - p * width)};
  const std::int64_t half = shape.n / 2, col = p / 2 * width;
  return {(p % 2) * half + col, std::min(width, half - col)};
}

// Rows and panels of one part.
struct GemmPart {
  std::int64_t row, rows, panel, panels;
  bool first_columns;
};
GemmPart part_at(const GemmShape& shape, const GemmCut& cut, std::int64_t index);

// Our own engine (gemm_tiles.cpp). A product is computed part by part; several threads may do so at the same time, each
// with its own scratch of scratch_floats().
class TileGemm {
 public:
  virtual ~TileGemm() = default;
  virtual void run(const GemmPart& part, float* scratch) const = 0;
  std::size_t scratch_floats() const { return floats_; }

 protected:
  TileGemm(const GemmArgs& args, const GemmEpilogue* epilogue) : args_(args), epilogue_(epilogue) {}

  // One tile: rows [row, row + rows) of C, one panel, `depth` steps from `a` (at stride lda) and `b` (packed).
  struct Tile {
    std::int64_t row, rows;
    GemmPanel panel;
    std::int64_t depth;
    const float* a;
    std::int64_t lda;
    const float* b;
    bool first_pass, last_pass;
    bool second_half;  // the pair is complete
  };
  // `partial`, where C is not stored: the tile's sums so far, at `partial_stride`. `edge`: kTileRows * kTileCols
  // floats. `soon`: memory needed soon, besides what the tile itself touches at its end.
  void run_tile(const Tile& tile, float* partial, std::int64_t partial_stride, float* edge, const Region& soon,
                const Region& also_soon) const;

  std::size_t take(std::int64_t floats) {
    const std::size_t offset = floats_;
    floats_ += aligned_floats(floats);
    return offset;
  }

  const GemmArgs& args_;
  const GemmEpilogue* epilogue_;

 private:
  std::size_t floats_ = 0;
};

// A's rows run along the depth and are read in place. C is cut into chunks of columns, these into rounds of rows whose
// part of A stays in the second-level cache, and these into panels. B is packed panel by panel, in the first round,
// while the panel before is multiplied; later rounds find it packed.
class RowGemm final : public TileGemm {
 public:
  RowGemm(const GemmArgs& args, const GemmCut& cut, const GemmEpilogue* epilogue);
  void run(const GemmPart& part, float* scratch) const override;

 private:
  struct Chunk {
    std::int64_t panel, panels;
    std::int64_t rounds;
  };
  // One panel for one round and one pass.
  struct Step {
    std::int64_t row, rows, tiles;
    std::int64_t panel;  // in the chunk
    std::int64_t p, depth;
    bool first_round, first_pass, last_pass;
    float* packed;
    std::int64_t row_at(std::int64_t tile) const { return row + rows * tile / tiles; }
  };
  Step step_at(const GemmPart& part, const Chunk& chunk, std::int64_t index, float* scratch) const;
  void run_step(const Chunk& chunk, const Step& step, const Step* next, float* scratch) const;

  std::int64_t passes_, depth_, round_rows_, chunk_;
  bool keep_partial_;  // sums between passes are kept in scratch
  std::size_t packed_, edge_, partial_;
};

// A's rows run across the depth: strips of a tile's height are packed, while the strips before are multiplied with some
// panels of B that stay in the second-level cache.
class StripGemm final : public TileGemm {
 public:
  StripGemm(const GemmArgs& args, const GemmCut& cut, const GemmEpilogue* epilogue);
  void run(const GemmPart& part, float* scratch) const override;

 private:
  // Some strips of A, and the panels that they are multiplied with, for one pass.
  struct Step {
    std::int64_t panel, panels, p, depth;
    std::int64_t tile, count;
    bool first_pass, last_pass, first_panels;
  };
  Step step_at(const GemmPart& part, std::int64_t index) const;

  std::int64_t passes_, depth_, chunk_;
  std::size_t strips_[2], panels_, sums_, edge_;
};

}  // namespace polaron::cpu
