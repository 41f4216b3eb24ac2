// Small models on the CPU backend for tests: weights in which nothing is 0 or 1 by accident, random batches, loss,
// logits and gradients on the host.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <vector>

#include "backend/arena.h"
#include "config/transformer_config.h"
#include "cpu/cpu_backend.h"
#include "model/parameters.h"
#include "model/transformer.h"
#include "support/worse.h"

namespace polaron::test {

// LayerNorm, learned positions, GELU, biases, tied: 2 layers of width 32. Vocabulary and MLP are padded in storage.
inline TransformerConfig tiny_gpt2() {
  TransformerConfig c;
  c.layers = 2;
  c.width = 32;
  c.heads = 4;
  c.kv_heads = 4;
  c.head_size = 8;
  c.mlp_hidden = 70;
  c.vocabulary = 61;
  c.context_length = 16;
  c.attention_scale = 1.0 / std::sqrt(8.0);
  return c;
}

// RMSNorm, rotary positions, SwiGLU, no biases, a head of its own, two query heads to a key head.
inline TransformerConfig tiny_llama() {
  TransformerConfig c = tiny_gpt2();
  c.preset = ModelPreset::llama;
  c.kv_heads = 2;
  c.mlp_hidden = 85;
  c.mlp = MlpKind::swiglu;
  c.norm = NormChoice::rmsnorm;
  c.positions = Positions::rotary;
  c.biases = false;
  c.tied_embeddings = false;
  c.init_scale_residual = false;
  return c;
}

// A flat buffer laid out by `table`: gains 1 + 0.2 n, biases 0.1 n, tables 0.3 n, matrices n / sqrt(inputs), with n
// standard normal. Padding is zero.
inline std::vector<float> random_weights(const ParameterTable& table, std::uint64_t seed) {
  std::vector<float> flat(static_cast<std::size_t>(table.stored_elements()));
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  for (const Parameter& p : table.all()) {
    const bool gain = p.init == InitRule::ones;
    const double deviation = gain                     ? 0.2
                             : p.role == Role::vector ? 0.1
                             : p.role == Role::matrix ? 1.0 / std::sqrt(static_cast<double>(p.cols))
                                                      : 0.3;
    for (const MatrixBlock& block : p.blocks) {
      for (std::int64_t i = 0; i < block.rows; ++i) {
        float* row = flat.data() + p.offset + (block.row + i) * p.stored_cols;
        for (std::int64_t j = 0; j < p.cols; ++j)
          row[j] = static_cast<float>((gain ? 1.0 : 0.0) + deviation * normal(engine));
      }
    }
  }
  return flat;
}

// Calls visit(parameter, block, row, column, index into a flat buffer) for every logical element.
template <class Visit>
void for_each_element(const ParameterTable& table, Visit visit) {
  for (const Parameter& p : table.all()) {
    for (const MatrixBlock& block : p.blocks) {
      for (std::int64_t i = 0; i < block.rows; ++i) {
        for (std::int64_t j = 0; j < p.cols; ++j) {
          visit(p, block, i, j, static_cast<std::size_t>(p.offset + (block.row + i) * p.stored_cols + j));
        }
      }
    }
  }
}

// 1 where a flat buffer has padding.
inline std::vector<char> padding_of(const ParameterTable& table) {
  std::vector<char> padding(static_cast<std::size_t>(table.stored_elements()), 1);
  for_each_element(table, [&](const auto&, const auto&, auto, auto, std::size_t at) { padding[at] = 0; });
  return padding;
}

// Elements of a flat buffer that are padding and not zero (either sign of zero counts as zero).
inline std::int64_t nonzero_padding(const ParameterTable& table, const std::vector<float>& flat) {
  const std::vector<char> padding = padding_of(table);
  std::int64_t count = 0;
  for (std::size_t i = 0; i < flat.size(); ++i) count += padding[i] != 0 && flat[i] != 0.0F ? 1 : 0;
  return count;
}

// A micro-batch on the host.
struct HostBatch {
  std::int64_t sequences = 0, length = 0;
  std::vector<std::int32_t> tokens, targets;    // [sequences * length]; target -1: none
  std::vector<std::int32_t> document_start;     // empty: one document a sequence
  std::vector<std::int32_t> short_window = {};  // first keys in blocks with half of a window; empty: there are none

  std::int64_t rows() const { return sequences * length; }
  std::int64_t targets_counted() const {
    std::int64_t count = 0;
    for (const std::int32_t target : targets) count += target >= 0 ? 1 : 0;
    return count;
  }
  // Sequences [first, first + count).
  HostBatch part(std::int64_t first, std::int64_t count) const {
    const auto cut = [&](const std::vector<std::int32_t>& from) {
      if (from.empty()) return from;
      return std::vector<std::int32_t>(from.begin() + first * length, from.begin() + (first + count) * length);
    };
    return {count, length, cut(tokens), cut(targets), cut(document_start), cut(short_window)};
  }
};

inline HostBatch random_batch(std::int64_t sequences, std::int64_t length, std::int64_t vocabulary,
                              std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  HostBatch batch{sequences, length, {}, {}, {}, {}};
  const auto draw = [&] { return static_cast<std::int32_t>(engine() % static_cast<std::uint64_t>(vocabulary)); };
  for (std::int64_t i = 0; i < batch.rows(); ++i) {
    batch.tokens.push_back(draw());
    batch.targets.push_back(draw());
  }
  return batch;
}

// A transformer with its weights, gradients and activations. On one thread: at this size a second one only waits.
class TinyModel {
 public:
  TinyModel(const TransformerConfig& config, const ActivationShape& shape, int threads = 1)
      : table_(config),
        backend_(make_cpu_backend(threads)),
        stream_(backend_->device().make_stream()),
        weights_(backend_->device(), bytes()),
        gradients_(backend_->device(), shape.backward ? bytes() : 0),
        working_(backend_->device(), shape.dtype == DType::bf16 ? bytes() / 2 : 0),
        transformer_(config, table_, shape, *backend_,
                     {weights_.as<float>(), gradients_.as<float>(), working_.as<bf16>()}) {}

