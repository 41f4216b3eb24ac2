#include "cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "backend/philox.h"
#include "base/error.h"

namespace polaron::bench {
namespace {

constexpr std::int64_t kPatternElements = 1 << 18;

std::vector<float> random_floats(std::int64_t count, float scale, std::uint32_t tensor) {
  std::vector<float> values(static_cast<std::size_t>((count + 3) / 4 * 4));
  const PhiloxKey key = make_key(1, RandomPurpose::test, 1, tensor);
  for (std::size_t i = 0; i < values.size(); i += 4) {
    const Philox4 block = philox(key, i);
    for (std::size_t j = 0; j < 4; ++j)
      values[i + j] = (static_cast<float>(block.word[j] >> 8U) * 0x1p-23F - 1.0F) * scale;
  }
  return values;
}

double size(std::int64_t rows, std::int64_t cols) { return static_cast<double>(rows) * static_cast<double>(cols); }

// Causal attention multiplies half of a square, its diagonal included: `products` products of that a head.
double attention_flops(const ModelShape& m, int products) {
  const double square = size(m.sequence_length, m.sequence_length + 1) / 2;
  return products * 2.0 * square * static_cast<double>(m.batch * m.heads * m.head_size);
}

class ModelCases {
 public:
  explicit ModelCases(const ModelShape& model)
      : m_(model), e_(static_cast<double>(size_of(model.dtype))), n_(model.rows()) {}

  std::vector<Case> all() {
    embedding();
    norms();
    layer("qkv", m_.width, m_.qkv_width(), Activation::none);
    layer("attention output", m_.q_width(), m_.width, Activation::none);
    layer("mlp up", m_.width, m_.up_width(), m_.activation);
    mlp_down();
    attention();
    head();
    elementwise();
    return std::move(cases_);
  }

 private:
  void add(std::string op, std::string shape, double flops, double bytes, std::function<Call(Memory&)> prepare) {
    cases_.push_back({std::move(op), std::move(shape), flops, operands_of(m_.dtype), bytes, std::move(prepare)});
  }
  // A matrix product with weight [out, in] over n rows, as written in a table.
  static std::string product(std::int64_t n, std::int64_t in, std::int64_t out) {
    return fmt::format("{} x {} -> {}", n, in, out);
  }

  void embedding() {
    const double touched = size(std::min(n_, m_.vocabulary), m_.width), out = size(n_, m_.width);
    const double positions = m_.rotary ? 0.0 : size(m_.sequence_length, m_.width);
    const std::string shape = fmt::format("{} rows of {}", n_, m_.width);
    const ModelShape m = m_;
    add("embedding forward", shape, 0, 4.0 * static_cast<double>(n_) + (touched + positions + out) * e_,
        [m](Memory& memory) -> Call {
          const Tensor tokens = memory.integers(m.rows(), m.vocabulary);
          const Tensor table = memory.random(m.dtype, m.stored_vocabulary, m.width);
          const Tensor positions_table = m.rotary ? Tensor{} : memory.random(m.dtype, m.sequence_length, m.width);
          const Tensor to = memory.zeros(m.dtype, m.rows(), m.width);
          return [=](Backend& backend, Stream& stream) {
            backend.embedding().forward(stream, tokens, table, positions_table, m.sequence_length, to);
          };
        });
    add("embedding backward", shape, 0, 4.0 * static_cast<double>(n_) + out * e_ + 8.0 * (touched + positions),
        [m](Memory& memory) -> Call {
          const Tensor tokens = memory.integers(m.rows(), m.vocabulary);
          const Tensor d_out = memory.random(m.dtype, m.rows(), m.width);
          const Tensor table = memory.zeros(DType::f32, m.stored_vocabulary, m.width);
          const Tensor positions_table = m.rotary ? Tensor{} : memory.zeros(DType::f32, m.sequence_length, m.width);
          return [=](Backend& backend, Stream& stream) {
            backend.embedding().backward(stream, tokens, d_out, m.sequence_length, table, positions_table);
          };
        });
  }

