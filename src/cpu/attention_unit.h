// The products of attention in bf16 on a BlockUnit, for the walks that attention.h describes. Every operand is packed
// into blocks of kBlock x kBlock, with zeros where the head size, the queries or the keys end.
//
// P and dS are rounded to bf16 as operands; scores, dO V^T and all sums are fp32. A row is divided by the sum of its
// unrounded P: the weights that v is summed with add up to 1 but for their roundings, which are independent of each
// other, and take an output from its value by 2^-8 of the weighted mean of |v| at most. lse, from which backward
// computes P again, knows nothing of the roundings.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/attention.h"
#include "cpu/gemm_bf16.h"
#include "cpu/gemm_cut.h"
#include "cpu/gemm_unit.h"

namespace polaron::cpu {

static inline void store_weights(bf16* to, Vec weights) { store_bf16(to, weights); }

// Packed blocks one after the other, each of one step of the depth.
class PackedBlocks {
 public:
  PackedBlocks(ScratchCut& cut, const BlockUnit& unit, std::int64_t blocks)
      : block_bytes_(kBlock * kBlock * unit.packed_bytes()), data_(cut.take<char>(blocks * block_bytes_)) {}
  void* at(std::int64_t block) const { return data_ + block * block_bytes_; }

 private:
  std::int64_t block_bytes_;
  char* data_;
};

// Rows [0, rows) of a matrix [rows, cols] of activations as operands.
struct RowsSource {
  const bf16* from;
  std::int64_t stride, rows, cols;

  // Rows [row, row + kBlock), the depth along the columns.
  BlockSource along(std::int64_t row) const {
    return {from + row * stride, stride, std::min(kBlock, rows - row), cols, true};
  }
  // Columns [col, col + kBlock), the depth along the rows.
  BlockSource across(std::int64_t col) const { return {from + col, stride, std::min(kBlock, cols - col), rows, false}; }
};

// Scores are K Q^T and sums V^T P^T, so that a query is a vector lane as with the fp32 tiles.
class UnitForward {
 public:
  using Element = bf16;
  using Weight = bf16;
  using Unit = const BlockUnit&;
  using Ready = UnitScope;
  static constexpr std::int64_t kPanel = kBlock;
  static constexpr std::int64_t kGrain = kBlock;

  UnitForward(ScratchCut& cut, const AttentionShape& shape, std::int64_t panels, std::int64_t most_keys, Unit unit)
      : unit_(unit),
        size_(shape.head_size),
        steps_(ceil_div(size_, kBlock)),
        key_steps_(ceil_div(most_keys, kBlock)),
        q_(cut, unit, panels * steps_),
        k_(cut, unit, key_steps_ * steps_),
        v_(cut, unit, key_steps_ * steps_),
        packed_weights_(cut, unit, key_steps_),
        weights_(cut.take<bf16>(key_steps_ * kBlock * kPanel)) {}

  std::int64_t sums_rows() const { return steps_ * kBlock; }
  // Scaling q here would round it once more.
  static constexpr bool kScaled = false;

  void pack_queries(std::int64_t p, const bf16* q, std::int64_t stride, std::int64_t count) const {
    unit_.pack_b(RowsSource{q, stride, count, size_}.along(0), q_.at(p * steps_));
  }
  void pack_keys(const bf16* k, const bf16* v, std::int64_t stride, std::int64_t count) const {
    const RowsSource keys{k, stride, count, size_}, values{v, stride, count, size_};
    for (std::int64_t i = 0; i < ceil_div(count, kBlock); ++i) unit_.pack_a(keys.along(i * kBlock), k_.at(i * steps_));
    for (std::int64_t i = 0; i < steps_; ++i) unit_.pack_a(values.across(i * kBlock), v_.at(i * key_steps_));
  }

  void multiply_scores(std::int64_t p, std::int64_t low, std::int64_t high, float* scores) const {
    for (std::int64_t key = low; key < high; key += kBlock) {
      unit_.multiply(steps_, {k_.at(key / kBlock * steps_)}, q_.at(p * steps_), scores + (key - low) * kPanel, kPanel,
                     false, false);
    }
  }
  Weight* weights(float*) const { return weights_; }
  void add_weighted(std::int64_t low, std::int64_t high, const Weight* weights, float* sums) const {
    const RowsSource source{weights, kPanel, high - low, kPanel};
    unit_.pack_b(source.across(0), packed_weights_.at(0));
    for (std::int64_t i = 0; i < steps_; ++i) {
      unit_.multiply((high - low) / kBlock, {v_.at(i * key_steps_ + low / kBlock)}, packed_weights_.at(0),
                     sums + i * kBlock * kPanel, kPanel, true, false);
    }
  }

 private:
  Unit unit_;
  std::int64_t size_, steps_, key_steps_;  // steps: blocks of the head size, and of the keys
  PackedBlocks q_;                         // of a panel: columns of Q^T
  PackedBlocks k_;                         // rows of K
  PackedBlocks v_;                         // rows of V^T
  PackedBlocks packed_weights_;
  bf16* weights_;  // [keys, kPanel]
};

// Scores are Q K^T. K and V serve all queries of a block of keys, Q and dO one pair of blocks, each packed for every
// product that it takes part in.
class UnitBackward {
 public:
  using Element = bf16;
  using Weight = bf16;
  using Unit = const BlockUnit&;
  using Ready = UnitScope;
  static constexpr std::int64_t kPanel = kBlock;

