// The parameter table: every tensor of a model by name, with its role, its logical and stored shape, and its place in
// the flat buffers that hold weights, gradients and optimizer state alike.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "backend/tensor.h"
#include "config/transformer_config.h"

namespace polaron {

// What an optimizer is chosen by. A tied token table has role embedding; only an untied head has role head.
enum class Role : std::uint8_t { matrix, embedding, head, vector, scalar };
const char* name_of(Role role);

// Whether parameters of a role take part in products in bf16 where the model computes in it. Vectors and scalars are
// used in fp32 always.
constexpr bool is_rounded(Role role) { return role == Role::matrix || role == Role::embedding || role == Role::head; }

// A logical matrix inside a parameter: q, k and v are rows of one stored tensor, gate and up of another. Matrix
// optimizers and Hugging Face files see blocks; GEMMs see the whole.
struct MatrixBlock {
  std::string name;       // "q", "up", ...; empty where the block is the whole parameter
  std::int64_t row = 0;   // first stored row
  std::int64_t rows = 0;  // logical
};

enum class InitRule : std::uint8_t { zeros, ones, normal, uniform, block_scalars };

struct Parameter {
  std::string name;  // "blocks.3.attention.qkv.weight"
  Role role = Role::matrix;
  int layer = -1;  // block it belongs to; -1: embeddings; `layers`: final norm and head
  std::int64_t cols =
      0;  // logical; the sum of the blocks' rows is the logical number of rows. A vector is n rows of one
  std::int64_t stored_rows = 0;  // with padding rows of zeros
  std::int64_t stored_cols = 0;  // with padding columns of zeros: the row stride
  std::int64_t offset = 0;       // elements from the start of a flat buffer; a multiple of 64
  std::vector<MatrixBlock> blocks;
  InitRule init = InitRule::normal;
  double init_std = 0.0;  // of normal and uniform

  std::int64_t rows() const;                               // logical
  std::int64_t elements() const { return rows() * cols; }  // logical: what counts as a parameter
  std::int64_t stored_elements() const { return stored_rows * stored_cols; }
};

// Order: token, position and value tables and scalars, then block after block, then final norm and head. A block's
// parameters are contiguous.
class ParameterTable {
 public:
  explicit ParameterTable(const TransformerConfig& config);

  const std::vector<Parameter>& all() const { return parameters_; }
  const Parameter& operator[](std::size_t index) const { return parameters_[index]; }
  std::size_t size() const { return parameters_.size(); }

  // Index by name; throws std::logic_error for a name that the model does not have. has() asks first.
  std::size_t index(std::string_view name) const;
  bool has(std::string_view name) const;

  std::int64_t stored_elements() const { return stored_elements_; }  // length of a flat buffer
  std::int64_t elements() const;                                     // logical parameters of the model
  std::int64_t elements(Role role) const;

 private:
  void add(Parameter parameter);
  void add_block(const TransformerConfig& config, int layer);
  void add_norm(const TransformerConfig& config, const std::string& prefix, int layer);

  std::vector<Parameter> parameters_;
  std::int64_t stored_elements_ = 0;
};

// Storage sizes: the next multiple of 64, so that GEMMs and 16-byte accesses stay aligned. The padding holds zeros,
// gets zero gradients, and is left out of counts, norms, exports and optimizer shapes.
constexpr std::int64_t padded(std::int64_t n) { return (n + 63) / 64 * 64; }

bool has_attention(const TransformerConfig& config, std::int64_t layer);

// Stored width of the MLP's pre-activation: 2 * padded(hidden) for swiglu (gate|up), padded(hidden) otherwise.
std::int64_t mlp_pre_width(const TransformerConfig& config);

// Where a block's learned scalars stand in the vector "scalars" of 5 times `layers` numbers: its skip weight, then two
// for the stream and x0, then two for its values and the value embedding. The order is the authors'.
struct BlockScalars {
  BlockScalars(std::int64_t layers, std::int64_t layer)
      : skip(layer), stream(layers + 2 * layer), value(3 * layers + 2 * layer) {}
  std::int64_t skip;    // of what this block puts out
  std::int64_t stream;  // of the stream; the next one of x0
  std::int64_t value;   // of v; the next one of the value embedding
};

// Weights and gradients in device memory, flat, laid out by the parameter table.
struct FlatBuffers {
  float* weights = nullptr;    // fp32 masters
  float* gradients = nullptr;  // fp32; null where there is no backward pass
  bf16* working = nullptr;     // rounded copy of the weights, for a model that computes in bf16; else null
};

// View of a parameter inside a flat fp32 buffer laid out by the table: [stored_rows, stored_cols], a vector as [1, n].
inline Tensor view_of(const Parameter& parameter, float* flat) {
  if (parameter.role == Role::vector || parameter.role == Role::scalar) {
    return {flat + parameter.offset, DType::f32, 1, parameter.stored_elements()};
  }
  return {flat + parameter.offset, DType::f32, parameter.stored_rows, parameter.stored_cols};
}

// Initial weights on the host, into a zeroed flat buffer of table.stored_elements() floats. Entry (i, j) of a block
// depends on (seed, parameter, i, j) alone, not on padding, threads or processes.
void initialize_weights(const ParameterTable& table, std::uint64_t seed, float* flat);

}  // namespace polaron
