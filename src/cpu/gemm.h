// Matrix products of the linear layers: cut over the threads in two dimensions, with what follows the product (bias,
// activation, a derivative) applied to each piece while it is in cache.
#pragma once

#include <cstdint>

#include "cpu/scratch.h"

namespace polaron::cpu {

// C (+)= A' B' with A' [m, k], B' [k, n], C [m, n], fp32, row-major, strides in floats.
struct GemmArgs {
  std::int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;
  std::int64_t lda = 0;
  bool a_transposed = false;  // a is [k, m]
  const float* b = nullptr;
  std::int64_t ldb = 0;
  bool b_transposed = false;  // b is [n, k]
  // Null: the product is not stored; only the epilogue sees it. Not with a transposed A.
  float* c = nullptr;
  std::int64_t ldc = 0;
  bool accumulate = false;
  // C's columns are handled in pairs (j, j + n/2), n even, so that the epilogue sees both at once. Needs c
  // and an A that is not transposed.
  bool halves = false;
  // a_sums[i] (+)= sum over p of A'(i, p), added to what is there when `accumulate`. Null: not wanted. Needs
  // a_transposed.
  float* a_sums = nullptr;
};

// A finished piece of C: rows [row, row + rows), columns [col, col + cols).
struct GemmBlock {
  std::int64_t row = 0, rows = 0, col = 0, cols = 0;
  float* values = nullptr;  // of C, or of a copy that is thrown away where C is not stored
  std::int64_t stride = 0;
  float* second = nullptr;  // with `halves`: columns [n/2 + col, n/2 + col + cols)
};

class Ahead;  // gemm_tile.h

class GemmEpilogue {
 public:
  virtual ~GemmEpilogue() = default;
  // Called once for each piece, from any thread, in any order.
  virtual void apply(const GemmBlock& block) const = 0;
  // Adds the memory that apply() will touch besides the block itself.
  virtual void ahead(std::int64_t /*row*/, std::int64_t /*rows*/, std::int64_t /*col*/, std::int64_t /*cols*/,
                     Ahead& /*ahead*/) const {}
};

enum class GemmEngine : std::uint8_t {
  tiles,  // our own register-tile kernel: the same bits for any number of threads
  blas,   // OpenBLAS on blocks, one thread each: the bits depend on how the blocks are cut
};

// Tiles where the compiler was told of fused multiply-add registers wide enough for them to win, else OpenBLAS, which
// finds out at run time.
GemmEngine default_gemm_engine();

class Gemm {
 public:
  explicit Gemm(GemmEngine engine) : engine_(engine) {}
  void operator()(const GemmArgs& args, const GemmEpilogue* epilogue = nullptr);

 private:
  GemmEngine engine_;
  ThreadScratch scratch_;
};

}  // namespace polaron::cpu
