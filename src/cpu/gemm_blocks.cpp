#include "cpu/gemm_blocks.h"

#include <unistd.h>

#include <algorithm>

#include "cpu/gemm_bf16.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

constexpr int64_t kBlockFloats = kBlock * kBlock;
constexpr int64_t kLineBytes = 64;
// Columns that a chunk should have where the depth does not fit as a whole: packing a strip of A is then a few percent
// of the work on it.
constexpr int64_t kChunkCols = 512;
// Pieces are asked for from memory this many before they are packed.
constexpr int64_t kPiecesAhead = 2;
// A pass of units that do not outrun the second-level cache.
constexpr int64_t kSlowUnitSteps = 16;

// Bytes of packed B that stay in the second-level cache beside two strips of A.
int64_t panel_bytes(const CacheSizes& caches) { return caches.second_level / 8 * 5; }

// Asks for the cache lines of a block. Addresses are integers here: they may lie behind the end of an array.
void prefetch(const BlockSource& block) {
  const int64_t rows = block.depth_runs_along_rows ? block.count : block.depth;
  const int64_t bytes = 2 * (block.depth_runs_along_rows ? block.depth : block.count);
  auto row = reinterpret_cast<std::uintptr_t>(block.from);
  for (int64_t r = 0; r < rows; ++r, row += static_cast<std::uintptr_t>(block.stride) * sizeof(bf16)) {
    for (int64_t at = 0; at < bytes; at += kLineBytes) {
      __builtin_prefetch(reinterpret_cast<const void*>(row + static_cast<std::uintptr_t>(at)), 0, 2);
    }
  }
}

// sums[i] += the block's elements (p, i) over p.
void add_sums(const BlockSource& block, float* sums) {
  if (block.count == kBlock) {
    constexpr int64_t kVecs = kBlock / kLanes;
    Vec total[kVecs];
    for (int64_t v = 0; v < kVecs; ++v) total[v] = load_vec(sums + v * kLanes);
    for (int64_t p = 0; p < block.depth; ++p) {
      for (int64_t v = 0; v < kVecs; ++v) total[v] += load_bf16(block.from + p * block.stride + v * kLanes);
    }
    for (int64_t v = 0; v < kVecs; ++v) store_vec(sums + v * kLanes, total[v]);
    return;
  }
  for (int64_t p = 0; p < block.depth; ++p) {
    for (int64_t i = 0; i < block.count; ++i) sums[i] += to_float(block.from[p * block.stride + i]);
  }
}

}  // namespace

CacheSizes CacheSizes::of_this_machine() {
  long first = 0, second = 0;
#if defined(_SC_LEVEL1_DCACHE_SIZE) && defined(_SC_LEVEL2_CACHE_SIZE)
  first = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  second = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  return {std::clamp(first, 32L << 10, 128L << 10), std::clamp(second, 256L << 10, 2048L << 10)};
}

BlockSizes choose_block_sizes(int64_t depth, const BlockUnit& unit, const CacheSizes& caches) {
  const int64_t steps = std::max<int64_t>(1, ceil_div(depth, kBlock));
  const int64_t piece = kBlockFloats * unit.packed_bytes(), sums = kBlockFloats * 4;
  const int64_t first_level = caches.first_level / 8 * 7;
  // Passes as long as the operands of a group and its sums fit the first-level cache.
  const auto longest = [&](int64_t side) { return (first_level - side * side * sums) / (2 * side * piece); };
  BlockSizes sizes;
  int64_t most = longest(1);
  if (!unit.outruns_second_level()) {
    most = kSlowUnitSteps;
  } else if (steps > most) {
    sizes.side = 2;
    most = longest(2);
  }
  most = std::max<int64_t>(1, most);
  sizes.steps = ceil_div(steps, ceil_div(steps, most));
  sizes.passes = ceil_div(steps, sizes.steps);
  const int64_t chunk = sizes.steps * piece * (kChunkCols / kBlock);  // of one pass
  const int64_t most_passes = std::max<int64_t>(1, panel_bytes(caches) / chunk);
  sizes.round_passes = ceil_div(sizes.passes, ceil_div(sizes.passes, most_passes));
  return sizes;
}

CutCosts block_cut_costs(const BlockUnit& unit) {
  const BlockUnit::Costs costs = unit.costs();
  return {kBlock,
          kBlock,
          kBlock,
          costs.product,
          costs.pack_a_along,
          costs.pack_a_across,
          costs.pack_b_across,
          costs.pack_b_along};
}

std::size_t BlockGemm::take(int64_t floats) {
  const std::size_t offset = floats_;
  floats_ += aligned_floats(floats);
  return offset;
}

