#include "train/huggingface.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <type_traits>
#include <utility>

#include "base/error.h"
#include "config/config.h"
#include "io/json_file.h"

namespace polaron {
namespace {

using nlohmann::json;

bool plain_attention(const TransformerConfig& c) {
  const double usual = 1.0 / std::sqrt(static_cast<double>(c.head_size));
  return !c.qk_norm && c.logit_softcap == 0 && c.attention_window == 0 && std::abs(c.attention_scale - usual) < 1e-9;
}

// Nothing that transformers' models lack.
bool plain(const TransformerConfig& c) {
  return plain_attention(c) && c.norm_affine && !c.embedding_norm && c.attention_norm && !c.has_scalars() &&
         c.attention_free_blocks.empty() && c.window_block == 0 && c.softmax_size() == c.vocabulary &&
         c.rotary_frequencies == RotaryFrequencies::full;
}

// Names that differ between the layouts, by the suffix of polaron's name. `{}` is the block's number.
struct Naming {
  const char* own;
  const char* gpt2;
  const char* llama;  // %b: the matrix block's name
};
constexpr std::array<Naming, 10> kNames = {{
    {"embedding.token", "transformer.wte.weight", "model.embed_tokens.weight"},
    {"embedding.position", "transformer.wpe.weight", ""},
    {"final_norm", "transformer.ln_f", "model.norm"},
    {"head.weight", "lm_head.weight", "lm_head.weight"},
    {"norm1", "transformer.h.{}.ln_1", "model.layers.{}.input_layernorm"},
    {"norm2", "transformer.h.{}.ln_2", "model.layers.{}.post_attention_layernorm"},
    {"attention.qkv", "transformer.h.{}.attn.c_attn", "model.layers.{}.self_attn.%b_proj"},
    {"attention.out", "transformer.h.{}.attn.c_proj", "model.layers.{}.self_attn.o_proj"},
    {"mlp.up", "transformer.h.{}.mlp.c_fc", ""},
    {"mlp.down", "transformer.h.{}.mlp.c_proj", "model.layers.{}.mlp.down_proj"},
}};

// "blocks.3.attention.qkv.weight" -> number 3, stem "attention.qkv", ending ".weight".
struct SplitName {
  std::string number, stem, ending;
};
SplitName split(const std::string& name) {
  if (!name.starts_with("blocks.")) {
    if (name.starts_with("final_norm")) return {"", "final_norm", name.substr(std::string("final_norm").size())};
    return {"", name, ""};
  }
  const std::size_t dot = name.find('.', 7);
  const std::size_t last = name.rfind('.');
  return {name.substr(7, dot - 7), name.substr(dot + 1, last - dot - 1), name.substr(last)};
}

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  const std::size_t at = text.find(what);
  return at == std::string::npos ? text : text.replace(at, what.size(), by);
}

std::string name_in(CheckpointLayout layout, const std::string& own, const std::string& block) {
  if (layout == CheckpointLayout::native) return block.empty() ? own : own + "." + block;
  const SplitName parts = split(own);
  if (parts.stem == "mlp.gate_up")
    return fmt::format("model.layers.{}.mlp.{}_proj{}", parts.number, block, parts.ending);
  for (const Naming& naming : kNames) {
    if (parts.stem != naming.own) continue;
    std::string name = layout == CheckpointLayout::gpt2 ? naming.gpt2 : naming.llama;
    if (name.empty()) return own;  // of a part that such a model does not have
    name = replaced(replaced(std::move(name), "{}", parts.number), "%b", block);
    return name + parts.ending;
  }
  throw std::logic_error("no Hugging Face name for " + own);
}

}  // namespace

