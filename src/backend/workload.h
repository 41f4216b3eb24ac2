// What a training run asks of a backend, as far as the memory that its ops keep between calls depends on it.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/optimizer_ops.h"
#include "backend/tensor.h"

namespace polaron {

struct Workload {
  DType dtype = DType::f32;          // of activations
  std::int64_t sequences = 0;        // of a micro-batch
  std::int64_t sequence_length = 0;  // T
  std::int64_t width = 0;            // of the residual stream
  std::int64_t heads = 0;
  bool first_keys = false;                     // attention is given the first key of each row
  std::vector<std::int64_t> tables;            // columns of the embedding tables
  std::vector<std::int64_t> biased;            // outputs of the linear layers with a bias
  std::int64_t activated_in_place = 0;         // columns of a pre-activation that turns into its gradient; 0: none
  std::int64_t loss_rows = 0;                  // of logits at once
  bool mixes = false;                          // the model mixes by learned coefficients
  std::vector<std::int64_t> gradient_lengths;  // of the ranges whose squares are summed in one call

  // A class of matrices under one optimizer, in the largest group that the optimizer steps at once.
  struct Matrices {
    StackShape shape{0, 0, 0};
    std::int64_t updated = 0;  // matrices of the largest group that is updated: those of other owners too
    std::int64_t rank = 0;     // 0: full orthogonalization
    Sketch sketch = Sketch::columns;
    int power = 0;
    BasisMethod basis = BasisMethod::automatic;
    bool exact = false;  // by singular values, not Newton-Schulz
  };
  std::vector<Matrices> matrices;

  std::int64_t rows() const { return sequences * sequence_length; }
};

}  // namespace polaron
