// Packing for our own matrix product (internal to gemm*.cpp). What is packed next can be packed in slices, between the
// tiles that are computed meanwhile, each slice asked for from memory one tile earlier.
#pragma once

#include <cstdint>

#include "cpu/gemm_cut.h"

namespace polaron::cpu {

// Panels [first, first + panels) of B' for steps [p, p + depth), one panel [depth, kTileCols] after the other; columns
// beyond a panel's are zero.
class PanelPack {
 public:
  PanelPack(const GemmArgs& args, std::int64_t first, std::int64_t panels, std::int64_t p, std::int64_t depth)
      : args_(args), first_(first), panels_(panels), p_(p), depth_(depth) {}
  // Slice `slice` of `slices`, in order.
  void pack(std::int64_t slice, std::int64_t slices, float* to) const;
  Region region(std::int64_t slice, std::int64_t slices) const;

 private:
  // A transposed B is packed in squares of kLanes: kTileVecs rows of them a panel, each `squares_across` long.
  std::int64_t squares_across() const { return ceil_div(depth_, kLanes); }
  std::int64_t units() const { return args_.b_transposed ? panels_ * kTileVecs * squares_across() : depth_; }
  void pack_square(std::int64_t unit, float* to) const;
  void pack_step(std::int64_t step, float* to) const;

  const GemmArgs& args_;
  std::int64_t first_, panels_, p_, depth_;
};

// Tiles' rows of a transposed A for steps [p, p + depth), one strip [depth, kStripStride] after the other. Strip s
// holds rows [row(s), row(s + 1)) of A'.
inline constexpr std::int64_t kStripStride = ceil_div(kTileRows, kLanes) * kLanes;
class StripPack {
 public:
  // `tiles` of rows [row, row + rows) of A' in all, of which `count` from `first` on are packed.
  // sums: null, or where the sums of A' over the steps are added, or with `overwrite` put.
  StripPack(const GemmArgs& args, std::int64_t row, std::int64_t rows, std::int64_t tiles, std::int64_t first,
            std::int64_t count, std::int64_t p, std::int64_t depth, float* sums, bool overwrite)
      : args_(args),
        row_(row),
        rows_(rows),
        tiles_(tiles),
        first_(first),
        count_(count),
        p_(p),
        depth_(depth),
        sums_(sums),
        overwrite_(overwrite) {}
  // partial_sums: count * kStripStride floats that keep their values from the first slice to the last.
  void pack(std::int64_t slice, std::int64_t slices, float* to, float* partial_sums) const;
  Region region(std::int64_t slice, std::int64_t slices) const;

 private:
  std::int64_t row_at(std::int64_t tile) const { return row_ + rows_ * tile / tiles_; }

  const GemmArgs& args_;
  std::int64_t row_, rows_, tiles_, first_, count_, p_, depth_;
  float* sums_;
  bool overwrite_;
};

}  // namespace polaron::cpu
