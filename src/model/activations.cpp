#include "model/activations.h"

#include <algorithm>
#include <string>

#include "model/parameters.h"

namespace polaron {

// Equal chunks, not a small one at the end. Each reads and packs the whole table of the head three times, so few rows
// cost speed and many cost memory.
std::int64_t loss_chunk_rows(const TransformerConfig& config, const ActivationShape& shape) {
  constexpr std::int64_t kChunkBytes = std::int64_t{128} << 20;
  if (shape.loss_chunk > 0) return std::min(shape.loss_chunk, shape.rows());
  const std::int64_t row_bytes = padded(config.softmax_size()) * static_cast<std::int64_t>(size_of(shape.dtype));
  const std::int64_t most = std::max<std::int64_t>(256, kChunkBytes / row_bytes);
  const std::int64_t chunks = (shape.rows() + most - 1) / most;
  return (shape.rows() + chunks - 1) / chunks;
}

BlockEntry::BlockEntry(const TransformerConfig& config, std::int64_t layer) : x0(config.x0_mixing) {
  for (std::size_t i = 0; i < config.skips.size(); ++i) {
    if (config.skips[i].to == layer) skip = static_cast<int>(i);
    if (config.skips[i].from + 1 == layer) read_by = static_cast<int>(i);
  }
}

void ActivationLayout::add(Tensor& tensor, const std::string& name, std::int64_t rows, std::int64_t cols) {
  tensor.rows = plan_.add(name, dtype_, rows, cols) + 1;
}
void ActivationLayout::add_statistics(Tensor& tensor, const std::string& name, std::int64_t rows, std::int64_t cols) {
  tensor.rows = plan_.add(name, DType::f32, rows, cols) + 1;
}

void ActivationLayout::add_block(const TransformerConfig& config, const ActivationShape& shape, BlockActivations& block,
                                 const std::string& prefix, bool attention) {
  const std::int64_t n = shape.rows();
  const std::int64_t q_width = config.heads * config.head_size;
  const std::int64_t kv_width = config.kv_heads * config.head_size;
  const bool has_mean = config.norm == NormChoice::layernorm;
  if (attention) {
    if (config.attention_norm) {
      add(block.normed1, prefix + "normed1", n, config.width);
      if (has_mean) add_statistics(block.mean1, prefix + "mean1", n, 1);
      add_statistics(block.rstd1, prefix + "rstd1", n, 1);
    }
    add(block.qkv, prefix + "qkv", n, q_width + 2 * kv_width);
    if (config.qk_norm) {
      const std::int64_t normed = config.heads + (config.v_norm ? 2 : 1) * config.kv_heads;
      add_statistics(block.head_rstd, prefix + "head_rstd", n, normed);
    }
    if (config.value_embeddings > 0) add(block.value, prefix + "value", n, kv_width);
    add_statistics(block.lse, prefix + "lse", shape.sequences * config.heads, shape.sequence_length);
    add(block.attended, prefix + "attended", n, q_width);
    add(block.residual2, prefix + "residual2", n, config.width);
  }
  add(block.normed2, prefix + "normed2", n, config.width);
  if (has_mean) add_statistics(block.mean2, prefix + "mean2", n, 1);
  add_statistics(block.rstd2, prefix + "rstd2", n, 1);
  add(block.pre, prefix + "pre", n, mlp_pre_width(config));
  add(block.activated, prefix + "activated", n, padded(config.mlp_hidden));
}

ActivationLayout::ActivationLayout(const TransformerConfig& config, const ActivationShape& shape)
    : dtype_(shape.dtype) {
  const std::int64_t n = shape.rows();
  tensors_.blocks.resize(static_cast<std::size_t>(config.layers));
  add_embedding(config, shape);
  const bool shared = !shape.backward || shape.recompute_blocks;
  BlockActivations common;
  if (shared) add_block(config, shape, common, "blocks.", true);
  if (!shape.backward) add(common.residual1, "blocks.residual1", n, config.width);
  for (std::size_t i = 0; i < tensors_.blocks.size(); ++i) {
    BlockActivations& block = tensors_.blocks[i];
    const std::string prefix = "blocks." + std::to_string(i) + ".";
    if (shared) block = common;
    const BlockEntry entry(config, static_cast<std::int64_t>(i));
    if (shape.backward || entry.read_by >= 0) add(block.residual1, prefix + "residual1", n, config.width);
    add_entry(config, shape, static_cast<int>(i));
    if (!shared) add_block(config, shape, block, prefix, has_attention(config, static_cast<std::int64_t>(i)));
  }
  add(tensors_.residual, "residual", n, config.width);
  add(tensors_.normed, "normed", n, config.width);
  if (config.norm == NormChoice::layernorm) add_statistics(tensors_.mean, "mean", n, 1);
  add_statistics(tensors_.rstd, "rstd", n, 1);
  add(tensors_.delta, "delta", n, config.width);
  add(tensors_.logits, "logits", loss_chunk_rows(config, shape), padded(config.softmax_size()));
  if (!shape.backward) return;
  const std::int64_t q_width = config.heads * config.head_size;
  add(tensors_.d_residual, "d_residual", n, config.width);
  add(tensors_.d_qkv, "d_qkv", n, q_width + 2 * config.kv_heads * config.head_size);
  add(tensors_.d_attended, "d_attended", n, q_width);
  if (config.mlp == MlpKind::swiglu) add(tensors_.d_hidden, "d_hidden", n, padded(config.mlp_hidden));
  if (config.x0_mixing) add(tensors_.d_x0, "d_x0", n, config.width);
  for (std::size_t i = 0; i < config.skips.size(); ++i) {
    add(tensors_.d_skips.emplace_back(), "d_skips." + std::to_string(i), n, config.width);
  }
  for (std::int64_t i = 0; i < config.value_embeddings; ++i) {
    add(tensors_.d_values.emplace_back(), "d_values." + std::to_string(i), n, config.kv_heads * config.head_size);
  }
}

void ActivationLayout::add_embedding(const TransformerConfig& config, const ActivationShape& shape) {
  const std::int64_t n = shape.rows();
  if (config.embedding_norm) {
    add(tensors_.embedded, "embedded", n, config.width);
    if (config.norm == NormChoice::layernorm) add_statistics(tensors_.embedded_mean, "embedded_mean", n, 1);
    add_statistics(tensors_.embedded_rstd, "embedded_rstd", n, 1);
  }
  if (config.x0_mixing) add(tensors_.x0, "x0", n, config.width);
  for (std::int64_t i = 0; i < config.value_embeddings; ++i) {
    add(tensors_.values.emplace_back(), "values." + std::to_string(i), n, config.kv_heads * config.head_size);
  }
}

// Block 0 is entered by x0 or the embedding itself.
void ActivationLayout::add_entry(const TransformerConfig& config, const ActivationShape& shape, int layer) {
  BlockActivations& block = tensors_.blocks[static_cast<std::size_t>(layer)];
  const BlockEntry entry(config, layer);
  const std::string prefix = "blocks." + std::to_string(layer) + ".";
  block.entry = block.residual1;
  if (layer == 0 && config.x0_mixing) {
    block.entry = tensors_.x0;
  } else if (entry.changed()) {
    const bool kept = shape.backward || entry.read_by >= 0;
    Tensor& tensor = kept ? block.entry : common_entry_;
    if (kept || !tensor.rows) add(tensor, prefix + "entry", shape.rows(), config.width);
    block.entry = tensor;
  }
  if (entry.skip >= 0 && entry.x0) {
    Tensor& tensor = shape.backward ? block.skipped : common_skipped_;
    if (shape.backward || !tensor.rows) add(tensor, prefix + "skipped", shape.rows(), config.width);
    block.skipped = tensor;
  }
}

Activations ActivationLayout::place(const Arena& arena) const {
  Activations placed = tensors_;
  const auto put = [&](Tensor& tensor) { tensor = arena.tensor(tensor.rows - 1); };
  for (std::vector<Tensor>* list : {&placed.values, &placed.d_values, &placed.d_skips}) {
    for (Tensor& tensor : *list) put(tensor);
  }
  for (BlockActivations& b : placed.blocks) {
    for (Tensor* tensor :
         {&b.entry, &b.skipped, &b.value, &b.residual1, &b.normed1, &b.mean1, &b.rstd1, &b.qkv, &b.head_rstd, &b.lse,
          &b.attended, &b.residual2, &b.normed2, &b.mean2, &b.rstd2, &b.pre, &b.activated}) {
      put(*tensor);
    }
  }
  for (Tensor* tensor : {&placed.embedded, &placed.embedded_mean, &placed.embedded_rstd, &placed.x0, &placed.d_x0,
                         &placed.residual, &placed.normed, &placed.mean, &placed.rstd, &placed.delta,
                         &placed.d_residual, &placed.d_qkv, &placed.d_attended, &placed.d_hidden, &placed.logits}) {
    put(*tensor);
  }
  return placed;
}

}  // namespace polaron
