// The ops that a transformer is made of, forward and backward: one abstract class a family, implemented by
// src/cpu/<family>.cpp and cuda/<family>.cu. Drawn at the granularity of CUDA kernels: what a GPU fuses is one op here.
//
// Conventions. N = B*T rows: B sequences of T tokens, row b*T + t. Activations and their gradients are matrices [N,
// width] of dtype f32 or bf16, one dtype a call, which is also the dtype of the weights of linear layers and of the
// tables of embeddings. Weights and biases of norms, biases of linear layers, statistics, gradients of parameters and
// losses are fp32 always; so is accumulation. "+=" means the op adds to what is there; everything else is overwritten.
// Every op is deterministic: the same inputs give the same bits. Ops trust their callers' shapes (the model checks them
// once) and throw std::logic_error where an unsupported combination reaches them.
#pragma once

#include <cstdint>

#include "backend/device.h"
#include "backend/tensor.h"

namespace polaron {

// --- embedding
// ----------------------------------------------------------------------------------------------------------

class EmbeddingOps {
 public:
  virtual ~EmbeddingOps() = default;
  // out[b*T+t] = token_table[tokens[b*T+t]] + position_table[t].   tokens i32 [N] (a matrix [N,1]); position_table may
  // be absent.
  virtual void forward(Stream& stream, const Tensor& tokens, const Tensor& token_table, const Tensor& position_table,
                       std::int64_t sequence_length, const Tensor& out) = 0;
  // token_grad[v] += sum of d_out rows whose token is v;   position_grad[t] += sum over b of d_out[b*T+t] (may be
  // absent). The order of the sums depends on the tokens alone, not on the number of threads. Gradients fp32.
  virtual void backward(Stream& stream, const Tensor& tokens, const Tensor& d_out, std::int64_t sequence_length,
                        const Tensor& token_grad, const Tensor& position_grad) = 0;
};

// --- normalisation
// ------------------------------------------------------------------------------------------------------

enum class NormKind : std::uint8_t { layernorm, rmsnorm };

class NormOps {
 public:
  virtual ~NormOps() = default;
  // residual_out = residual_in + delta (delta absent: residual_out is residual_in and may be the same tensor or
  // absent); normed = (x - mean) * rstd * weight + bias with x = residual_out; rstd = 1/sqrt(var + eps). RMSNorm: mean
  // = 0, var = mean(x^2), `mean` absent. weight and bias may be absent (non-affine). mean, rstd: fp32 [N,1].
  virtual void forward(Stream& stream, NormKind kind, float eps, const Tensor& residual_in, const Tensor& delta,
                       const Tensor& weight, const Tensor& bias, const Tensor& residual_out, const Tensor& normed,
                       const Tensor& mean, const Tensor& rstd) = 0;
  // d_residual += gradient through the norm of d_normed. `residual` is forward's residual_out.
  // weight_grad, bias_grad [1,C] fp32: += (absent where forward had none).
  virtual void backward(Stream& stream, NormKind kind, const Tensor& d_normed, const Tensor& residual,
                        const Tensor& weight, const Tensor& mean, const Tensor& rstd, const Tensor& d_residual,
                        const Tensor& weight_grad, const Tensor& bias_grad) = 0;
};

// --- linear layers
// ------------------------------------------------------------------------------------------------------

enum class Activation : std::uint8_t { none, gelu_tanh, gelu_erf, relu2, swiglu };

class LinearOps {
 public:
  virtual ~LinearOps() = default;
  // out = x weight^T + bias.   x [N,in], weight [out,in], bias [1,out] or absent.
  // With an activation: out is the pre-activation and activated = f(out). gelu_tanh: 0.5 x (1 + tanh(sqrt(2/pi)(x +
  // 0.044715 x^3))); gelu_erf: 0.5 x (1 + erf(x/sqrt 2)); relu2: max(x,0)^2; swiglu: out = gate|up [N, 2H], activated
  // [N, H] = silu(gate) * up.
  virtual void forward(Stream& stream, const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                       const Tensor& out, const Tensor& activated) = 0;
  // d_x = d_out weight (overwritten, or added to when `accumulate`).
  virtual void backward_input(Stream& stream, const Tensor& d_out, const Tensor& weight, const Tensor& d_x,
                              bool accumulate) = 0;
  // The same, followed by the derivative of the activation that forward fused before this layer:
  // d_pre = (d_out weight) * f'(pre). weight [out, H]; pre and d_pre [N, H], swiglu [N, 2H]. d_pre may be `pre` itself.
  // `scratch` [N, H]: free memory that swiglu may use for d_out weight.
  virtual void backward_input_activation(Stream& stream, const Tensor& d_out, const Tensor& weight,
                                         Activation activation, const Tensor& pre, const Tensor& d_pre,
                                         const Tensor& scratch) = 0;
  // weight_grad = d_out^T x (fp32 [out,in]);   bias_grad = column sums of d_out (fp32 [1,out], may be absent).
  // `accumulate`: both are added to what is there instead (later micro-batches, later chunks of the head).
  virtual void backward_weight(Stream& stream, const Tensor& d_out, const Tensor& x, const Tensor& weight_grad,
                               const Tensor& bias_grad, bool accumulate) = 0;
  // activated = f(pre) alone, for recomputation. Shapes as in forward.
  virtual void activate(Stream& stream, Activation activation, const Tensor& pre, const Tensor& activated) = 0;
};

// --- attention
// ----------------------------------------------------------------------------------------------------------

// How a packed projection is read: each row is heads*head_size of q, then kv_heads*head_size of k, then the same of v.
struct AttentionShape {
  std::int64_t batch = 0;            // B
  std::int64_t sequence_length = 0;  // T
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;  // divides heads; query head h reads key head h / (heads / kv_heads)
  std::int64_t head_size = 0;
  float scale = 0.0F;       // of q k^T, before the softmax
  std::int64_t window = 0;  // 0: all earlier tokens; otherwise row t sees the last `window` tokens, itself included