  void norms() {
    const std::string shape = fmt::format("{} x {}", n_, m_.width);
    const bool mean = m_.norm == NormKind::layernorm;
    const double statistics = (mean ? 8.0 : 4.0) * static_cast<double>(n_);
    const ModelShape m = m_;
    const auto vector = [m](Memory& memory, bool wanted) {
      return wanted ? memory.random(DType::f32, 1, m.width) : Tensor{};
    };
    add("residual + norm forward", shape, 0, 4 * size(n_, m_.width) * e_ + statistics, [=](Memory& memory) -> Call {
      const auto rows = [&] { return memory.random(m.dtype, m.rows(), m.width); };
      const Tensor in = rows(), delta = rows(), residual = rows(), normed = rows();
      const Tensor weight = vector(memory, true), bias = vector(memory, mean);
      const Tensor means = mean ? memory.zeros(DType::f32, m.rows(), 1) : Tensor{};
      const Tensor rstd = memory.zeros(DType::f32, m.rows(), 1);
      return [=](Backend& backend, Stream& stream) {
        backend.norm().forward(stream, m.norm, 1e-5F, in, delta, weight, bias, residual, normed, means, rstd);
      };
    });
    add("norm backward", shape, 0, 4 * size(n_, m_.width) * e_ + statistics, [=](Memory& memory) -> Call {
      const auto rows = [&] { return memory.random(m.dtype, m.rows(), m.width); };
      const Tensor d_normed = rows(), residual = rows(), d_residual = rows();
      const Tensor weight = vector(memory, true), weight_grad = vector(memory, true), bias_grad = vector(memory, mean);
      const Tensor means = mean ? memory.zeros(DType::f32, m.rows(), 1) : Tensor{};
      const Tensor rstd = memory.random(DType::f32, m.rows(), 1);
      return [=](Backend& backend, Stream& stream) {
        backend.norm().backward(stream, m.norm, d_normed, residual, weight, means, rstd, d_residual, weight_grad,
                                bias_grad);
      };
    });
  }

  // A layer from `in` to `out` columns: forward, gradient of its input, gradient of its weight.
  void layer(const std::string& name, std::int64_t in, std::int64_t out, Activation activation) {
    const ModelShape m = m_;
    const std::int64_t n = n_, activated = activation == Activation::none ? 0 : m_.hidden;
    const double flops = 2.0 * size(n, in) * static_cast<double>(out);
    add("linear forward, " + name, product(n, in, out), flops,
        (size(n, in) + size(in, out) + size(n, out + activated)) * e_, [=](Memory& memory) -> Call {
          const Tensor x = memory.random(m.dtype, n, in), weight = memory.random(m.dtype, out, in, 0.05F);
          const Tensor bias = m.biases ? memory.random(DType::f32, 1, out) : Tensor{};
          const Tensor to = memory.zeros(m.dtype, n, out);
          const Tensor after = activated > 0 ? memory.zeros(m.dtype, n, activated) : Tensor{};
          return [=](Backend& backend, Stream& stream) {
            backend.linear().forward(stream, x, weight, bias, activation, to, after);
          };
        });
    add("linear backward input, " + name, product(n, out, in), flops, (size(n, out) + size(in, out) + size(n, in)) * e_,
        [=](Memory& memory) -> Call {
          const Tensor d_out = memory.random(m.dtype, n, out), weight = memory.random(m.dtype, out, in, 0.05F);
          const Tensor d_x = memory.zeros(m.dtype, n, in);
          return [=](Backend& backend, Stream& stream) {
            backend.linear().backward_input(stream, d_out, weight, d_x, false);
          };
        });
    weight_gradient("linear backward weight, " + name, n, in, out, m_.biases, false);
  }

  void weight_gradient(const std::string& op, std::int64_t n, std::int64_t in, std::int64_t out, bool bias,
                       bool accumulate) {
    const ModelShape m = m_;
    add(op, product(n, in, out), 2.0 * size(n, in) * static_cast<double>(out),
        size(n, in + out) * e_ + (accumulate ? 8.0 : 4.0) * size(in, out), [=](Memory& memory) -> Call {
          const Tensor d_out = memory.random(m.dtype, n, out), x = memory.random(m.dtype, n, in);
          const Tensor weight_grad = memory.zeros(DType::f32, out, in);
          const Tensor bias_grad = bias ? memory.zeros(DType::f32, 1, out) : Tensor{};
          return [=](Backend& backend, Stream& stream) {
            backend.linear().backward_weight(stream, d_out, x, weight_grad, bias_grad, accumulate);
          };
        });
  }

