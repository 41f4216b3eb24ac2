// The unit for processors without one for bf16.
#include <algorithm>

#include "cpu/gemm_bf16.h"
#include "cpu/gemm_tile.h"
#include "cpu/gemm_unit.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

// Steps [p, p + kBlock) of a block as floats, zero where there is nothing; rows as in the source.
void unpack_step(const BlockSource& block, int64_t p, float* to) {
  const int64_t depth = std::min(kBlock, block.depth - p);
  const int64_t rows = block.depth_runs_along_rows ? block.count : depth;
  const int64_t cols = block.depth_runs_along_rows ? depth : block.count;
  const bf16* from = block.depth_runs_along_rows ? block.from + p : block.from + p * block.stride;
  for (int64_t r = 0; r < kBlock; ++r, to += kBlock) {
    const int64_t count = r < rows ? cols : 0;
    if (count > 0) to_floats(from + r * block.stride, count, to);
    std::fill(to + count, to + kBlock, 0.0F);
  }
}

// Both operands as [depth][kBlock] floats.
class ConvertingUnit final : public BlockUnit {
 public:
  const char* name() const override { return "fp32 registers"; }
  int64_t packed_bytes() const override { return 4; }
  void begin() const override {}
  void end() const override {}
  void pack_a(const BlockSource& block, void* to) const override { pack(block, static_cast<float*>(to)); }
  void pack_b(const BlockSource& block, void* to) const override { pack(block, static_cast<float*>(to)); }
  bool reads_in_place(const BlockSource&) const override { return false; }
  void multiply(int64_t steps, const BlockOperand& a, const void* b, float* c, int64_t ldc, bool accumulate,
                bool) const override {
    cpu::multiply_block(AOrder::depth_major, kBlock, kBlock, steps * kBlock, static_cast<const float*>(a.at), kBlock,
                        static_cast<const float*>(b), kBlock, c, ldc, accumulate);
  }
  // As measured with AVX-512, operands in the caches.
  Costs costs() const override { return {1100.0, 250.0, 120.0, 250.0, 120.0}; }

 private:
  static void pack(const BlockSource& block, float* to) {
    for (int64_t p = 0; p < block.depth; p += kBlock, to += kBlock * kBlock) {
      if (!block.depth_runs_along_rows) {
        unpack_step(block, p, to);
        continue;
      }
      alignas(64) float rows[kBlock * kBlock];
      unpack_step(block, p, rows);
      transpose_scaled(rows, kBlock, kBlock, kBlock, 1.0F, to, kBlock);
    }
  }
};

}  // namespace

const BlockUnit& converting_unit() {
  static const ConvertingUnit unit;
  return unit;
}

}  // namespace polaron::cpu
