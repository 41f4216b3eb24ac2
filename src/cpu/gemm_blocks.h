// The product of bf16 matrices, cut into blocks that a BlockUnit multiplies (internal to gemm*.cpp).
//
// Loops, from the outermost to the innermost: chunks of C's columns; rounds of the depth; strips of C's rows; groups of
// blocks in a strip; passes of a round; blocks of a group. The part of B that belongs to a chunk and a round is packed
// while the first strip meets it, and stays in the second-level cache for all strips. A strip of A is packed for the
// round, piece by piece between the blocks of the strip before. The sums of a group stay in the first-level cache over
// all passes of a round, through which A and B stream, each read once for `side` blocks.
//
// With AMX a step of a block (32 x 32 x 32 multiply-adds) takes 64 cycles at peak. Measured on Emerald Rapids, a cache
// line comes from the second-level cache in 1.3 cycles and from the third-level one in 6.5, and lines that are written
// there and come back cost 4. For each step of a block a group of 2 x 2 reads 2 KB from the second-level cache, 42
// cycles; one block alone would read 4 KB, 84 cycles. Its sums, 16 KB with 48 KB of first-level cache, leave room for
// passes of three steps. Kept in the second-level cache between passes instead, with a strip of A in the first, they
// would cost 256 cycles a block and pass, 43 a step for passes of six. Where the whole depth of a block of A and one of
// B fits the first-level cache there is one pass, and a step reads 2 KB. From beyond the second-level cache comes, for
// each step, 2 KB of A divided by the panels of a chunk, B divided by the strips of a part, and sums between rounds.
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
  bool last_round(const Step& step) const { return (step.round + 1) * sizes_.round_passes >= sizes_.passes; }
  std::int64_t first_depth(const Step& step) const { return step.round * sizes_.round_passes * sizes_.steps * kBlock; }

  // Steps [first, first + count) of a round for a block of rows, or for a panel.
  BlockSource a_source(const Step& step, std::int64_t block, std::int64_t first, std::int64_t count) const;
  BlockSource b_source(const Step& step, std::int64_t panel, std::int64_t first, std::int64_t count) const;
  float* packed_a(const Step& step, std::int64_t block, std::int64_t first, float* scratch) const;
  float* packed_b(std::int64_t panel, std::int64_t first, float* scratch) const;
  float* sums(const Step& step, std::int64_t panel, std::int64_t block, float* scratch) const;

  // Packing in pieces of one step of a block: pieces [from, to) of a strip, or of the panels from `panel` on.
  void pack_a(const GemmPart& part, const Step& step, std::int64_t from, std::int64_t to, float* scratch) const;
  void pack_b(const Step& step, std::int64_t panel, std::int64_t from, std::int64_t to, float* scratch) const;
  void add_a_sums(const GemmPart& part, const Step& step, std::int64_t block, std::int64_t first, float* scratch) const;

  void run_step(const GemmPart& part, const Step& step, const Step* next, float* scratch) const;
  // What follows the product, for one block, or two with halves.
  void finish(const Step& step, const Finished& finished, float* scratch) const;
  void store(const GemmBlock& block, const float* values) const;
  void add_stored(const GemmBlock& block, float* values) const;

  std::size_t take(std::int64_t floats);

  const Bf16GemmArgs& args_;
  const GemmEpilogue* epilogue_;
  const BlockUnit& unit_;
  BlockSizes sizes_;
  std::int64_t panel_unit_, group_panels_, chunk_, rounds_;
  bool stored_;
  std::int64_t piece_floats_;  // a packed step of a block
  std::int64_t round_steps_;   // at most
  std::size_t strips_[2] = {}, panels_ = 0, sums_ = 0, a_sums_ = 0, floats_ = 0;
};

}  // namespace polaron::cpu
