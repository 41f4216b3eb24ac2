// The optimizer of a run: steps every parameter by its assignment, each process what it owns (optim/ownership.h), and
// sees to it that afterwards all processes have all parameters.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/arena.h"
#include "backend/backend.h"
#include "comm/communicator.h"
#include "config/config.h"
#include "model/parameters.h"
#include "optim/assignment.h"
#include "optim/ownership.h"

namespace polaron {

// A named piece of optimizer state in device memory, for checkpoints: "momentum.<matrix>" [rows, cols] (logical,
// contiguous), "adamw.m.<parameter>" and "adamw.v.<parameter>" [1, stored elements].
struct StateTensor {
  // Elements [first, first + elements), on the process that owns them.
  struct Part {
    int owner = 0;
    std::int64_t first = 0;
    std::int64_t elements = 0;
    float* data = nullptr;  // null where another process owns it
  };
  std::string name;
  std::int64_t rows = 0, cols = 0;
  std::vector<Part> parts;  // in order, together the whole tensor
  // Every process holds an addend of the tensor, all of it (parts: one, with data everywhere).
  bool summed = false;
  std::int64_t elements() const { return rows * cols; }
};

class Optimizer {
 public:
  // Plans state and scratch of one process without allocating.
  struct Plan {
    ArenaPlan state;
    ArenaPlan scratch;
    std::vector<Workload::Matrices> matrices;  // what it will ask of the backend's ops
  };
  static Plan plan(const Assignment& assignment, const Ownership& ownership, int rank, const ParameterTable& table,
                   Backend& backend);

  // All references must outlive the optimizer, as must the buffers. `seed` keys the random sketches, which q, k, v and
  // o of an attention share where `shared_columns` (quirk Q11). Collective.
  Optimizer(Assignment assignment, const ParameterTable& table, Backend& backend, Communicator& communicator,
            Exchange exchange, std::uint64_t seed, const FlatBuffers& buffers, bool shared_columns = false);

  // One update, from gradients that are on their owners (or everywhere, where their sketches travel). step: 0 for the
  // first. lr_factor: of the schedule. With gate.apply = 0 nothing changes. Afterwards every process has all
  // parameters, for work queued on `stream`.
  void step(Stream& stream, std::int64_t step, double lr_factor, const StepGate& gate);
  // Its two halves, for benchmarks: parameters under AdamW or SGD; matrices under matrix optimizers.
  void step_elementwise(Stream& stream, std::int64_t step, double lr_factor, const StepGate& gate);
  void step_matrices(Stream& stream, std::int64_t step, double lr_factor, const StepGate& gate);

  // Collective, before weights and state are stored: every process gets the masters that lie with their owners, and a
  // momentum that the processes hold in addends becomes its sum on every one. After storing it, restart_sums() makes it
  // an addend again.
  void complete_state(Stream& stream);
  // Every process takes the same share of the whole: after complete_state(), and after `state` was loaded.
  void restart_sums(Stream& stream);

  const std::vector<StateTensor>& state() const { return state_tensors_; }
  const Assignment& assignment() const { return assignment_; }
  const Ownership& ownership() const { return ownership_; }

 private:
  // A run of matrices of one class that are stepped in one go: order[first] to order[first + count - 1].
  struct Group {
    const MatrixClass& matrices;
    std::size_t class_index, first, count;
    std::int64_t step;
    double lr_factor;
  };
  template <class Body>
  void for_groups(std::size_t class_index, std::size_t first, std::size_t count, std::int64_t step, double lr_factor,
                  Body&& body);
  void step_class(Stream& stream, std::size_t class_index, std::int64_t step, double lr_factor, const StepGate& gate);
  // Momentum into the stack; orthogonalized there (full), or as basis and factor (low rank, slots in class order).
  void find_directions(Stream& stream, const Group& group, const StepGate& gate);
  void orthogonalize(Stream& stream, const OptimizerSettings& settings, const StackShape& shape, float* matrix);
  void apply_directions(Stream& stream, const Group& group, const StepGate& gate);
  void gather_factors(Stream& stream, std::size_t class_index);
  void gather(Stream& stream, bool matrices);
  std::size_t slot(const Group& group) const;  // of the group's first matrix in the memory of factors
  MatrixView view(const MatrixItem& item, float* flat, bf16* working) const;
  std::vector<MatrixView> views(const Group& group, float* flat, bf16* working) const;

  Assignment assignment_;
  const ParameterTable& table_;
  Backend& backend_;
  Communicator& communicator_;
  Ownership ownership_;
  std::vector<std::size_t> group_sizes_;  // [class]: matrices that are stepped in one go
  std::uint64_t seed_;
  bool shared_columns_;  // q, k, v and o of a block draw the same sketch
  FlatBuffers buffers_;
  Arena state_;
  Arena scratch_;
  std::vector<StateTensor> state_tensors_;
  std::vector<std::vector<float*>> momentum_;  // [class][item]; null without momentum, or where another owns it
  struct ElementwiseState {
    Ownership::Part part;  // none here: no elements
    float* first = nullptr;
    float* second = nullptr;
  };
  std::vector<ElementwiseState> elementwise_;                    // m and v, or momentum and null
  std::vector<Segment> matrix_segments_, elementwise_segments_;  // gathered after the step
};

}  // namespace polaron
