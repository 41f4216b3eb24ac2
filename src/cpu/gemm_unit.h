// How blocks of bf16 matrices are multiplied: the part of a bf16 product that depends on the processor. Operands are
// packed block by block into whatever order a unit reads them in; everything around that (cuts, passes, edges,
// epilogues, rounding) is the same for all units and stands in gemm_blocks.h.
#pragma once

#include <cstdint>

#include "backend/bf16.h"

namespace polaron::cpu {

// Rows and columns of a block of C, and steps of the depth that are packed together.
inline constexpr std::int64_t kBlock = 32;

// A block of A' [count, depth] or of B' [depth, count], count <= kBlock: where its elements lie.
struct BlockSource {
  const bf16* from = nullptr;
  std::int64_t stride = 0;
  std::int64_t count = 0;
  std::int64_t depth = 0;
  // true: (i, p) is from[i * stride + p]  (A, or a transposed B); false: from[p * stride + i]  (B, or a transposed A).
  bool depth_runs_along_rows = true;

  std::int64_t steps() const { return (depth + kBlock - 1) / kBlock; }
};

// Where a unit finds a block of A: packed, or, if it says so, in the matrix itself.
struct BlockOperand {
  const void* at = nullptr;
  std::int64_t stride = 0;  // of a matrix, in elements; 0: packed
};

class BlockUnit {
 public:
  virtual ~BlockUnit() = default;
  virtual const char* name() const = 0;
  // Bytes of a packed element: a packed block takes kBlock * kBlock of them a step.
  virtual std::int64_t packed_bytes() const = 0;

  // On each thread around its calls of multiply(): makes the unit ready, and gives it up again.
  virtual void begin() const = 0;
  virtual void end() const = 0;

  // `to`: on a cache line boundary. Rows, columns and steps that are missing up to kBlock become zero.
  virtual void pack_a(const BlockSource& block, void* to) const = 0;
  virtual void pack_b(const BlockSource& block, void* to) const = 0;

  // Whether multiply() can do without packing this block of A.
  virtual bool reads_in_place(const BlockSource& block) const = 0;

  // C [kBlock, kBlock] (+)= A' B' over `steps` * kBlock of the depth, from packed blocks. fp32, stride in floats.
  // `backwards`: a unit may begin with the last step, where its caches still hold what was used last.
  virtual void multiply(std::int64_t steps, const BlockOperand& a, const void* b, float* c, std::int64_t ldc,
                        bool accumulate, bool backwards) const = 0;

  // Cycles per step for a block's product, and for packing a block from rows that run along the depth, or across it.
  struct Costs {
    double product, pack_a_along, pack_a_across, pack_b_along, pack_b_across;
  };
  virtual Costs costs() const = 0;
};

// Makes a unit ready on the calling thread for its lifetime.
class UnitScope {
 public:
  explicit UnitScope(const BlockUnit& unit) : unit_(unit) { unit_.begin(); }
  UnitScope(const UnitScope&) = delete;
  UnitScope& operator=(const UnitScope&) = delete;
  ~UnitScope() { unit_.end(); }

 private:
  const BlockUnit& unit_;
};

// Every processor: unpacks bf16 to fp32 while packing and multiplies with fused multiply-adds in fp32 registers, at
// about the speed of fp32.
const BlockUnit& converting_unit();

// Tiles of the processor's matrix unit (AMX); null where amx_bf16() (host.h) says that there is none.
const BlockUnit* amx_unit();

// The fastest one that this machine has.
const BlockUnit& default_block_unit();

// What blocks are chosen for.
struct CacheSizes {
  std::int64_t second_level = 0;  // bytes for one core
  static CacheSizes of_this_machine();
};

// How a product is cut into blocks (gemm_blocks.h).
struct BlockSizes {
  std::int64_t steps = 1;   // of the depth in a round, kBlock each
  std::int64_t rounds = 1;  // that the depth is cut into
  std::int64_t strip = 1;   // blocks of rows
};
// A function of the depth, the caches and the unit alone, so that sums run in one order however a product is cut.
BlockSizes choose_block_sizes(std::int64_t depth, const BlockUnit& unit, const CacheSizes& caches);

// C [rows, cols] (+)= A B on the calling thread, between begin() and end() of the unit, for products that are too small
// to be cut. A bf16 [rows, depth] row-major; B packed by pack_panels(), C fp32. `scratch`: block_scratch_bytes(),
// on a cache line boundary.
void multiply_block(const BlockUnit& unit, std::int64_t rows, std::int64_t cols, std::int64_t depth, const bf16* a,
                    std::int64_t lda, const void* packed_b, float* c, std::int64_t ldc, bool accumulate, void* scratch);
std::int64_t block_scratch_bytes(const BlockUnit& unit, std::int64_t depth);

// B' [depth, cols] as multiply_block() reads it: ceil(cols / kBlock) panels. b_transposed: b is [cols, depth].
void pack_panels(const BlockUnit& unit, const bf16* b, std::int64_t ldb, bool b_transposed, std::int64_t cols,
                 std::int64_t depth, void* to);
std::int64_t packed_panels_bytes(const BlockUnit& unit, std::int64_t cols, std::int64_t depth);

}  // namespace polaron::cpu
