// Matrix products of the linear layers: cut over the threads in two dimensions, with what follows the product (bias,
// activation, a derivative) applied to each piece while it is in cache.
#pragma once

#include <cstdint>

#include "backend/bf16.h"
#include "cpu/gemm_unit.h"
#include "cpu/scratch.h"

namespace polaron::cpu {

// C (+)= A' B' with A' [m, k], B' [k, n], C [m, n], row-major; strides in elements.
struct GemmShape {
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t lda = 0;
  bool a_transposed = false;  // a is [k, m]
  std::int64_t ldb = 0;
  bool b_transposed = false;  // b is [n, k]
  std::int64_t ldc = 0;
  bool accumulate = false;
  // C's columns are handled in pairs (j, j + n/2), n even, so that the epilogue sees both at once. Needs a stored C
  // and an A that is not transposed.
  bool halves = false;
  // a_sums[i] (+)= sum over p of A'(i, p), added to what is there when `accumulate`. Null: not wanted. Needs
  // a_transposed.
  float* a_sums = nullptr;
};

struct GemmArgs : GemmShape {
  const float* a = nullptr;
  const float* b = nullptr;
  // Null: the product is not stored; only the epilogue sees it. Not with a transposed A.
  float* c = nullptr;
};

// bf16 operands, sums in fp32 over the whole depth. C is one of the two; neither: not stored, as above. A bf16 C is
// rounded once, after the epilogue (and after C has been added, with `accumulate`).
struct Bf16GemmArgs : GemmShape {
  const bf16* a = nullptr;
  const bf16* b = nullptr;
  float* c = nullptr;
  bf16* c_bf16 = nullptr;
};

// A finished piece of C: rows [row, row + rows), columns [col, col + cols).
struct GemmBlock {
  std::int64_t row = 0, rows = 0, col = 0, cols = 0;
  // Of C, or of a copy: it is thrown away where C is not stored, and put into C after the epilogue where operands are
  // bf16.
  float* values = nullptr;
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
  // unit: for products of bf16; must outlive this.
  explicit Gemm(GemmEngine engine, const BlockUnit& unit = default_block_unit(),
                const CacheSizes& caches = CacheSizes::of_this_machine())
      : engine_(engine), unit_(unit), caches_(caches) {}
  void operator()(const GemmArgs& args, const GemmEpilogue* epilogue = nullptr);
  // The same bits for any number of threads.
  void operator()(const Bf16GemmArgs& args, const GemmEpilogue* epilogue = nullptr);

 private:
  GemmEngine engine_;
  const BlockUnit& unit_;
  CacheSizes caches_;
  ThreadScratch scratch_;
};

}  // namespace polaron::cpu
