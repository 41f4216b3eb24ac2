// The parts of the authors' modded models between embedding, residual stream and values (docs/paper.md), forward and
// backward. Models without them pass through with the fused op alone.
#include <array>

#include "model/transformer.h"

namespace polaron {

MixTerm Transformer::scaled(const Tensor& x, std::int64_t scalar) const {
  return {x, buffers_.weights + table_[static_cast<std::size_t>(scalars_)].offset + scalar};
}
float* Transformer::scalar_gradient(std::int64_t scalar) const {
  return buffers_.gradients + table_[static_cast<std::size_t>(scalars_)].offset + scalar;
}

void Transformer::embed(Stream& stream, const DeviceBatch& batch) {
  const BlockActivations first = block(0, batch);
  const Tensor out = planned_.embedded ? rows_of(planned_.embedded) : first.entry;
  backend_.embedding().forward(stream, batch.tokens, weight(token_table_), weight(position_table_),
                               batch.sequence_length, out);
  if (planned_.embedded) {
    norm_forward(stream, {}, out, {}, out, first.entry, rows_of(planned_.embedded_mean),
                 rows_of(planned_.embedded_rstd));
  }
  for (std::size_t i = 0; i < value_tables_.size(); ++i) {
    backend_.embedding().forward(stream, batch.tokens, weight(value_tables_[i]), {}, batch.sequence_length,
                                 rows_of(planned_.values[i]));
  }
}

void Transformer::backward_embedding_norm(Stream& stream, const Tensor& d_residual) {
  if (config_.x0_mixing) {
    backend_.mix().forward(stream, std::array{MixTerm{d_residual}, MixTerm{rows_of(planned_.d_x0)}}, d_residual);
  }
  if (!planned_.embedded) return;
  const Tensor d_normed = rows_of(planned_.delta);
  backend_.mix().forward(stream, std::array{MixTerm{d_residual}}, d_normed);
  zero(stream, d_residual);
  norm_backward(stream, {}, d_normed, rows_of(planned_.embedded), rows_of(planned_.embedded_mean),
                rows_of(planned_.embedded_rstd), d_residual, true);
}

void Transformer::enter_block(Stream& stream, int layer, const BlockActivations& a, const Tensor& residual_in,
                              const Tensor& delta) {
  const BlockParameters& p = block_parameters_[static_cast<std::size_t>(layer)];
  const bool normed = p.attention && a.normed1;
  if (!p.entry.changed() && normed) {
    return norm_forward(stream, p.norm1, residual_in, delta, a.residual1, a.normed1, a.mean1, a.rstd1);
  }
  if (delta) backend_.mix().forward(stream, std::array{MixTerm{residual_in}, MixTerm{delta}}, a.entry);
  Tensor x = a.entry;
  if (p.entry.skip >= 0) {
    const std::int64_t from = config_.skips[static_cast<std::size_t>(p.entry.skip)].from;
    const Tensor carried = rows_of(planned_.blocks[static_cast<std::size_t>(from + 1)].entry);
    const Tensor out = p.entry.x0 ? a.skipped : a.residual1;
    const std::int64_t scalar = BlockScalars(config_.layers, from).skip;
    backend_.mix().forward(stream, std::array{MixTerm{x}, scaled(carried, scalar)}, out);
    x = out;
  }
  if (p.entry.x0) {
    backend_.mix().forward(stream,
                           std::array{scaled(x, p.scalars.stream), scaled(rows_of(planned_.x0), p.scalars.stream + 1)},
                           a.residual1);
  }
  if (normed) norm_forward(stream, p.norm1, a.residual1, {}, a.residual1, a.normed1, a.mean1, a.rstd1);
}

void Transformer::backward_entry(Stream& stream, int layer, const BlockActivations& a, const Tensor& d_residual) {
  const BlockParameters& p = block_parameters_[static_cast<std::size_t>(layer)];
  if (p.entry.x0) {
    const Tensor x = p.entry.skip >= 0 ? a.skipped : a.entry;
    const std::int64_t scalar = p.scalars.stream;
    const bool last = layer + 1 == config_.layers;  // the first to leave a gradient of x0
    backend_.mix().backward(stream, d_residual, std::array{scaled(x, scalar), scaled(rows_of(planned_.x0), scalar + 1)},
                            std::array{MixGradient{d_residual, false, scalar_gradient(scalar)},
                                       MixGradient{rows_of(planned_.d_x0), !last, scalar_gradient(scalar + 1)}});
  }
  if (p.entry.skip >= 0) {
    const auto skip = static_cast<std::size_t>(p.entry.skip);
    const std::int64_t from = config_.skips[skip].from, scalar = BlockScalars(config_.layers, from).skip;
    const Tensor carried = rows_of(planned_.blocks[static_cast<std::size_t>(from + 1)].entry);
    backend_.mix().backward(stream, d_residual, std::array{scaled(carried, scalar)},
                            std::array{MixGradient{rows_of(planned_.d_skips[skip]), false, scalar_gradient(scalar)}});
  }
  if (p.entry.read_by >= 0) {
    const Tensor d_carried = rows_of(planned_.d_skips[static_cast<std::size_t>(p.entry.read_by)]);
    backend_.mix().forward(stream, std::array{MixTerm{d_residual}, MixTerm{d_carried}}, d_residual);
  }
}

namespace {

// The part of packed rows that holds v.
Tensor values_of(const TransformerConfig& config, const Tensor& qkv) {
  const std::int64_t width = config.kv_heads * config.head_size;
  return qkv.column_range(config.heads * config.head_size + width, width);
}

}  // namespace

void Transformer::mix_values(Stream& stream, int layer, const BlockActivations& a) {
  if (config_.value_embeddings == 0) return;
  const BlockParameters& p = block_parameters_[static_cast<std::size_t>(layer)];
  const Tensor v = values_of(config_, a.qkv);
  backend_.mix().forward(stream, std::array{MixTerm{v}}, a.value);
  const MixTerm own = scaled(a.value, p.scalars.value);
  if (p.value_table < 0) return backend_.mix().forward(stream, std::array{own}, v);
  const Tensor embedded = rows_of(planned_.values[static_cast<std::size_t>(p.value_table)]);
  backend_.mix().forward(stream, std::array{own, scaled(embedded, p.scalars.value + 1)}, v);
}

void Transformer::backward_values(Stream& stream, int layer, const BlockActivations& a, const Tensor& d_qkv) {
  if (config_.value_embeddings == 0) return;
  const BlockParameters& p = block_parameters_[static_cast<std::size_t>(layer)];
  const Tensor v = values_of(config_, a.qkv), d_v = values_of(config_, d_qkv);
  const std::int64_t scalar = p.scalars.value;
  const MixTerm own = scaled(a.value, scalar);
  const MixGradient d_own{d_v, false, scalar_gradient(scalar)};
  if (p.value_table < 0) {
    backend_.mix().backward(stream, d_v, std::array{own}, std::array{d_own});
  } else {
    const auto table = static_cast<std::size_t>(p.value_table);
    // Of the two blocks that share a table the later one comes first.
    const MixGradient d_embedded{rows_of(planned_.d_values[table]), layer == p.value_table,
                                 scalar_gradient(scalar + 1)};
    backend_.mix().backward(stream, d_v, std::array{own, scaled(rows_of(planned_.values[table]), scalar + 1)},
                            std::array{d_own, d_embedded});
  }
  // The norm's backward pass wants v as the norm left it.
  if (config_.v_norm) backend_.mix().forward(stream, std::array{MixTerm{a.value}}, v);
}

}  // namespace polaron
