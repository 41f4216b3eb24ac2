#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "backend/philox.h"

namespace polaron {

const char* name_of(Role role) {
  switch (role) {
    case Role::matrix:
      return "matrix";
    case Role::embedding:
      return "embedding";
    case Role::head:
      return "head";
    case Role::vector:
      return "vector";
    case Role::scalar:
      return "scalar";
  }
  return "?";
}

std::int64_t Parameter::rows() const {
  std::int64_t sum = 0;
  for (const MatrixBlock& block : blocks) sum += block.rows;
  return sum;
}

bool has_attention(const TransformerConfig& config, std::int64_t layer) {
  return std::find(config.attention_free_blocks.begin(), config.attention_free_blocks.end(), layer) ==
         config.attention_free_blocks.end();
}

std::int64_t mlp_pre_width(const TransformerConfig& config) {
  return (config.mlp == MlpKind::swiglu ? 2 : 1) * padded(config.mlp_hidden);
}

namespace {

// A matrix that is one block, padded to stored_rows x stored_cols.
Parameter matrix(std::string name, Role role, int layer, std::int64_t rows, std::int64_t cols, double init_std) {
  Parameter p;
  p.name = std::move(name);
  p.role = role;
  p.layer = layer;
  p.cols = cols;
  p.stored_rows = rows;
  p.stored_cols = cols;
  p.blocks = {{"", 0, rows}};
  p.init_std = init_std;
  return p;
}

Parameter vector(std::string name, int layer, std::int64_t n, InitRule init) {
  Parameter p = matrix(std::move(name), Role::vector, layer, n, 1, 0.0);
  p.init = init;
  return p;
}

// Of token tables that are not the head too.
double table_std(const TransformerConfig& config) {
  return config.embedding_init_std > 0 ? config.embedding_init_std : config.init_std;
}

void draw_by_fan_in(Parameter& parameter, const TransformerConfig& config) {
  parameter.init = InitRule::uniform;
  parameter.init_std = config.init_gain / std::sqrt(static_cast<double>(parameter.cols));
}

}  // namespace

ParameterTable::ParameterTable(const TransformerConfig& config) {
  if (config.vocabulary <= 0) throw std::logic_error("the parameter table needs a resolved vocabulary size");
  Parameter token = matrix("embedding.token", Role::embedding, -1, config.vocabulary, config.width, config.init_std);
  token.stored_rows = padded(config.vocabulary);
  if (!config.tied_embeddings) {
    token.init_std = table_std(config);
  } else if (config.init == InitForm::fan_in) {
    draw_by_fan_in(token, config);
  }
  add(token);
  if (config.positions == Positions::learned) {
    // GPT-2's own initialisation draws positions at half the deviation of tokens in some codes; Hugging Face's does
    // not.
    add(matrix("embedding.position", Role::embedding, -1, config.context_length, config.width, config.init_std));
  }
  const int layers = static_cast<int>(config.layers);
  for (std::int64_t i = 0; i < config.value_embeddings; ++i) {
    Parameter table = token;
    table.name = "embedding.value" + std::to_string(i);
    table.cols = table.stored_cols = config.kv_heads * config.head_size;
    table.init = InitRule::normal;
    table.init_std = table_std(config);
    add(std::move(table));
  }
  if (config.has_scalars()) {
    Parameter scalars = vector("scalars", -1, 5 * config.layers, InitRule::block_scalars);
    scalars.role = Role::scalar;
    add(std::move(scalars));
  }
  for (int layer = 0; layer < layers; ++layer) add_block(config, layer);
  add_norm(config, "final_norm", layers);
  if (!config.tied_embeddings) {
    Parameter head = matrix("head.weight", Role::head, layers, config.softmax_size(), config.width, config.init_std);
    head.stored_rows = padded(config.softmax_size());
    if (config.init == InitForm::fan_in) draw_by_fan_in(head, config);
    if (config.zero_init_head) head.init = InitRule::zeros;
    add(std::move(head));
  }
}

void ParameterTable::add(Parameter parameter) {
  parameter.offset = stored_elements_;
  stored_elements_ += padded(parameter.stored_elements());
  parameters_.push_back(std::move(parameter));
}

void ParameterTable::add_norm(const TransformerConfig& config, const std::string& prefix, int layer) {
  if (!config.norm_affine) return;
  add(vector(prefix + ".weight", layer, config.width, InitRule::ones));
  if (config.norm == NormChoice::layernorm) add(vector(prefix + ".bias", layer, config.width, InitRule::zeros));
}

void ParameterTable::add_block(const TransformerConfig& config, int layer) {
  const std::string prefix = "blocks." + std::to_string(layer) + ".";
  const std::int64_t width = config.width;
  const std::int64_t q_rows = config.heads * config.head_size;
  const std::int64_t kv_rows = config.kv_heads * config.head_size;
  const std::int64_t hidden = config.mlp_hidden;
  const double out_std = config.init_scale_residual
                             ? config.init_std / std::sqrt(2.0 * static_cast<double>(config.layers))
                             : config.init_std;

  // A linear layer is its weight and, in models with biases, a bias of the same stored rows and blocks.
  const auto add_linear = [&](Parameter weight) {
    if (config.init == InitForm::fan_in) draw_by_fan_in(weight, config);
    Parameter bias;
    bias.name = weight.name.substr(0, weight.name.rfind('.')) + ".bias";
    bias.role = Role::vector;
    bias.layer = layer;
    bias.cols = 1;
    bias.stored_rows = weight.stored_rows;
    bias.stored_cols = 1;
    bias.blocks = weight.blocks;
    bias.init = InitRule::zeros;
    add(std::move(weight));
    if (config.biases) add(std::move(bias));
  };

  const auto add_output = [&](Parameter weight) {
    add_linear(std::move(weight));
    Parameter& added = parameters_[parameters_.size() - (config.biases ? 2 : 1)];
    if (config.zero_init_outputs) added.init = InitRule::zeros;
  };

  if (has_attention(config, layer)) {
    if (config.attention_norm) add_norm(config, prefix + "norm1", layer);
    Parameter qkv =
        matrix(prefix + "attention.qkv.weight", Role::matrix, layer, q_rows + 2 * kv_rows, width, config.init_std);
    qkv.blocks = {{"q", 0, q_rows}, {"k", q_rows, kv_rows}, {"v", q_rows + kv_rows, kv_rows}};
    add_linear(std::move(qkv));
    add_output(matrix(prefix + "attention.out.weight", Role::matrix, layer, width, q_rows, out_std));
  }

  add_norm(config, prefix + "norm2", layer);
  Parameter up = matrix(prefix + "mlp.up.weight", Role::matrix, layer, hidden, width, config.init_std);
  up.stored_rows = padded(hidden);
  if (config.mlp == MlpKind::swiglu) {
    up.name = prefix + "mlp.gate_up.weight";
    up.stored_rows = 2 * padded(hidden);
    up.blocks = {{"gate", 0, hidden}, {"up", padded(hidden), hidden}};
  }
  add_linear(std::move(up));
  Parameter down = matrix(prefix + "mlp.down.weight", Role::matrix, layer, width, hidden, out_std);
  down.stored_cols = padded(hidden);
  add_output(std::move(down));
}

std::size_t ParameterTable::index(std::string_view name) const {
  const auto found =
      std::find_if(parameters_.begin(), parameters_.end(), [&](const Parameter& p) { return p.name == name; });
  if (found == parameters_.end()) throw std::logic_error("the model has no parameter " + std::string(name));
  return static_cast<std::size_t>(found - parameters_.begin());
}

bool ParameterTable::has(std::string_view name) const {
  return std::any_of(parameters_.begin(), parameters_.end(), [&](const Parameter& p) { return p.name == name; });
}

std::int64_t ParameterTable::elements() const {
  std::int64_t sum = 0;
  for (const Parameter& p : parameters_) sum += p.elements();
  return sum;
}

std::int64_t ParameterTable::elements(Role role) const {
  std::int64_t sum = 0;
  for (const Parameter& p : parameters_) sum += p.role == role ? p.elements() : 0;
  return sum;
}

namespace {

// Two standard normals from one Philox block (Box-Muller, in double so that the bits agree between compilers' fp32
// choices).
void normal_pair(const PhiloxKey& key, std::uint64_t index, double* pair) {
  const Philox4 block = philox(key, index);
  const double u1 = (static_cast<double>(block.word[0]) + 1.0) / 4294967296.0;
  const double u2 = static_cast<double>(block.word[1]) / 4294967296.0;
  const double radius = std::sqrt(-2.0 * std::log(u1));
  constexpr double kTwoPi = 6.283185307179586476925;
  pair[0] = radius * std::cos(kTwoPi * u2);
  pair[1] = radius * std::sin(kTwoPi * u2);
}

// Two uniforms of deviation 1.
void uniform_pair(const PhiloxKey& key, std::uint64_t index, double* pair) {
  const Philox4 block = philox(key, index);
  const double bound = std::sqrt(3.0);
  for (int i = 0; i < 2; ++i) pair[i] = bound * (2.0 * (static_cast<double>(block.word[i]) + 0.5) / 4294967296.0 - 1.0);
}

void draw_rows(const PhiloxKey& key, const Parameter& parameter, const MatrixBlock& block,
               std::int64_t first_logical_row, float* flat) {
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < block.rows; ++i) {
    float* row = flat + parameter.offset + (block.row + i) * parameter.stored_cols;
    // Each row starts a pair of its own, so that an odd width does not couple rows.
    const auto pairs = static_cast<std::uint64_t>((parameter.cols + 1) / 2);
    const auto base = static_cast<std::uint64_t>(first_logical_row + i) * pairs;
    for (std::int64_t j = 0; j < parameter.cols; j += 2) {
      double pair[2];
      const auto draw = parameter.init == InitRule::uniform ? uniform_pair : normal_pair;
      draw(key, base + static_cast<std::uint64_t>(j / 2), pair);
      row[j] = static_cast<float>(pair[0] * parameter.init_std);
      if (j + 1 < parameter.cols) row[j + 1] = static_cast<float>(pair[1] * parameter.init_std);
    }
  }
}

}  // namespace

void initialize_weights(const ParameterTable& table, std::uint64_t seed, float* flat) {
  for (std::size_t i = 0; i < table.size(); ++i) {
    const Parameter& p = table[i];
    if (p.init == InitRule::zeros) continue;
    if (p.init == InitRule::ones) {
      std::fill_n(flat + p.offset, p.rows(), 1.0F);
      continue;
    }
    if (p.init == InitRule::block_scalars) {
      const std::int64_t layers = p.rows() / 5;
      for (std::int64_t layer = 0; layer < layers; ++layer) {
        const BlockScalars at(layers, layer);
        float* const scalars = flat + p.offset;
        scalars[at.skip] = 1.0F;
        scalars[at.stream] = 1.0F;
        scalars[at.value] = scalars[at.value + 1] = 0.5F;
      }
      continue;
    }
    const PhiloxKey key = make_key(seed, RandomPurpose::initial_weights, 0, static_cast<std::uint32_t>(i));
    std::int64_t first = 0;
    for (const MatrixBlock& block : p.blocks) {
      draw_rows(key, p, block, first, flat);
      first += block.rows;
    }
  }
}

}  // namespace polaron
