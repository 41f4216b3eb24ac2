// Cross-entropy in double precision, with its gradient written out: the reference of every backend's LossOps.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "backend/model_ops.h"
#include "ops/reference.h"

namespace polaron::test {

struct LossReference {
  double loss = 0.0;  // sum over the targets
  Doubles gradient;   // [rows, padded] of scale * loss
};

// z: logits, dense [rows, padded], of which the first `vocabulary` columns count; targets: [rows], -1 = none.
inline LossReference loss_reference(const Doubles& z, std::int64_t vocabulary, std::int64_t padded,
                                    const Softcap& softcap, const std::vector<std::int32_t>& targets, double scale) {
  const auto rows = static_cast<std::int64_t>(targets.size());
  LossReference result{0.0, Doubles(rows * padded)};
  for (std::int64_t n = 0; n < rows; ++n) {
    if (targets[n] < 0) continue;
    Doubles y(vocabulary), slope(vocabulary, 1.0);
    for (std::int64_t v = 0; v < vocabulary; ++v) {
      y[v] = z[n * padded + v];
      const double cap = softcap.cap;
      if (cap > 0.0 && softcap.form == Softcap::Form::tanh) {
        slope[v] = 1.0 / (std::cosh(y[v] / cap) * std::cosh(y[v] / cap));
        y[v] = cap * std::tanh(y[v] / cap);
      } else if (cap > 0.0) {
        slope[v] = cap * cap * cap * std::pow(y[v] * y[v] + cap * cap, -1.5);
        y[v] = cap * y[v] / std::sqrt(y[v] * y[v] + cap * cap);
      }
    }
    double maximum = y[0], sum = 0.0;
    for (const double value : y) maximum = std::max(maximum, value);
    for (const double value : y) sum += std::exp(value - maximum);
    const double lse = maximum + std::log(sum);
    result.loss += lse - y[targets[n]];
    for (std::int64_t v = 0; v < vocabulary; ++v) {
      const double wanted = v == targets[n] ? 1.0 : 0.0;
      result.gradient[n * padded + v] = scale * (std::exp(y[v] - lse) - wanted) * slope[v];
    }
  }
  return result;
}

}  // namespace polaron::test
