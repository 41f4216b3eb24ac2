// Our own engine for matrix products. A thread keeps some panels of B, packed, in its second-level cache and walks down
// A; a tile of C leaves the registers after a whole pass over the depth. A is read in place where its rows run along
// the depth. Where they run across, strips of a tile's height are packed, and serve more panels of less depth. What the
// next step needs is packed between the tiles of this one, so that memory is read while the kernel computes.
#include <algorithm>
#include <cstddef>

#include "cpu/gemm_cut.h"
#include "cpu/gemm_pack.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

// As measured on cores with 2 MB of second-level cache. With A in place a depth up to kSinglePass is not cut, so that a
// tile leaves the registers once, finished. Panels that are packed at a time: fewer where all of A stays in cache
// beside them, more where A comes from further away for each of them.
constexpr int64_t kSinglePass = 1024, kPassDepth = 768;
constexpr int64_t kCachedFloats = 256 * 1024;
constexpr int64_t kChunkFloats = 64 * 1024, kLargeChunkFloats = 96 * 1024;
constexpr int64_t kPackedPassDepth = 384, kPackedChunkFloats = 192 * 1024;
// Rows per round when the product is not stored and needs several passes.
constexpr int64_t kRoundRows = 18 * kTileRows;
// Strips of A packed at a time, so that whole cache lines of it are used.
constexpr int64_t kStrips = 8;
constexpr int64_t kLineFloats = 16;

}  // namespace

TileRun::TileRun(const GemmArgs& args, const GemmCut& cut, const GemmEpilogue* epilogue)
    : args_(args), epilogue_(epilogue) {
  const bool packed = args.a_transposed;
  const int64_t single = packed ? kPackedPassDepth : kSinglePass, several = packed ? kPackedPassDepth : kPassDepth;
  passes_ = args.k <= single ? 1 : ceil_div(args.k, several);
  depth_ = ceil_div(ceil_div(args.k, passes_), 16) * 16;
  cached_ = ceil_div(args.m, cut.down) * depth_ <= kCachedFloats;
  const int64_t most = ceil_div(cut.panels / cut.panel_unit, cut.across) * cut.panel_unit;
  const int64_t floats = packed ? kPackedChunkFloats : cached_ ? kChunkFloats : kLargeChunkFloats;
  const int64_t fit = floats / std::max<int64_t>(depth_ * kTileCols, 1);
  // Equal chunks, not a small one at the end.
  const int64_t chunks = ceil_div(most, std::clamp<int64_t>(fit, cut.panel_unit, most));
  chunk_ = ceil_div(ceil_div(most, chunks), cut.panel_unit) * cut.panel_unit;
  keep_partial_ = args.c == nullptr && passes_ > 1;

  floats_ = 0;
  const auto take = [&](int64_t count) {
    const std::size_t offset = floats_;
    floats_ += aligned_floats(count);
    return offset;
  };
  const int64_t panels = chunk_ * depth_ * kTileCols;
  for (std::size_t& turn : turns_) turn = take(packed ? kStrips * depth_ * kStripStride : panels);
  panels_ = take(packed ? panels : 0);
  sums_ = take(packed ? kStrips * kStripStride : 0);
  tile_ = take(kTileRows * kTileCols);
  partial_ = take(keep_partial_ ? kRoundRows * chunk_ * kTileCols : 0);
}

int64_t TileRun::rounds_of(const GemmPart& part) const { return keep_partial_ ? ceil_div(part.rows, kRoundRows) : 1; }
int64_t TileRun::groups_of(const GemmPart& part) const {
  return args_.a_transposed ? ceil_div(ceil_div(part.rows, kTileRows), kStrips) : 1;
}
int64_t TileRun::steps_of(const GemmPart& part) const {
  return ceil_div(part.panels, chunk_) * rounds_of(part) * passes_ * groups_of(part);
}

// From the outermost loop to the innermost: chunks of panels, rounds of rows, passes, groups of strips.
TileRun::Step TileRun::step_at(const GemmPart& part, int64_t index) const {
  const int64_t groups = groups_of(part), rounds = rounds_of(part);
  const int64_t group = index % groups, pass = index / groups % passes_;
  const int64_t round = index / groups / passes_ % rounds, chunk = index / groups / passes_ / rounds;
  Step step{};
  step.row = part.row + part.rows * round / rounds;
  step.rows = part.row + part.rows * (round + 1) / rounds - step.row;
  step.panel = part.panel + chunk * chunk_;
  step.panels = std::min(chunk_, part.panel + part.panels - step.panel);
  step.p = pass * depth_;
  step.depth = std::min(depth_, args_.k - step.p);
  step.tiles = ceil_div(step.rows, kTileRows);
  step.tile = step.tiles * group / groups;
  step.count = step.tiles * (group + 1) / groups - step.tile;
  step.first_pass = pass == 0;
  step.last_pass = pass == passes_ - 1;
  step.first_panels = chunk == 0;
  return step;
}

