// The matrix optimizers' share of the cases: all matrices of a shape in one call, as the optimizer groups them.
#include <fmt/format.h>

#include <algorithm>

#include "cases.h"
#include "optim/newton_schulz_tables.h"

namespace polaron::bench {
namespace {

struct Class {
  std::string name;
  StackShape shape;
};

// Gate and up are matrices of their own; so are q, k and v.
std::vector<Class> classes_of(const ModelShape& m) {
  const std::int64_t gated = m.activation == Activation::swiglu ? 3 : 2;
  std::vector<Class> classes = {{"attention", {(m.kv_heads == m.heads ? 4 : 2) * m.layers, m.width, m.q_width()}},
                                {"mlp", {gated * m.layers, m.width, m.hidden}}};
  return classes;
}

double newton_schulz_flops(const StackShape& s, int steps) {
  const auto count = static_cast<double>(s.count), m = static_cast<double>(s.rows), n = static_cast<double>(s.cols);
  // X X^T and (A times its polynomial) are symmetric: half of each would do; counted in full, as they are computed.
  return steps * count * (4.0 * m * m * n + 2.0 * m * m * m);
}

std::vector<MatrixView> views(const StackShape& s, float* data, bf16* working) {
  std::vector<MatrixView> all;
  for (std::int64_t i = 0; i < s.count; ++i) {
    const std::int64_t at = i * s.elements();
    all.push_back({data + at, s.rows, s.cols, s.cols, working == nullptr ? nullptr : working + at});
  }
  return all;
}

class MatrixCases {
 public:
  explicit MatrixCases(const ModelShape& model) : m_(model) {}

  std::vector<Case> all() {
    for (const Class& one : classes_of(m_)) {
      shape_ = one.shape;
      name_ = one.name;
      full();
      low_rank(std::max<std::int64_t>(1, m_.width / 8));
    }
    return std::move(cases_);
  }

 private:
  double elements() const { return static_cast<double>(shape_.count * shape_.elements()); }
  void add(const std::string& op, double flops, double bytes, std::function<Call(Memory&)> prepare,
           std::int64_t rank = 0, Operands operands = Operands::bf16) {
    std::string shape = fmt::format("{} of {} x {}", shape_.count, shape_.rows, shape_.cols);
    if (rank > 0) shape += fmt::format(", rank {}", rank);
    cases_.push_back({fmt::format("{}, {}", op, name_), shape, flops,
                      m_.dtype == DType::bf16 ? operands : Operands::fp32, bytes, std::move(prepare)});
  }

  void full() {
    const StackShape s = shape_;
    const std::int64_t floats = s.count * s.elements();
    add("momentum to stack", 0, 16 * elements(), [=](Memory& memory) -> Call {
      float* const gradients = memory.floats(floats, 1e-3F);
      float* const momentum = memory.floats(floats, 1e-3F);
      float* const stack = memory.floats(floats);
      return [=](Backend& backend, Stream& stream) {
        std::vector<float*> states;
        for (std::int64_t i = 0; i < s.count; ++i) states.push_back(momentum + i * s.elements());
        backend.matrix().momentum_to_stack(stream, {}, {}, views(s, gradients, nullptr), states, stack);
      };
    });
    newton_schulz("Newton-Schulz", s, 0);
    add("dense update", 0, (m_.dtype == DType::bf16 ? 14.0 : 12.0) * elements(),
        [=, rounded = m_.dtype == DType::bf16](Memory& memory) -> Call {
          float* const stack = memory.floats(floats);
          float* const parameters = memory.floats(floats);
          bf16* const working = rounded ? memory.zeros(DType::bf16, 1, floats).bf16() : nullptr;
          const std::vector<float> scales(static_cast<std::size_t>(s.count), 1.0F);
          return [=](Backend& backend, Stream& stream) {
            backend.matrix().update_dense(stream, {1e-3F, 0.1F}, {}, stack, scales, views(s, parameters, working));
          };
        });
  }