  const ParameterTable& table() const { return table_; }
  Backend& backend() { return *backend_; }
  Stream& stream() { return *stream_; }
  Transformer& transformer() { return transformer_; }
  float* weights_on_device() { return weights_.as<float>(); }
  float* gradients_on_device() { return gradients_.as<float>(); }

  void set_weights(const std::vector<float>& flat) {
    upload(weights_, flat);
    if (working_.bytes() > 0) {
      backend_->elementwise().round(*stream_, weights_.as<float>(), working_.as<bf16>(), table_.stored_elements());
    }
  }
  void set_gradients(const std::vector<float>& flat) { upload(gradients_, flat); }
  std::vector<float> weights() const { return download(weights_); }
  std::vector<float> gradients() const { return download(gradients_); }

  // Sum of the cross-entropy over the targets.
  double loss_sum(const HostBatch& batch) {
    const OnDevice memory(*this, batch);
    DeviceScalar<double> sum(backend_->device());
    transformer_.forward_loss(*stream_, memory.view, sum.device());
    return sum.get(*stream_);
  }

  // The same, with gradients of loss_scale times that sum.
  double train(const HostBatch& batch, double loss_scale, bool accumulate = false) {
    const OnDevice memory(*this, batch);
    DeviceScalar<double> sum(backend_->device());
    transformer_.forward_backward(*stream_, memory.view, static_cast<float>(loss_scale), accumulate, sum.device(),
                                  [](int) {});
    return sum.get(*stream_);
  }

  // [rows, vocabulary], after the soft-cap.
  std::vector<float> logits(const HostBatch& batch) {
    const OnDevice memory(*this, batch);
    const std::int64_t vocabulary = transformer_.config().vocabulary;
    std::vector<float> result(static_cast<std::size_t>(batch.rows() * vocabulary));
    for (std::int64_t row = 0; row < batch.rows(); ++row) {
      transformer_.logits_of_row(*stream_, memory.view, row, result.data() + row * vocabulary);
    }
    return result;
  }

 private:
  struct OnDevice {
    OnDevice(TinyModel& model, const HostBatch& batch) {
      Device& device = model.backend_->device();
      const auto copy = [&](DeviceBuffer& memory, const std::vector<std::int32_t>& from) -> Tensor {
        if (from.empty()) return {};
        memory = DeviceBuffer(device, from.size() * sizeof(std::int32_t));
        device.upload(*model.stream_, memory.data(), from.data(), memory.bytes());
        return {memory.data(), DType::i32, batch.rows(), 1};
      };
      view.sequences = batch.sequences;
      view.sequence_length = batch.length;
      view.tokens = copy(tokens, batch.tokens);
      view.targets = copy(targets, batch.targets);
      view.first_key[0] = copy(first_key[0], batch.document_start);
      view.first_key[1] = copy(first_key[1], batch.short_window);
      model.stream_->synchronize();
    }
    DeviceBuffer tokens, targets, first_key[2];
    DeviceBatch view;
  };

  std::size_t bytes() const { return static_cast<std::size_t>(table_.stored_elements()) * sizeof(float); }
  void upload(const DeviceBuffer& to, const std::vector<float>& from) {
    if (to.bytes() != from.size() * sizeof(float)) throw std::logic_error("a flat buffer of another length");
    backend_->device().upload(*stream_, to.data(), from.data(), to.bytes());
    stream_->synchronize();
  }
  std::vector<float> download(const DeviceBuffer& from) const {
    std::vector<float> result(from.bytes() / sizeof(float));
    backend_->device().download(*stream_, result.data(), from.data(), from.bytes());
    stream_->synchronize();
    return result;
  }

  ParameterTable table_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  DeviceBuffer weights_, gradients_, working_;
  Transformer transformer_;
};

// Activations for micro-batches of so many sequences.
inline ActivationShape shape_for(std::int64_t sequences, std::int64_t length) {
  ActivationShape shape;
  shape.sequences = sequences;
  shape.sequence_length = length;
  return shape;
}

inline double norm_of(std::span<const float> values) {
  double sum = 0.0;
  for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(sum);
}

// Frobenius norm of a - b.
inline double distance(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) throw std::logic_error("distance of vectors of different lengths");
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += difference * difference;
  }
  return std::sqrt(sum);
}

// The largest Frobenius distance of a parameter's gradients, relative to the expected one, or to 1e-4 of all where that
// is more; NaN where one of them is.
inline double worst_difference(const ParameterTable& table, std::span<const float> actual,
                               std::span<const float> expected) {
  const double least = 1e-4 * norm_of(expected);
  double worst = 0.0;
  for (const Parameter& p : table.all()) {
    const auto part = [&](std::span<const float> flat) {
      return flat.subspan(static_cast<std::size_t>(p.offset), static_cast<std::size_t>(p.stored_elements()));
    };
    worst = worse(worst, distance(part(actual), part(expected)) / std::max(norm_of(part(expected)), least));
  }
  return worst;
}

}  // namespace polaron::test
