// The product of bf16 matrices, cut into blocks that a BlockUnit multiplies (internal to gemm*.cpp).
//
// Loops, from the outermost to the innermost: chunks of C's columns; rounds of the depth; strips of C's rows; panels of
// the chunk; blocks of the strip. The part of B that belongs to a chunk and a round is packed while the first strip
// meets it, piece by piece between blocks, and stays in the second-level cache for all strips; so is a strip of A,
// during the strip before. A block's sums stay in registers for the whole round. Neighbours in a strip and in a panel
// share an operand: each block runs over the depth in the direction opposite to that of the block before, and finds the
// end of the shared operand in the first-level cache.
//
// With AMX a step of a block (32 x 32 x 32 multiply-adds) takes 64 cycles at peak and reads 4 KB. Measured on Emerald
// Rapids, a cache line comes from the first-level cache in 0.55 cycles, from the second-level one in 1.3 (84 for a
// step), from the third-level one in 6.5, and a line of the second-level cache that is written and goes back costs 4:
// sums that wait there between passes cost 340 cycles a block and pass, which is why the depth is not cut for the
// first-level cache. With a division unit in the place of the matrix unit (16 cycles a product as well) a step took 94
// cycles straight on and 85 with turning. From beyond the second-level cache comes, for each step, 2 KB of A divided by
// the panels of a chunk, B divided by the strips of a part, and sums between rounds.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/gemm.h"
#include "cpu/gemm_cut.h"

namespace polaron::cpu {

CutCosts block_cut_costs(const BlockUnit& unit);

class BlockGemm {
 public:
  BlockGemm(const Bf16GemmArgs& args, const GemmCut& cut, const GemmEpilogue* epilogue, const BlockUnit& unit,
            const CacheSizes& caches);
  // Several threads may do so at the same time, each with its own scratch of scratch_floats().
  void run(const GemmPart& part, float* scratch) const;
  std::size_t scratch_floats() const { return floats_; }

 private:
  // One strip for one round.
  struct Step {
    std::int64_t panel, panels;  // of the chunk
    std::int64_t row, rows;
    std::int64_t strip;
    std::int64_t round;
    std::int64_t depth;  // steps of the round
    std::int64_t index;  // of all steps
    bool first_chunk;
    std::int64_t blocks() const { return ceil_div(rows, kBlock); }
  };
  // Blocks whose sums are complete but not yet stored.
  struct Finished {
    std::int64_t panel, panels, block;
  };

  Step step_at(const GemmPart& part, std::int64_t index) const;
  std::int64_t step_count(const GemmPart& part) const;
  bool last_round(const Step& step) const { return step.round + 1 == sizes_.rounds; }
  std::int64_t first_depth(const Step& step) const { return step.round * sizes_.steps * kBlock; }

  // Step `first` of a round for a block of rows, or for a panel.
  BlockSource a_piece(const Step& step, std::int64_t block, std::int64_t first) const;
  BlockSource b_piece(const Step& step, std::int64_t panel, std::int64_t first) const;
  // A block of rows for the whole round: where multiply() finds it.
  BlockSource a_block(const Step& step, std::int64_t block) const;
  BlockOperand a_operand(const Step& step, std::int64_t block, float* scratch) const;
  float* packed_a(const Step& step, std::int64_t block, std::int64_t first, float* scratch) const;
  float* packed_b(std::int64_t panel, std::int64_t first, float* scratch) const;
  float* sums(const Step& step, std::int64_t panel, std::int64_t block, float* scratch) const;

  // Packing in pieces, one step of a block each: pieces [from, to) of a strip, or of a panel.
  void pack_a(const GemmPart& part, const Step& step, std::int64_t from, std::int64_t to, float* scratch) const;
  void pack_b(const Step& step, std::int64_t panel, std::int64_t from, std::int64_t to, float* scratch) const;
  void add_a_sums(const GemmPart& part, const Step& step, std::int64_t block, std::int64_t first, float* scratch) const;

  void run_step(const GemmPart& part, const Step& step, const Step* next, float* scratch) const;
  // What follows the product, for one block, or two with halves.
  void finish(const Step& step, const Finished& finished, float* scratch) const;
  void prefetch_stored(const Step& step, std::int64_t panel, std::int64_t block) const;
  void store(const GemmBlock& block, const float* values) const;
  void add_stored(const GemmBlock& block, float* values) const;

  std::size_t take(std::int64_t floats);

  const Bf16GemmArgs& args_;
  const GemmEpilogue* epilogue_;
  const BlockUnit& unit_;
  BlockSizes sizes_;
  std::int64_t panel_unit_, chunk_;
  bool stored_;
  std::int64_t piece_floats_;  // a packed step of a block
  std::size_t strips_[2] = {}, panels_ = 0, sums_ = 0, a_sums_ = 0, floats_ = 0;
};

}  // namespace polaron::cpu