void TileRun::operator()(const GemmPart& part, float* scratch) const {
  const int64_t steps = steps_of(part);
  const bool packed = args_.a_transposed;
  pack(part, step_at(part, 0), 0, 1, scratch + turns_[0], scratch + sums_);
  for (int64_t s = 0; s < steps; ++s) {
    const Step now = step_at(part, s), next = step_at(part, std::min(s + 1, steps - 1));
    const float* const turn = scratch + turns_[s % 2];
    float* const other = scratch + turns_[(s + 1) % 2];
    if (packed && now.tile == 0) {
      PanelPack(args_, now.panel, now.panels, now.p, now.depth).pack(0, 1, scratch + panels_);
    }
    const float* const panels = packed ? scratch + panels_ : turn;
    const int64_t calls = now.count * now.panels;
    for (int64_t call = 0; call < calls; ++call) {
      const bool more = s + 1 < steps;
      const Region pack_next = more && call + 1 < calls ? region(next, call + 1, calls) : Region{};
      run_tile(now, now.tile + call / now.panels, call % now.panels, turn, panels, pack_next, scratch);
      if (more) pack(part, next, call, calls, other, scratch + sums_);
    }
  }
}

void TileRun::pack(const GemmPart& part, const Step& step, int64_t slice, int64_t slices, float* to,
                   float* partial_sums) const {
  if (!args_.a_transposed) {
    return PanelPack(args_, step.panel, step.panels, step.p, step.depth).pack(slice, slices, to);
  }
  float* const sums = part.first_columns && step.first_panels ? args_.a_sums : nullptr;
  StripPack(args_, step.row, step.rows, step.tiles, step.tile, step.count, step.p, step.depth, sums,
            step.first_pass && !args_.accumulate)
      .pack(slice, slices, to, partial_sums);
}

Region TileRun::region(const Step& step, int64_t slice, int64_t slices) const {
  if (!args_.a_transposed) {
    return PanelPack(args_, step.panel, step.panels, step.p, step.depth).region(slice, slices);
  }
  return StripPack(args_, step.row, step.rows, step.tiles, step.tile, step.count, step.p, step.depth, nullptr, false)
      .region(slice, slices);
}

// With A in place: the j-th panel's share of the next tile's rows, unless A stays in cache anyway.
Region TileRun::next_rows(const Step& step, int64_t tile, int64_t j) const {
  if (args_.a_transposed || tile + 1 >= step.tiles || cached_) return {};
  const int64_t row = step.row_at(tile + 1), rows = step.row_at(tile + 2) - row;
  const int64_t first = rows * j / step.panels;
  return {args_.a + (row + first) * args_.lda + step.p, ceil_div(step.depth, kLineFloats),
          rows * (j + 1) / step.panels - first, args_.lda};
}

void TileRun::run_tile(const Step& step, int64_t tile, int64_t j, const float* strips, const float* panels,
                       const Region& pack_next, float* scratch) const {
  const int64_t row = step.row_at(tile), rows = step.row_at(tile + 1) - row;
  const GemmPanel panel = panel_at(args_, step.panel + j);
  const GemmEpilogue* epilogue = step.last_pass ? epilogue_ : nullptr;

  float* const edge = scratch + tile_;
  float* values = edge;
  int64_t stride = kTileCols;
  bool accumulate = false;
  if (args_.c != nullptr) {
    values = args_.c + row * args_.ldc + panel.col;
    stride = args_.ldc;
    accumulate = !step.first_pass || args_.accumulate;
  } else if (keep_partial_) {
    values = scratch + partial_ + ((row - step.row) * chunk_ + j) * kTileCols;
    stride = chunk_ * kTileCols;
    accumulate = !step.first_pass;
  }
  const AOrder order = args_.a_transposed ? AOrder::depth_major : AOrder::row_major;
  const float* a =
      args_.a_transposed ? strips + (tile - step.tile) * step.depth * kStripStride : args_.a + row * args_.lda + step.p;
  const int64_t lda = args_.a_transposed ? kStripStride : args_.lda;
  const float* b = panels + j * step.depth * kTileCols;
  Ahead ahead;
  if (args_.c != nullptr) ahead.add({values, kTileCols / kLineFloats + 1, rows, stride});
  if (epilogue != nullptr) epilogue->ahead(row, rows, panel.col, panel.cols, ahead);
  ahead.add(pack_next);
  ahead.add(next_rows(step, tile, j));
  const TileKernel kernel = tile_kernel(static_cast<int>(rows), kTileVecs, order);
  if (panel.cols == kTileCols || args_.c == nullptr) {
    kernel(step.depth, a, lda, b, kTileCols, values, stride, accumulate, ahead);
  } else {
    kernel(step.depth, a, lda, b, kTileCols, edge, kTileCols, false, ahead);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < panel.cols; ++c) {
        const float x = edge[i * kTileCols + c];
        values[i * stride + c] = accumulate ? values[i * stride + c] + x : x;
      }
    }
  }
  if (epilogue == nullptr) return;
  if (!args_.halves) {
    epilogue->apply({row, rows, panel.col, panel.cols, values, stride, nullptr});
  } else if ((step.panel + j) % 2 == 1) {
    const int64_t half = args_.n / 2;
    epilogue->apply({row, rows, panel.col - half, panel.cols, values - half, stride, values});
  }
}

}  // namespace polaron::cpu