BlockGemm::BlockGemm(const Bf16GemmArgs& args, const GemmCut& cut, const GemmEpilogue* epilogue, const BlockUnit& unit,
                     const CacheSizes& caches)
    : args_(args),
      epilogue_(epilogue),
      unit_(unit),
      sizes_(choose_block_sizes(args.k, unit, caches)),
      panel_unit_(cut.panel_unit),
      group_panels_(std::max(sizes_.side, panel_unit_)),
      rounds_(ceil_div(sizes_.passes, sizes_.round_passes)),
      stored_(args.c != nullptr || args.c_bf16 != nullptr),
      piece_floats_(kBlockFloats * unit.packed_bytes() / 4),
      round_steps_(sizes_.round_passes * sizes_.steps) {
  const int64_t most = ceil_div(cut.panels / panel_unit_, cut.across) * panel_unit_;
  const int64_t fit = std::clamp(panel_bytes(caches) / 4 / (round_steps_ * piece_floats_), group_panels_,
                                 std::max(most, group_panels_));
  // Equal chunks, not a small one at the end.
  const int64_t chunks = ceil_div(most, fit);
  chunk_ = ceil_div(ceil_div(most, chunks), group_panels_) * group_panels_;

  for (std::size_t& strip : strips_) strip = take(sizes_.side * round_steps_ * piece_floats_);
  panels_ = take(chunk_ * round_steps_ * piece_floats_);
  // Sums of a group (and of the one before, see sums()); between rounds those of all rows.
  const int64_t blocks = ceil_div(ceil_div(args.m, kBlock), cut.down);
  sums_ = take((rounds_ == 1 ? 2 * sizes_.side * group_panels_ : ceil_div(blocks, sizes_.side) * sizes_.side * chunk_) *
               kBlockFloats);
  a_sums_ = take(args.a_sums != nullptr ? blocks * kBlock : 0);
}

// Steps from the outermost loop to the innermost: chunks, rounds, strips.
int64_t BlockGemm::step_count(const GemmPart& part) const {
  return ceil_div(part.panels, chunk_) * rounds_ * ceil_div(part.rows, sizes_.side * kBlock);
}

BlockGemm::Step BlockGemm::step_at(const GemmPart& part, int64_t index) const {
  const int64_t strip_rows = sizes_.side * kBlock, strips = ceil_div(part.rows, strip_rows);
  const int64_t chunk = index / strips / rounds_;
  Step step{};
  step.index = index;
  step.panel = part.panel + chunk * chunk_;
  step.panels = std::min(chunk_, part.panel + part.panels - step.panel);
  step.first_chunk = chunk == 0;
  step.round = index / strips % rounds_;
  const int64_t passes = std::min(sizes_.round_passes, sizes_.passes - step.round * sizes_.round_passes);
  const int64_t steps = ceil_div(std::max<int64_t>(args_.k - first_depth(step), 0), kBlock);
  step.depth = std::min(passes * sizes_.steps, steps);
  step.strip = index % strips;
  step.row = part.row + step.strip * strip_rows;
  step.rows = std::min(strip_rows, part.row + part.rows - step.row);
  return step;
}

BlockSource BlockGemm::a_source(const Step& step, int64_t block, int64_t first, int64_t count) const {
  const int64_t p = first_depth(step) + first * kBlock, row = step.row + block * kBlock;
  return {args_.a_transposed ? args_.a + p * args_.lda + row : args_.a + row * args_.lda + p, args_.lda,
          std::min(step.rows - block * kBlock, kBlock), std::min(args_.k - p, count * kBlock), !args_.a_transposed};
}

BlockSource BlockGemm::b_source(const Step& step, int64_t panel, int64_t first, int64_t count) const {
  const int64_t p = first_depth(step) + first * kBlock;
  const GemmPanel columns = panel_at(args_, step.panel + panel, kBlock);
  return {args_.b_transposed ? args_.b + columns.col * args_.ldb + p : args_.b + p * args_.ldb + columns.col, args_.ldb,
          columns.cols, std::min(args_.k - p, count * kBlock), args_.b_transposed};
}

float* BlockGemm::packed_a(const Step& step, int64_t block, int64_t first, float* scratch) const {
  return scratch + strips_[step.index % 2] + (block * round_steps_ + first) * piece_floats_;
}

float* BlockGemm::packed_b(int64_t panel, int64_t first, float* scratch) const {
  return scratch + panels_ + (panel * round_steps_ + first) * piece_floats_;
}

float* BlockGemm::sums(const Step& step, int64_t panel, int64_t block, float* scratch) const {
  // Groups of a single block take turns, so that one can be finished during the next.
  const int64_t turn = sizes_.side == 1 ? panel / group_panels_ % 2 : 0;
  const int64_t index = rounds_ == 1 ? (turn * sizes_.side + block) * group_panels_ + panel % group_panels_
                                     : (step.strip * sizes_.side + block) * chunk_ + panel;
  return scratch + sums_ + index * kBlockFloats;
}

