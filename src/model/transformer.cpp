#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace polaron {
namespace {

Activation activation_of(MlpKind kind) {
  switch (kind) {
    case MlpKind::gelu:
      return Activation::gelu_tanh;
    case MlpKind::gelu_exact:
      return Activation::gelu_erf;
    case MlpKind::swiglu:
      return Activation::swiglu;
    case MlpKind::relu2:
      return Activation::relu2;
  }
  throw std::logic_error("unknown kind of MLP");
}

Softcap softcap_of(const TransformerConfig& config) {
  const bool tanh = config.logit_softcap_form == SoftcapForm::tanh;
  return {static_cast<float>(config.logit_softcap), tanh ? Softcap::Form::tanh : Softcap::Form::algebraic};
}

float rotary_frequency(const TransformerConfig& config, std::int64_t pair) {
  if (config.rotary_frequencies == RotaryFrequencies::full) {
    const double exponent = 2.0 * static_cast<double>(pair) / static_cast<double>(config.head_size);
    return static_cast<float>(1.0 / std::pow(config.rotary_base, exponent));
  }
  const std::int64_t turning = config.head_size / 4;
  if (pair >= turning) return 0.0F;
  const double exponent = static_cast<double>(pair) / static_cast<double>(std::max<std::int64_t>(turning - 1, 1));
  return -static_cast<float>(std::pow(1.0 / 1024.0, exponent));
}

}  // namespace

Transformer::Transformer(const TransformerConfig& config, const ParameterTable& table, const ActivationShape& shape,
                         Backend& backend, const FlatBuffers& buffers)
    : config_(config), table_(table), shape_(shape), backend_(backend), buffers_(buffers) {
  if (config.positions == Positions::learned && shape.sequence_length > config.context_length) {
    throw std::logic_error("the sequences are longer than the model's position table");
  }
  const ActivationLayout layout(config, shape);
  arena_ = Arena(backend.device(), layout.plan());
  planned_ = layout.place(arena_);
  for (std::int64_t i = 0; i < config.layers; ++i) {
    const std::string prefix = "blocks." + std::to_string(i) + ".";
    BlockParameters p(config, i);
    p.norm1 = find_norm(prefix + "norm1");
    p.norm2 = find_norm(prefix + "norm2");
    if (p.attention) {
      p.qkv = find_linear(prefix + "attention.qkv");
      p.out = find_linear(prefix + "attention.out");
    }
    const std::int64_t last_tables = i - (config.layers - config.value_embeddings);
    p.value_table = static_cast<int>(i < config.value_embeddings ? i : last_tables < 0 ? -1 : last_tables);
    p.up = find_linear(prefix + (config.mlp == MlpKind::swiglu ? "mlp.gate_up" : "mlp.up"));
    p.down = find_linear(prefix + "mlp.down");
    block_parameters_.push_back(p);
  }
  final_norm_ = find_norm("final_norm");
  const auto find = [&](const char* name) { return table_.has(name) ? static_cast<int>(table_.index(name)) : -1; };
  token_table_ = find("embedding.token");
  position_table_ = find("embedding.position");
  head_ = config.tied_embeddings ? token_table_ : find("head.weight");
  scalars_ = find("scalars");
  for (std::int64_t i = 0; i < config.value_embeddings; ++i) {
    value_tables_.push_back(find(("embedding.value" + std::to_string(i)).c_str()));
  }
  if (config.positions == Positions::rotary) make_rotary_tables();
}

Transformer::Norm Transformer::find_norm(const std::string& prefix) const {
  const auto find = [&](const std::string& name) {
    return table_.has(name) ? static_cast<int>(table_.index(name)) : -1;
  };
  return {find(prefix + ".weight"), find(prefix + ".bias")};
}

Transformer::Linear Transformer::find_linear(const std::string& prefix) const {
  const std::string bias = prefix + ".bias";
  return {static_cast<int>(table_.index(prefix + ".weight")),
          table_.has(bias) ? static_cast<int>(table_.index(bias)) : -1};
}

