#include "cpu/gemm_tile.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

namespace polaron::cpu {
namespace {

constexpr std::int64_t kSteps = 16;  // between requests for memory

// Walks over the regions line by line. Addresses are integers here: they may lie behind the end of an array.
class Requests {
 public:
  Requests(const Ahead& ahead, std::int64_t depth) : next_(ahead.begin()), end_(ahead.end()) {
    const std::int64_t turns = depth / kSteps;
    a_turn_ = turns == 0 ? 0 : (ahead.lines() + turns - 1) / turns;
    enter();
  }
  void turn() {
    for (std::int64_t i = 0; i < a_turn_; ++i) {
      if (rows_ == 0) return;
      __builtin_prefetch(reinterpret_cast<const void*>(row_ + static_cast<std::uintptr_t>(line_) * kLineBytes), 0, 2);
      if (++line_ < lines_) continue;
      line_ = 0;
      row_ += row_step_;
      if (--rows_ == 0) enter();
    }
  }

 private:
  void enter() {
    if (next_ == end_) return;
    row_ = reinterpret_cast<std::uintptr_t>(next_->at);
    lines_ = next_->lines;
    rows_ = next_->rows;
    row_step_ = static_cast<std::uintptr_t>(next_->row_step) * sizeof(float);
    ++next_;
  }

  static constexpr std::uintptr_t kLineBytes = 64;
  const Region* next_;
  const Region* end_;
  std::int64_t a_turn_;
  std::uintptr_t row_ = 0, row_step_ = 0;
  std::int64_t line_ = 0, lines_ = 0, rows_ = 0;
};

template <int Rows, int Vecs>
struct Accumulators {
  Vec sum[Rows][Vecs] = {};

  // One step of the depth: b points to Vecs vectors of B, element(i) is A's element of row i.
  template <class Element>
  inline __attribute__((always_inline)) void step(const float* b, Element&& element) {
    Vec row[Vecs];
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) row[v] = load_vec(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vec x = broadcast(element(i));
#pragma GCC unroll 4
      for (int v = 0; v < Vecs; ++v) sum[i][v] += x * row[v];
    }
  }
};

template <int Rows, int Vecs, AOrder Order>
void tile(std::int64_t depth, const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float* c,
          std::int64_t ldc, bool accumulate, const Ahead& ahead) {
  Accumulators<Rows, Vecs> tile;
  Requests requests(ahead, depth);

  const auto some_steps = [&](std::int64_t count) __attribute__((always_inline)) {
    if constexpr (Order == AOrder::depth_major) {
#pragma GCC unroll 4
      for (std::int64_t p = 0; p < count; ++p) {
        tile.step(b, [&](int i) { return a[i]; });
        a += lda;
        b += ldb;
      }
    } else {
      // A pointer for every third row, so that base + {0, 1, 2} * lda reaches all rows with few registers.
      const float* base[(Rows + 2) / 3];
#pragma GCC unroll 8
      for (int g = 0; g < (Rows + 2) / 3; ++g) base[g] = a + 3 * g * lda;
#pragma GCC unroll 4
      for (std::int64_t p = 0; p < count; ++p) {
        tile.step(b, [&](int i) { return base[i / 3][(i % 3) * lda + p]; });
        b += ldb;
      }
      a += count;
    }
  };

  for (; depth >= kSteps; depth -= kSteps) {
    requests.turn();
    some_steps(kSteps);
  }
  if (depth > 0) some_steps(depth);

#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) {
      float* to = c + i * ldc + v * kLanes;
      store_vec(to, accumulate ? load_vec(to) + tile.sum[i][v] : tile.sum[i][v]);
    }
  }
}

template <int Vecs, AOrder Order, std::size_t... Row>
constexpr std::array<TileKernel, sizeof...(Row)> kernels(std::index_sequence<Row...>) {
  return {tile<static_cast<int>(Row) + 1, Vecs, Order>...};
}

template <int Vecs, AOrder Order>
constexpr auto kKernels = kernels<Vecs, Order>(std::make_index_sequence<kTileRows>{});

}  // namespace

TileKernel tile_kernel(int rows, int vecs, AOrder order) {
  static_assert(kTileVecs == 2);
  const auto index = static_cast<std::size_t>(rows - 1);
  if (order == AOrder::row_major) {
    return vecs == 1 ? kKernels<1, AOrder::row_major>[index] : kKernels<2, AOrder::row_major>[index];
  }
  return vecs == 1 ? kKernels<1, AOrder::depth_major>[index] : kKernels<2, AOrder::depth_major>[index];
}

void multiply_block(AOrder order, std::int64_t rows, std::int64_t cols, std::int64_t depth, const float* a,
                    std::int64_t lda, const float* b, std::int64_t ldb, float* c, std::int64_t ldc, bool accumulate) {
  const std::int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (std::int64_t t = 0; t < tiles; ++t) {
    const std::int64_t row = rows * t / tiles;
    const int height = static_cast<int>(rows * (t + 1) / tiles - row);
    const float* a_tile = order == AOrder::row_major ? a + row * lda : a + row;
    for (std::int64_t col = 0; col < cols; col += kTileCols) {
      const std::int64_t width = std::min<std::int64_t>(kTileCols, cols - col);
      const int vecs = static_cast<int>((width + kLanes - 1) / kLanes);
      const TileKernel kernel = tile_kernel(height, vecs, order);
      float* to = c + row * ldc + col;
      if (width == vecs * kLanes) {
        kernel(depth, a_tile, lda, b + col, ldb, to, ldc, accumulate, {});
        continue;
      }
      alignas(64) float edge[kTileRows * kTileCols];
      kernel(depth, a_tile, lda, b + col, ldb, edge, kTileCols, false, {});
      for (int i = 0; i < height; ++i) {
        for (std::int64_t j = 0; j < width; ++j) {
          to[i * ldc + j] = accumulate ? to[i * ldc + j] + edge[i * kTileCols + j] : edge[i * kTileCols + j];
        }
      }
    }
  }
}

}  // namespace polaron::cpu
