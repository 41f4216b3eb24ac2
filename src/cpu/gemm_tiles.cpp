#include <unistd.h>

#include <algorithm>
#include <cstddef>

#include "cpu/gemm_cut.h"
#include "cpu/gemm_pack.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

constexpr int64_t kLineFloats = 16;
// A depth up to kSinglePass is not cut, so that a tile leaves the registers once, finished.
constexpr int64_t kSinglePass = 2048, kPassDepth = 768;
// Packed panels of a chunk: in the third-level cache, or memory.
constexpr int64_t kChunkFloats = 1536 * 1024;
// Panels of a chunk when the product is not stored and needs several passes.
constexpr int64_t kPartialPanels = 8;

// Floats of A that stay in the second-level cache beside two panels of B: three eighths of it, 256 rows of 768 in 2 MB.
int64_t cached_floats() {
  long bytes = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  constexpr long kLeast = 256 * 1024, kMost = 2048 * 1024;
  return std::clamp(bytes, kLeast, kMost) / 8 * 3 / static_cast<long>(sizeof(float));
}

}  // namespace

void TileGemm::run_tile(const Tile& tile, float* partial, int64_t partial_stride, float* edge, const Region& soon,
                        const Region& also_soon) const {
  const GemmPanel& panel = tile.panel;
  const GemmEpilogue* epilogue = tile.last_pass ? epilogue_ : nullptr;
  float* values = partial;
  int64_t stride = partial_stride;
  bool accumulate = !tile.first_pass;
  Ahead ahead;
  if (args_.c != nullptr) {
    values = args_.c + tile.row * args_.ldc + panel.col;
    stride = args_.ldc;
    accumulate = accumulate || args_.accumulate;
    ahead.add({values, kTileCols / kLineFloats + 1, tile.rows, stride});
  }
  if (epilogue != nullptr) epilogue->ahead(tile.row, tile.rows, panel.col, panel.cols, ahead);
  ahead.add(soon);
  ahead.add(also_soon);

  const AOrder order = args_.a_transposed ? AOrder::depth_major : AOrder::row_major;
  const TileKernel kernel = tile_kernel(static_cast<int>(tile.rows), kTileVecs, order);
  if (panel.cols == kTileCols || args_.c == nullptr) {
    kernel(tile.depth, tile.a, tile.lda, tile.b, kTileCols, values, stride, accumulate, ahead);
  } else {
    kernel(tile.depth, tile.a, tile.lda, tile.b, kTileCols, edge, kTileCols, false, ahead);
    for (int64_t i = 0; i < tile.rows; ++i) {
      for (int64_t c = 0; c < panel.cols; ++c) {
        const float x = edge[i * kTileCols + c];
        values[i * stride + c] = accumulate ? values[i * stride + c] + x : x;
      }
    }
  }
  if (epilogue == nullptr) return;
  if (!args_.halves) {
    epilogue->apply({tile.row, tile.rows, panel.col, panel.cols, values, stride, nullptr});
  } else if (tile.second_half) {
    const int64_t half = args_.n / 2;
    epilogue->apply({tile.row, tile.rows, panel.col - half, panel.cols, values - half, stride, values});
  }
}

// ---------------------------------------------------------------------------------------------- rows in place

RowGemm::RowGemm(const GemmArgs& args, const GemmCut& cut, const GemmEpilogue* epilogue) : TileGemm(args, epilogue) {
  passes_ = args.k <= kSinglePass ? 1 : ceil_div(args.k, kPassDepth);
  depth_ = ceil_div(ceil_div(args.k, passes_), kLineFloats) * kLineFloats;
  keep_partial_ = args.c == nullptr && passes_ > 1;
  const int64_t rows = ceil_div(args.m, cut.down);
  round_rows_ = std::clamp<int64_t>(cached_floats() / std::max<int64_t>(depth_, 1), kTileRows,
                                    std::max<int64_t>(rows, kTileRows));
  const bool one_round = round_rows_ >= rows;

  const int64_t most = ceil_div(cut.panels / cut.panel_unit, cut.across) * cut.panel_unit;
  int64_t fit = one_round ? most : kChunkFloats / (passes_ * depth_ * kTileCols);
  if (keep_partial_) fit = kPartialPanels;
  // Equal chunks, not a small one at the end.
  const int64_t chunks = ceil_div(most, std::clamp<int64_t>(fit, cut.panel_unit, most));
  chunk_ = ceil_div(ceil_div(most, chunks), cut.panel_unit) * cut.panel_unit;

  packed_ = take((one_round ? 2 : passes_ * chunk_) * depth_ * kTileCols);
  edge_ = take(kTileRows * kTileCols);
  partial_ = take(keep_partial_ ? std::min(round_rows_, rows) * chunk_ * kTileCols : 0);
}