CheckpointLayout layout_of(const TransformerConfig& c) {
  const bool gelu = c.mlp == MlpKind::gelu || c.mlp == MlpKind::gelu_exact;
  if (!plain(c)) return CheckpointLayout::native;
  if (c.norm == NormChoice::layernorm && c.positions == Positions::learned && c.biases && gelu &&
      c.kv_heads == c.heads && c.head_size * c.heads == c.width) {
    return CheckpointLayout::gpt2;
  }
  if (c.norm == NormChoice::rmsnorm && c.positions == Positions::rotary && c.mlp == MlpKind::swiglu) {
    return CheckpointLayout::llama;
  }
  return CheckpointLayout::native;
}

std::vector<std::int64_t> ExportedTensor::shape() const {
  if (vector) return {rows};
  if (transposed) return {cols, rows};
  return {rows, cols};
}

std::vector<ExportedTensor> exported_tensors(const TransformerConfig& config, const ParameterTable& table) {
  const CheckpointLayout layout = layout_of(config);
  std::vector<ExportedTensor> result;
  for (std::size_t i = 0; i < table.size(); ++i) {
    const Parameter& p = table[i];
    ExportedTensor tensor;
    tensor.parameter = i;
    tensor.cols = p.cols;
    tensor.vector = p.role == Role::vector || p.role == Role::scalar;
    tensor.transposed = layout == CheckpointLayout::gpt2 && p.role == Role::matrix;
    if (layout == CheckpointLayout::gpt2) {  // q|k|v stay fused there, and nothing lies between them
      tensor.name = name_in(layout, p.name, "");
      tensor.rows = p.rows();
      result.push_back(tensor);
      continue;
    }
    for (const MatrixBlock& block : p.blocks) {
      tensor.name = name_in(layout, p.name, block.name);
      tensor.first_row = block.row;
      tensor.rows = block.rows;
      result.push_back(tensor);
    }
  }
  return result;
}

