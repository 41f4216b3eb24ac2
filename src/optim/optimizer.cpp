#include "optim/optimizer.h"

#include <algorithm>
#include <span>

#include "optim/directions.h"
#include "optim/schedule.h"

namespace polaron {
namespace {

bool has_momentum(const OptimizerSettings& s) {
  return s.kind == OptimizerKind::muon || s.kind == OptimizerKind::low_rank_muon ||
         (s.kind == OptimizerKind::sgd && s.momentum > 0);
}

int elementwise_buffers(const OptimizerSettings& s) {
  return s.kind == OptimizerKind::adamw ? 2 : has_momentum(s) ? 1 : 0;
}

std::string elementwise_name(const OptimizerSettings& s, int buffer, const Parameter& p) {
  return (s.kind != OptimizerKind::adamw ? "sgd.momentum." : buffer == 0 ? "adamw.m." : "adamw.v.") + p.name;
}

// The part of an elementwise parameter that `rank` owns; no elements where it owns none.
Ownership::Part part_of(const Ownership& ownership, std::size_t item, int rank) {
  for (const Ownership::Part& part : ownership.elementwise(item)) {
    if (part.owner == rank) return part;
  }
  return {rank, 0, 0};
}

// Where it matters whether matrices are tall, assign_optimizers() puts tall ones and others into classes of their own.
SketchRule sketch_rule_of(const MatrixClass& matrices) {
  const MatrixItem& first = matrices.items.front();
  return sketch_rule(matrices.settings, first.rows > first.cols);
}

std::size_t group_size(const MatrixClass& c, Backend& backend) {
  return static_cast<std::size_t>(std::max<std::int64_t>(1, backend.matrix().preferred_group(c.rows, c.cols)));
}

// Of every class. Where sketches are summed a group is one sum, so that all processes must cut the class alike, though
// they may have different numbers of threads: into the smallest groups that any of them prefers. No more than plan()
// has memory for.
std::vector<std::size_t> agreed_group_sizes(const Assignment& assignment, const Ownership& ownership, Backend& backend,
                                            Communicator& communicator) {
  std::vector<std::size_t> sizes;
  for (std::size_t c = 0; c < assignment.classes.size(); ++c) {
    sizes.push_back(group_size(assignment.classes[c], backend));
    if (ownership.matrices(c).exchange != Exchange::sketch) continue;
    std::vector<double> of_all(static_cast<std::size_t>(communicator.size()), 0.0);
    of_all[static_cast<std::size_t>(communicator.rank())] = static_cast<double>(sizes.back());
    communicator.sum_host(of_all);
    sizes.back() = static_cast<std::size_t>(*std::min_element(of_all.begin(), of_all.end()));
  }
  return sizes;
}

}  // namespace

Optimizer::Plan Optimizer::plan(const Assignment& assignment, const Ownership& ownership, int rank,
                                const ParameterTable& table, Backend& backend) {
  Plan plan;
  for (std::size_t c = 0; c < assignment.classes.size(); ++c) {
    const MatrixClass& matrices = assignment.classes[c];
    if (!has_momentum(matrices.settings)) continue;
    const Ownership::Class& owned = ownership.matrices(c);
    for (std::size_t i = 0; i < owned.count(rank); ++i) {
      const MatrixItem& item = matrices.items[owned.order[owned.first(rank) + i]];
      plan.state.add("momentum." + item.label, DType::f32, item.rows, item.cols);
    }
  }
  for (std::size_t i = 0; i < assignment.elementwise.size(); ++i) {
    const ElementwiseItem& item = assignment.elementwise[i];
    const Ownership::Part part = part_of(ownership, i, rank);
    for (int buffer = 0; part.elements > 0 && buffer < elementwise_buffers(item.settings); ++buffer) {
      plan.state.add(elementwise_name(item.settings, buffer, table[item.parameter]), DType::f32, 1, part.elements);
    }
  }
  // Scratch serves one group of one class at a time; factors that travel, a class at a time.
  std::int64_t stack = 0;
  std::int64_t basis = 0;
  std::int64_t factor = 0;
  std::int64_t iteration = 0;
  for (std::size_t c = 0; c < assignment.classes.size(); ++c) {
    const MatrixClass& matrices = assignment.classes[c];
    const Ownership::Class& owned = ownership.matrices(c);
    const auto count = static_cast<std::int64_t>(std::min(group_size(matrices, backend), owned.count(rank)));
    const auto kept = owned.exchange == Exchange::factors ? static_cast<std::int64_t>(owned.order.size()) : count;
    stack = std::max(stack, count * matrices.rows * matrices.cols);
    basis = std::max(basis, kept * matrices.rows * matrices.rank);
    factor = std::max(factor, kept * matrices.rank * matrices.cols);
    const OptimizerSettings& settings = matrices.settings;
    const std::size_t updated =
        owned.exchange == Exchange::factors ? std::min(group_size(matrices, backend), owned.order.size()) : 0;
    const SketchRule sketch = sketch_rule_of(matrices);
    plan.matrices.push_back({{count, matrices.rows, matrices.cols},
                             std::max(count, static_cast<std::int64_t>(updated)),
                             matrices.rank,
                             sketch.kind,
                             sketch.power,
                             sketch.basis,
                             settings.orthogonalizer == Orthogonalizer::exact});
    if (count == 0) continue;
    const StackShape iterated{count, matrices.rank > 0 ? matrices.rank : matrices.rows, matrices.cols};
    iteration = std::max(iteration,
                         backend.matrix().newton_schulz_scratch(iterated, newton_schulz_spec(matrices.settings).dtype));
  }
  plan.scratch.add("stack", DType::f32, 1, stack);
  plan.scratch.add("basis", DType::f32, 1, basis);
  plan.scratch.add("factor", DType::f32, 1, factor);
  plan.scratch.add("newton_schulz", DType::f32, 1, iteration);
  return plan;
}

Optimizer::Optimizer(Assignment assignment, const ParameterTable& table, Backend& backend, Communicator& communicator,
                     Exchange exchange, std::uint64_t seed, const FlatBuffers& buffers, bool shared_columns)
    : assignment_(std::move(assignment)),
      table_(table),
      backend_(backend),
      communicator_(communicator),
      ownership_(assignment_, table, communicator.size(), exchange),
      group_sizes_(agreed_group_sizes(assignment_, ownership_, backend, communicator)),
      seed_(seed),
      shared_columns_(shared_columns),
      buffers_(buffers) {
  const int rank = communicator.rank();
  const Plan planned = plan(assignment_, ownership_, rank, table, backend);
  state_ = Arena(backend.device(), planned.state);
  scratch_ = Arena(backend.device(), planned.scratch);
  std::int64_t next = 0;  // pieces are handed out in the order in which plan() added them
  for (std::size_t c = 0; c < assignment_.classes.size(); ++c) {
    const MatrixClass& matrices = assignment_.classes[c];
    const Ownership::Class& owned = ownership_.matrices(c);
    const bool summed = owned.exchange == Exchange::sketch;
    auto& momenta = momentum_.emplace_back(matrices.items.size(), nullptr);
    if (!has_momentum(matrices.settings)) continue;
    for (int owner = 0; owner < (summed ? 1 : ownership_.processes()); ++owner) {
      for (std::size_t i = 0; i < owned.count(owner); ++i) {
        const std::size_t index = owned.order[owned.first(owner) + i];
        const MatrixItem& item = matrices.items[index];
        if (summed || owner == rank) momenta[index] = state_.tensor(next++).f32();
        state_tensors_.push_back({"momentum." + item.label,
                                  item.rows,
                                  item.cols,
                                  {{owner, 0, item.rows * item.cols, momenta[index]}},
                                  summed});
      }
    }
  }
  for (std::size_t i = 0; i < assignment_.elementwise.size(); ++i) {
    const ElementwiseItem& item = assignment_.elementwise[i];
    const Parameter& p = table[item.parameter];
    ElementwiseState& mine = elementwise_.emplace_back();
    mine.part = part_of(ownership_, i, rank);
    for (int buffer = 0; buffer < elementwise_buffers(item.settings); ++buffer) {
      float* const data = mine.part.elements > 0 ? state_.tensor(next++).f32() : nullptr;
      (buffer == 0 ? mine.first : mine.second) = data;
      StateTensor& tensor = state_tensors_.emplace_back();
      tensor.name = elementwise_name(item.settings, buffer, p);
      tensor.rows = 1;
      tensor.cols = p.stored_elements();
      for (const Ownership::Part& part : ownership_.elementwise(i)) {
        tensor.parts.push_back({part.owner, part.first, part.elements, part.owner == rank ? data : nullptr});
      }
    }
  }
  if (communicator.size() == 1) return;
  for (const OwnedRange& range : ownership_.gathered()) {
    // What the model computes with travels: the working copies, or vectors, which have none, in fp32.
    const bool working = buffers_.working != nullptr && range.rounded;
    void* const data = working ? static_cast<void*>(buffers_.working + range.offset) : buffers_.weights + range.offset;
    (range.matrix ? matrix_segments_ : elementwise_segments_)
        .push_back({data, working ? DType::bf16 : DType::f32, range.elements, range.owner});
  }
}

MatrixView Optimizer::view(const MatrixItem& item, float* flat, bf16* working) const {
  const Parameter& p = table_[item.parameter];
  const std::int64_t offset = p.offset + p.blocks[item.block].row * p.stored_cols;
  return {flat + offset, item.rows, item.cols, p.stored_cols, working == nullptr ? nullptr : working + offset};
}

std::vector<MatrixView> Optimizer::views(const Group& group, float* flat, bf16* working) const {
  std::vector<MatrixView> result;
  const std::vector<std::size_t>& order = ownership_.matrices(group.class_index).order;
  for (std::size_t i = group.first; i < group.first + group.count; ++i) {
    result.push_back(view(group.matrices.items[order[i]], flat, working));
  }
  return result;
}

void Optimizer::step(Stream& stream, std::int64_t step, double lr_factor, const StepGate& gate) {
  step_matrices(stream, step, lr_factor, gate);
  gather(stream, true);  // travels while the rest is stepped
  step_elementwise(stream, step, lr_factor, gate);
  gather(stream, false);
  communicator_.finish(stream);
}

void Optimizer::gather(Stream& stream, bool matrices) {
  const std::vector<Segment>& segments = matrices ? matrix_segments_ : elementwise_segments_;
  if (!segments.empty()) communicator_.gather_from_owners(stream, segments);
}

void Optimizer::step_elementwise(Stream& stream, std::int64_t step, double lr_factor, const StepGate& gate) {
  std::vector<AdamWRange> adamw;
  std::vector<SgdRange> sgd;
  for (std::size_t i = 0; i < assignment_.elementwise.size(); ++i) {
    const ElementwiseState& mine = elementwise_[i];
    if (mine.part.elements == 0) continue;
    const OptimizerSettings& s = assignment_.elementwise[i].settings;
    const Parameter& p = table_[assignment_.elementwise[i].parameter];
    const std::int64_t offset = p.offset + mine.part.first;
    const auto lr = static_cast<float>(s.lr * lr_factor);
    const auto decay = static_cast<float>(s.weight_decay);
    bf16* const working = buffers_.working != nullptr && is_rounded(p.role) ? buffers_.working + offset : nullptr;
    if (s.kind == OptimizerKind::adamw) {
      adamw.push_back({buffers_.weights + offset, buffers_.gradients + offset, mine.first, mine.second,
                       mine.part.elements, lr, static_cast<float>(s.beta1), static_cast<float>(s.beta2),
                       static_cast<float>(s.eps), decay, step + 1, working, s.bf16_weights, s.bf16_moments});
    } else {
      sgd.push_back({buffers_.weights + offset, buffers_.gradients + offset, mine.first, mine.part.elements, lr,
                     static_cast<float>(momentum_at(s, step)), decay, s.nesterov, working});
    }
  }
  if (!adamw.empty()) backend_.elementwise().adamw(stream, adamw, gate);
  if (!sgd.empty()) backend_.elementwise().sgd(stream, sgd, gate);
}

void Optimizer::step_matrices(Stream& stream, std::int64_t step, double lr_factor, const StepGate& gate) {
  for (std::size_t c = 0; c < assignment_.classes.size(); ++c) step_class(stream, c, step, lr_factor, gate);
}

template <class Body>
void Optimizer::for_groups(std::size_t class_index, std::size_t first, std::size_t count, std::int64_t step,
                           double lr_factor, Body&& body) {
  const MatrixClass& matrices = assignment_.classes[class_index];
  const std::size_t most = group_sizes_[class_index];
  for (std::size_t i = first; i < first + count; i += most) {
    body(Group{matrices, class_index, i, std::min(most, first + count - i), step, lr_factor});
  }
}

void Optimizer::step_class(Stream& stream, std::size_t class_index, std::int64_t step, double lr_factor,
                           const StepGate& gate) {
  const Ownership::Class& owned = ownership_.matrices(class_index);
  const int rank = communicator_.rank();
  const bool factors = owned.exchange == Exchange::factors;
  for_groups(class_index, owned.first(rank), owned.count(rank), step, lr_factor, [&](const Group& group) {
    find_directions(stream, group, gate);
    if (!factors) apply_directions(stream, group, gate);
  });
  if (!factors) return;
  gather_factors(stream, class_index);
  for_groups(class_index, 0, owned.order.size(), step, lr_factor,
             [&](const Group& group) { apply_directions(stream, group, gate); });
}

std::size_t Optimizer::slot(const Group& group) const {
  return ownership_.matrices(group.class_index).exchange == Exchange::factors ? group.first : 0;
}

void Optimizer::orthogonalize(Stream& stream, const OptimizerSettings& settings, const StackShape& shape,
                              float* matrix) {
  if (settings.orthogonalizer == Orthogonalizer::exact) {
    backend_.matrix().exact_polar(stream, shape, matrix);
  } else {
    backend_.matrix().newton_schulz(stream, shape, newton_schulz_spec(settings), matrix, scratch_.tensor(3).f32());
  }
}

void Optimizer::find_directions(Stream& stream, const Group& group, const StepGate& gate) {
  const MatrixClass& matrices = group.matrices;
  const OptimizerSettings& s = matrices.settings;
  const Ownership::Class& owned = ownership_.matrices(group.class_index);
  MatrixOps& ops = backend_.matrix();
  std::vector<float*> momenta;
  std::vector<PhiloxKey> keys;
  for (std::size_t i = group.first; i < group.first + group.count; ++i) {
    const MatrixItem& item = matrices.items[owned.order[i]];
    momenta.push_back(momentum_[group.class_index][owned.order[i]]);
    keys.push_back(sketch_key(seed_, group.step, table_, item.parameter, item.block, shared_columns_));
  }
  MomentumRule rule;
  rule.kind = !has_momentum(s)                       ? MomentumKind::none
              : s.momentum_form == MomentumForm::ema ? MomentumKind::ema
                                                     : MomentumKind::heavy;
  rule.mu = static_cast<float>(momentum_at(s, group.step));
  rule.nesterov = s.nesterov;
  const auto n = static_cast<std::int64_t>(group.count);
  const StackShape shape{n, matrices.rows, matrices.cols};
  float* const stack = scratch_.tensor(0).f32();
  ops.momentum_to_stack(stream, rule, gate, views(group, buffers_.gradients, nullptr), momenta, stack);
  if (matrices.rank == 0) return orthogonalize(stream, s, shape, stack);

  const auto at = static_cast<std::int64_t>(slot(group));
  const std::int64_t basis_size = matrices.rows * matrices.rank, factor_size = matrices.rank * matrices.cols;
  float* const basis = scratch_.tensor(1).f32() + at * basis_size;
  float* const factor = scratch_.tensor(2).f32() + at * factor_size;
  const SketchRule sketch = sketch_rule_of(matrices);
  ops.sketch(stream, shape, matrices.rank, sketch.kind, sketch.power, keys, stack, basis);
  // The sketch and the projection are linear in the momentum, so sums of the processes' are those of the sum.
  const auto sum = [&](float* values, std::int64_t elements) {
    if (owned.exchange != Exchange::sketch) return;
    communicator_.sum_in_place(stream, values, elements);
    communicator_.finish(stream);
  };
  sum(basis, n * basis_size);
  ops.orthonormal_basis(stream, n, matrices.rows, matrices.rank, sketch.basis, basis);
  ops.project(stream, shape, matrices.rank, basis, stack, factor);
  sum(factor, n * factor_size);
  orthogonalize(stream, s, {n, matrices.rank, matrices.cols}, factor);
}

void Optimizer::apply_directions(Stream& stream, const Group& group, const StepGate& gate) {
  const MatrixClass& matrices = group.matrices;
  const std::vector<std::size_t>& order = ownership_.matrices(group.class_index).order;
  std::vector<float> scales;
  for (std::size_t i = group.first; i < group.first + group.count; ++i)
    scales.push_back(matrices.items[order[i]].scale);
  const std::vector<MatrixView> parameters = views(group, buffers_.weights, buffers_.working);
  const MatrixOps::UpdateRule rule{static_cast<float>(matrices.settings.lr * group.lr_factor),
                                   static_cast<float>(matrices.settings.weight_decay)};
  if (matrices.rank == 0) {
    return backend_.matrix().update_dense(stream, rule, gate, scratch_.tensor(0).f32(), scales, parameters);
  }
  const auto at = static_cast<std::int64_t>(slot(group));
  backend_.matrix().update_factors(stream, rule, gate, matrices.rank,
                                   scratch_.tensor(1).f32() + at * matrices.rows * matrices.rank,
                                   scratch_.tensor(2).f32() + at * matrices.rank * matrices.cols, scales, parameters);
}

void Optimizer::gather_factors(Stream& stream, std::size_t class_index) {
  const MatrixClass& matrices = assignment_.classes[class_index];
  const Ownership::Class& owned = ownership_.matrices(class_index);
  std::vector<Segment> segments;
  for (int owner = 0; owner < ownership_.processes(); ++owner) {
    const auto first = static_cast<std::int64_t>(owned.first(owner)),
               count = static_cast<std::int64_t>(owned.count(owner));
    if (count == 0) continue;
    const std::int64_t basis = matrices.rows * matrices.rank, factor = matrices.rank * matrices.cols;
    segments.push_back({scratch_.tensor(1).f32() + first * basis, DType::f32, count * basis, owner});
    segments.push_back({scratch_.tensor(2).f32() + first * factor, DType::f32, count * factor, owner});
  }
  communicator_.gather_from_owners(stream, segments);
  communicator_.finish(stream);
}

void Optimizer::complete_state(Stream& stream) {
  if (communicator_.size() > 1 && buffers_.working != nullptr) {
    std::vector<Segment> masters;
    for (const OwnedRange& range : ownership_.gathered()) {
      if (range.rounded) masters.push_back({buffers_.weights + range.offset, DType::f32, range.elements, range.owner});
    }
    communicator_.gather_from_owners(stream, masters);
  }
  for (const StateTensor& tensor : state_tensors_) {
    if (tensor.summed) communicator_.sum_in_place(stream, tensor.parts.front().data, tensor.elements());
  }
  communicator_.finish(stream);
}

void Optimizer::restart_sums(Stream& stream) {
  const float share = 1.0F / static_cast<float>(communicator_.size());
  for (const StateTensor& tensor : state_tensors_) {
    if (tensor.summed) backend_.elementwise().scale(stream, tensor.parts.front().data, tensor.elements(), share);
  }
}

}  // namespace polaron
