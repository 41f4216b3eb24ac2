#include <algorithm>
#include <cstddef>

#include "cpu/gemm_cut.h"
#include "cpu/gemm_pack.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

// Depth of one pass, and panels of B that stay in the second-level cache with it.
constexpr int64_t kPassDepth = 384, kChunkFloats = 192 * 1024;
// Strips of A packed at a time, so that whole cache lines of it are used.
constexpr int64_t kStrips = 8;

int64_t tiles_of(const GemmPart& part) { return ceil_div(part.rows, kTileRows); }

}  // namespace

StripGemm::StripGemm(const GemmArgs& args, const GemmCut& cut, const GemmEpilogue* epilogue)
    : TileGemm(args, epilogue) {
  const int64_t k = std::max<int64_t>(args.k, 1);  // a pass that adds nothing, where there is nothing to add
  passes_ = ceil_div(k, kPassDepth);
  depth_ = ceil_div(ceil_div(k, passes_), 16) * 16;
  const int64_t most = ceil_div(cut.panels, cut.across);
  // Equal chunks, not a small one at the end.
  const int64_t chunks = ceil_div(most, std::clamp<int64_t>(kChunkFloats / (depth_ * kTileCols), 1, most));
  chunk_ = ceil_div(most, chunks);
  for (std::size_t& strips : strips_) strips = take(kStrips * depth_ * kStripStride);
  panels_ = take(chunk_ * depth_ * kTileCols);
  sums_ = take(kStrips * kStripStride);
  edge_ = take(kTileRows * kTileCols);
}

// From the outermost loop to the innermost: chunks of panels, passes, groups of strips.
StripGemm::Step StripGemm::step_at(const GemmPart& part, int64_t index) const {
  const int64_t tiles = tiles_of(part), groups = ceil_div(tiles, kStrips);
  const int64_t group = index % groups, pass = index / groups % passes_, chunk = index / groups / passes_;
  Step step{};
  step.panel = part.panel + chunk * chunk_;
  step.panels = std::min(chunk_, part.panel + part.panels - step.panel);
  step.p = pass * depth_;
  step.depth = std::min(depth_, args_.k - step.p);
  step.tile = tiles * group / groups;
  step.count = tiles * (group + 1) / groups - step.tile;
  step.first_pass = pass == 0;
  step.last_pass = pass == passes_ - 1;
  step.first_panels = chunk == 0;
  return step;
}

void StripGemm::run(const GemmPart& part, float* scratch) const {
  const int64_t tiles = tiles_of(part);
  const int64_t steps = ceil_div(part.panels, chunk_) * passes_ * ceil_div(tiles, kStrips);
  const auto row_at = [&](int64_t tile) { return part.row + part.rows * tile / tiles; };
  const auto strips_of = [&](const Step& step) {
    float* const sums = part.first_columns && step.first_panels ? args_.a_sums : nullptr;
    return StripPack(args_, part.row, part.rows, tiles, step.tile, step.count, step.p, step.depth, sums,
                     step.first_pass && !args_.accumulate);
  };
  float* const panels = scratch + panels_;
  strips_of(step_at(part, 0)).pack(0, 1, scratch + strips_[0], scratch + sums_);
  for (int64_t s = 0; s < steps; ++s) {
    const Step step = step_at(part, s), next = step_at(part, std::min(s + 1, steps - 1));
    const bool more = s + 1 < steps;
    if (step.tile == 0) PanelPack(args_, step.panel, step.panels, step.p, step.depth).pack(0, 1, panels);
    const StripPack next_strips = strips_of(next);
    const int64_t calls = step.count * step.panels;
    for (int64_t call = 0; call < calls; ++call) {
      const int64_t t = call / step.panels, j = call % step.panels, row = row_at(step.tile + t);
      const Tile tile{row,
                      row_at(step.tile + t + 1) - row,
                      panel_at(args_, step.panel + j),
                      step.depth,
                      scratch + strips_[s % 2] + t * step.depth * kStripStride,
                      kStripStride,
                      panels + j * step.depth * kTileCols,
                      step.first_pass,
                      step.last_pass,
                      false};
      const Region soon = more && call + 1 < calls ? next_strips.region(call + 1, calls) : Region{};
      run_tile(tile, nullptr, 0, scratch + edge_, soon, {});
      if (more) next_strips.pack(call, calls, scratch + strips_[(s + 1) % 2], scratch + sums_);
    }
  }
}

}  // namespace polaron::cpu
