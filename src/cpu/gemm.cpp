#include "cpu/gemm.h"

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "cpu/blas.h"
#include "cpu/gemm_blocks.h"
#include "cpu/gemm_cut.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

// Blocks of the OpenBLAS engine where something follows the product; one block a part otherwise.
constexpr int64_t kBlasRows = 256, kBlasCols = 512;

void sum_columns(const GemmArgs& args, const GemmPart& part) {
  for (int64_t i = part.row; i < part.row + part.rows; i += kTileCols) {
    const int64_t count = std::min<int64_t>(kTileCols, part.row + part.rows - i);
    float sums[kTileCols] = {};
    for (int64_t p = 0; p < args.k; ++p) {
      for (int64_t j = 0; j < count; ++j) sums[j] += args.a[p * args.lda + i + j];
    }
    for (int64_t j = 0; j < count; ++j) {
      args.a_sums[i + j] = args.accumulate ? args.a_sums[i + j] + sums[j] : sums[j];
    }
  }
}

void run_blas(const GemmArgs& args, const GemmEpilogue* epilogue, const GemmPart& part, float* scratch) {
  if (part.first_columns && args.a_sums != nullptr) sum_columns(args, part);
  const int64_t half = args.halves ? args.n / 2 : 0;
  const int64_t first = panel_at(args, part.panel).col;
  const GemmPanel last = panel_at(args, part.panel + part.panels - (args.halves ? 2 : 1));
  const int64_t end = last.col + last.cols;
  const int64_t row_step = epilogue == nullptr ? part.rows : kBlasRows;
  const int64_t col_step = epilogue == nullptr ? end - first : kBlasCols;
  for (int64_t col = first; col < end; col += col_step) {
    const int64_t cols = std::min(col_step, end - col);
    for (int64_t row = part.row; row < part.row + part.rows; row += row_step) {
      const int64_t rows = std::min(row_step, part.row + part.rows - row);
      GemmBlock block{row, rows, col, cols, scratch, kBlasCols, nullptr};
      if (args.c != nullptr) {
        block.values = args.c + row * args.ldc + col;
        block.stride = args.ldc;
        if (args.halves) block.second = block.values + half;
      }
      for (int64_t offset = 0; offset <= half; offset += std::max<int64_t>(half, 1)) {
        sgemm(args.a_transposed, args.b_transposed, rows, cols, args.k,
              args.a_transposed ? args.a + row : args.a + row * args.lda, args.lda,
              args.b_transposed ? args.b + (col + offset) * args.ldb : args.b + col + offset, args.ldb,
              args.c != nullptr && args.accumulate ? 1.0F : 0.0F, block.values + offset, block.stride);
      }
      if (epilogue != nullptr) epilogue->apply(block);
    }
  }
}

}  // namespace

// The costs of register tiles are as measured with AVX-512.
GemmCut choose_cut(const GemmShape& shape, int threads, const CutCosts& costs) {
  GemmCut cut;
  cut.panel_unit = shape.halves ? 2 : 1;
  cut.panels = cut.panel_unit * ceil_div(shape.n / cut.panel_unit, costs.cols);
  cut.row_unit = costs.row_unit;
  const int64_t units = cut.panels / cut.panel_unit;
  double best = 0;
  for (int64_t down = 1; down <= threads; ++down) {
    if (down > 1 && shape.m < down * costs.rows) break;
    const int64_t across = std::min<int64_t>(threads / down, units);
    const auto tile_rows = static_cast<double>(ceil_div(ceil_div(shape.m, down), costs.rows));
    const auto panels = static_cast<double>(ceil_div(units, across) * cut.panel_unit);
    const double cost = tile_rows * panels * costs.tile + panels * (shape.b_transposed ? costs.turn_b : costs.copy_b) +
                        tile_rows * (shape.a_transposed ? costs.turn_a : costs.copy_a);
    if (down == 1 || cost < best) {
      best = cost;
      cut.down = down;
      cut.across = across;
    }
  }
  return cut;
}

GemmPart part_at(const GemmShape& shape, const GemmCut& cut, int64_t index) {
  const int64_t down = index / cut.across, across = index % cut.across;
  const int64_t units = cut.panels / cut.panel_unit, row_units = ceil_div(shape.m, cut.row_unit);
  const auto row_at = [&](int64_t part) { return std::min(shape.m, row_units * part / cut.down * cut.row_unit); };
  const int64_t row = row_at(down), panel = units * across / cut.across * cut.panel_unit;
  return {row, row_at(down + 1) - row, panel, units * (across + 1) / cut.across * cut.panel_unit - panel, across == 0};
}

GemmEngine default_gemm_engine() {
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
  return GemmEngine::tiles;
#else
  return GemmEngine::blas;
#endif
}

namespace {

void check(const GemmShape& shape, bool stored) {
  if (shape.a_transposed && (!stored || shape.halves)) {
    throw std::logic_error("a product with a transposed A is stored, and not in halves");
  }
}

// Calls run(part, scratch) for every part of the cut, on all threads.
template <class Run>
void for_parts(const GemmShape& shape, const GemmCut& cut, ThreadScratch& scratch, Run&& run) {
  // Always the whole team: a smaller one would make the OpenMP runtime end and start threads.
#pragma omp parallel
  {
    float* const own = scratch.for_thread(omp_get_thread_num());
    for (int64_t i = omp_get_thread_num(); i < cut.down * cut.across; i += omp_get_num_threads()) {
      const GemmPart part = part_at(shape, cut, i);
      if (part.rows > 0 && part.panels > 0) run(part, own);
    }
  }
}

}  // namespace

void Gemm::operator()(const GemmArgs& args, const GemmEpilogue* epilogue) {
  if (args.m == 0 || args.n == 0) return;
  check(args, args.c != nullptr);
  const int threads = omp_get_max_threads();
  const GemmCut cut = choose_cut(args, threads);
  if (engine_ == GemmEngine::blas) {
    scratch_.reserve(threads, static_cast<std::size_t>(kBlasRows * kBlasCols));
    return for_parts(args, cut, scratch_,
                     [&](const GemmPart& part, float* scratch) { run_blas(args, epilogue, part, scratch); });
  }
  std::optional<RowGemm> in_place;
  std::optional<StripGemm> in_strips;
  const TileGemm& tiles = args.a_transposed ? static_cast<const TileGemm&>(in_strips.emplace(args, cut, epilogue))
                                            : in_place.emplace(args, cut, epilogue);
  scratch_.reserve(threads, tiles.scratch_floats());
  for_parts(args, cut, scratch_, [&](const GemmPart& part, float* scratch) { tiles.run(part, scratch); });
}

void Gemm::operator()(const Bf16GemmArgs& args, const GemmEpilogue* epilogue) {
  if (args.m == 0 || args.n == 0) return;
  if (args.c != nullptr && args.c_bf16 != nullptr) throw std::logic_error("a product is stored in one type");
  check(args, args.c != nullptr || args.c_bf16 != nullptr);
  if (args.k == 0 && args.a_sums != nullptr && !args.accumulate) std::fill_n(args.a_sums, args.m, 0.0F);
  const int threads = omp_get_max_threads();
  const GemmCut cut = choose_cut(args, threads, block_cut_costs(unit_));
  const BlockGemm blocks(args, cut, epilogue, unit_, caches_);
  scratch_.reserve(threads, blocks.scratch_floats());
  for_parts(args, cut, scratch_, [&](const GemmPart& part, float* scratch) { blocks.run(part, scratch); });
}

}  // namespace polaron::cpu
