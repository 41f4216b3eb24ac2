// The parts of the CPU's AttentionOps (backend/model_ops.h has their contracts).
//
// Activations are fp32 or bf16. Scores, statistics and sums are fp32; results are rounded once, on their way out.
//
// Both directions are blocked: scores exist for a block of queries and a block of keys at a time, in the scratch of one
// thread. Which thread computes a block never changes a result: every sum has one owner and a fixed order.
//
// The walks over the blocks (attention.cpp, attention_backward.cpp) are templates on a class Products that multiplies
// the blocks: in fp32 (attention_fp32.h), or in bf16 on a BlockUnit (attention_unit.h). It has
//   Element   of activations: float or bf16
//   Weight    of P and dS as operands of a product: float or bf16
//   Unit      what multiplies, handed to the constructor; Ready makes it ready on a thread for its lifetime
//   kPanel    queries (forward) or keys (backward) that scores are computed for together, the lanes of a row of scores
//   kGrain    (forward) ranges of keys begin and end at multiples of it, from the start of a block of keys
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/model_ops.h"
#include "cpu/gemm_unit.h"
#include "cpu/scratch.h"

namespace polaron::cpu {

inline constexpr float kLog2OfE = 1.44269504F;

// Cuts a thread's memory into arrays that begin on cache lines; with null only counts.
class ScratchCut {
 public:
  explicit ScratchCut(float* memory) : memory_(memory) {}
  template <class E = float>
  E* take(std::int64_t count) {
    float* const at = memory_ == nullptr ? nullptr : memory_ + floats_;
    floats_ += aligned_floats((count * static_cast<std::int64_t>(sizeof(E)) + 3) / 4);
    return reinterpret_cast<E*>(at);
  }
  std::size_t floats() const { return floats_; }

 private:
  float* memory_;
  std::size_t floats_ = 0;
};

// Sums of gradients so far, one row a token.
struct Sums {
  float* data;
  std::int64_t stride;
  float* row(std::int64_t i) const { return data + i * stride; }
};

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

// unit: multiplies bf16; null: in fp32, whatever the type.
void attention_forward(const AttentionInput& input, const Tensor& out, const Tensor& lse, const BlockUnit* unit,
                       ThreadScratch& scratch);

// delta: memory for rowsum(d_out * out) of every head, kept by the caller between calls.
void attention_backward(const AttentionInput& input, const Tensor& out, const Tensor& lse, const Tensor& d_out,
                        const Tensor& d_qkv, const BlockUnit* unit, ThreadScratch& scratch, std::vector<float>& delta);

// Ops with a chosen unit for bf16 or none, for tests and measurements; families.h has the maker that programs use.
std::unique_ptr<AttentionOps> make_attention_ops(const BlockUnit* unit);

// Rows [0, rows) of `width` elements, fp32 or bf16, to a block of `stride` >= width floats a row, zero behind the
// width.
template <class T>
void copy_rows(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width, float* to,
               std::int64_t stride);

}  // namespace polaron::cpu