  void newton_schulz(const std::string& op, const StackShape& s, std::int64_t rank) {
    NewtonSchulzSpec spec = newton_schulz_spec("polar_express", 0);
    spec.dtype = m_.dtype;
    const double moved = 8.0 * static_cast<double>(s.count * s.elements());
    add(
        op, newton_schulz_flops(s, spec.steps), moved,
        [=](Memory& memory) -> Call {
          float* const stack = memory.floats(s.count * s.elements());
          auto scratch = std::make_shared<float*>(nullptr);
          auto* const owner = &memory;
          return [=](Backend& backend, Stream& stream) {
            if (*scratch == nullptr)
              *scratch = owner->zeros(DType::f32, 1, backend.matrix().newton_schulz_scratch(s, spec.dtype)).f32();
            backend.matrix().newton_schulz(stream, s, spec, stack, *scratch);
          };
        },
        rank);
  }

  void low_rank(std::int64_t rank) {
    const StackShape s = shape_;
    const std::int64_t floats = s.count * s.elements(), tall = s.count * s.rows * rank, wide = s.count * rank * s.cols;
    const double product = 2.0 * elements() * static_cast<double>(rank);
    const double factors = static_cast<double>(tall + wide);
    add(
        "sketch of columns", 0, 8.0 * static_cast<double>(tall),
        [=](Memory& memory) -> Call {
          float* const stack = memory.floats(floats);
          float* const sketch = memory.floats(tall);
          std::vector<PhiloxKey> keys;
          for (std::int64_t i = 0; i < s.count; ++i)
            keys.push_back(make_key(1, RandomPurpose::test, 3, static_cast<std::uint32_t>(i)));
          return [=](Backend& backend, Stream& stream) {
            backend.matrix().sketch(stream, s, rank, Sketch::columns, 0, keys, stack, sketch);
          };
        },
        rank);
    // Householder's count, 4 m r^2: two products of the Gram matrix's size.
    add(
        "orthonormal basis", 4.0 * static_cast<double>(tall) * static_cast<double>(rank),
        8.0 * static_cast<double>(tall),
        [=](Memory& memory) -> Call {
          float* const sketch = memory.floats(tall);
          return [=](Backend& backend, Stream& stream) {
            backend.matrix().orthonormal_basis(stream, s.count, s.rows, rank, BasisMethod::automatic, sketch);
          };
        },
        rank, Operands::fp32);
    add(
        "projection", product, 4 * elements() + 4 * factors,
        [=](Memory& memory) -> Call {
          float* const stack = memory.floats(floats);
          float* const basis = memory.floats(tall, 0.05F);
          float* const projected = memory.floats(wide);
          return [=](Backend& backend, Stream& stream) {
            backend.matrix().project(stream, s, rank, basis, stack, projected);
          };
        },
        rank, Operands::tf32);
    newton_schulz("Newton-Schulz of the projection", {s.count, rank, s.cols}, rank);
    add(
        "low-rank update", product, (m_.dtype == DType::bf16 ? 10.0 : 8.0) * elements() + 4 * factors,
        [=, rounded = m_.dtype == DType::bf16](Memory& memory) -> Call {
          float* const basis = memory.floats(tall, 0.05F);
          float* const factor = memory.floats(wide, 0.05F);
          float* const parameters = memory.floats(floats);
          bf16* const working = rounded ? memory.zeros(DType::bf16, 1, floats).bf16() : nullptr;
          const std::vector<float> scales(static_cast<std::size_t>(s.count), 1.0F);
          return [=](Backend& backend, Stream& stream) {
            backend.matrix().update_factors(stream, {1e-3F, 0.1F}, {}, rank, basis, factor, scales,
                                            views(s, parameters, working));
          };
        },
        rank, Operands::tf32);
  }

  ModelShape m_;
  StackShape shape_{};
  std::string name_;
  std::vector<Case> cases_;
};

}  // namespace

std::vector<Case> matrix_cases(const ModelShape& model) { return MatrixCases(model).all(); }

}  // namespace polaron::bench
