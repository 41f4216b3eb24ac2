// The fixtures that make_fixtures.py wrote with PyTorch, opened the way the program opens a Hugging Face model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "support/tiny_model.h"
#include "train/checkpoint.h"
#include "train/huggingface.h"

namespace polaron::test {

inline std::filesystem::path fixtures() {
  return std::filesystem::path(POLARON_SOURCE_DIR) / "tests" / "parity" / "fixtures";
}

inline constexpr const char* kFixtureModels[] = {"gpt2", "gpt2_variant", "llama", "llama_variant"};

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