  // Its input gradient goes on through the activation.
  void mlp_down() {
    const ModelShape m = m_;
    const std::int64_t n = n_;
    const double flops = 2.0 * size(n, m.hidden) * static_cast<double>(m.width);
    layer("mlp down", m.hidden, m.width, Activation::none);
    add("linear backward input, mlp down with activation", product(n, m.width, m.hidden), flops,
        (size(n, m.width) + size(m.hidden, m.width) + 2 * size(n, m.up_width())) * e_, [=](Memory& memory) -> Call {
          const Tensor d_out = memory.random(m.dtype, n, m.width);
          const Tensor weight = memory.random(m.dtype, m.width, m.hidden, 0.05F);
          const Tensor pre = memory.random(m.dtype, n, m.up_width()), d_pre = memory.zeros(m.dtype, n, m.up_width());
          const Tensor scratch = memory.zeros(m.dtype, n, m.hidden);
          return [=](Backend& backend, Stream& stream) {
            backend.linear().backward_input_activation(stream, d_out, weight, m.activation, pre, d_pre, scratch);
          };
        });
    add("activation", fmt::format("{} x {}", n, m.up_width()), 0, size(n, m.up_width() + m.hidden) * e_,
        [=](Memory& memory) -> Call {
          const Tensor pre = memory.random(m.dtype, n, m.up_width()), after = memory.zeros(m.dtype, n, m.hidden);
          return [=](Backend& backend, Stream& stream) { backend.linear().activate(stream, m.activation, pre, after); };
        });
  }

  void attention() {
    const ModelShape m = m_;
    const std::int64_t n = n_;
    const AttentionShape shape{m.batch,    m.sequence_length, m.heads,
                               m.kv_heads, m.head_size,       1.0F / std::sqrt(static_cast<float>(m.head_size)),
                               0};
    const std::string words =
        fmt::format("{} x {} tokens, {} heads of {}", m.batch, m.sequence_length, m.heads, m.head_size);
    if (m.rotary) {
      // Values pass by: only queries and keys turn.
      const double moved = 2 * size(n, (m.heads + m.kv_heads) * m.head_size) * e_;
      for (const bool backward : {false, true}) {
        add(backward ? "rotary backward" : "rotary", words, 0, moved, [=](Memory& memory) -> Call {
          const Tensor qkv = memory.random(m.dtype, n, m.qkv_width()), d_qkv = memory.random(m.dtype, n, m.qkv_width());
          const auto angles = [&] { return memory.random(DType::f32, m.sequence_length, m.head_size / 2, 0.7F); };
          const Rotary rotary{angles(), angles()};
          return [=](Backend& backend, Stream& stream) {
            if (backward) {
              backend.attention().prepare_backward(stream, shape, HeadNorm::none, rotary, qkv, {}, d_qkv);
            } else {
              backend.attention().prepare(stream, shape, HeadNorm::none, 1e-5F, rotary, qkv, {});
            }
          };
        });
      }
    }
    const double lse = 4.0 * size(m.batch * m.heads, m.sequence_length);
    add("attention forward", words, attention_flops(m, 2), size(n, m.qkv_width() + m.q_width()) * e_ + lse,
        [=](Memory& memory) -> Call {
          const Tensor qkv = memory.random(m.dtype, n, m.qkv_width()), out = memory.zeros(m.dtype, n, m.q_width());
          const Tensor sums = memory.zeros(DType::f32, m.batch * m.heads, m.sequence_length);
          return
              [=](Backend& backend, Stream& stream) { backend.attention().forward(stream, shape, qkv, {}, out, sums); };
        });
    add("attention backward", words, attention_flops(m, 5), 2 * size(n, m.qkv_width() + m.q_width()) * e_ + lse,
        [=](Memory& memory) -> Call {
          const Tensor qkv = memory.random(m.dtype, n, m.qkv_width()), out = memory.zeros(m.dtype, n, m.q_width());
          const Tensor sums = memory.zeros(DType::f32, m.batch * m.heads, m.sequence_length);
          const Tensor d_out = memory.random(m.dtype, n, m.q_width()), d_qkv = memory.zeros(m.dtype, n, m.qkv_width());
          // The backward pass needs what the forward pass has found; every call finds it anew in the first place.
          auto first = std::make_shared<bool>(true);
          return [=](Backend& backend, Stream& stream) {
            if (*first) backend.attention().forward(stream, shape, qkv, {}, out, sums);
            *first = false;
            backend.attention().backward(stream, shape, qkv, {}, out, sums, d_out, d_qkv);
          };
        });
  }

