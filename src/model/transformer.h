// The transformer: forward and backward of one micro-batch, written by hand on the op table. GPT-2 and LLaMA are
// settings of it.
//
//   x = token_table[tokens] (+ position_table)
//   every block:  x += attention(norm1(x)) W_out;   x += mlp(norm2(x)) W_down
// with, in the authors' modded models (docs/paper.md), skips and a mix with x0 before a block, and value embeddings
// mixed into v.
//   logits = norm(x) W_head^T
//
// No dropout anywhere: pretraining at this scale is done without it, and a run is then a pure function of its config.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "backend/arena.h"
#include "backend/backend.h"
#include "config/transformer_config.h"
#include "model/activations.h"
#include "model/parameters.h"

namespace polaron {

// A micro-batch in device memory.
struct DeviceBatch {
  std::int64_t sequences = 0, sequence_length = 0;
  Tensor tokens;   // i32 [N,1]
  Tensor targets;  // i32 [N,1]; -1: no target
  // i32 [N,1]: the first key that each row sees; absent: all. [1]: in blocks of the model with half of a window that
  // grows; absent without such a window.
  std::array<Tensor, 2> first_key;
};

class Transformer {
 public:
  // The caller owns the buffers and the table and keeps them alive. shape.dtype bf16 needs buffers.working.
  Transformer(const TransformerConfig& config, const ParameterTable& table, const ActivationShape& shape,
              Backend& backend, const FlatBuffers& buffers);

  // *loss_sum (fp64, device) += sum of the cross-entropy over the batch's targets. The batch may be smaller than
  // planned.
  void forward_loss(Stream& stream, const DeviceBatch& batch, double* loss_sum);

  // The same, and gradients of loss_scale * (that sum). The first micro-batch of a step overwrites what is in the
  // gradient buffer (`accumulate` false), later ones add to it. on_layer_done(layer) is called as soon as all gradients
  // of a block (or of `layers`: final norm and untied head; or of -1: the embeddings) are queued, so that their
  // reduction can start.
  template <class Callback>
  void forward_backward(Stream& stream, const DeviceBatch& batch, float loss_scale, bool accumulate, double* loss_sum,
                        Callback on_layer_done) {
    forward(stream, batch);
    head(stream, batch, loss_scale, true, accumulate, loss_sum);
    backward_begin(stream, accumulate);
    on_layer_done(static_cast<int>(config_.layers));
    for (int layer = static_cast<int>(config_.layers) - 1; layer >= 0; --layer) {
      backward_block(stream, batch, layer, accumulate);
      on_layer_done(layer);
    }
    backward_embedding(stream, batch, accumulate);
    on_layer_done(-1);
  }

  // Logits of one row of the batch (after the soft-cap): vocabulary floats on the host. For sampling and for tests.
  void logits_of_row(Stream& stream, const DeviceBatch& batch, std::int64_t row, float* logits);

  const TransformerConfig& config() const { return config_; }

  // Device memory that it takes besides the activations: the rotary tables.
  static std::int64_t table_bytes(const TransformerConfig& config, const ActivationShape& shape) {
    if (config.positions != Positions::rotary) return 0;
    return 2 * shape.sequence_length * (config.head_size / 2) * static_cast<std::int64_t>(sizeof(float));
  }

 private:
  struct Norm {  // indices into the table; -1 where not affine
    int weight = -1, bias = -1;
  };
  struct Linear {
    int weight = -1, bias = -1;
  };
  struct BlockParameters {
    BlockParameters(const TransformerConfig& config, std::int64_t layer)
        : attention(has_attention(config, layer)), entry(config, layer), scalars(config.layers, layer) {}
    bool attention;
    Norm norm1, norm2;
    Linear qkv, out, up, down;
    BlockEntry entry;
    BlockScalars scalars;
    int value_table = -1;  // index of the value embedding mixed into v; -1: none
  };
  Norm find_norm(const std::string& prefix) const;
  Linear find_linear(const std::string& prefix) const;
  Tensor weight(int index) const;
  Tensor gradient(int index) const;

  void forward(Stream& stream, const DeviceBatch& batch);
  // residual_in + delta enter the block; afterwards its output is residual2 + delta (the sum is left to the next norm).
  // For recomputation the last projection is not needed.
  void forward_block(Stream& stream, const DeviceBatch& batch, int layer, const Tensor& residual_in,
                     const Tensor& delta, bool recompute);
  void head(Stream& stream, const DeviceBatch& batch, float loss_scale, bool with_gradient, bool accumulate,
            double* loss_sum);
  void backward_begin(Stream& stream, bool accumulate);
  void backward_block(Stream& stream, const DeviceBatch& batch, int layer, bool accumulate);
  void backward_embedding(Stream& stream, const DeviceBatch& batch, bool accumulate);

  Tensor rows_of(const Tensor& planned) const { return planned ? planned.row_range(0, rows_) : planned; }
  BlockActivations block(int layer, const DeviceBatch& batch) const;  // cut to the rows of the present micro-batch
  HeadNorm head_norm() const {
    return !config_.qk_norm ? HeadNorm::none : config_.v_norm ? HeadNorm::qkv : HeadNorm::qk;
  }
  const Tensor& first_key(const DeviceBatch& batch, int layer) const;

  // transformer_mixing.cpp: the parts of the authors' models between embedding, stream and values.
  void embed(Stream& stream, const DeviceBatch& batch);
  // From the sum of residual_in and delta (which may be absent) to the block's input, a.residual1, and its norm.
  void enter_block(Stream& stream, int layer, const BlockActivations& a, const Tensor& residual_in,
                   const Tensor& delta);
  // d_residual: from the gradient of a.residual1 to that of the sum.
  void backward_entry(Stream& stream, int layer, const BlockActivations& a, const Tensor& d_residual);
  void mix_values(Stream& stream, int layer, const BlockActivations& a);
  void backward_values(Stream& stream, int layer, const BlockActivations& a, const Tensor& d_qkv);
  void backward_embedding_norm(Stream& stream, const Tensor& d_residual);
  MixTerm scaled(const Tensor& x, std::int64_t scalar) const;  // x times the learned scalar of this number
  float* scalar_gradient(std::int64_t scalar) const;

  AttentionShape attention_shape(const DeviceBatch& batch) const;
  void norm_forward(Stream& stream, const Norm& norm, const Tensor& residual_in, const Tensor& delta,
                    const Tensor& residual_out, const Tensor& normed, const Tensor& mean, const Tensor& rstd);
  void norm_backward(Stream& stream, const Norm& norm, const Tensor& d_normed, const Tensor& residual,
                     const Tensor& mean, const Tensor& rstd, const Tensor& d_residual, bool accumulate);
  void zero(Stream& stream, const Tensor& tensor);
  void zero_gradient(Stream& stream, int index);
  void make_rotary_tables();

  TransformerConfig config_;
  const ParameterTable& table_;
  ActivationShape shape_;
  Backend& backend_;
  FlatBuffers buffers_;
  std::vector<BlockParameters> block_parameters_;
  Norm final_norm_;
  int token_table_ = -1, position_table_ = -1, head_ = -1, scalars_ = -1;
  std::vector<int> value_tables_;

  Arena arena_;
  Activations planned_;  // for the largest micro-batch
  DeviceBuffer rotary_memory_;
  Rotary rotary_;
  std::int64_t rows_ = 0;  // of the present micro-batch
};

}  // namespace polaron
