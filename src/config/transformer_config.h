// The shape of a model, in numbers and choices. One Transformer is built from it; "gpt2" and "llama" are presets of its
// fields.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace polaron {

enum class ModelPreset : std::uint8_t { gpt2, llama };
enum class MlpKind : std::uint8_t { gelu, gelu_exact, swiglu, relu2 };
enum class NormChoice : std::uint8_t { layernorm, rmsnorm };
enum class Positions : std::uint8_t { learned, rotary };
enum class RotaryFrequencies : std::uint8_t { full, half_truncated };
enum class SoftcapForm : std::uint8_t { tanh, algebraic };
enum class InitForm : std::uint8_t { normal, fan_in };

// A U-net skip: block `to` reads what block `from` put out, times a learned scalar.
struct Skip {
  std::int64_t from = 0, to = 0;
  bool operator==(const Skip&) const = default;
};

// Everything counted in elements or tokens. After config validation all fields are resolved (no 0 = "derive" left).
struct TransformerConfig {
  ModelPreset preset = ModelPreset::gpt2;  // where the other fields' defaults come from
  std::int64_t layers = 0;
  std::int64_t width = 0;  // C, the residual stream
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;  // grouped-query attention; divides heads
  std::int64_t head_size = 0;
  std::int64_t mlp_hidden = 0;
  std::int64_t vocabulary = 0;       // tokens that exist; storage is padded to a multiple of 64
  std::int64_t head_vocabulary = 0;  // softmax_size() where it is larger than `vocabulary`
  std::int64_t context_length = 0;   // longest sequence (rows of a learned position table)
  MlpKind mlp = MlpKind::gelu;
  NormChoice norm = NormChoice::layernorm;
  bool norm_affine = true;  // LayerNorm: weight and bias; RMSNorm: weight
  double norm_eps = 1e-5;
  Positions positions = Positions::learned;
  double rotary_base = 10000.0;
  RotaryFrequencies rotary_frequencies = RotaryFrequencies::full;
  bool biases = true;                 // of the linear layers
  bool tied_embeddings = true;        // the head is the token table
  bool qk_norm = false;               // RMS norm of q and k per head, without weights, before the rotation
  double attention_scale = 0.0;       // of q k^T; resolved to 1/sqrt(head_size)
  std::int64_t attention_window = 0;  // last tokens a row sees, itself included; 0: all
  bool document_mask = false;         // attention stays within a document
  double logit_softcap = 0.0;         // c; 0: none
  SoftcapForm logit_softcap_form = SoftcapForm::tanh;
  // The authors' modded models (docs/paper.md).
  bool embedding_norm = false;                      // the token embedding is normalised before the first block
  bool attention_norm = true;                       // a norm before attention
  bool v_norm = false;                              // RMS norm of v per head; with qk_norm
  std::int64_t value_embeddings = 0;                // tables added to v in the first and the last so many blocks
  bool x0_mixing = false;                           // x = a x + b x0 before each block; a, b learned
  std::vector<Skip> skips;                          // at most one from and one to a block
  std::vector<std::int64_t> attention_free_blocks;  // blocks that are an MLP only
  // A schedule of attention windows in blocks of tokens (train/window.h); window_block 0: none.
  std::int64_t window_block = 0;
  std::int64_t window_final = 0;                 // tokens, at the end of the run
  std::vector<std::int64_t> long_window_blocks;  // the other blocks of the model see half as far
  InitForm init = InitForm::normal;
  double init_std = 0.02;           // of normal initial weights
  double init_gain = 0.5;           // of fan_in: matrices uniform with deviation init_gain / sqrt(columns)
  double embedding_init_std = 0.0;  // of untied token tables; resolved to init_std
  bool zero_init_outputs = false;   // attention and MLP output matrices start as zero
  bool zero_init_head = false;      // an untied head does
  bool init_scale_residual = true;  // attention and MLP output projections: init_std / sqrt(2 layers)

  std::int64_t softmax_size() const { return head_vocabulary > vocabulary ? head_vocabulary : vocabulary; }
  // Learned scalars: one vector of 5 a block (model/parameters.h), where the model has any.
  bool has_scalars() const { return value_embeddings > 0 || x0_mixing || !skips.empty(); }
  bool operator==(const TransformerConfig&) const = default;
};

}  // namespace polaron
