#include "cpu/gemm_pack.h"

#include <algorithm>

namespace polaron::cpu {
namespace {

using std::int64_t;

constexpr int64_t kLineFloats = 16;
constexpr int64_t kSumSteps = 16;

// Columns [0, rows) of a transposed A: [depth, rows] at stride kStripStride; sums [kStripStride] (Sums) += their sums.
template <bool Sums>
void pack_strip(const float* from, int64_t stride, int64_t rows, bool wide, int64_t depth, float* to, float* sums) {
  constexpr int64_t kVecs = kStripStride / kLanes;
  if (wide) {  // whole vectors can be read from every row
    Vec total[kVecs] = {};
    for (int64_t p = 0; p < depth; ++p, from += stride, to += kStripStride) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVecs; ++v) {
        const Vec row = load_vec(from + v * kLanes);
        store_vec(to + v * kLanes, row);
        if constexpr (Sums) total[v] += row;
      }
    }
    if constexpr (Sums) {
      for (int64_t v = 0; v < kVecs; ++v) store_vec(sums + v * kLanes, load_vec(sums + v * kLanes) + total[v]);
    }
    return;
  }
  float total[kStripStride] = {};
  for (int64_t p = 0; p < depth; ++p, from += stride, to += kStripStride) {
    for (int64_t i = 0; i < rows; ++i) {
      to[i] = from[i];
      total[i] += from[i];
    }
  }
  if constexpr (Sums) {
    for (int64_t i = 0; i < rows; ++i) sums[i] += total[i];
  }
}

}  // namespace

void PanelPack::pack(int64_t slice, int64_t slices, float* to) const {
  if (slice == 0) {
    for (int64_t j = 0; j < panels_; ++j) {
      if (panel_at(args_, first_ + j).cols == kTileCols) continue;
      std::fill_n(to + j * depth_ * kTileCols, depth_ * kTileCols, 0.0F);
    }
  }
  const int64_t end = units() * (slice + 1) / slices;
  for (int64_t unit = units() * slice / slices; unit < end; ++unit) {
    if (args_.b_transposed) {
      pack_square(unit, to);
    } else {
      pack_step(unit, to);
    }
  }
}

void PanelPack::pack_square(int64_t unit, float* to) const {
  const int64_t row = unit / squares_across(), step = unit % squares_across() * kLanes;
  const GemmPanel panel = panel_at(args_, first_ + row / kTileVecs);
  const int64_t col = row % kTileVecs * kLanes;
  if (col >= panel.cols) return;
  transpose_scaled(args_.b + (panel.col + col) * args_.ldb + p_ + step, args_.ldb,
                   std::min<int64_t>(kLanes, panel.cols - col), std::min<int64_t>(kLanes, depth_ - step), 1.0F,
                   to + (row / kTileVecs * depth_ + step) * kTileCols + col, kTileCols);
}

void PanelPack::pack_step(int64_t step, float* to) const {
  const float* row = args_.b + (p_ + step) * args_.ldb;
  for (int64_t j = 0; j < panels_; ++j) {
    const GemmPanel panel = panel_at(args_, first_ + j);
    const float* from = row + panel.col;
    float* target = to + (j * depth_ + step) * kTileCols;
    if (panel.cols == kTileCols) {
      for (int v = 0; v < kTileVecs; ++v) store_vec(target + v * kLanes, load_vec(from + v * kLanes));
    } else {
      for (int64_t c = 0; c < panel.cols; ++c) target[c] = from[c];
    }
  }
}

Region PanelPack::region(int64_t slice, int64_t slices) const {
  const int64_t unit = units() * slice / slices, count = units() * (slice + 1) / slices - unit;
  if (args_.b_transposed) {  // as far as it lies in one row of squares
    const int64_t row = unit / squares_across(), step = unit % squares_across() * kLanes;
    const GemmPanel panel = panel_at(args_, first_ + row / kTileVecs);
    return {args_.b + (panel.col + row % kTileVecs * kLanes) * args_.ldb + p_ + step,
            ceil_div(std::min(count, squares_across() - step / kLanes) * kLanes, kLineFloats), kLanes, args_.ldb};
  }
  // With halves a chunk is two runs of columns: the second is left to the processor.
  const int64_t panels = args_.halves ? ceil_div(panels_, 2) : panels_;
  return {args_.b + (p_ + unit) * args_.ldb + panel_at(args_, first_).col, ceil_div(panels * kTileCols, kLineFloats),
          count, args_.ldb};
}

void StripPack::pack(int64_t slice, int64_t slices, float* to, float* partial_sums) const {
  if (slice == 0 && sums_ != nullptr) std::fill_n(partial_sums, count_ * kStripStride, 0.0F);
  // Whole blocks of steps, so that the order of the sums does not depend on the slices.
  const int64_t blocks = ceil_div(depth_, kSumSteps);
  for (int64_t block = blocks * slice / slices; block < blocks * (slice + 1) / slices; ++block) {
    const int64_t step = block * kSumSteps, steps = std::min(kSumSteps, depth_ - step);
    for (int64_t s = 0; s < count_; ++s) {
      const int64_t row = row_at(first_ + s), rows = row_at(first_ + s + 1) - row;
      const float* from = args_.a + (p_ + step) * args_.lda + row;
      float* const target = to + (s * depth_ + step) * kStripStride;
      const bool wide = row + kStripStride <= args_.m;
      if (sums_ != nullptr) {
        pack_strip<true>(from, args_.lda, rows, wide, steps, target, partial_sums + s * kStripStride);
      } else {
        pack_strip<false>(from, args_.lda, rows, wide, steps, target, nullptr);
      }
    }
  }
  if (slice + 1 < slices || sums_ == nullptr) return;
  for (int64_t s = 0; s < count_; ++s) {
    for (int64_t row = row_at(first_ + s), i = 0; row + i < row_at(first_ + s + 1); ++i) {
      const float sum = partial_sums[s * kStripStride + i];
      sums_[row + i] = overwrite_ ? sum : sums_[row + i] + sum;
    }
  }
}

Region StripPack::region(int64_t slice, int64_t slices) const {
  const int64_t blocks = ceil_div(depth_, kSumSteps), block = blocks * slice / slices;
  const int64_t row = row_at(first_), rows = row_at(first_ + count_) - row;
  return {args_.a + (p_ + block * kSumSteps) * args_.lda + row, ceil_div(rows, kLineFloats),
          (blocks * (slice + 1) / slices - block) * kSumSteps, args_.lda};
}

}  // namespace polaron::cpu