  UnitBackward(ScratchCut& cut, const AttentionShape& shape, std::int64_t most_queries, std::int64_t most_keys,
               Unit unit)
      : unit_(unit),
        size_(shape.head_size),
        steps_(ceil_div(size_, kBlock)),
        query_steps_(ceil_div(most_queries, kBlock)),
        key_steps_(ceil_div(most_keys, kBlock)),
        ld_(most_keys),
        k_columns_(cut, unit, key_steps_ * steps_),
        v_columns_(cut, unit, key_steps_ * steps_),
        k_(cut, unit, key_steps_ * steps_),
        q_rows_(cut, unit, query_steps_ * steps_),
        d_out_rows_(cut, unit, query_steps_ * steps_),
        q_(cut, unit, query_steps_ * steps_),
        d_out_(cut, unit, query_steps_ * steps_),
        packed_weights_(cut, unit, std::max(query_steps_, key_steps_)),
        p_(cut.take<bf16>(most_queries * ld_)),
        d_s_(cut.take<bf16>(most_queries * ld_)) {}

  std::int64_t stride() const { return steps_ * kBlock; }

  void pack_keys(const bf16* k, const bf16* v, std::int64_t stride, std::int64_t count) const {
    const RowsSource keys{k, stride, count, size_}, values{v, stride, count, size_};
    for (std::int64_t i = 0; i < ceil_div(count, kBlock); ++i) {
      unit_.pack_b(keys.along(i * kBlock), k_columns_.at(i * steps_));
      unit_.pack_b(values.along(i * kBlock), v_columns_.at(i * steps_));
    }
    for (std::int64_t i = 0; i < steps_; ++i) unit_.pack_b(keys.across(i * kBlock), k_.at(i * key_steps_));
  }
  void pack_queries(const bf16* q, std::int64_t q_stride, const bf16* d_out, std::int64_t d_out_stride,
                    std::int64_t count) const {
    const RowsSource queries{q, q_stride, count, size_}, gradients{d_out, d_out_stride, count, size_};
    for (std::int64_t i = 0; i < ceil_div(count, kBlock); ++i) {
      unit_.pack_a(queries.along(i * kBlock), q_rows_.at(i * steps_));
      unit_.pack_a(gradients.along(i * kBlock), d_out_rows_.at(i * steps_));
    }
    for (std::int64_t i = 0; i < steps_; ++i) {
      unit_.pack_b(queries.across(i * kBlock), q_.at(i * query_steps_));
      unit_.pack_b(gradients.across(i * kBlock), d_out_.at(i * query_steps_));
    }
  }

  void multiply_scores(std::int64_t query, std::int64_t queries, std::int64_t key, float* scores, float* d_p) const {
    const void *k = k_columns_.at(key / kBlock * steps_), *v = v_columns_.at(key / kBlock * steps_);
    for (; query < queries; query += kBlock) {
      const std::int64_t row = query / kBlock * steps_, at = query * ld_ + key;
      unit_.multiply(steps_, {q_rows_.at(row)}, k, scores + at, ld_, false, false);
      unit_.multiply(steps_, {d_out_rows_.at(row)}, v, d_p + at, ld_, false, false);
    }
  }
  Weight* p(float*) const { return p_; }
  Weight* d_s(float*) const { return d_s_; }

  void add_d_k_and_v(std::int64_t query, std::int64_t queries, std::int64_t key, std::int64_t end, const Weight* p,
                     const Weight* d_s, const Sums& d_k, const Sums& d_v, bool accumulate) const {
    const auto add = [&](const Weight* weights, const PackedBlocks& rows, const Sums& sums) {
      const RowsSource source{weights + query * ld_, ld_, queries - query, end};
      for (std::int64_t column = key; column < end; column += kBlock) {
        const BlockSource block = source.across(column);
        unit_.pack_a(block, packed_weights_.at(0));
        for (std::int64_t i = 0; i < steps_; ++i) {
          unit_.multiply(block.steps(), {packed_weights_.at(0)}, rows.at(i * query_steps_ + query / kBlock),
                         sums.row(column) + i * kBlock, sums.stride, accumulate, false);
        }
      }
    };
    add(p, d_out_, d_v);
    add(d_s, q_, d_k);
  }
  void add_d_q(std::int64_t query, std::int64_t last, std::int64_t key, std::int64_t end, const Weight* d_s,
               const Sums& d_q, bool accumulate) const {
    // Behind `end` weights are zero up to the end of the panel: whole steps need not be packed.
    const RowsSource source{d_s + key, ld_, last, ceil_div(end - key, kBlock) * kBlock};
    for (; query < last; query += kBlock) {
      const BlockSource block = source.along(query);
      const bool in_place = unit_.reads_in_place(block);
      if (!in_place) unit_.pack_a(block, packed_weights_.at(0));
      const BlockOperand operand = in_place ? BlockOperand{block.from, ld_} : BlockOperand{packed_weights_.at(0)};
      for (std::int64_t i = 0; i < steps_; ++i) {
        unit_.multiply(block.steps(), operand, k_.at(i * key_steps_ + key / kBlock), d_q.row(query) + i * kBlock,
                       d_q.stride, accumulate, false);
      }
    }
  }

 private:
  Unit unit_;
  std::int64_t size_, steps_, query_steps_, key_steps_;  // steps: blocks of the head size, the queries, the keys
  std::int64_t ld_;                                      // of scores and weights
  PackedBlocks k_columns_, v_columns_;                   // of K^T and V^T
  PackedBlocks k_;                                       // columns of K
  PackedBlocks q_rows_, d_out_rows_;
  PackedBlocks q_, d_out_;  // columns
  PackedBlocks packed_weights_;
  bf16 *p_, *d_s_;  // [queries, keys]
};

}  // namespace polaron::cpu