void BlockGemm::pack_a(const GemmPart& part, const Step& step, int64_t from, int64_t to, float* scratch) const {
  for (int64_t piece = from; piece < to; ++piece) {
    const int64_t block = piece / step.depth, first = piece % step.depth;
    if (first + kPiecesAhead < step.depth) prefetch(a_source(step, block, first + kPiecesAhead, 1));
    if (args_.a_sums != nullptr && part.first_columns && step.first_chunk) {
      add_a_sums(part, step, block, first, scratch);
    }
    unit_.pack_a(a_source(step, block, first, 1), packed_a(step, block, first, scratch));
  }
}

void BlockGemm::add_a_sums(const GemmPart& part, const Step& step, int64_t block, int64_t first, float* scratch) const {
  const int64_t row = step.row + block * kBlock;
  float* const own = scratch + a_sums_ + (row - part.row);
  if (step.round == 0 && first == 0) std::fill_n(own, kBlock, 0.0F);
  const BlockSource source = a_source(step, block, first, 1);
  add_sums(source, own);
  if (!last_round(step) || first + 1 < step.depth) return;
  for (int64_t i = 0; i < source.count; ++i) {
    args_.a_sums[row + i] = args_.accumulate ? args_.a_sums[row + i] + own[i] : own[i];
  }
}

void BlockGemm::pack_b(const Step& step, int64_t panel, int64_t from, int64_t to, float* scratch) const {
  for (int64_t piece = from; piece < to; ++piece) {
    const int64_t j = panel + piece / step.depth, first = piece % step.depth;
    if (first + kPiecesAhead < step.depth) prefetch(b_source(step, j, first + kPiecesAhead, 1));
    unit_.pack_b(b_source(step, j, first, 1), packed_b(j, first, scratch));
  }
}

void BlockGemm::run(const GemmPart& part, float* scratch) const {
  const UnitScope scope(unit_);
  const int64_t steps = step_count(part);
  Step step = step_at(part, 0);
  pack_a(part, step, 0, step.blocks() * step.depth, scratch);
  for (int64_t s = 0; s < steps; ++s) {
    const Step next = step_at(part, std::min(s + 1, steps - 1));
    run_step(part, step, s + 1 < steps ? &next : nullptr, scratch);
    step = next;
  }
}

void BlockGemm::run_step(const GemmPart& part, const Step& step, const Step* next, float* scratch) const {
  const int64_t groups = ceil_div(step.panels, group_panels_), passes = ceil_div(step.depth, sizes_.steps);
  const int64_t blocks = step.blocks(), runs = std::max<int64_t>(passes, 1) * blocks;  // of a panel
  const bool packs_b = step.strip == 0;
  const auto panels_of = [&](int64_t group) { return std::min(group_panels_, step.panels - group * group_panels_); };
  // The next strip is packed during all products of this one, the next group's panels during those of a group.
  const int64_t a_pieces = next != nullptr ? next->blocks() * next->depth : 0, all = runs * step.panels;
  int64_t a_done = 0, run = 0;
  Finished waiting{0, 0, 0};
  const auto finish_waiting = [&] {
    finish(step, waiting, scratch);
    waiting.panels = 0;
  };
  const auto overlaps = [&](const float* to) {
    return to == sums(step, waiting.panel, waiting.block, scratch) ||
           to == sums(step, waiting.panel + waiting.panels - 1, waiting.block, scratch);
  };

  if (packs_b) pack_b(step, 0, 0, panels_of(0) * step.depth, scratch);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t panel = g * group_panels_, panels = panels_of(g);
    const int64_t b_pieces = packs_b && g + 1 < groups ? panels_of(g + 1) * step.depth : 0, own_runs = runs * panels;
    int64_t b_done = 0, own_run = 0;
    for (int64_t pass = 0; pass < std::max<int64_t>(passes, 1); ++pass) {
      const int64_t first = pass * sizes_.steps, steps = std::min(sizes_.steps, step.depth - first);
      const bool last = last_round(step) && pass + 1 >= passes;
      for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t j = panel; j < panel + panels; ++j) {
          float* const to = sums(step, j, block, scratch);
          if (waiting.panels > 0 && overlaps(to)) finish_waiting();
          unit_.multiply(steps, packed_a(step, block, first, scratch), packed_b(j, first, scratch), to, kBlock,
                         step.round > 0 || pass > 0);
          // A block later: the sums just computed are still on their way out of the unit.
          if (waiting.panels > 0) finish_waiting();
          if (last && (j + 1) % panel_unit_ == 0) waiting = {j + 1 - panel_unit_, panel_unit_, block};

          const int64_t a_due = a_pieces * ++run / all, b_due = b_pieces * ++own_run / own_runs;
          if (a_due > a_done) pack_a(part, *next, a_done, a_due, scratch);
          if (b_due > b_done) pack_b(step, panel + panels, b_done, b_due, scratch);
          a_done = a_due;
          b_done = b_due;
        }
      }
    }
  }
  if (waiting.panels > 0) finish_waiting();
}

