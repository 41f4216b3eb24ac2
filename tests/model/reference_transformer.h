// The transformer's forward pass once more, in double precision and as plainly as possible: the reference for logits
// and loss, and by differences for every gradient.
#pragma once

#include <cstdint>
#include <vector>

#include "config/transformer_config.h"
#include "model/parameters.h"
#include "support/tiny_model.h"

namespace polaron::test {

// Logits [rows, softmax_size], after the soft-cap. `weights`: flat, laid out by `table`.
std::vector<double> reference_logits(const TransformerConfig& config, const ParameterTable& table,
                                     const std::vector<double>& weights, const HostBatch& batch);

// Sum of the cross-entropy over the batch's targets.
double reference_loss_sum(const TransformerConfig& config, const ParameterTable& table,
                          const std::vector<double>& weights, const HostBatch& batch);

}  // namespace polaron::test
