// The shape of a model, in numbers and choices. One Transformer is built from it; "gpt2" and "llama" are presets of its
// fields.
#pragma once

#include <cstdint>
#include <string>

namespace polaron {

enum class ModelPreset : std::uint8_t { gpt2, llama };
enum class MlpKind : std::uint8_t { gelu, gelu_exact, swiglu, relu2 };
enum class NormChoice : std::uint8_t { layernorm, rmsnorm };
enum class Positions : std::uint8_t { learned, rotary };

// Everything counted in elements or tokens. After config validation all fields are resolved (no 0 = "derive" left).
struct TransformerConfig {
  ModelPreset preset = ModelPreset::gpt2;  // where the other fields' defaults come from
  std::int64_t layers = 0;
  std::int64_t width = 0;  // C, the residual stream
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;  // grouped-query attention; divides heads
  std::int64_t head_size = 0;
  std::int64_t mlp_hidden = 0;
  std::int64_t vocabulary = 0;      // tokens that exist; storage is padded to a multiple of 64
  std::int64_t context_length = 0;  // longest sequence (rows of a learned position table)
  MlpKind mlp = MlpKind::gelu;
  NormChoice norm = NormChoice::layernorm;
  bool norm_affine = true;  // LayerNorm: weight and bias; RMSNorm: weight
  double norm_eps = 1e-5;
  Positions positions = Positions::learned;
  double rotary_base = 10000.0;
  bool biases = true;                 // of the linear layers
  bool tied_embeddings = true;        // the head is the token table
  bool qk_norm = false;               // RMS norm of q and k per head, without weights, before the rotation
  double attention_scale = 0.0;       // of q k^T; resolved to 1/sqrt(head_size)
  std::int64_t attention_window = 0;  // last tokens a row sees, itself included; 0: all
  bool document_mask = false;         // attention stays within a document
  double logit_softcap = 0.0;         // c tanh(z/c) on the logits; 0: none
  double init_std = 0.02;             // normal initial weights of embeddings and matrices
  bool init_scale_residual = true;    // attention and MLP output projections: init_std / sqrt(2 layers)
  bool operator==(const TransformerConfig&) const = default;
};

}  // namespace polaron
