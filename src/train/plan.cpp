#include "train/plan.h"

#include <algorithm>

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
  shape.dtype = computed_in_bf16(config) ? DType::bf16 : DType::f32;
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
  return plan;
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