namespace {

// Reads the value of `key`; an Error naming the file and the key where it is missing or of another type.
template <class T>
void read(const json& j, const std::string& file, const char* key, T& value) {
  const auto found = j.find(key);
  if (found == j.end()) throw Error(Exit::data, fmt::format("{}: \"{}\" is missing.", file, key));
  const bool right = std::is_same_v<T, bool>       ? found->is_boolean()
                     : std::is_integral_v<T>       ? found->is_number_integer()
                     : std::is_floating_point_v<T> ? found->is_number()
                                                   : found->is_string();
  if (!right) throw Error(Exit::data, fmt::format("{}: \"{}\" is {}: of another type.", file, key, found->dump()));
  found->get_to(value);
}
// The same with a value for a key that is missing or null.
template <class T>
T read_or(const json& j, const std::string& file, const char* key, T otherwise) {
  if (const auto found = j.find(key); found == j.end() || found->is_null()) return otherwise;
  read(j, file, key, otherwise);
  return otherwise;
}

TransformerConfig parse_own(const json& j, const std::string& file) {
  try {
    return parse_model(j.dump(), file + ": polaron");
  } catch (const Error& problem) {
    throw Error(Exit::data, fmt::format("{} Was it written by a newer version of polaron?", problem.what()));
  }
}

// A setting of transformers that this program has no counterpart for must have its usual value.
void refuse_unless(bool fine, const std::string& file, const char* setting) {
  if (!fine) {
    throw Error(Exit::data, fmt::format("{}: \"{}\" has a value that polaron cannot represent.", file, setting));
  }
}

TransformerConfig parse_gpt2(const json& j, const std::string& file) {
  TransformerConfig c;
  c.preset = ModelPreset::gpt2;
  read(j, file, "n_layer", c.layers);
  read(j, file, "n_embd", c.width);
  read(j, file, "n_head", c.heads);
  read(j, file, "vocab_size", c.vocabulary);
  read(j, file, "n_positions", c.context_length);
  c.kv_heads = c.heads;
  refuse_unless(c.heads > 0 && c.width % c.heads == 0, file, "n_head");
  c.head_size = c.width / c.heads;
  c.mlp_hidden = read_or(j, file, "n_inner", 4 * c.width);
  const std::string activation = read_or<std::string>(j, file, "activation_function", "gelu_new");
  refuse_unless(activation == "gelu_new" || activation == "gelu" || activation == "gelu_pytorch_tanh", file,
                "activation_function");
  c.mlp = activation == "gelu" ? MlpKind::gelu_exact : MlpKind::gelu;
  c.norm_eps = read_or(j, file, "layer_norm_epsilon", 1e-5);
  c.tied_embeddings = read_or(j, file, "tie_word_embeddings", true);
  refuse_unless(read_or(j, file, "scale_attn_weights", true), file, "scale_attn_weights");
  refuse_unless(!read_or(j, file, "scale_attn_by_inverse_layer_idx", false), file, "scale_attn_by_inverse_layer_idx");
  return c;
}

TransformerConfig parse_llama(const json& j, const std::string& file) {
  TransformerConfig c;
  c.preset = ModelPreset::llama;
  read(j, file, "num_hidden_layers", c.layers);
  read(j, file, "hidden_size", c.width);
  read(j, file, "num_attention_heads", c.heads);
  read(j, file, "intermediate_size", c.mlp_hidden);
  read(j, file, "vocab_size", c.vocabulary);
  c.context_length = read_or(j, file, "max_position_embeddings", std::int64_t{2048});
  c.kv_heads = read_or(j, file, "num_key_value_heads", c.heads);
  refuse_unless(c.heads > 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0, file, "num_key_value_heads");
  c.head_size = read_or(j, file, "head_dim", c.width / c.heads);
  c.mlp = MlpKind::swiglu;
  refuse_unless(read_or<std::string>(j, file, "hidden_act", "silu") == "silu", file, "hidden_act");
  c.norm = NormChoice::rmsnorm;
  c.norm_eps = read_or(j, file, "rms_norm_eps", 1e-6);
  c.positions = Positions::rotary;
  // transformers 5 keeps the rotary settings in one object, earlier versions beside the others.
  c.rotary_base = read_or(j, file, "rope_theta", 10000.0);
  const auto rope = j.contains("rope_parameters") ? j.find("rope_parameters") : j.find("rope_scaling");
  if (rope != j.end() && rope->is_object()) {
    c.rotary_base = read_or(*rope, file, "rope_theta", c.rotary_base);
    const std::string type = read_or(*rope, file, "rope_type", read_or<std::string>(*rope, file, "type", "default"));
    refuse_unless(type == "default", file, "rope_scaling");
  }
  const bool attention_bias = read_or(j, file, "attention_bias", false);
  refuse_unless(attention_bias == read_or(j, file, "mlp_bias", false), file, "attention_bias");
  c.biases = attention_bias;
  c.tied_embeddings = read_or(j, file, "tie_word_embeddings", false);
  c.init_scale_residual = false;
  return c;
}

void check_sizes(const TransformerConfig& c, const std::string& file) {
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  const std::pair<std::int64_t, const char*> sizes[] = {{c.layers, "layers"},         {c.width, "width"},
                                                        {c.heads, "heads"},           {c.kv_heads, "kv_heads"},
                                                        {c.head_size, "head_size"},   {c.mlp_hidden, "mlp_hidden"},
                                                        {c.vocabulary, "vocabulary"}, {c.context_length, "context"}};
  for (const auto& [value, name] : sizes) {
    if (value <= 0 || value >= kMost) throw Error(Exit::data, fmt::format("{}: {} is {}.", file, name, value));
  }
  const auto refuse = [&](const std::string& problem) {
    throw Error(Exit::data, fmt::format("{}: {}: no model has this shape.", file, problem));
  };
  if (c.heads % c.kv_heads != 0)
    refuse(fmt::format("kv_heads is {}, which does not divide heads ({})", c.kv_heads, c.heads));
  if (c.positions == Positions::rotary && c.head_size % 2 != 0) {
    refuse(fmt::format("head_size is {}, but rotary positions need an even one", c.head_size));
  }
  if (!(c.norm_eps > 0)) refuse(fmt::format("norm_eps is {}", c.norm_eps));
}

}  // namespace

