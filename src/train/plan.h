// What a run will need, worked out without allocating anything: parameters, memory, arithmetic and traffic.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "config/config.h"
#include "model/activations.h"
#include "model/parameters.h"
#include "optim/assignment.h"
#include "optim/ownership.h"

namespace polaron {

// Bytes of each class of memory of one process.
struct MemoryPlan {
  std::int64_t weights = 0;  // fp32 masters, and the bf16 copy where the model computes in it
  std::int64_t gradients = 0;
  std::int64_t optimizer_state = 0;
  std::int64_t optimizer_scratch = 0;
  std::int64_t activations = 0;  // with the chunk of logits and the rotary tables
  std::int64_t batches = 0;      // tokens, targets and documents, two micro-batches of them
  std::int64_t ops = 0;          // what the backend's ops keep between calls, on a device that is not the CPU; at most
  std::int64_t total() const {
    return weights + gradients + optimizer_state + optimizer_scratch + activations + batches + ops;
  }
};

// Floating-point operations of training on one token, multiplications and additions counted separately.
struct FlopsPerToken {
  std::int64_t matmul_parameters =
      0;                 // N: parameters used in a matrix product (an untied token table is not, a tied one once)
  double matmul = 0;     // 6 N: forward 2 N, backward 4 N
  double attention = 0;  // 6 L C T: causal, half of the square (the convention of llm.c)
  double total() const { return matmul + attention; }
};

// Bytes a step that all processes together send to sums elsewhere and receive from owners (Communicator::bytes_moved).
// Through each process of a ring goes this divided by their number.
struct TrafficPlan {
  std::int64_t gradients = 0;   // summed on their owners, fp32: (P-1) times all of them
  std::int64_t parameters = 0;  // from their owners: the same
  std::int64_t factors = 0;     // of low-rank updates, from the matrices' owners: (P-1) times (m+n) r numbers each
  std::int64_t sketches = 0;    // sketches and projections, summed everywhere: twice that
  std::int64_t total() const { return gradients + parameters + factors + sketches; }
};

FlopsPerToken flops_per_token(const TransformerConfig& model, const ParameterTable& table,
                              std::int64_t sequence_length);
// Of process `rank`. config.training.micro_batch is a number here, not "auto".
MemoryPlan plan_memory(const Config& config, const ParameterTable& table, const Assignment& assignment,
                       const Ownership& ownership, int rank, Backend& backend);
// rounded: parameters that the model computes with in bf16 travel so.
TrafficPlan plan_traffic(const Ownership& ownership, bool rounded);

// Of a config whose precision is settled (backend_factory.h).
inline bool computed_in_bf16(const Config& config) { return config.precision == "bf16"; }
inline DType compute_type(const Config& config) { return computed_in_bf16(config) ? DType::bf16 : DType::f32; }

// The largest micro-batch, a divisor of one process's share of the batch, whose plan takes at most `bytes`; 0: none.
std::int64_t largest_micro_batch(Config config, const ParameterTable& table, const Assignment& assignment,
                                 const Ownership& ownership, int rank, Backend& backend, std::int64_t bytes);

// Sequences of a micro-batch of one of so many processes: the config's (also "auto"), or its share of the batch where
// that is less.
std::int64_t micro_batch_of(const TrainingConfig& training, int processes);

// Shape of the activations that a config asks for.
ActivationShape activation_shape(const Config& config);

}  // namespace polaron