// From the outermost loop to the innermost: rounds, passes, panels.
RowGemm::Step RowGemm::step_at(const GemmPart& part, const Chunk& chunk, int64_t index, float* scratch) const {
  const int64_t panel = index % chunk.panels, pass = index / chunk.panels % passes_;
  const int64_t round = index / chunk.panels / passes_;
  Step step{};
  step.row = part.row + part.rows * round / chunk.rounds;
  step.rows = part.row + part.rows * (round + 1) / chunk.rounds - step.row;
  step.tiles = ceil_div(step.rows, kTileRows);
  step.panel = panel;
  step.p = pass * depth_;
  step.depth = std::min(depth_, args_.k - step.p);
  step.first_round = round == 0;
  step.first_pass = pass == 0;
  step.last_pass = pass == passes_ - 1;
  const int64_t slot = chunk.rounds == 1 ? index % 2 : pass * chunk_ + panel;
  step.packed = scratch + packed_ + slot * depth_ * kTileCols;
  return step;
}

void RowGemm::run(const GemmPart& part, float* scratch) const {
  for (int64_t panel = 0; panel < part.panels; panel += chunk_) {
    const Chunk chunk{part.panel + panel, std::min(chunk_, part.panels - panel), ceil_div(part.rows, round_rows_)};
    const int64_t steps = chunk.rounds * passes_ * chunk.panels;
    Step step = step_at(part, chunk, 0, scratch);
    PanelPack(args_, chunk.panel, 1, step.p, step.depth).pack(0, 1, step.packed);
    for (int64_t s = 0; s < steps; ++s) {
      const Step next = step_at(part, chunk, std::min(s + 1, steps - 1), scratch);
      run_step(chunk, step, s + 1 < steps ? &next : nullptr, scratch);
      step = next;
    }
  }
}

void RowGemm::run_step(const Chunk& chunk, const Step& step, const Step* next, float* scratch) const {
  const Step& ahead = next != nullptr ? *next : step;
  const PanelPack pack(args_, chunk.panel + ahead.panel, 1, ahead.p, ahead.depth);
  const bool packs = next != nullptr && next->first_round;
  const GemmPanel panel = panel_at(args_, chunk.panel + step.panel);
  const int64_t packed_lines = ahead.depth * kTileCols / kLineFloats;
  for (int64_t t = 0; t < step.tiles; ++t) {
    const int64_t row = step.row_at(t), rows = step.row_at(t + 1) - row;
    Region soon{}, rows_soon{};
    if (packs && t + 1 < step.tiles) {
      soon = pack.region(t + 1, step.tiles);
    } else if (next != nullptr && !packs) {
      const int64_t line = packed_lines * t / step.tiles;
      soon = {next->packed + line * kLineFloats, packed_lines * (t + 1) / step.tiles - line, 1, 0};
    }
    if (step.panel == 0 && t + 1 < step.tiles) {  // the first panel of a round or pass brings A into the cache
      rows_soon = {args_.a + (row + rows) * args_.lda + step.p, ceil_div(step.depth, kLineFloats),
                   step.row_at(t + 2) - row - rows, args_.lda};
    }
    float* partial = scratch + edge_;
    int64_t partial_stride = kTileCols;
    if (keep_partial_) {
      partial_stride = chunk_ * kTileCols;
      partial = scratch + partial_ + (row - step.row) * partial_stride + step.panel * kTileCols;
    }
    const Tile tile{row,       rows,        panel,           step.depth,     args_.a + row * args_.lda + step.p,
                    args_.lda, step.packed, step.first_pass, step.last_pass, (chunk.panel + step.panel) % 2 == 1};
    run_tile(tile, partial, partial_stride, scratch + edge_, soon, rows_soon);
    if (packs) pack.pack(t, step.tiles, next->packed);
  }
}

}  // namespace polaron::cpu
