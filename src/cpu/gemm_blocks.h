// The product of bf16 matrices, cut into blocks that a BlockUnit multiplies (internal to gemm*.cpp).
//
// Loops, from the outermost to the innermost: chunks of C's columns; rounds of the depth; strips of C's rows; passes of
// a round; panels of the chunk; blocks of the strip. The part of B that belongs to a chunk and a round is packed while
// the first strip meets it, and stays in the second-level cache for all strips. A strip of A is packed for one pass,
// and stays in the first-level cache for all panels of the chunk, through which the panels of B stream.
//
// With AMX a step of a block (32 x 32 x 32 multiply-adds) takes 64 cycles at peak. Bytes read from the second-level
// cache in that time: 2 KB of B divided by the blocks of a strip, and what sums between passes cost (4 KB read, 4 KB
// written, for each pass but one, divided by the pass's steps). Bytes from beyond, in the same time: 2 KB of packed A
// divided by the panels of a chunk, B divided by the strips of a part, and sums between rounds. With 48 KB and 2 MB a
// depth of 768 is one round of four passes, with strips of two blocks: 16 B/cycle of B and 16 B/cycle of sums, where
// about 42 B/cycle can be had; a first-level cache that held nothing would need 64.
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
  // One strip for one pass.
  struct Step {
    std::int64_t panel, panels;  // of the chunk
    std::int64_t row, rows;
    std::int64_t strip, strips;
    std::int64_t pass;
    bool first_chunk;
  };
  bool first_pass(const Step& step) const { return step.pass == 0; }
  bool last_pass(const Step& step) const { return step.pass == sizes_.passes - 1; }
  BlockSource a_block(const Step& step, std::int64_t block) const;
  BlockSource b_panel(const Step& step, std::int64_t panel) const;
  float* sums(const Step& step, std::int64_t panel, std::int64_t block, float* scratch) const;
  void run_step(const GemmPart& part, const Step& step, const Step* next, float* scratch) const;
  void pack_strip(const GemmPart& part, const Step& step, float* scratch) const;
  // What follows the product, for `panels` panels from `panel` on: one, or a pair with halves.
  void finish(const Step& step, std::int64_t panel, std::int64_t panels, float* scratch) const;
  void store(const GemmBlock& block, const float* values) const;
  void add_stored(const GemmBlock& block, float* values) const;

  std::size_t take(std::int64_t floats);

  const Bf16GemmArgs& args_;
  const GemmEpilogue* epilogue_;
  const BlockUnit& unit_;
  BlockSizes sizes_;
  std::int64_t panel_unit_, chunk_;
  bool stored_;
  std::int64_t block_floats_;  // a packed block of one step, in floats
  std::size_t strip_ = 0, panels_ = 0, sums_ = 0, a_sums_ = 0, floats_ = 0;
};

}  // namespace polaron::cpu
