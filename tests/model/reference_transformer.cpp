#include "model/reference_transformer.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

namespace polaron::test {
namespace {

// [rows, cols], row-major.
struct Grid {
  std::int64_t rows, cols;
  std::vector<double> data;
  Grid(std::int64_t rows_, std::int64_t cols_)
      : rows(rows_), cols(cols_), data(static_cast<std::size_t>(rows_ * cols_)) {}
  double* row(std::int64_t i) { return data.data() + i * cols; }
  const double* row(std::int64_t i) const { return data.data() + i * cols; }
};

// In four independent sums: the differences below ask for thousands of forward passes.
double dot(const double* a, const double* b, std::int64_t n) {
  double sum[4] = {};
  std::int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (std::int64_t lane = 0; lane < 4; ++lane) sum[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < n; ++i) sum[0] += a[i] * b[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

double activate(MlpKind kind, double x) {
  switch (kind) {
    case MlpKind::gelu:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case MlpKind::gelu_exact:
      return 0.5 * x * (1.0 + std::erf(x / std::numbers::sqrt2));
    case MlpKind::relu2:
      return x > 0 ? x * x : 0.0;
    case MlpKind::swiglu:
      return x / (1.0 + std::exp(-x));  // of the gate
  }
  return 0.0;
}

class Reference {
 public:
  Reference(const TransformerConfig& config, const ParameterTable& table, const std::vector<double>& weights,
            const HostBatch& batch)
      : c_(config), table_(table), weights_(weights), batch_(batch), x_(batch.rows(), config.width) {}

  std::vector<double> logits() {
    embed();
    std::vector<Grid> outputs;  // of the blocks
    for (std::int64_t layer = 0; layer < c_.layers; ++layer) {
      const std::string prefix = "blocks." + std::to_string(layer) + ".";
      for (const Skip& skip : c_.skips) {
        if (skip.to == layer) mix(1.0, scalar(skip.from), outputs[static_cast<std::size_t>(skip.from)]);
      }
      if (c_.x0_mixing) mix(scalar(c_.layers + 2 * layer), scalar(c_.layers + 2 * layer + 1), x0_);
      const auto& without = c_.attention_free_blocks;
      if (std::find(without.begin(), without.end(), layer) == without.end()) {
        const Grid in = c_.attention_norm ? norm(prefix + "norm1") : x_;
        add(linear(
            attention(linear_block(in, prefix + "attention.qkv", "q"), linear_block(in, prefix + "attention.qkv", "k"),
                      linear_block(in, prefix + "attention.qkv", "v"), layer),
            prefix + "attention.out"));
      }
      add(linear(mlp_hidden(norm(prefix + "norm2"), prefix), prefix + "mlp.down"));
      outputs.push_back(x_);
    }
    Grid z = product(norm("final_norm"), c_.tied_embeddings ? "embedding.token" : "head.weight", 0);
    if (c_.logit_softcap > 0) {
      const double cap = c_.logit_softcap;
      for (double& value : z.data) {
        value = c_.logit_softcap_form == SoftcapForm::tanh ? cap * std::tanh(value / cap)
                                                           : cap * value / std::sqrt(value * value + cap * cap);
      }
    }
    return std::move(z.data);
  }

 private:
  const double* element(const Parameter& p, std::int64_t stored_row) const {
    return weights_.data() + p.offset + stored_row * p.stored_cols;
  }

  void embed() {
    const Parameter& tokens = table_[table_.index("embedding.token")];
    for (std::int64_t i = 0; i < batch_.rows(); ++i) {
      const double* token = element(tokens, batch_.tokens[static_cast<std::size_t>(i)]);
      std::copy(token, token + c_.width, x_.row(i));
      if (c_.positions != Positions::learned) continue;
      const double* place = element(table_[table_.index("embedding.position")], i % batch_.length);
      for (std::int64_t j = 0; j < c_.width; ++j) x_.row(i)[j] += place[j];
    }
    if (c_.embedding_norm) x_ = norm("");
    x0_ = x_;
  }

  double scalar(std::int64_t i) const { return *element(table_[table_.index("scalars")], i); }

  // x = a x + b y.
  void mix(double a, double b, const Grid& y) {
    for (std::size_t i = 0; i < x_.data.size(); ++i) x_.data[i] = a * x_.data[i] + b * y.data[i];
  }

  void add(const Grid& branch) {
    for (std::size_t i = 0; i < x_.data.size(); ++i) x_.data[i] += branch.data[i];
  }

  // Of the stream; without a name, without gain and shift.
  Grid norm(const std::string& name) const {
    const bool affine = c_.norm_affine && !name.empty();
    Grid out(x_.rows, x_.cols);
    const auto n = static_cast<double>(c_.width);
    for (std::int64_t i = 0; i < x_.rows; ++i) {
      const double* x = x_.row(i);
      double mean = 0.0;
      if (c_.norm == NormChoice::layernorm) {
        for (std::int64_t j = 0; j < c_.width; ++j) mean += x[j] / n;
      }
      double square = 0.0;
      for (std::int64_t j = 0; j < c_.width; ++j) square += (x[j] - mean) * (x[j] - mean) / n;
      for (std::int64_t j = 0; j < c_.width; ++j) {
        const double normed = (x[j] - mean) / std::sqrt(square + c_.norm_eps);
        const double gain = affine ? *element(table_[table_.index(name + ".weight")], j) : 1.0;
        const bool shifted = affine && c_.norm == NormChoice::layernorm;
        out.row(i)[j] = normed * gain + (shifted ? *element(table_[table_.index(name + ".bias")], j) : 0.0);
      }
    }
    return out;
  }

  // x times the transpose of a block of a matrix.
  Grid product(const Grid& x, const std::string& name, std::size_t block) const {
    const Parameter& p = table_[table_.index(name)];
    const MatrixBlock& rows = p.blocks[block];
    Grid out(x.rows, rows.rows);
    for (std::int64_t i = 0; i < x.rows; ++i) {
      for (std::int64_t o = 0; o < rows.rows; ++o) {
        out.row(i)[o] = dot(x.row(i), element(p, rows.row + o), p.cols);
      }
    }
    return out;
  }

  Grid linear_block(const Grid& x, const std::string& layer, const std::string& block_name) const {
    const Parameter& p = table_[table_.index(layer + ".weight")];
    const auto block = std::find_if(p.blocks.begin(), p.blocks.end(),
                                    [&](const MatrixBlock& each) { return each.name == block_name; });
    Grid out = product(x, layer + ".weight", static_cast<std::size_t>(block - p.blocks.begin()));
    if (!c_.biases) return out;
    const Parameter& bias = table_[table_.index(layer + ".bias")];
    for (std::int64_t i = 0; i < out.rows; ++i) {
      for (std::int64_t o = 0; o < out.cols; ++o) out.row(i)[o] += *element(bias, block->row + o);
    }
    return out;
  }
  Grid linear(const Grid& x, const std::string& layer) const { return linear_block(x, layer, ""); }

  Grid mlp_hidden(const Grid& x, const std::string& prefix) const {
    if (c_.mlp != MlpKind::swiglu) {
      Grid hidden = linear(x, prefix + "mlp.up");
      for (double& value : hidden.data) value = activate(c_.mlp, value);
      return hidden;
    }
    Grid hidden = linear_block(x, prefix + "mlp.gate_up", "gate");
    const Grid up = linear_block(x, prefix + "mlp.gate_up", "up");
    for (std::size_t i = 0; i < hidden.data.size(); ++i) hidden.data[i] = activate(c_.mlp, hidden.data[i]) * up.data[i];
    return hidden;
  }

  double turns(std::int64_t pair) const {
    const auto i = static_cast<double>(pair), size = static_cast<double>(c_.head_size);
    if (c_.rotary_frequencies == RotaryFrequencies::full) return std::pow(c_.rotary_base, -2.0 * i / size);
    const double count = size / 4;
    return i < count ? -std::pow(1.0 / 1024.0, i / (count - 1)) : 0.0;
  }

  // v, normalised and mixed with the value embedding of its block.
  void prepare_values(Grid& v, std::int64_t layer) const {
    if (c_.v_norm) divide_by_rms(v);
    if (c_.value_embeddings == 0) return;
    const std::int64_t n = c_.value_embeddings, at = 3 * c_.layers + 2 * layer;
    const std::int64_t table = layer < n ? layer : layer - (c_.layers - n);
    for (std::int64_t i = 0; i < v.rows; ++i) {
      for (std::int64_t j = 0; j < v.cols; ++j) {
        v.row(i)[j] *= scalar(at);
        if (table < 0) continue;
        const Parameter& p = table_[table_.index("embedding.value" + std::to_string(table))];
        v.row(i)[j] += scalar(at + 1) * element(p, batch_.tokens[static_cast<std::size_t>(i)])[j];
      }
    }
  }

  void divide_by_rms(Grid& heads) const {
    const std::int64_t size = c_.head_size;
    for (double* head = heads.data.data(); head < heads.data.data() + heads.data.size(); head += size) {
      double square = 0.0;
      for (std::int64_t j = 0; j < size; ++j) square += head[j] * head[j] / static_cast<double>(size);
      for (std::int64_t j = 0; j < size; ++j) head[j] /= std::sqrt(square + c_.norm_eps);
    }
  }

  // Query-key norm, then rotation, of all heads of a row.
  void prepare(Grid& heads) const {
    if (c_.qk_norm) divide_by_rms(heads);
    const std::int64_t size = c_.head_size;
    for (std::int64_t i = 0; i < heads.rows; ++i) {
      for (double* head = heads.row(i); head < heads.row(i) + heads.cols; head += size) {
        if (c_.positions != Positions::rotary) continue;
        for (std::int64_t j = 0; j < size / 2; ++j) {
          const double angle = static_cast<double>(i % batch_.length) * turns(j);
          const double a = head[j], b = head[j + size / 2];
          head[j] = a * std::cos(angle) - b * std::sin(angle);
          head[j + size / 2] = b * std::cos(angle) + a * std::sin(angle);
        }
      }
    }
  }

  Grid attention(Grid q, Grid k, Grid v, std::int64_t layer) const {
    prepare(q);
    prepare(k);
    prepare_values(v, layer);
    const auto& whole = c_.long_window_blocks;
    const bool half = !batch_.short_window.empty() && std::find(whole.begin(), whole.end(), layer) == whole.end();
    const std::vector<std::int32_t>& first_keys = half ? batch_.short_window : batch_.document_start;
    const std::int64_t size = c_.head_size;
    Grid out(batch_.rows(), c_.heads * size);
    for (std::int64_t i = 0; i < batch_.rows(); ++i) {
      const std::int64_t t = i % batch_.length, sequence = i - t;
      std::int64_t first = first_keys.empty() ? 0 : first_keys[static_cast<std::size_t>(i)];
      if (c_.attention_window > 0) first = std::max(first, t - c_.attention_window + 1);
      for (std::int64_t h = 0; h < c_.heads; ++h) {
        const std::int64_t kv = h / (c_.heads / c_.kv_heads) * size;
        std::vector<double> weight;
        double sum = 0.0;
        for (std::int64_t s = first; s <= t; ++s) {
          const double score = dot(q.row(i) + h * size, k.row(sequence + s) + kv, size);
          weight.push_back(std::exp(score * c_.attention_scale));
          sum += weight.back();
        }
        for (std::int64_t s = first; s <= t; ++s) {
          const double share = weight[static_cast<std::size_t>(s - first)] / sum;
          for (std::int64_t j = 0; j < size; ++j) out.row(i)[h * size + j] += share * v.row(sequence + s)[kv + j];
        }
      }
    }
    return out;
  }

  const TransformerConfig& c_;
  const ParameterTable& table_;
  const std::vector<double>& weights_;
  const HostBatch& batch_;
  Grid x_;                            // the residual stream
  Grid x0_ = Grid(x_.rows, x_.cols);  // as it was before the first block
};

}  // namespace

std::vector<double> reference_logits(const TransformerConfig& config, const ParameterTable& table,
                                     const std::vector<double>& weights, const HostBatch& batch) {
  return Reference(config, table, weights, batch).logits();
}

double reference_loss_sum(const TransformerConfig& config, const ParameterTable& table,
                          const std::vector<double>& weights, const HostBatch& batch) {
  const std::vector<double> logits = reference_logits(config, table, weights, batch);
  double sum = 0.0;
  for (std::int64_t i = 0; i < batch.rows(); ++i) {
    const std::int32_t target = batch.targets[static_cast<std::size_t>(i)];
    if (target < 0) continue;
    const double* z = logits.data() + i * config.softmax_size();
    double total = 0.0;
    for (std::int64_t j = 0; j < config.softmax_size(); ++j) total += std::exp(z[j]);
    sum += std::log(total) - z[target];
  }
  return sum;
}

}  // namespace polaron::test