std::vector<ArchitectureDifference> architecture_differences(const TransformerConfig& there,
                                                             const TransformerConfig& here) {
  std::vector<ArchitectureDifference> result;
  const json ours = json::parse(model_to_json(here));
  const json theirs = json::parse(model_to_json(there));
  for (const auto& [key, value] : theirs.items()) {
    // How a model was drawn and which tokens see each other in training say nothing about its weights.
    if (key == "preset" || key == "document_mask" || key.find("init") != std::string::npos) continue;
    if (key.find("window_") != std::string::npos && key != "attention_window") continue;
    if (value != ours.at(key)) {
      result.push_back({key, fmt::format("{} is {} there and {} here", key, value.dump(), ours.at(key).dump())});
    }
  }
  return result;
}

std::string huggingface_config(const TransformerConfig& c, std::int32_t separator) {
  json j;
  json token;
  if (separator >= 0) token = separator;
  switch (layout_of(c)) {
    case CheckpointLayout::gpt2:
      j = {{"architectures", {"GPT2LMHeadModel"}},
           {"model_type", "gpt2"},
           {"n_layer", c.layers},
           {"n_embd", c.width},
           {"n_head", c.heads},
           {"n_inner", c.mlp_hidden},
           {"n_positions", c.context_length},
           {"activation_function", c.mlp == MlpKind::gelu ? "gelu_new" : "gelu"},
           {"layer_norm_epsilon", c.norm_eps},
           {"resid_pdrop", 0.0},
           {"embd_pdrop", 0.0},
           {"attn_pdrop", 0.0},
           {"scale_attn_weights", true}};
      break;
    case CheckpointLayout::llama:
      j = {{"architectures", {"LlamaForCausalLM"}},
           {"model_type", "llama"},
           {"num_hidden_layers", c.layers},
           {"hidden_size", c.width},
           {"intermediate_size", c.mlp_hidden},
           {"num_attention_heads", c.heads},
           {"num_key_value_heads", c.kv_heads},
           {"head_dim", c.head_size},
           {"max_position_embeddings", c.context_length},
           {"hidden_act", "silu"},
           {"rms_norm_eps", c.norm_eps},
           {"rope_theta", c.rotary_base},
           {"attention_bias", c.biases},
           {"mlp_bias", c.biases},
           {"attention_dropout", 0.0}};
      break;
    case CheckpointLayout::native:
      j = {{"model_type", "polaron"}};
      break;
  }
  j["vocab_size"] = c.vocabulary;
  j["tie_word_embeddings"] = c.tied_embeddings;
  j["initializer_range"] = c.init_std;
  j["bos_token_id"] = token;
  j["eos_token_id"] = token;
  j["torch_dtype"] = "float32";
  j["polaron"] = json::parse(model_to_json(c));
  return j.dump(2) + "\n";
}

TransformerConfig read_huggingface_config(const std::filesystem::path& file) {
  const json j = read_json_file(file);
  TransformerConfig c;
  try {
    if (j.contains("polaron")) {
      c = parse_own(j.at("polaron"), file.string());
    } else {
      const std::string type = read_or<std::string>(j, file.string(), "model_type", "");
      if (type != "gpt2" && type != "llama") {
        throw Error(Exit::data,
                    fmt::format("{}: model_type is \"{}\"; polaron reads gpt2 and llama.", file.string(), type));
      }
      c = type == "gpt2" ? parse_gpt2(j, file.string()) : parse_llama(j, file.string());
      c.attention_scale = 1.0 / std::sqrt(static_cast<double>(c.head_size));
    }
  } catch (const json::exception& problem) {
    throw Error(Exit::data, fmt::format("{}: not a model configuration: {}.", file.string(), problem.what()));
  }
  check_sizes(c, file.string());
  return c;
}

}  // namespace polaron