  // One chunk of rows of logits.
  void head() {
    const ModelShape m = m_;
    const std::int64_t n = m.loss_rows, v = m.stored_vocabulary;
    const double flops = 2.0 * size(n, m.width) * static_cast<double>(v);
    const double moved = (size(n, m.width) + size(v, m.width) + size(n, v)) * e_;
    add("head forward", product(n, m.width, v), flops, moved, [=](Memory& memory) -> Call {
      const Tensor x = memory.random(m.dtype, n, m.width), table = memory.random(m.dtype, v, m.width, 0.05F);
      const Tensor logits = memory.zeros(m.dtype, n, v);
      return [=](Backend& backend, Stream& stream) {
        backend.linear().forward(stream, x, table, {}, Activation::none, logits, {});
      };
    });
    add("cross-entropy", fmt::format("{} x {}", n, v), 0, 2 * size(n, v) * e_, [=](Memory& memory) -> Call {
      const Tensor logits = memory.random(m.dtype, n, v), targets = memory.integers(n, m.vocabulary);
      auto* const sum = static_cast<double*>(memory.zeros(DType::f32, 1, 2).data);
      return [=](Backend& backend, Stream& stream) {
        backend.loss().cross_entropy(stream, logits, m.vocabulary, targets, {}, 1e-4F, true, sum);
      };
    });
    add("head backward input", product(n, v, m.width), flops, moved, [=](Memory& memory) -> Call {
      const Tensor d_logits = memory.random(m.dtype, n, v), table = memory.random(m.dtype, v, m.width, 0.05F);
      const Tensor d_x = memory.zeros(m.dtype, n, m.width);
      return [=](Backend& backend, Stream& stream) {
        backend.linear().backward_input(stream, d_logits, table, d_x, false);
      };
    });
    weight_gradient("head backward weight", n, m.width, v, false, true);
  }

  void elementwise() {
    const ModelShape m = m_;
    const std::int64_t table = m.stored_vocabulary * m.width;
    const bool rounded = m.dtype == DType::bf16;
    add("AdamW, token table", fmt::format("{} parameters", table), 0,
        (28.0 + (rounded ? 2.0 : 0.0)) * static_cast<double>(table), [=](Memory& memory) -> Call {
          AdamWRange range{};
          range.parameter = memory.floats(table);
          range.gradient = memory.floats(table, 1e-3F);
          range.m = memory.zeros(DType::f32, 1, table).f32();
          range.v = memory.zeros(DType::f32, 1, table).f32();
          range.n = table;
          range.lr = 1e-3F, range.beta1 = 0.9F, range.beta2 = 0.95F, range.eps = 1e-8F, range.weight_decay = 0.1F;
          range.step = 10;
          if (rounded) range.working = memory.zeros(DType::bf16, 1, table).bf16();
          return
              [=](Backend& backend, Stream& stream) { backend.elementwise().adamw(stream, std::span(&range, 1), {}); };
        });
    const std::int64_t layer = m.width * (m.qkv_width() + m.q_width() + m.up_width() + m.hidden);
    const std::int64_t everything = table + m.layers * layer;
    add("gradient norm", fmt::format("{} gradients", everything), 0, 4.0 * static_cast<double>(everything),
        [=](Memory& memory) -> Call {
          const float* const gradients = memory.floats(everything, 1e-3F);
          auto* const sum = static_cast<double*>(memory.zeros(DType::f32, 1, 2).data);
          return [=](Backend& backend, Stream& stream) {
            const std::span<const float> all(gradients, static_cast<std::size_t>(everything));
            backend.elementwise().sum_of_squares(stream, std::span(&all, 1), sum);
          };
        });
  }

