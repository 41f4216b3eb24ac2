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

// A matrix's rows as memory that will be needed, asked for a few lines at a time. Addresses are integers here: they may
// lie behind the end of an array.
class Wanted {
 public:
  Wanted() = default;
  Wanted(const bf16* from, int64_t stride, int64_t rows, int64_t cols)
      : row_(reinterpret_cast<std::uintptr_t>(from)),
        row_step_(static_cast<std::uintptr_t>(stride) * sizeof(bf16)),
        lines_(ceil_div(cols * static_cast<int64_t>(sizeof(bf16)), kLineBytes)),
        rows_(lines_ > 0 ? rows : 0) {}
  explicit Wanted(const BlockSource& block)
      : Wanted(block.from, block.stride, block.depth_runs_along_rows ? block.count : block.depth,
               block.depth_runs_along_rows ? block.depth : block.count) {}
  int64_t lines() const { return lines_ * rows_; }
  void ask(int64_t lines) {
    for (; lines > 0 && rows_ > 0; --lines) {
      __builtin_prefetch(reinterpret_cast<const void*>(row_ + static_cast<std::uintptr_t>(line_ * kLineBytes)), 0, 2);
      if (++line_ < lines_) continue;
      line_ = 0;
      row_ += row_step_;
      --rows_;
    }
  }

 private:
  std::uintptr_t row_ = 0, row_step_ = 0;
  int64_t lines_ = 0, rows_ = 0, line_ = 0;
};

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
  const int64_t packed = kBlockFloats * unit.packed_bytes(), sums = kBlockFloats * 4;
  BlockSizes best;
  double least = 0.0;
  for (const int64_t blocks : {1, 2}) {
    // What is touched between two uses of the strip: itself, a panel of B, and sums.
    const int64_t most = std::max<int64_t>(1, (caches.first_level - blocks * sums) / ((blocks + 1) * packed));
    BlockSizes sizes;
    sizes.strip_blocks = blocks;
    sizes.steps = ceil_div(steps, ceil_div(steps, most));
    sizes.passes = ceil_div(steps, sizes.steps);
    const double bytes =
        static_cast<double>(packed) / static_cast<double>(blocks) +
        2.0 * static_cast<double>(sums * (sizes.passes - 1)) / static_cast<double>(sizes.passes * sizes.steps);
    if (blocks == 1 || bytes < least) {
      best = sizes;
      least = bytes;
    }
  }
  const int64_t panel_bytes = best.steps * packed;
  const int64_t most_passes = std::max<int64_t>(1, caches.second_level / 8 * 5 / (panel_bytes * (kChunkCols / kBlock)));
  best.round_passes = ceil_div(best.passes, ceil_div(best.passes, most_passes));
  return best;
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
      block_floats_(kBlockFloats * unit.packed_bytes() / 4) {
  const int64_t round_floats = sizes_.round_passes * sizes_.steps * block_floats_;
  const int64_t most = ceil_div(cut.panels / panel_unit_, cut.across) * panel_unit_;
  const int64_t fit = std::clamp(caches.second_level / 8 * 5 / 4 / round_floats, panel_unit_, most);
  // Equal chunks, not a small one at the end.
  const int64_t chunks = ceil_div(most, fit);
  chunk_ = ceil_div(ceil_div(most, chunks), panel_unit_) * panel_unit_;

  // Between rounds the sums of all rows are kept, otherwise those of one strip.
  const bool one_round = sizes_.round_passes == sizes_.passes;
  const int64_t blocks = ceil_div(ceil_div(args.m, kBlock), cut.down);
  const int64_t kept = one_round ? sizes_.strip_blocks : ceil_div(blocks, sizes_.strip_blocks) * sizes_.strip_blocks;
  strip_ = take(sizes_.strip_blocks * sizes_.steps * block_floats_);
  panels_ = take(chunk_ * round_floats);
  sums_ = take(kept * chunk_ * kBlockFloats);
  a_sums_ = take(args.a_sums != nullptr ? blocks * kBlock : 0);
}

BlockSource BlockGemm::a_block(const Step& step, int64_t block) const {
  const int64_t p = step.pass * sizes_.steps * kBlock, row = step.row + block * kBlock;
  BlockSource source;
  source.count = std::clamp<int64_t>(step.rows - block * kBlock, 0, kBlock);
  source.depth = std::clamp<int64_t>(args_.k - p, 0, sizes_.steps * kBlock);
  source.stride = args_.lda;
  source.depth_runs_along_rows = !args_.a_transposed;
  source.from = args_.a_transposed ? args_.a + p * args_.lda + row : args_.a + row * args_.lda + p;
  return source;
}

BlockSource BlockGemm::b_panel(const Step& step, int64_t panel) const {
  const int64_t p = step.pass * sizes_.steps * kBlock;
  const GemmPanel columns = panel_at(args_, step.panel + panel, kBlock);
  BlockSource source;
  source.count = columns.cols;
  source.depth = std::clamp<int64_t>(args_.k - p, 0, sizes_.steps * kBlock);
  source.stride = args_.ldb;
  source.depth_runs_along_rows = args_.b_transposed;
  source.from = args_.b_transposed ? args_.b + columns.col * args_.ldb + p : args_.b + p * args_.ldb + columns.col;
  return source;
}