  std::int64_t q_width() const { return heads * head_size; }
  std::int64_t kv_width() const { return kv_heads * head_size; }
  std::int64_t qkv_width() const { return q_width() + 2 * kv_width(); }
};

// Rotary embedding in Hugging Face's half-split form: pair (x[j], x[j+D/2]) turns by angle t*frequency[j]:
//   y[j] = x[j] cos - x[j+D/2] sin;   y[j+D/2] = x[j+D/2] cos + x[j] sin.
// cos and sin: fp32 [T, D/2], made by the model. Absent tensors: no rotation.
struct Rotary {
  Tensor cos;
  Tensor sin;
};

class AttentionOps {
 public:
  virtual ~AttentionOps() = default;
  // In place on packed qkv [N, qkv_width]: q and k are divided by their root mean square per head (when qk_norm;
  // rstd = 1/sqrt(mean(x^2) + eps) is kept in qk_rstd fp32 [N, heads + kv_heads]), then rotated.
  virtual void prepare(Stream& stream, const AttentionShape& shape, bool qk_norm, float eps, const Rotary& rotary,
                       const Tensor& qkv, const Tensor& qk_rstd) = 0;
  // In place on d_qkv: the gradient before `prepare` from the gradient after it; qkv is `prepare`'s result.
  virtual void prepare_backward(Stream& stream, const AttentionShape& shape, bool qk_norm, const Rotary& rotary,
                                const Tensor& qkv, const Tensor& qk_rstd, const Tensor& d_qkv) = 0;
  // Causal attention, blocked, never T x T: out [N, q_width]; lse fp32 [B*heads, T] = log sum exp of the scaled scores.
  // document_start i32 [N,1] (absent: one document): row t of sequence b sees keys in [document_start[b*T+t], t] only.
  virtual void forward(Stream& stream, const AttentionShape& shape, const Tensor& qkv, const Tensor& document_start,
                       const Tensor& out, const Tensor& lse) = 0;
  // d_qkv [N, qkv_width], overwritten.
  virtual void backward(Stream& stream, const AttentionShape& shape, const Tensor& qkv, const Tensor& document_start,
                        const Tensor& out, const Tensor& lse, const Tensor& d_out, const Tensor& d_qkv) = 0;
};

// --- loss
// ---------------------------------------------------------------------------------------------------------------

class LossOps {
 public:
  virtual ~LossOps() = default;
  // Cross-entropy of one chunk of rows, in place. logits [rows, >= vocabulary] (columns from `vocabulary` on are
  // padding: they stay out of the softmax and get gradient 0); targets i32 [rows,1], -1 = no target. softcap c > 0: z
  // -> c * tanh(z / c) first. *loss_sum (fp64) += sum over targets of -log softmax(z)[target]. When `gradient`: logits
  // become scale * d(sum of losses)/d(logits); otherwise they are left in an unspecified state.
  virtual void cross_entropy(Stream& stream, const Tensor& logits, std::int64_t vocabulary, const Tensor& targets,
                             float softcap, float scale, bool gradient, double* loss_sum) = 0;
};

}  // namespace polaron
