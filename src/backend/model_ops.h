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
#include <span>

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

// --- mixing
// -------------------------------------------------------------------------------------------------------------

// One addend of a mix, coefficient * x. The coefficient is an fp32 number in device memory; null: 1.
struct MixTerm {
  Tensor x;
  const float* coefficient = nullptr;
};
// What backward does with a term: d_x = coefficient * d_out (absent: not wanted), added to what is there when
// `accumulate`; *d_coefficient (fp32, device) += sum of d_out * x (null: not wanted).
struct MixGradient {
  Tensor d_x;
  bool accumulate = false;
  float* d_coefficient = nullptr;
};

class MixOps {
 public:
  virtual ~MixOps() = default;
  static constexpr std::size_t kMostTerms = 2;
  // out = the sum of the terms, at most kMostTerms, all [N, cols]; out may be one of the x.
  virtual void forward(Stream& stream, std::span<const MixTerm> terms, const Tensor& out) = 0;
  // gradients[i] belongs to terms[i]; one d_x may be d_out itself. The x of a term without d_coefficient is not read.
  virtual void backward(Stream& stream, const Tensor& d_out, std::span<const MixTerm> terms,
                        std::span<const MixGradient> gradients) = 0;
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

// Which heads of a packed projection are divided by their root mean square.
enum class HeadNorm : std::uint8_t { none, qk, qkv };

class AttentionOps {
 public:
  virtual ~AttentionOps() = default;
  // In place on packed qkv [N, qkv_width]: heads of q and k, or of q, k and v, are divided by their root mean square
  // (rstd = 1/sqrt(mean(x^2) + eps) is kept in head_rstd, fp32, a column for each of these heads); then q and k are
  // rotated.
  virtual void prepare(Stream& stream, const AttentionShape& shape, HeadNorm norm, float eps, const Rotary& rotary,
                       const Tensor& qkv, const Tensor& head_rstd) = 0;
  // In place on d_qkv: the gradient before `prepare` from the gradient after it; qkv is `prepare`'s result.
  virtual void prepare_backward(Stream& stream, const AttentionShape& shape, HeadNorm norm, const Rotary& rotary,
                                const Tensor& qkv, const Tensor& head_rstd, const Tensor& d_qkv) = 0;
  // Causal attention, blocked, never T x T: out [N, q_width]; lse fp32 [B*heads, T] = log sum exp of the scaled scores.
  // first_key i32 [N,1] (absent: 0): row t of sequence b sees keys in [first_key[b*T+t], t] only; masks of documents
  // and of blocks come as this.
  virtual void forward(Stream& stream, const AttentionShape& shape, const Tensor& qkv, const Tensor& first_key,
                       const Tensor& out, const Tensor& lse) = 0;
  // d_qkv [N, qkv_width], overwritten.
  virtual void backward(Stream& stream, const AttentionShape& shape, const Tensor& qkv, const Tensor& first_key,
                        const Tensor& out, const Tensor& lse, const Tensor& d_out, const Tensor& d_qkv) = 0;
};

// --- loss
// ---------------------------------------------------------------------------------------------------------------

// What bounds a logit z before the softmax, for a cap c > 0: c tanh(z / c), or c z / sqrt(z^2 + c^2).
struct Softcap {
  enum class Form : std::uint8_t { tanh, algebraic };
  float cap = 0.0F;  // 0: none
  Form form = Form::tanh;
};

class LossOps {
 public:
  virtual ~LossOps() = default;
  // Cross-entropy of one chunk of rows, in place. logits [rows, >= vocabulary] (columns from `vocabulary` on are
  // padding: they stay out of the softmax and get gradient 0); targets i32 [rows,1], -1 = no target. *loss_sum (fp64)
  // += sum over targets of -log softmax(z)[target]. When `gradient`: logits become scale * d(sum of losses)/d(logits);
  // otherwise they are left in an unspecified state.
  virtual void cross_entropy(Stream& stream, const Tensor& logits, std::int64_t vocabulary, const Tensor& targets,
                             const Softcap& softcap, float scale, bool gradient, double* loss_sum) = 0;
};

}  // namespace polaron