void BlockGemm::finish(const Step& step, const Finished& finished, float* scratch) const {
  const GemmPanel columns = panel_at(args_, step.panel + finished.panel, kBlock);
  const int64_t rows = std::min(kBlock, step.rows - finished.block * kBlock);
  GemmBlock block{step.row + finished.block * kBlock,
                  rows,
                  columns.col,
                  columns.cols,
                  sums(step, finished.panel, finished.block, scratch),
                  kBlock};
  GemmBlock second = block;
  if (finished.panels == 2) {
    second.col += args_.n / 2;
    second.values = block.second = sums(step, finished.panel + 1, finished.block, scratch);
  }
  if (args_.accumulate && stored_) {
    add_stored(block, block.values);
    if (finished.panels == 2) add_stored(second, second.values);
  }
  if (epilogue_ != nullptr) epilogue_->apply(block);
  if (!stored_) return;
  store(block, block.values);
  if (finished.panels == 2) store(second, second.values);
}

void BlockGemm::add_stored(const GemmBlock& block, float* values) const {
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t at = (block.row + r) * args_.ldc + block.col;
    float* const to = values + r * kBlock;
    if (args_.c != nullptr) {
      for (int64_t c = 0; c < block.cols; ++c) to[c] = args_.c[at + c] + to[c];
    } else {
      for (int64_t c = 0; c < block.cols; ++c) to[c] = to_float(args_.c_bf16[at + c]) + to[c];
    }
  }
}

void BlockGemm::store(const GemmBlock& block, const float* values) const {
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t at = (block.row + r) * args_.ldc + block.col;
    if (args_.c != nullptr) {
      std::copy_n(values + r * kBlock, block.cols, args_.c + at);
    } else {
      to_bf16s(values + r * kBlock, block.cols, args_.c_bf16 + at);
    }
  }
}

// ------------------------------------------------------------------------------------- products too small to be cut

int64_t packed_panels_bytes(const BlockUnit& unit, int64_t cols, int64_t depth) {
  return ceil_div(cols, kBlock) * ceil_div(depth, kBlock) * kBlockFloats * unit.packed_bytes();
}

int64_t block_scratch_bytes(const BlockUnit& unit, int64_t depth) {
  return kBlockFloats * 4 + ceil_div(depth, kBlock) * kBlockFloats * unit.packed_bytes();
}

void pack_panels(const BlockUnit& unit, const bf16* b, int64_t ldb, bool b_transposed, int64_t cols, int64_t depth,
                 void* to) {
  for (int64_t col = 0; col < cols; col += kBlock) {
    const BlockSource panel{b_transposed ? b + col * ldb : b + col, ldb, std::min(kBlock, cols - col), depth,
                            b_transposed};
    unit.pack_b(panel, static_cast<char*>(to) + packed_panels_bytes(unit, col, depth));
  }
}

void multiply_block(const BlockUnit& unit, int64_t rows, int64_t cols, int64_t depth, const bf16* a, int64_t lda,
                    const void* packed_b, float* c, int64_t ldc, bool accumulate, void* scratch) {
  auto* const edge = static_cast<float*>(scratch);
  void* const packed_a = edge + kBlockFloats;
  for (int64_t row = 0; row < rows; row += kBlock) {
    const int64_t height = std::min(kBlock, rows - row);
    const BlockSource block{a + row * lda, lda, height, depth, true};
    unit.pack_a(block, packed_a);
    for (int64_t col = 0; col < cols; col += kBlock) {
      const int64_t width = std::min(kBlock, cols - col);
      const void* panel = static_cast<const char*>(packed_b) + packed_panels_bytes(unit, col, depth);
      float* const to = c + row * ldc + col;
      if (height == kBlock && width == kBlock) {
        unit.multiply(block.steps(), packed_a, panel, to, ldc, accumulate);
        continue;
      }
      unit.multiply(block.steps(), packed_a, panel, edge, kBlock, false);
      for (int64_t i = 0; i < height; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          to[i * ldc + j] = accumulate ? to[i * ldc + j] + edge[i * kBlock + j] : edge[i * kBlock + j];
        }
      }
    }
  }
}

}  // namespace polaron::cpu
