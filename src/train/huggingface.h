// How a model looks to Hugging Face transformers: tensor names and layouts, and config.json. GPT-2 and LLaMA models are
// written in transformers' own form, so that AutoModelForCausalLM loads a checkpoint as it is; what transformers has no
// class for (say ReLU^2 or a logit soft-cap) is written under polaron's own names. Every config.json carries the exact
// TransformerConfig under the key "polaron".
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "config/transformer_config.h"
#include "model/parameters.h"

namespace polaron {

enum class CheckpointLayout : std::uint8_t { gpt2, llama, native };
CheckpointLayout layout_of(const TransformerConfig& config);

// One tensor of a checkpoint: rows [first_row, first_row + rows) of a stored parameter.
struct ExportedTensor {
  std::string name;
  std::size_t parameter = 0;  // index into the table
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;                    // logical
  bool transposed = false;                  // GPT-2's Conv1D keeps [in, out]
  std::vector<std::int64_t> shape() const;  // as in the file; vectors have one dimension
  bool vector = false;
};
std::vector<ExportedTensor> exported_tensors(const TransformerConfig& config, const ParameterTable& table);

// Text of config.json. separator: the vocabulary's document separator, -1 for none.
std::string huggingface_config(const TransformerConfig& config, std::int32_t separator);

// Reads a config.json that polaron or transformers wrote (model_type gpt2 or llama). Error(Exit::data) names the file
// and the setting that this program cannot represent.
TransformerConfig read_huggingface_config(const std::filesystem::path& file);

// Where two models differ in what their weights mean (sizes and functions, not how they were drawn), in words: "heads
// is 4 there and 8 here". Empty: the weights of one do for the other.
struct ArchitectureDifference {
  std::string key;   // of the config's "model"
  std::string text;  // "heads is 4 there and 8 here"
};
std::vector<ArchitectureDifference> architecture_differences(const TransformerConfig& there,
                                                             const TransformerConfig& here);

}  // namespace polaron
