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
  // What enters the block, before and after a skip is added; where that is not changed, the next tensor itself.
  Tensor entry, skipped;
  Tensor residual1, normed1, mean1, rstd1;  // before attention: the residual stream, its norm and the norm's statistics
  Tensor qkv, head_rstd, lse, attended;  // packed q|k|v after `prepare`; the attention's output before its projection
  Tensor value;                          // v before value embeddings are mixed in
  Tensor residual2, normed2, mean2, rstd2;  // before the MLP
  Tensor pre, activated;                    // the MLP's hidden layer before and after its activation
};

struct Activations {
  Tensor embedded, embedded_mean, embedded_rstd;  // the embedding before it is normalised
  Tensor x0;                                      // the stream before the first block, where blocks mix it in
  std::vector<Tensor> values, d_values;           // value embeddings of the batch [N, kv_width], one a table
  std::vector<BlockActivations> blocks;
  Tensor residual, normed, mean, rstd;  // of the final norm
  Tensor delta;                         // [N, width]: a branch's output on the way forward, a gradient on the way back
  Tensor d_residual, d_qkv, d_attended, d_hidden;
  Tensor d_x0;
  std::vector<Tensor> d_skips;  // gradients of what skips carry, one a skip
  Tensor logits;                // [chunk, padded vocabulary]
};

// How a block's input is made.
struct BlockEntry {
  BlockEntry(const TransformerConfig& config, std::int64_t layer);
  bool changed() const { return skip >= 0 || x0; }  // other than by the sum of residual and branch
  int skip = -1;                                    // index of the skip into the block; -1: none
  bool x0 = false;                                  // x0 is mixed in
  int read_by = -1;  // index of the skip that takes what enters this block, the output of the block before; -1: none
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
                 const std::string& prefix, bool attention);
  void add_entry(const TransformerConfig& config, const ActivationShape& shape, int layer);
  void add_embedding(const TransformerConfig& config, const ActivationShape& shape);

  DType dtype_;
  ArenaPlan plan_;
  Tensor common_entry_, common_skipped_;  // of blocks whose entry nobody reads later, where nothing is saved
  Activations tensors_;  // each tensor's `rows` holds its piece's index + 1 until it is placed; 0: absent
};

}  // namespace polaron