  ModelShape m_;
  double e_;  // bytes of an activation
  std::int64_t n_;
  std::vector<Case> cases_;
};

}  // namespace

ModelShape model_shape(const std::string& name) {
  ModelShape m;
  m.name = name;
  if (name == "gpt2-124m" || name == "tiny-gpt2") {
    const bool tiny = name == "tiny-gpt2";
    m.batch = tiny ? 2 : 32, m.sequence_length = tiny ? 16 : 1024, m.layers = tiny ? 1 : 12;
    m.heads = m.kv_heads = tiny ? 1 : 12, m.head_size = 64, m.width = m.heads * m.head_size, m.hidden = 4 * m.width;
    m.vocabulary = tiny ? 100 : 50257, m.stored_vocabulary = tiny ? 128 : 50304, m.loss_rows = tiny ? 16 : 1024;
    return m;
  }
  if (name == "llama-350m" || name == "tiny-llama") {
    const bool tiny = name == "tiny-llama";
    m.batch = tiny ? 1 : 16, m.sequence_length = tiny ? 16 : 1024, m.layers = tiny ? 1 : 24;
    m.heads = tiny ? 2 : 16, m.kv_heads = tiny ? 1 : 16, m.head_size = tiny ? 32 : 64, m.width = m.heads * m.head_size;
    m.hidden = tiny ? 128 : 2752;
    m.vocabulary = m.stored_vocabulary = tiny ? 64 : 32000, m.loss_rows = tiny ? 16 : 2048;
    m.norm = NormKind::rmsnorm, m.activation = Activation::swiglu, m.biases = false, m.rotary = true;
    return m;
  }
  throw Error(Exit::usage,
              fmt::format("There is no model '{}'; the models are gpt2-124m, llama-350m, tiny-gpt2, tiny-llama", name));
}

void* Memory::allocate(std::size_t bytes) {
  buffers_.emplace_back(backend_.device(), bytes);
  bytes_ += bytes;
  return buffers_.back().data();
}

void Memory::fill(void* to, std::size_t bytes, const void* pattern, std::size_t pattern_bytes) {
  Device& device = backend_.device();
  const std::size_t first = std::min(bytes, pattern_bytes);
  device.upload(stream_, to, pattern, first);
  for (std::size_t done = first; done < bytes; done += std::min(done, bytes - done))
    device.copy(stream_, static_cast<std::byte*>(to) + done, to, std::min(done, bytes - done));
  stream_.synchronize();
}

Tensor Memory::random(DType type, std::int64_t rows, std::int64_t cols, float scale) {
  const auto bytes = static_cast<std::size_t>(rows * cols) * size_of(type);
  Tensor tensor(allocate(bytes), type, rows, cols);
  const std::vector<float> values = random_floats(std::min(rows * cols, kPatternElements), scale, ++tensors_);
  if (type == DType::bf16) {
    std::vector<bf16> rounded(values.size());
    std::transform(values.begin(), values.end(), rounded.begin(), [](float value) { return to_bf16(value); });
    fill(tensor.data, bytes, rounded.data(), rounded.size() * sizeof(bf16));
  } else {
    fill(tensor.data, bytes, values.data(), values.size() * sizeof(float));
  }
  return tensor;
}

Tensor Memory::zeros(DType type, std::int64_t rows, std::int64_t cols) {
  return {allocate(static_cast<std::size_t>(rows * cols) * size_of(type)), type, rows, cols};
}

Tensor Memory::integers(std::int64_t count, std::int64_t limit) {
  std::vector<std::int32_t> values(static_cast<std::size_t>(count));
  const PhiloxKey key = make_key(1, RandomPurpose::test, 2, ++tensors_);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<std::int32_t>(philox(key, i).word[0] % static_cast<std::uint64_t>(limit));
  const std::size_t bytes = values.size() * sizeof(std::int32_t);
  Tensor tensor(allocate(bytes), DType::i32, count, 1);
  fill(tensor.data, bytes, values.data(), bytes);
  return tensor;
}

std::vector<Case> model_cases(const ModelShape& model) { return ModelCases(model).all(); }

std::vector<Case> all_cases(const ModelShape& model) {
  std::vector<Case> cases = model_cases(model);
  for (Case& one : matrix_cases(model)) cases.push_back(std::move(one));
  return cases;
}

}  // namespace polaron::bench
