#include "optim/optimizer.h"

#include <algorithm>
#include <span>

#include "optim/newton_schulz_tables.h"
#include "optim/schedule.h"

namespace polaron {
namespace {

bool has_momentum(const OptimizerSettings& s) {
  return s.kind == OptimizerKind::muon || s.kind == OptimizerKind::low_rank_muon ||
         (s.kind == OptimizerKind::sgd && s.momentum > 0);
}

// The order in which state is planned and then handed out; both walks below use it.
template <class Matrix, class Elementwise>
void walk_state(const Assignment& assignment, const ParameterTable& table, Matrix matrix, Elementwise elementwise) {
  for (const MatrixClass& c : assignment.classes) {
    for (const MatrixItem& item : c.items) matrix(c, item);
  }
  for (const ElementwiseItem& item : assignment.elementwise) elementwise(item, table[item.parameter]);
}

std::int64_t group_size(const MatrixClass& c, Backend& backend) {
  const std::int64_t preferred = backend.matrix().preferred_group(c.rows, c.cols);
  return std::min(preferred, static_cast<std::int64_t>(c.items.size()));
}

}  // namespace

Optimizer::Plan Optimizer::plan(const Assignment& assignment, const ParameterTable& table, Backend& backend) {
  Plan plan;
  walk_state(
      assignment, table,
      [&](const MatrixClass& c, const MatrixItem& item) {
        if (has_momentum(c.settings)) plan.state.add("momentum." + item.label, DType::f32, item.rows, item.cols);
      },
      [&](const ElementwiseItem& item, const Parameter& p) {
        if (item.settings.kind == OptimizerKind::adamw) {
          plan.state.add("adamw.m." + p.name, DType::f32, 1, p.stored_elements());
          plan.state.add("adamw.v." + p.name, DType::f32, 1, p.stored_elements());
        } else if (has_momentum(item.settings)) {
          plan.state.add("sgd.momentum." + p.name, DType::f32, 1, p.stored_elements());
        }
      });
  // Scratch serves one group of one class at a time.
  std::int64_t stack = 0;
  std::int64_t basis = 0;
  std::int64_t factor = 0;
  std::int64_t iteration = 0;
  for (const MatrixClass& c : assignment.classes) {
    const std::int64_t count = group_size(c, backend);
    MatrixOps& ops = backend.matrix();
    stack = std::max(stack, count * c.rows * c.cols);
    basis = std::max(basis, count * c.rows * c.rank);
    factor = std::max(factor, count * c.rank * c.cols);
    const StackShape iterated{count, c.rank > 0 ? c.rank : c.rows, c.cols};
    iteration = std::max(iteration, ops.newton_schulz_scratch(iterated));
  }
  plan.scratch.add("stack", DType::f32, 1, stack);
  plan.scratch.add("basis", DType::f32, 1, basis);
  plan.scratch.add("factor", DType::f32, 1, factor);
  plan.scratch.add("newton_schulz", DType::f32, 1, iteration);
  return plan;
}

Optimizer::Optimizer(Assignment assignment, const ParameterTable& table, Backend& backend, std::uint64_t seed,
                     float* weights, float* gradients)
    : assignment_(std::move(assignment)),
      table_(table),
      backend_(backend),
      seed_(seed),
      weights_(weights),
      gradients_(gradients) {
  const Plan planned = plan(assignment_, table, backend);
  state_ = Arena(backend.device(), planned.state);
  scratch_ = Arena(backend.device(), planned.scratch);
  std::int64_t next = 0;
  const auto take = [&]() -> float* {
    const std::int64_t index = next++;
    state_tensors_.push_back({planned.state.pieces()[static_cast<std::size_t>(index)].name, state_.tensor(index)});
    return state_tensors_.back().tensor.f32();
  };
  for (const MatrixClass& c : assignment_.classes) {
    auto& momenta = momentum_.emplace_back();
    for (std::size_t i = 0; i < c.items.size(); ++i) momenta.push_back(has_momentum(c.settings) ? take() : nullptr);
  }
  for (const ElementwiseItem& item : assignment_.elementwise) {
    float* first = nullptr;
    float* second = nullptr;
    if (item.settings.kind == OptimizerKind::adamw) {
      first = take();
      second = take();
    } else if (has_momentum(item.settings)) {
      first = take();
    }
    elementwise_state_.emplace_back(first, second);
  }
}

MatrixView Optimizer::view(const MatrixItem& item, float* flat) const {
  const Parameter& p = table_[item.parameter];
  return {flat + p.offset + p.blocks[item.block].row * p.stored_cols, item.rows, item.cols, p.stored_cols};
}

void Optimizer::step(Stream& stream, std::int64_t step, double lr_factor, const StepGate& gate) {
  step_matrices(stream, step, lr_factor, gate);
  step_elementwise(stream, step, lr_factor, gate);
}

void Optimizer::step_elementwise(Stream& stream, std::int64_t step, double lr_factor, const StepGate& gate) {
  std::vector<AdamWRange> adamw;
  std::vector<SgdRange> sgd;
  for (std::size_t i = 0; i < assignment_.elementwise.size(); ++i) {
    const OptimizerSettings& s = assignment_.elementwise[i].settings;
    const Parameter& p = table_[assignment_.elementwise[i].parameter];
    const auto lr = static_cast<float>(s.lr * lr_factor);
    const auto decay = static_cast<float>(s.weight_decay);
    float* const parameter = weights_ + p.offset;
    const float* const gradient = gradients_ + p.offset;
    const auto [first, second] = elementwise_state_[i];
    if (s.kind == OptimizerKind::adamw) {
      adamw.push_back({parameter, gradient, first, second, p.stored_elements(), lr, static_cast<float>(s.beta1),
                       static_cast<float>(s.beta2), static_cast<float>(s.eps), decay, step + 1});
    } else {
      sgd.push_back({parameter, gradient, first, p.stored_elements(), lr, static_cast<float>(momentum_at(s, step)),
                     decay, s.nesterov});
    }
  }
  if (!adamw.empty()) backend_.elementwise().adamw(stream, adamw, gate);
  if (!sgd.empty()) backend_.elementwise().sgd(stream, sgd, gate);
}

void Optimizer::step_matrices(Stream& stream, std::int64_t step, double lr_factor, const StepGate& gate) {
  for (std::size_t c = 0; c < assignment_.classes.size(); ++c) {
    const MatrixClass& matrices = assignment_.classes[c];
    const auto group = static_cast<std::size_t>(group_size(matrices, backend_));
    for (std::size_t first = 0; first < matrices.items.size(); first += group) {
      const std::size_t count = std::min(group, matrices.items.size() - first);
      step_group(stream, matrices, c, first, count, step, lr_factor, gate);
    }
  }
}

void Optimizer::step_group(Stream& stream, const MatrixClass& matrices, std::size_t class_index, std::size_t first,
                           std::size_t count, std::int64_t step, double lr_factor, const StepGate& gate) {
  const OptimizerSettings& s = matrices.settings;
  MatrixOps& ops = backend_.matrix();
  std::vector<MatrixView> gradients;
  std::vector<MatrixView> parameters;
  std::vector<float> scales;
  std::vector<PhiloxKey> keys;
  for (std::size_t i = first; i < first + count; ++i) {
    const MatrixItem& item = matrices.items[i];
    gradients.push_back(view(item, gradients_));
    parameters.push_back(view(item, weights_));
    scales.push_back(item.scale);
    const auto tensor = static_cast<std::uint32_t>(item.parameter * 8 + item.block);
    keys.push_back(make_key(seed_, RandomPurpose::sketch, static_cast<std::uint64_t>(step), tensor));
  }
  MomentumRule rule;
  rule.kind = !has_momentum(s)                       ? MomentumKind::none
              : s.momentum_form == MomentumForm::ema ? MomentumKind::ema
                                                     : MomentumKind::heavy;
  rule.mu = static_cast<float>(momentum_at(s, step));
  rule.nesterov = s.nesterov;
  const MatrixOps::UpdateRule update{static_cast<float>(s.lr * lr_factor), static_cast<float>(s.weight_decay)};
  const auto n = static_cast<std::int64_t>(count);
  const StackShape shape{n, matrices.rows, matrices.cols};
  float* const stack = scratch_.tensor(0).f32();
  float* const iteration = scratch_.tensor(3).f32();

  ops.momentum_to_stack(stream, rule, gate, gradients, std::span(momentum_[class_index]).subspan(first, count), stack);
  const auto orthogonalize = [&](const StackShape& of, float* matrix) {
    if (s.orthogonalizer == Orthogonalizer::exact) {
      ops.exact_polar(stream, of, matrix);
    } else {
      const NewtonSchulzSpec spec = newton_schulz_spec(s.coefficients, static_cast<int>(s.newton_schulz_steps));
      ops.newton_schulz(stream, of, spec, matrix, iteration);
    }
  };
  if (matrices.rank == 0) {
    orthogonalize(shape, stack);
    ops.update_dense(stream, update, gate, stack, scales, parameters);
    return;
  }
  float* const basis = scratch_.tensor(1).f32();
  float* const factor = scratch_.tensor(2).f32();
  const int power = s.sketch == SketchKind::power ? static_cast<int>(s.power_iterations) : 0;
  ops.sketch(stream, shape, matrices.rank, s.sketch == SketchKind::columns ? Sketch::columns : Sketch::gaussian, power,
             keys, stack, basis);
  const BasisMethod method = s.basis == BasisKind::householder   ? BasisMethod::householder
                             : s.basis == BasisKind::cholesky_qr ? BasisMethod::cholesky_qr
                                                                 : BasisMethod::automatic;
  ops.orthonormal_basis(stream, n, matrices.rows, matrices.rank, method, basis);
  ops.project(stream, shape, matrices.rank, basis, stack, factor);
  orthogonalize({n, matrices.rank, matrices.cols}, factor);
  ops.update_factors(stream, update, gate, matrices.rank, basis, factor, scales, parameters);
}

}  // namespace polaron
