// The optimizer of a run: steps every parameter by its assignment. One process owns everything here; sharing state
// among processes is the communicator's business and comes with it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/arena.h"
#include "backend/backend.h"
#include "config/config.h"
#include "model/parameters.h"
#include "optim/assignment.h"

namespace polaron {

// A named piece of optimizer state in device memory, for checkpoints: "momentum.<matrix>" [rows, cols] (logical,
// contiguous), "adamw.m.<parameter>" and "adamw.v.<parameter>" [stored elements].
struct StateTensor {
  std::string name;
  Tensor tensor;
};

class Optimizer {
 public:
  // Plans state and scratch without allocating.
  struct Plan {
    ArenaPlan state;
    ArenaPlan scratch;
  };
  static Plan plan(const Assignment& assignment, const ParameterTable& table, Backend& backend);

  // weights, gradients: flat fp32 device buffers laid out by `table`. All references must outlive the optimizer. `seed`
  // keys the random sketches.
  Optimizer(Assignment assignment, const ParameterTable& table, Backend& backend, std::uint64_t seed, float* weights,
            float* gradients);

  // One update. step: 0 for the first. lr_factor: of the schedule. With gate.apply = 0 nothing changes.
  void step(Stream& stream, std::int64_t step, double lr_factor, const StepGate& gate);
  // Its two halves, for benchmarks: parameters under AdamW or SGD; matrices under matrix optimizers.
  void step_elementwise(Stream& stream, std::int64_t step, double lr_factor, const StepGate& gate);
  void step_matrices(Stream& stream, std::int64_t step, double lr_factor, const StepGate& gate);

  const std::vector<StateTensor>& state() const { return state_tensors_; }
  const Assignment& assignment() const { return assignment_; }

 private:
  void step_group(Stream& stream, const MatrixClass& matrices, std::size_t class_index, std::size_t first,
                  std::size_t count, std::int64_t step, double lr_factor, const StepGate& gate);
  MatrixView view(const MatrixItem& item, float* flat) const;

  Assignment assignment_;
  const ParameterTable& table_;
  Backend& backend_;
  std::uint64_t seed_;
  float* weights_;
  float* gradients_;
  Arena state_;
  Arena scratch_;
  std::vector<StateTensor> state_tensors_;
  std::vector<std::vector<float*>> momentum_;                 // [class][item]; null without momentum
  std::vector<std::pair<float*, float*>> elementwise_state_;  // m and v, or momentum and null
};

}  // namespace polaron