Tensor Transformer::weight(int index) const {
  if (index < 0) return {};
  const Parameter& p = table_[static_cast<std::size_t>(index)];
  const Tensor master = view_of(p, buffers_.weights);
  if (shape_.dtype == DType::f32 || !is_rounded(p.role)) return master;
  return {buffers_.working + p.offset, DType::bf16, master.rows, master.cols};
}
Tensor Transformer::gradient(int index) const {
  return index < 0 ? Tensor{} : view_of(table_[static_cast<std::size_t>(index)], buffers_.gradients);
}
void Transformer::zero(Stream& stream, const Tensor& tensor) {
  backend_.device().zero(stream, tensor.data, static_cast<std::size_t>(tensor.elements()) * size_of(tensor.dtype));
}
void Transformer::zero_gradient(Stream& stream, int index) {
  if (index >= 0) zero(stream, gradient(index));
}
const Tensor& Transformer::first_key(const DeviceBatch& batch, int layer) const {
  const std::vector<std::int64_t>& whole = config_.long_window_blocks;
  const bool half = batch.first_key[1] && std::find(whole.begin(), whole.end(), layer) == whole.end();
  return batch.first_key[half ? 1 : 0];
}

// Angles as Hugging Face computes them: inverse frequencies and products rounded to fp32. The authors' models turn the
// other way, and only half of their pairs.
void Transformer::make_rotary_tables() {
  const std::int64_t half = config_.head_size / 2;
  const std::int64_t length = shape_.sequence_length;
  std::vector<float> table(static_cast<std::size_t>(2 * length * half));
  for (std::int64_t i = 0; i < half; ++i) {
    const float frequency = rotary_frequency(config_, i);
    for (std::int64_t t = 0; t < length; ++t) {
      const float angle = static_cast<float>(t) * frequency;
      table[static_cast<std::size_t>(t * half + i)] = static_cast<float>(std::cos(static_cast<double>(angle)));
      table[static_cast<std::size_t>((length + t) * half + i)] =
          static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
  const auto bytes = static_cast<std::size_t>(table_bytes(config_, shape_));
  rotary_memory_ = DeviceBuffer(backend_.device(), bytes);
  const auto stream = backend_.device().make_stream();
  backend_.device().upload(*stream, rotary_memory_.data(), table.data(), bytes);
  stream->synchronize();
  rotary_.cos = Tensor(rotary_memory_.data(), DType::f32, length, half);
  rotary_.sin = Tensor(rotary_memory_.as<float>() + length * half, DType::f32, length, half);
}

AttentionShape Transformer::attention_shape(const DeviceBatch& batch) const {
  AttentionShape shape;
  shape.batch = batch.sequences;
  shape.sequence_length = batch.sequence_length;
  shape.heads = config_.heads;
  shape.kv_heads = config_.kv_heads;
  shape.head_size = config_.head_size;
  shape.scale = static_cast<float>(config_.attention_scale);
  shape.window = config_.attention_window;
  return shape;
}

BlockActivations Transformer::block(int layer, const DeviceBatch& batch) const {
  BlockActivations a = planned_.blocks[static_cast<std::size_t>(layer)];
  for (Tensor* tensor :
       {&a.entry, &a.skipped, &a.value, &a.residual1, &a.normed1, &a.mean1, &a.rstd1, &a.qkv, &a.head_rstd, &a.attended,
        &a.residual2, &a.normed2, &a.mean2, &a.rstd2, &a.pre, &a.activated}) {
    *tensor = rows_of(*tensor);
  }
  if (!block_parameters_[static_cast<std::size_t>(layer)].attention) {
    a.residual2 = a.residual1;
    return a;
  }
  a.lse = Tensor(a.lse.data, DType::f32, batch.sequences * config_.heads, batch.sequence_length);
  return a;
}

void Transformer::norm_forward(Stream& stream, const Norm& norm, const Tensor& residual_in, const Tensor& delta,
                               const Tensor& residual_out, const Tensor& normed, const Tensor& mean,
                               const Tensor& rstd) {
  const NormKind kind = config_.norm == NormChoice::layernorm ? NormKind::layernorm : NormKind::rmsnorm;
  backend_.norm().forward(stream, kind, static_cast<float>(config_.norm_eps), residual_in, delta, weight(norm.weight),
                          weight(norm.bias), residual_out, normed, mean, rstd);
}

void Transformer::norm_backward(Stream& stream, const Norm& norm, const Tensor& d_normed, const Tensor& residual,
                                const Tensor& mean, const Tensor& rstd, const Tensor& d_residual, bool accumulate) {
  if (!accumulate) {
    zero_gradient(stream, norm.weight);
    zero_gradient(stream, norm.bias);
  }
  const NormKind kind = config_.norm == NormChoice::layernorm ? NormKind::layernorm : NormKind::rmsnorm;
  backend_.norm().backward(stream, kind, d_normed, residual, weight(norm.weight), mean, rstd, d_residual,
                           gradient(norm.weight), gradient(norm.bias));
}

void Transformer::forward(Stream& stream, const DeviceBatch& batch) {
  rows_ = batch.sequences * batch.sequence_length;
  if (rows_ > shape_.rows() || batch.sequence_length > shape_.sequence_length) {
    throw std::logic_error("the batch is larger than the activations were planned for");
  }
  embed(stream, batch);
  const Tensor delta = rows_of(planned_.delta);
  Tensor residual = block(0, batch).entry;
  for (int layer = 0; layer < config_.layers; ++layer) {
    forward_block(stream, batch, layer, residual, layer == 0 ? Tensor{} : delta, false);
    residual = block(layer, batch).residual2;
  }
  norm_forward(stream, final_norm_, residual, delta, rows_of(planned_.residual), rows_of(planned_.normed),
               rows_of(planned_.mean), rows_of(planned_.rstd));
}

void Transformer::forward_block(Stream& stream, const DeviceBatch& batch, int layer, const Tensor& residual_in,
                                const Tensor& delta, bool recompute) {
  const BlockActivations a = block(layer, batch);
  const BlockParameters& p = block_parameters_[static_cast<std::size_t>(layer)];
  const AttentionShape attention = attention_shape(batch);
  const auto linear = [&](const Tensor& x, const Linear& l, Activation f, const Tensor& out, const Tensor& activated) {
    backend_.linear().forward(stream, x, weight(l.weight), weight(l.bias), f, out, activated);
  };
  const Tensor branch = rows_of(planned_.delta);

  if (recompute) {
    if (p.attention && a.normed1)
      norm_forward(stream, p.norm1, a.residual1, {}, a.residual1, a.normed1, a.mean1, a.rstd1);
  } else {
    enter_block(stream, layer, a, residual_in, delta);
  }
  if (p.attention) {
    linear(a.normed1 ? a.normed1 : a.residual1, p.qkv, Activation::none, a.qkv, {});
    backend_.attention().prepare(stream, attention, head_norm(), static_cast<float>(config_.norm_eps), rotary_, a.qkv,
                                 a.head_rstd);
    mix_values(stream, layer, a);
    backend_.attention().forward(stream, attention, a.qkv, first_key(batch, layer), a.attended, a.lse);
    linear(a.attended, p.out, Activation::none, branch, {});
  }

  norm_forward(stream, p.norm2, a.residual1, p.attention ? branch : Tensor{}, a.residual2, a.normed2, a.mean2, a.rstd2);
  linear(a.normed2, p.up, activation_of(config_.mlp), a.pre, a.activated);
  if (!recompute) linear(a.activated, p.down, Activation::none, branch, {});
}

void Transformer::head(Stream& stream, const DeviceBatch& batch, float loss_scale, bool with_gradient, bool accumulate,
                       double* loss_sum) {
  const Tensor normed = rows_of(planned_.normed);
  const Tensor d_normed = rows_of(planned_.delta);
  const std::int64_t chunk = planned_.logits.rows;
  for (std::int64_t row = 0; row < rows_; row += chunk) {
    const std::int64_t count = std::min(chunk, rows_ - row);
    const Tensor x = normed.row_range(row, count);
    const Tensor logits = planned_.logits.row_range(0, count);
    backend_.linear().forward(stream, x, weight(head_), {}, Activation::none, logits, {});
    backend_.loss().cross_entropy(stream, logits, config_.softmax_size(), batch.targets.row_range(row, count),
                                  softcap_of(config_), loss_scale, with_gradient, loss_sum);
    if (!with_gradient) continue;
    backend_.linear().backward_weight(stream, logits, x, gradient(head_), {}, accumulate || row > 0);
    backend_.linear().backward_input(stream, logits, weight(head_), d_normed.row_range(row, count), false);
  }
}

void Transformer::backward_begin(Stream& stream, bool accumulate) {
  if (!accumulate) zero_gradient(stream, scalars_);
  const Tensor d_residual = rows_of(planned_.d_residual);
  zero(stream, d_residual);
  norm_backward(stream, final_norm_, rows_of(planned_.delta), rows_of(planned_.residual), rows_of(planned_.mean),
                rows_of(planned_.rstd), d_residual, accumulate);
}

void Transformer::backward_block(Stream& stream, const DeviceBatch& batch, int layer, bool accumulate) {
  const BlockActivations a = block(layer, batch);
  const BlockParameters& p = block_parameters_[static_cast<std::size_t>(layer)];
  if (shape_.recompute_blocks) forward_block(stream, batch, layer, a.residual1, {}, true);
  const auto backward_weight = [&](const Tensor& d_out, const Tensor& x, const Linear& l) {
    backend_.linear().backward_weight(stream, d_out, x, gradient(l.weight), gradient(l.bias), accumulate);
  };
  const Tensor d_residual = rows_of(planned_.d_residual);
  const Tensor d_normed = rows_of(planned_.delta);

  // MLP: the pre-activation turns into its gradient in place.
  backward_weight(d_residual, a.activated, p.down);
  backend_.linear().backward_input_activation(stream, d_residual, weight(p.down.weight), activation_of(config_.mlp),
                                              a.pre, a.pre, rows_of(planned_.d_hidden));
  backward_weight(a.pre, a.normed2, p.up);
  backend_.linear().backward_input(stream, a.pre, weight(p.up.weight), d_normed, false);
  norm_backward(stream, p.norm2, d_normed, a.residual2, a.mean2, a.rstd2, d_residual, accumulate);

  if (!p.attention) return backward_entry(stream, layer, a, d_residual);
  const AttentionShape attention = attention_shape(batch);
  const Tensor d_attended = rows_of(planned_.d_attended);
  const Tensor d_qkv = rows_of(planned_.d_qkv);
  backward_weight(d_residual, a.attended, p.out);
  backend_.linear().backward_input(stream, d_residual, weight(p.out.weight), d_attended, false);
  backend_.attention().backward(stream, attention, a.qkv, first_key(batch, layer), a.attended, a.lse, d_attended,
                                d_qkv);
  backward_values(stream, layer, a, d_qkv);
  backend_.attention().prepare_backward(stream, attention, head_norm(), rotary_, a.qkv, a.head_rstd, d_qkv);
  backward_weight(d_qkv, a.normed1 ? a.normed1 : a.residual1, p.qkv);
  if (a.normed1) {
    backend_.linear().backward_input(stream, d_qkv, weight(p.qkv.weight), d_normed, false);
    norm_backward(stream, p.norm1, d_normed, a.residual1, a.mean1, a.rstd1, d_residual, accumulate);
  } else {
    backend_.linear().backward_input(stream, d_qkv, weight(p.qkv.weight), d_residual, true);
  }
  backward_entry(stream, layer, a, d_residual);
}

void Transformer::backward_embedding(Stream& stream, const DeviceBatch& batch, bool accumulate) {
  if (!accumulate) {
    if (!config_.tied_embeddings) zero_gradient(stream, token_table_);  // tied: the head's gradient is already there
    zero_gradient(stream, position_table_);
    for (const int table : value_tables_) zero_gradient(stream, table);
  }
  backward_embedding_norm(stream, rows_of(planned_.d_residual));
  for (std::size_t i = 0; i < value_tables_.size(); ++i) {
    backend_.embedding().backward(stream, batch.tokens, rows_of(planned_.d_values[i]), batch.sequence_length,
                                  gradient(value_tables_[i]), {});
  }
  backend_.embedding().backward(stream, batch.tokens, rows_of(planned_.d_residual), batch.sequence_length,
                                gradient(token_table_), gradient(position_table_));
}

void Transformer::forward_loss(Stream& stream, const DeviceBatch& batch, double* loss_sum) {
  forward(stream, batch);
  head(stream, batch, 0.0F, false, false, loss_sum);
}

void Transformer::logits_of_row(Stream& stream, const DeviceBatch& batch, std::int64_t row, float* logits) {
  forward(stream, batch);
  const Tensor out = planned_.logits.row_range(0, 1);
  backend_.linear().forward(stream, rows_of(planned_.normed).row_range(row, 1), weight(head_), {}, Activation::none,
                            out, {});
  const auto count = static_cast<std::size_t>(config_.vocabulary);
  std::vector<bf16> rounded(out.dtype == DType::bf16 ? count : 0);
  void* const host = out.dtype == DType::bf16 ? static_cast<void*>(rounded.data()) : logits;
  backend_.device().download(stream, host, out.data, count * size_of(out.dtype));
  stream.synchronize();
  std::transform(rounded.begin(), rounded.end(), logits, [](bf16 value) { return to_float(value); });
  if (config_.logit_softcap > 0) {
    const auto cap = static_cast<float>(config_.logit_softcap);
    const bool tanh = config_.logit_softcap_form == SoftcapForm::tanh;
    for (std::int64_t i = 0; i < config_.vocabulary; ++i) {
      const float x = logits[i] / cap;
      logits[i] = cap * (tanh ? std::tanh(x) : x / std::sqrt(x * x + 1.0F));
    }
  }
}

}  // namespace polaron
