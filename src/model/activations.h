// The activations of a transformer: which tensors a micro-batch needs, how large, and which of them blocks share.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "backend/arena.h"
#include "config/transformer_config.h"

namespace polaron {

// Largest micro-batch that the activations are planned for, and how they are kept.
struct ActivationShape {
  std::int64_t sequences = 0;        // B
  std::int64_t sequence_length = 0;  // T
  bool backward = true;              // false: evaluation only, nothing is saved
  bool recompute_blocks = false;     // keep a block's input only, and run its forward again in the backward pass
  DType dtype = DType::f32;          // of activations and their gradients; statistics are fp32 always
  std::int64_t loss_chunk = 0;       // rows of logits held at once; 0: equal chunks of up to about 128 MB
  std::int64_t rows() const { return sequences * sequence_length; }
};

// What the forward pass of a block leaves for its backward pass. N rows each, but for lse [B*heads, T].
struct BlockActivations {
  Tensor residual1, normed1, mean1, rstd1;  // before attention: the residual stream, its norm and the norm's statistics
  Tensor qkv, head_rstd, lse, attended;  // packed q|k|v after `prepare`; the attention's output before its projection
  Tensor residual2, normed2, mean2, rstd2;  // before the MLP
  Tensor pre, activated;                    // the MLP's hidden layer before and after its activation
};

struct Activations {
  std::vector<BlockActivations> blocks;
  Tensor residual, normed, mean, rstd;  // of the final norm
  Tensor delta;                         // [N, width]: a branch's output on the way forward, a gradient on the way back
  Tensor d_residual, d_qkv, d_attended, d_hidden;
  Tensor logits;  // [chunk, padded vocabulary]
};

// Rows of logits held at once.
std::int64_t loss_chunk_rows(const TransformerConfig& config, const ActivationShape& shape);

// Plans every tensor of an Activations without allocating. Without recomputation each block has its own set; with it
// blocks share all but residual1; for evaluation they share everything.
class ActivationLayout {
 public:
  ActivationLayout(const TransformerConfig& config, const ActivationShape& shape);

  const ArenaPlan& plan() const { return plan_; }
  // The tensors inside an arena made from plan().
  Activations place(const Arena& arena) const;

 private:
  void add(Tensor& tensor, const std::string& name, std::int64_t rows, std::int64_t cols);
  void add_statistics(Tensor& tensor, const std::string& name, std::int64_t rows, std::int64_t cols);
  void add_block(const TransformerConfig& config, const ActivationShape& shape, BlockActivations& block,
                 const std::string& prefix);

  DType dtype_;
  ArenaPlan plan_;
  Activations tensors_;  // each tensor's `rows` holds its piece's index + 1 until it is placed; 0: absent
};

}  // namespace polaron
