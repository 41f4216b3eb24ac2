#include "train/plan.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "model/transformer.h"
#include "optim/optimizer.h"
#include "train/device_batch.h"

namespace polaron {

std::int64_t micro_batch_of(const TrainingConfig& training, int processes) {
  return std::min(training.micro_batch, std::max<std::int64_t>(1, training.batch / processes));
}

ActivationShape activation_shape(const Config& config) {
  ActivationShape shape;
  shape.sequences = config.training.micro_batch;
  shape.sequence_length = config.training.sequence_length;
  shape.recompute_blocks = config.training.recompute == Recompute::block;
  shape.loss_chunk = config.training.loss_chunk;
  shape.dtype = compute_type(config);
  return shape;
}

FlopsPerToken flops_per_token(const TransformerConfig& model, const ParameterTable& table,
                              std::int64_t sequence_length) {
  FlopsPerToken flops;
  flops.matmul_parameters = table.elements(Role::matrix) + model.softmax_size() * model.width;
  flops.matmul = 6.0 * static_cast<double>(flops.matmul_parameters);
  flops.attention = 6.0 * static_cast<double>(model.layers * model.heads * model.head_size * sequence_length);
  return flops;
}

namespace {

Workload workload_of(const Config& config, const ParameterTable& table, const Ownership& ownership, int rank,
                     std::vector<Workload::Matrices> matrices) {
  const TransformerConfig& model = config.model;
  const ActivationShape shape = activation_shape(config);
  const std::int64_t q_width = model.heads * model.head_size, kv_width = model.kv_heads * model.head_size;
  Workload work;
  work.dtype = shape.dtype;
  work.sequences = shape.sequences;
  work.sequence_length = shape.sequence_length;
  work.width = model.width;
  work.heads = model.heads;
  work.first_keys = model.document_mask || model.window_block > 0;
  work.tables = {model.width};
  if (model.value_embeddings > 0) work.tables.push_back(kv_width);
  if (model.biases) work.biased = {q_width + 2 * kv_width, model.width, mlp_pre_width(model)};
  if (model.mlp != MlpKind::swiglu) work.activated_in_place = mlp_pre_width(model);
  work.loss_rows = loss_chunk_rows(model, shape);
  work.mixes = model.x0_mixing || model.value_embeddings > 0 || !model.skips.empty();
  if (ownership.processes() == 1) {
    work.gradient_lengths = {table.stored_elements()};
  } else {
    for (const OwnedRange& range : ownership.reduced()) {
      if (range.owner == rank) work.gradient_lengths.push_back(range.elements);
    }
    for (const OwnedRange& range : ownership.local()) work.gradient_lengths.push_back(range.elements);
  }
  work.matrices = std::move(matrices);
  return work;
}

}  // namespace

MemoryPlan plan_memory(const Config& config, const ParameterTable& table, const Assignment& assignment,
                       const Ownership& ownership, int rank, Backend& backend) {
  MemoryPlan plan;
  plan.weights = table.stored_elements() * 4;
  plan.gradients = plan.weights;
  if (computed_in_bf16(config)) plan.weights += table.stored_elements() * 2;
  const Optimizer::Plan optimizer = Optimizer::plan(assignment, ownership, rank, table, backend);
  plan.optimizer_state = optimizer.state.bytes();
  plan.optimizer_scratch = optimizer.scratch.bytes();
  const ActivationShape shape = activation_shape(config);
  plan.activations =
      ActivationLayout(config.model, shape).plan().bytes() + Transformer::table_bytes(config.model, shape);
  plan.batches = BatchUploader::bytes(shape.rows());
  plan.ops = backend.scratch_bytes(workload_of(config, table, ownership, rank, optimizer.matrices));
  return plan;
}

std::int64_t largest_micro_batch(Config config, const ParameterTable& table, const Assignment& assignment,
                                 const Ownership& ownership, int rank, Backend& backend, std::int64_t bytes) {
  const std::int64_t share = std::max<std::int64_t>(1, config.training.batch / ownership.processes());
  for (std::int64_t count = 1; count <= share; ++count) {
    if (share % count != 0) continue;
    config.training.micro_batch = share / count;
    if (plan_memory(config, table, assignment, ownership, rank, backend).total() <= bytes) return share / count;
  }
  return 0;
}

TrafficPlan plan_traffic(const Ownership& ownership, bool rounded) {
  const std::int64_t others = ownership.processes() - 1;
  TrafficPlan traffic;
  for (const OwnedRange& range : ownership.reduced()) traffic.gradients += others * range.elements * 4;
  for (const OwnedRange& range : ownership.gathered()) {
    traffic.parameters += others * range.elements * (rounded && range.rounded ? 2 : 4);
  }
  traffic.factors = others * ownership.factor_elements() * 4;
  traffic.sketches = 2 * others * ownership.sketch_elements() * 4;
  return traffic;
}

}  // namespace polaron
