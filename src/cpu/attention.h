// The parts of the CPU's AttentionOps (backend/model_ops.h has their contracts).
//
// Activations are fp32 or bf16 and are turned into fp32 where they are copied into scratch; results are rounded once,
// on their way out.
//
// Both directions are blocked: scores exist for a block of queries and a block of keys at a time, in the scratch of one
// thread. Which thread computes a block never changes a result: every sum has one owner and a fixed order.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/model_ops.h"
#include "cpu/scratch.h"

namespace polaron::cpu {

// A packed projection and who sees whom in it.
struct AttentionInput {
  AttentionInput(const AttentionShape& shape, const Tensor& qkv, const Tensor& first_key);

  std::int64_t row(std::int64_t b, std::int64_t t) const { return b * shape.sequence_length + t; }
  std::int64_t group() const { return shape.heads / shape.kv_heads; }  // query heads that share a key head

  // Where q of head h, and k and v of key head h, begin in a row of the projection.
  std::int64_t q_column(std::int64_t h) const { return h * shape.head_size; }
  std::int64_t k_column(std::int64_t h) const { return shape.q_width() + h * shape.head_size; }
  std::int64_t v_column(std::int64_t h) const { return shape.q_width() + shape.kv_width() + h * shape.head_size; }

  // Row t of sequence b sees keys [first_key(b, t), t]: never none.
  std::int64_t first_key(std::int64_t b, std::int64_t t) const;
  // The smallest and the largest first_key of rows [t, t + count).
  struct Range {
    std::int64_t low, high;
  };
  Range first_keys(std::int64_t b, std::int64_t t, std::int64_t count) const;

  const AttentionShape& shape;
  Tensor qkv;
  const std::int32_t* first_of_row;  // what the caller gave; null: all keys
};

void attention_prepare(const AttentionShape& shape, HeadNorm norm, float eps, const Rotary& rotary, const Tensor& qkv,
                       const Tensor& head_rstd);
void attention_prepare_backward(const AttentionShape& shape, HeadNorm norm, const Rotary& rotary, const Tensor& qkv,
                                const Tensor& head_rstd, const Tensor& d_qkv);

void attention_forward(const AttentionInput& input, const Tensor& out, const Tensor& lse, ThreadScratch& scratch);

// delta: memory for rowsum(d_out * out) of every head, kept by the caller between calls.
void attention_backward(const AttentionInput& input, const Tensor& out, const Tensor& lse, const Tensor& d_out,
                        const Tensor& d_qkv, ThreadScratch& scratch, std::vector<float>& delta);

// Rows [0, rows) of `width` elements, fp32 or bf16, to a block of `stride` >= width floats a row, zero behind the
// width.
template <class T>
void copy_rows(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width, float* to,
               std::int64_t stride);

}  // namespace polaron::cpu
