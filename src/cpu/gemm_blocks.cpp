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
// Blocks of rows in a strip: each panel of B is read so many times in a row.
constexpr int64_t kStripBlocks = 2;

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
  long second = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  second = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  return {std::clamp(second, 256L << 10, 2048L << 10)};
}

BlockSizes choose_block_sizes(int64_t depth, const BlockUnit& unit, const CacheSizes& caches) {
  const int64_t steps = std::max<int64_t>(1, ceil_div(depth, kBlock));
  const int64_t chunk = kBlockFloats * unit.packed_bytes() * (kChunkCols / kBlock);  // of one step
  const int64_t most = std::max<int64_t>(1, panel_bytes(caches) / chunk);
  BlockSizes sizes;
  sizes.steps = ceil_div(steps, ceil_div(steps, most));
  sizes.rounds = ceil_div(steps, sizes.steps);
  sizes.strip = kStripBlocks;
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
      stored_(args.c != nullptr || args.c_bf16 != nullptr),
      piece_floats_(kBlockFloats * unit.packed_bytes() / 4) {
  const int64_t most = ceil_div(cut.panels / panel_unit_, cut.across) * panel_unit_;
  const int64_t fit = std::clamp(panel_bytes(caches) / 4 / (sizes_.steps * piece_floats_), panel_unit_, most);
  // Equal chunks, not a small one at the end.
  const int64_t chunks = ceil_div(most, fit);
  chunk_ = ceil_div(ceil_div(most, chunks), panel_unit_) * panel_unit_;

  for (std::size_t& strip : strips_) strip = take(sizes_.strip * sizes_.steps * piece_floats_);
  panels_ = take(chunk_ * sizes_.steps * piece_floats_);
  // Sums of a strip's last panels; between rounds those of all rows.
  const int64_t blocks = ceil_div(ceil_div(args.m, kBlock), cut.down);
  sums_ = take((sizes_.rounds == 1 ? 2 * sizes_.strip : ceil_div(blocks, sizes_.strip) * sizes_.strip * chunk_) *
               kBlockFloats);
  a_sums_ = take(args.a_sums != nullptr ? blocks * kBlock : 0);
}

// Steps from the outermost loop to the innermost: chunks, rounds, strips.
int64_t BlockGemm::step_count(const GemmPart& part) const {
  return ceil_div(part.panels, chunk_) * sizes_.rounds * ceil_div(part.rows, sizes_.strip * kBlock);
}

BlockGemm::Step BlockGemm::step_at(const GemmPart& part, int64_t index) const {
  const int64_t strip_rows = sizes_.strip * kBlock, strips = ceil_div(part.rows, strip_rows);
  const int64_t chunk = index / strips / sizes_.rounds;
  Step step{};
  step.index = index;
  step.panel = part.panel + chunk * chunk_;
  step.panels = std::min(chunk_, part.panel + part.panels - step.panel);
  step.first_chunk = chunk == 0;
  step.round = index / strips % sizes_.rounds;
  step.depth = std::min(sizes_.steps, ceil_div(std::max<int64_t>(args_.k - first_depth(step), 0), kBlock));
  step.strip = index % strips;
  step.row = part.row + step.strip * strip_rows;
  step.rows = std::min(strip_rows, part.row + part.rows - step.row);
  return step;
}

BlockSource BlockGemm::a_piece(const Step& step, int64_t block, int64_t first) const {
  const int64_t p = first_depth(step) + first * kBlock, row = step.row + block * kBlock;
  return {args_.a_transposed ? args_.a + p * args_.lda + row : args_.a + row * args_.lda + p, args_.lda,
          std::min(step.rows - block * kBlock, kBlock), std::min(args_.k - p, kBlock), !args_.a_transposed};
}

BlockSource BlockGemm::a_block(const Step& step, int64_t block) const {
  BlockSource source = a_piece(step, block, 0);
  source.depth = std::min(args_.k - first_depth(step), step.depth * kBlock);
  return source;
}

BlockOperand BlockGemm::a_operand(const Step& step, int64_t block, float* scratch) const {
  const BlockSource source = a_block(step, block);
  if (unit_.reads_in_place(source)) return {source.from, source.stride};
  return {packed_a(step, block, 0, scratch), 0};
}

BlockSource BlockGemm::b_piece(const Step& step, int64_t panel, int64_t first) const {
  const int64_t p = first_depth(step) + first * kBlock;
  const GemmPanel columns = panel_at(args_, step.panel + panel, kBlock);
  return {args_.b_transposed ? args_.b + columns.col * args_.ldb + p : args_.b + p * args_.ldb + columns.col, args_.ldb,
          columns.cols, std::min(args_.k - p, kBlock), args_.b_transposed};
}

float* BlockGemm::packed_a(const Step& step, int64_t block, int64_t first, float* scratch) const {
  return scratch + strips_[step.index % 2] + (block * sizes_.steps + first) * piece_floats_;
}

float* BlockGemm::packed_b(int64_t panel, int64_t first, float* scratch) const {
  return scratch + panels_ + (panel * sizes_.steps + first) * piece_floats_;
}

// In one round: a place for each block of a pair of panels with halves; otherwise two places that take turns. Few, so
// that they stay in the first-level cache.
float* BlockGemm::sums(const Step& step, int64_t panel, int64_t block, float* scratch) const {
  int64_t place = (step.strip * sizes_.strip + block) * chunk_ + panel;
  if (sizes_.rounds == 1) place = args_.halves ? 2 * block + panel % 2 : (block + panel) % 2;
  return scratch + sums_ + place * kBlockFloats;
}

void BlockGemm::pack_a(const GemmPart& part, const Step& step, int64_t from, int64_t to, float* scratch) const {
  for (int64_t piece = from; piece < to; ++piece) {
    const int64_t block = piece / step.depth, first = piece % step.depth;
    if (first + kPiecesAhead < step.depth) prefetch(a_piece(step, block, first + kPiecesAhead));
    if (args_.a_sums != nullptr && part.first_columns && step.first_chunk) {
      add_a_sums(part, step, block, first, scratch);
    }
    if (!unit_.reads_in_place(a_block(step, block)))
      unit_.pack_a(a_piece(step, block, first), packed_a(step, block, first, scratch));
  }
}

void BlockGemm::add_a_sums(const GemmPart& part, const Step& step, int64_t block, int64_t first, float* scratch) const {
  const int64_t row = step.row + block * kBlock;
  float* const own = scratch + a_sums_ + (row - part.row);
  if (step.round == 0 && first == 0) std::fill_n(own, kBlock, 0.0F);
  const BlockSource source = a_piece(step, block, first);
  add_sums(source, own);
  if (!last_round(step) || first + 1 < step.depth) return;
  for (int64_t i = 0; i < source.count; ++i) {
    args_.a_sums[row + i] = args_.accumulate ? args_.a_sums[row + i] + own[i] : own[i];
  }
}

void BlockGemm::pack_b(const Step& step, int64_t panel, int64_t from, int64_t to, float* scratch) const {
  for (int64_t piece = from; piece < to; ++piece) {
    if (piece + kPiecesAhead < step.depth) prefetch(b_piece(step, panel, piece + kPiecesAhead));
    unit_.pack_b(b_piece(step, panel, piece), packed_b(panel, piece, scratch));
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
  const int64_t blocks = step.blocks();
  // Between blocks the next strip is packed piece by piece, and in the first strip the next panel.
  const int64_t a_pieces = next != nullptr ? next->blocks() * next->depth : 0;
  const int64_t b_pieces = step.strip == 0 ? step.depth : 0;
  int64_t run = 0, a_done = 0;
  Finished waiting{0, 0, 0};
  const auto finish_waiting = [&] {
    if (waiting.panels > 0) finish(step, waiting, scratch);
    waiting.panels = 0;
  };

  if (b_pieces > 0) pack_b(step, 0, 0, b_pieces, scratch);
  for (int64_t j = 0; j < step.panels; ++j) {
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t block = j % 2 == 0 ? i : blocks - 1 - i;
      const bool backwards = (step.row / kBlock + block + step.panel + j) % 2 != 0;
      float* const to = sums(step, j, block, scratch);
      if (args_.halves && waiting.block == block) finish_waiting();  // its place is needed
      if (last_round(step) && stored_) prefetch_stored(step, j, block);
      unit_.multiply(step.depth, a_operand(step, block, scratch), packed_b(j, 0, scratch), to, kBlock, step.round > 0,
                     backwards);
      // A block later: the sums just computed are still on their way out of the unit.
      finish_waiting();
      if (last_round(step) && (j + 1) % panel_unit_ == 0) waiting = {j + 1 - panel_unit_, panel_unit_, block};

      const int64_t a_due = a_pieces * ++run / (step.panels * blocks);
      if (a_due > a_done) pack_a(part, *next, a_done, a_due, scratch);
      a_done = a_due;
      if (j + 1 < step.panels) pack_b(step, j + 1, b_pieces * i / blocks, b_pieces * (i + 1) / blocks, scratch);
    }
  }
  finish_waiting();
}

void BlockGemm::prefetch_stored(const Step& step, int64_t panel, int64_t block) const {
  const int64_t at = (step.row + block * kBlock) * args_.ldc + panel_at(args_, step.panel + panel, kBlock).col;
  const int64_t rows = std::min(kBlock, step.rows - block * kBlock);
  for (int64_t r = 0; r < rows; ++r) {
    if (args_.c != nullptr) {
      __builtin_prefetch(args_.c + at + r * args_.ldc, 1);
      __builtin_prefetch(args_.c + at + r * args_.ldc + kLineBytes / 4, 1);
    } else {
      __builtin_prefetch(args_.c_bf16 + at + r * args_.ldc, 1);
    }
  }
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
    const bool in_place = unit.reads_in_place(block);
    if (!in_place) unit.pack_a(block, packed_a);
    const BlockOperand operand = in_place ? BlockOperand{block.from, lda} : BlockOperand{packed_a, 0};
    for (int64_t col = 0; col < cols; col += kBlock) {
      const int64_t width = std::min(kBlock, cols - col);
      const void* panel = static_cast<const char*>(packed_b) + packed_panels_bytes(unit, col, depth);
      float* const to = c + row * ldc + col;
      if (height == kBlock && width == kBlock) {
        unit.multiply(block.steps(), operand, panel, to, ldc, accumulate, false);
        continue;
      }
      unit.multiply(block.steps(), operand, panel, edge, kBlock, false, false);
      for (int64_t i = 0; i < height; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          to[i * ldc + j] = accumulate ? to[i * ldc + j] + edge[i * kBlock + j] : edge[i * kBlock + j];
        }
      }
    }
  }
}

}  // namespace polaron::cpu
