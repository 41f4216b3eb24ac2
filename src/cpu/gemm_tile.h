// The innermost kernel of every matrix product on the CPU: a tile of C that stays in registers while a column of A and
// a row of B a step are read from cache.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace polaron::cpu {

// Largest tile: kTileRows x kTileCols of C, chosen so that the accumulators, one row of B and one element of A fill the
// register file (32 registers with AVX-512 and NEON, 16 otherwise).
#if defined(__AVX512F__)
inline constexpr int kTileRows = 14;
#elif defined(__aarch64__)
inline constexpr int kTileRows = 12;
#else
inline constexpr int kTileRows = 6;
#endif
inline constexpr int kTileVecs = 2;
inline constexpr int kTileCols = kTileVecs * kLanes;

// How element (i, p) of A is found.
enum class AOrder : std::uint8_t {
  row_major,    // a[i * lda + p]
  depth_major,  // a[p * lda + i]
};

// Memory that will be needed soon: `rows` pieces of `lines` cache lines, `row_step` floats apart, from `at` on.
struct Region {
  const float* at = nullptr;
  std::int64_t lines = 0;
  std::int64_t rows = 0;
  std::int64_t row_step = 0;
};

// What the kernel asks for while it computes, evenly over its time. Never read, so any address will do.
class Ahead {
 public:
  void add(const Region& region) {
    if (region.lines <= 0 || region.rows <= 0 || count_ == kMost) return;
    regions_[count_++] = region;
    lines_ += region.lines * region.rows;
  }
  std::int64_t lines() const { return lines_; }
  const Region* begin() const { return regions_; }
  const Region* end() const { return regions_ + count_; }

 private:
  static constexpr int kMost = 8;
  Region regions_[kMost];
  int count_ = 0;
  std::int64_t lines_ = 0;
};

// C (+)= A B with C [rows, cols], A [rows, depth], B [depth, cols] where cols = vecs * kLanes; b and c row-major with
// strides ldb and ldc. `accumulate`: adds to C instead of overwriting it. Each element is one chain of fused
// multiply-adds over the depth in order, so its bits do not depend on how a matrix is cut into tiles.
using TileKernel = void (*)(std::int64_t depth, const float* a, std::int64_t lda, const float* b, std::int64_t ldb,
                            float* c, std::int64_t ldc, bool accumulate, const Ahead& ahead);

// 1 <= rows <= kTileRows, 1 <= vecs <= kTileVecs.
TileKernel tile_kernel(int rows, int vecs, AOrder order);

// C (+)= A B of any size by such tiles, on the calling thread and without packing. Rows of B must be readable up to the
// next multiple of kLanes columns; what stands there does not matter, and C is written in its `cols` columns only.
void multiply_block(AOrder order, std::int64_t rows, std::int64_t cols, std::int64_t depth, const float* a,
                    std::int64_t lda, const float* b, std::int64_t ldb, float* c, std::int64_t ldc, bool accumulate);

}  // namespace polaron::cpu
