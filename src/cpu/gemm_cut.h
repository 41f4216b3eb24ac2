// How a matrix product is cut over the threads (internal to gemm*.cpp).
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/gemm.h"
#include "cpu/gemm_tile.h"

namespace polaron::cpu {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// `down` x `across` parts, one a thread; columns are counted in panels of kTileCols. With halves even panels lie in the
// first half of C, odd ones in the second, and two neighbours stay together.
struct GemmCut {
  std::int64_t down = 1, across = 1;
  std::int64_t panels = 0;
  std::int64_t panel_unit = 1;
};

// The cut with the least work for the busiest thread.
GemmCut choose_cut(const GemmArgs& args, int threads);

// First column and number of columns of panel p.
struct GemmPanel {
  std::int64_t col, cols;
};
inline GemmPanel panel_at(const GemmArgs& args, std::int64_t p) {
  if (!args.halves) return {p * kTileCols, std::min<std::int64_t>(kTileCols, args.n - p * kTileCols)};
  const std::int64_t half = args.n / 2, col = p / 2 * kTileCols;
  return {(p % 2) * half + col, std::min<std::int64_t>(kTileCols, half - col)};
}

// Rows and panels of one part.
struct GemmPart {
  std::int64_t row, rows, panel, panels;
  bool first_columns;
};
GemmPart part_at(const GemmArgs& args, const GemmCut& cut, std::int64_t index);

// Our own engine: the product of one part at a time. Safe to call from several threads, each with its own scratch.
class TileRun {
 public:
  TileRun(const GemmArgs& args, const GemmCut& cut, const GemmEpilogue* epilogue);
  std::size_t scratch_floats() const { return floats_; }
  void operator()(const GemmPart& part, float* scratch) const;

 private:
  // Panels of B for a pass over some of the depth, for rows of C, and of these rows' tiles the ones that are computed
  // from one packing: all of them with A in place, a few strips with A packed.
  struct Step {
    std::int64_t row, rows, panel, panels, p, depth;
    std::int64_t tiles, tile, count;  // in all, first of this step, of this step
    bool first_pass, last_pass, first_panels;
    std::int64_t row_at(std::int64_t t) const { return row + rows * t / tiles; }
  };
  Step step_at(const GemmPart& part, std::int64_t index) const;
  std::int64_t steps_of(const GemmPart& part) const;
  std::int64_t groups_of(const GemmPart& part) const;
  std::int64_t rounds_of(const GemmPart& part) const;
  // A slice of what a step needs packed into buffer 0 or 1.
  void pack(const GemmPart& part, const Step& step, std::int64_t slice, std::int64_t slices, float* to,
            float* partial_sums) const;
  Region region(const Step& step, std::int64_t slice, std::int64_t slices) const;
  Region next_rows(const Step& step, std::int64_t tile, std::int64_t j) const;
  void run_tile(const Step& step, std::int64_t tile, std::int64_t j, const float* strips, const float* panels,
                const Region& ahead, float* scratch) const;

  const GemmArgs& args_;
  const GemmEpilogue* epilogue_;
  std::int64_t passes_, depth_, chunk_;  // passes over C, depth of one, panels of B that are packed at a time
  bool cached_;                          // A stays in cache while a thread walks over the panels
  bool keep_partial_;                    // sums between passes are kept in scratch
  // Offsets into scratch: what is packed in turns into two buffers, what is packed at once, sums of A, a tile, partial
  // products.
  std::size_t turns_[2], panels_, sums_, tile_, partial_, floats_;
};

}  // namespace polaron::cpu
