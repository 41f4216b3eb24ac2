// The fixtures that make_fixtures.py wrote with PyTorch, opened the way the program opens a Hugging Face model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "model/window.h"
#include "support/tiny_model.h"
#include "train/checkpoint.h"
#include "train/huggingface.h"

namespace polaron::test {

inline std::filesystem::path fixtures() {
  return std::filesystem::path(POLARON_SOURCE_DIR) / "tests" / "parity" / "fixtures";
}

inline constexpr const char* kFixtureModels[] = {"gpt2", "gpt2_variant", "llama", "llama_variant"};
inline constexpr const char* kModdedModels[] = {"modded_gpt2", "modded_llama"};  // not transformers'

inline std::vector<float> read_floats(const SafetensorsReader& file, const std::string& name) {
  std::size_t n = 1;
  for (const std::int64_t size : file.at(name).shape) n *= static_cast<std::size_t>(size);
  std::vector<float> values(n);
  file.read_f32(name, values.data(), n);
  return values;
}

inline std::vector<std::int32_t> read_integers(const SafetensorsReader& file, const std::string& name) {
  std::vector<std::int32_t> values(file.at(name).bytes() / sizeof(std::int32_t));
  file.read(name, std::as_writable_bytes(std::span(values)));
  return values;
}

// The fixture's tokens; for a model with windows, which must be one of documents too, what its rows see at that share
// of a run.
inline HostBatch read_batch(const SafetensorsReader& expected, const TransformerConfig& model, double progress = 1.0) {
  const std::vector<std::int64_t>& shape = expected.at("ids").shape;
  HostBatch batch{shape.at(0), shape.at(1), read_integers(expected, "ids"), read_integers(expected, "targets"), {}, {}};
  if (model.window_block == 0) return batch;
  const std::int32_t separator = read_integers(expected, "separator").at(0);
  const auto length = static_cast<std::size_t>(batch.length);
  const std::int64_t window = window_blocks(model, progress);
  batch.document_start.resize(batch.tokens.size());
  batch.short_window.resize(batch.tokens.size());
  for (std::size_t first = 0; first < batch.tokens.size(); first += length) {
    std::vector<std::int32_t> start(length);
    for (std::size_t t = 0; t < length; ++t) {
      const std::int32_t before = t == 0 ? 0 : start[t - 1];
      start[t] = batch.tokens[first + t] == separator ? static_cast<std::int32_t>(t) : before;
    }
    block_window(start, model.window_block, window, std::span(batch.document_start).subspan(first, length));
    block_window(start, model.window_block, window / 2, std::span(batch.short_window).subspan(first, length));
  }
  return batch;
}

// The weights of a Hugging Face folder in a model for micro-batches of at most that shape.
inline void load(TinyModel& model, const CheckpointReader& checkpoint) {
  checkpoint.load_weights(model.backend(), model.stream(),
                          {checkpoint.model(), model.table(), model.weights_on_device()});
}

// Part of a flat buffer as the Hugging Face tensor of that name holds it: blocks cut, padding left out, transposed.
inline std::vector<float> exported_values(const ParameterTable& table, const ExportedTensor& tensor,
                                          const std::vector<float>& flat) {
  const Parameter& p = table[tensor.parameter];
  std::vector<float> values(static_cast<std::size_t>(tensor.rows * tensor.cols));
  for (std::int64_t i = 0; i < tensor.rows; ++i) {
    for (std::int64_t j = 0; j < tensor.cols; ++j) {
      const std::int64_t to = tensor.transposed ? j * tensor.rows + i : i * tensor.cols + j;
      values[static_cast<std::size_t>(to)] =
          flat[static_cast<std::size_t>(p.offset + (tensor.first_row + i) * p.stored_cols + j)];
    }
  }
  return values;
}

}  // namespace polaron::test
