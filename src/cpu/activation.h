// The activations of the linear layers and their derivatives on blocks of matrices: the epilogues of the products.
// Formulas: backend/model_ops.h. All fp32, strides in floats. NaN in, NaN out.
#pragma once

#include <cstdint>

#include "backend/model_ops.h"

namespace polaron::cpu {

struct ActivationBlock {
  std::int64_t rows = 0;
  std::int64_t cols = 0;  // of the activation's result
  // The pre-activation; for swiglu the gate, with `up` beside it at the same stride (null otherwise).
  const float* pre = nullptr;
  const float* up = nullptr;
  std::int64_t pre_stride = 0;
};

// out[r][c] += bias[c].
void add_bias(std::int64_t rows, std::int64_t cols, const float* bias, float* out, std::int64_t stride);

// activated = f(pre).
void activate_block(Activation activation, const ActivationBlock& block, float* activated, std::int64_t stride);

// d_pre = d_activated * f'(pre), and for swiglu d_up beside it. May overwrite pre and up.
void differentiate_block(Activation activation, const ActivationBlock& block, const float* d_activated,
                         std::int64_t d_activated_stride, float* d_pre, float* d_up, std::int64_t d_pre_stride);

}  // namespace polaron::cpu