float* BlockGemm::sums(const Step& step, int64_t panel, int64_t block, float* scratch) const {
  const int64_t strip = sizes_.round_passes == sizes_.passes ? 0 : step.strip;
  return scratch + sums_ + ((strip * sizes_.strip_blocks + block) * chunk_ + panel) * kBlockFloats;
}

void BlockGemm::run(const GemmPart& part, float* scratch) const {
  const UnitScope scope(unit_);
  const int64_t strip_rows = sizes_.strip_blocks * kBlock, strips = ceil_div(part.rows, strip_rows);
  const int64_t rounds = ceil_div(sizes_.passes, sizes_.round_passes);
  for (int64_t panel = 0; panel < part.panels; panel += chunk_) {
    for (int64_t round = 0; round < rounds; ++round) {
      const int64_t first = round * sizes_.round_passes;
      const int64_t passes = std::min(sizes_.round_passes, sizes_.passes - first), steps = strips * passes;
      const auto step_at = [&](int64_t index) {
        Step step{};
        step.panel = part.panel + panel;
        step.panels = std::min(chunk_, part.panels - panel);
        step.strip = index / passes;
        step.strips = strips;
        step.row = part.row + step.strip * strip_rows;
        step.rows = std::min(strip_rows, part.row + part.rows - step.row);
        step.pass = first + index % passes;
        step.first_chunk = panel == 0;
        return step;
      };
      for (int64_t s = 0; s < steps; ++s) {
        const Step next = step_at(std::min(s + 1, steps - 1));
        run_step(part, step_at(s), s + 1 < steps ? &next : nullptr, scratch);
      }
    }
  }
}

void BlockGemm::pack_strip(const GemmPart& part, const Step& step, float* scratch) const {
  for (int64_t b = 0; b * kBlock < step.rows; ++b) {
    const BlockSource block = a_block(step, b);
    if (args_.a_sums != nullptr && part.first_columns && step.first_chunk) {
      float* const sums = scratch + a_sums_ + (step.row - part.row) + b * kBlock;
      if (first_pass(step)) std::fill_n(sums, kBlock, 0.0F);
      add_sums(block, sums);
      if (last_pass(step)) {
        float* const to = args_.a_sums + step.row + b * kBlock;
        for (int64_t i = 0; i < block.count; ++i) to[i] = args_.accumulate ? to[i] + sums[i] : sums[i];
      }
    }
    unit_.pack_a(block, scratch + strip_ + b * sizes_.steps * block_floats_);
  }
}

void BlockGemm::run_step(const GemmPart& part, const Step& step, const Step* next, float* scratch) const {
  pack_strip(part, step, scratch);
  const bool packs = step.strip == 0;
  const int64_t steps = a_block(step, 0).steps(), blocks = ceil_div(step.rows, kBlock);
  // The next strip of A is asked for while this one is multiplied, and the next panel of B while this one is packed.
  Wanted rows_soon;
  if (next != nullptr) {
    BlockSource source = a_block(*next, 0);
    source.count = next->rows;
    rows_soon = Wanted(source);
  }
  const int64_t lines = ceil_div(rows_soon.lines(), step.panels);

  float* const packed = scratch + panels_ + step.pass % sizes_.round_passes * chunk_ * sizes_.steps * block_floats_;
  for (int64_t j = 0; j < step.panels; ++j) {
    float* const panel = packed + j * sizes_.steps * block_floats_;
    if (packs) {
      unit_.pack_b(b_panel(step, j), panel);
      if (j + 1 < step.panels) {
        Wanted wanted(b_panel(step, j + 1));
        wanted.ask(wanted.lines());
      }
    }
    rows_soon.ask(lines);
    for (int64_t b = 0; b < blocks; ++b) {
      unit_.multiply(steps, scratch + strip_ + b * sizes_.steps * block_floats_, panel, sums(step, j, b, scratch),
                     kBlock, !first_pass(step));
    }
    // A panel behind: the sums just computed are still on their way out of the unit.
    if (last_pass(step) && (j + 1) % panel_unit_ == 0 && j >= panel_unit_) {
      finish(step, j + 1 - 2 * panel_unit_, panel_unit_, scratch);
    }
  }
  if (last_pass(step)) finish(step, step.panels - panel_unit_, panel_unit_, scratch);
}

void BlockGemm::finish(const Step& step, int64_t panel, int64_t panels, float* scratch) const {
  const GemmPanel columns = panel_at(args_, step.panel + panel, kBlock);
  for (int64_t b = 0; b * kBlock < step.rows; ++b) {
    GemmBlock block{step.row + b * kBlock,
                    std::min(kBlock, step.rows - b * kBlock),
                    columns.col,
                    columns.cols,
                    sums(step, panel, b, scratch),
                    kBlock};
    GemmBlock second = block;
    if (panels == 2) {
      second.col += args_.n / 2;
      second.values = block.second = sums(step, panel + 1, b, scratch);
    }
    if (args_.accumulate && stored_) {
      add_stored(block, block.values);
      if (panels == 2) add_stored(second, second.values);
    }
    if (epilogue_ != nullptr) epilogue_->apply(block);
    if (!stored_) continue;
    store(block, block.values);
    if (panels == 2) store(second, second.values);
  }
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
