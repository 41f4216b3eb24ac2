// The fixtures that make_fixtures.py wrote with PyTorch, opened the way the program opens a Hugging Face model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "data/batch.h"
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

// The fixture's tokens, with the starts of documents where it names their separator.
inline Batch read_batch(const SafetensorsReader& expected) {
  const std::vector<std::int64_t>& shape = expected.at("ids").shape;
  Batch batch;
  batch.sequences = shape.at(0);
  batch.length = shape.at(1);
  batch.tokens = read_integers(expected, "ids");
  batch.targets = read_integers(expected, "targets");
  batch.target_count = batch.sequences * batch.length;
  if (expected.find("separator") == nullptr) return batch;
  const std::int32_t separator = read_integers(expected, "separator").at(0);
  std::int32_t start = 0;
  for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
    const auto t = static_cast<std::int32_t>(i % static_cast<std::size_t>(batch.length));
    if (t == 0 || batch.tokens[i] == separator) start = t;
    batch.document_start.push_back(start);
  }
  return batch;
}

// The same with what each row sees: of its document and, in a model with windows, of long ones of so many blocks and
// short ones of half as many.
inline HostBatch with_windows(const Batch& batch, const TransformerConfig& model, std::int64_t blocks) {
  HostBatch result{batch.sequences, batch.length, batch.tokens, batch.targets, batch.document_start, {}};
  if (model.window_block == 0) return result;
  result.short_window.resize(batch.tokens.size());
  for (std::int64_t b = 0; b < batch.sequences; ++b) {
    const auto sequence = [&](auto& rows) {
      return std::span(rows).subspan(static_cast<std::size_t>(b * batch.length),
                                     static_cast<std::size_t>(batch.length));
    };
    block_window(sequence(batch.document_start), model.window_block, blocks, sequence(result.document_start));
    block_window(sequence(batch.document_start), model.window_block, blocks / 2, sequence(result.short_window));
  }
  return result;
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
