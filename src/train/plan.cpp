#include "train/plan.h"

#include "model/transformer.h"
#include "optim/optimizer.h"
#include "train/device_batch.h"

namespace polaron {

ActivationShape activation_shape(const Config& config) {
  ActivationShape shape;
  shape.sequences = config.training.micro_batch;
  shape.sequence_length = config.training.sequence_length;
  shape.recompute_blocks = config.training.recompute == Recompute::block;
  shape.loss_chunk = config.training.loss_chunk;
  return shape;
}

FlopsPerToken flops_per_token(const TransformerConfig& model, const ParameterTable& table,
                              std::int64_t sequence_length) {
  FlopsPerToken flops;
  flops.matmul_parameters = table.elements(Role::matrix) + model.vocabulary * model.width;
  flops.matmul = 6.0 * static_cast<double>(flops.matmul_parameters);
  flops.attention = 6.0 * static_cast<double>(model.layers * model.heads * model.head_size * sequence_length);
  return flops;
}

MemoryPlan plan_memory(const Config& config, const ParameterTable& table, const Assignment& assignment,
                       Backend& backend) {
  MemoryPlan plan;
  plan.weights = table.stored_elements() * 4;
  plan.gradients = plan.weights;
  const Optimizer::Plan optimizer = Optimizer::plan(assignment, table, backend);
  plan.optimizer_state = optimizer.state.bytes();
  plan.optimizer_scratch = optimizer.scratch.bytes();
  const ActivationShape shape = activation_shape(config);
  plan.activations =
      ActivationLayout(config.model, shape).plan().bytes() + Transformer::table_bytes(config.model, shape);
  plan.batches = BatchUploader::bytes(shape.rows());
  return plan;
}

TrafficPlan plan_traffic(const ParameterTable& table, const Assignment& assignment, int processes) {
  std::int64_t low_rank_elements = 0;
  std::int64_t factor_elements = 0;
  for (const MatrixClass& c : assignment.classes) {
    if (c.rank == 0) continue;
    const auto count = static_cast<std::int64_t>(c.items.size());
    low_rank_elements += count * c.rows * c.cols;
    factor_elements += count * (c.rows + c.cols) * c.rank;
  }
  // A ring moves (P-1)/P of the data through every process.
  const auto sent = [&](std::int64_t elements) { return elements * 4 / processes * (processes - 1); };
  TrafficPlan traffic;
  traffic.gradients = sent(table.elements());
  traffic.parameters = sent(table.elements());
  traffic.parameters_factors = sent(table.elements() - low_rank_elements + factor_elements);
  return traffic;
}

}  // namespace polaron
