// The epilogues of the linear layers in bf16 (internal to linear*.cpp): everything is computed in fp32, on the sums of
// the product or on what was rounded from them, and rounded once.
#pragma once

#include <cstdint>

#include "backend/model_ops.h"
#include "cpu/gemm.h"

namespace polaron::cpu {

// Adds the bias and leaves the block rounded to bf16, for C; activated = f(rounded block), so that `activate` finds the
// same from C later.
class Bf16ForwardEpilogue final : public GemmEpilogue {
 public:
  // bias and activated may be null. half: the column where swiglu's up begins.
  Bf16ForwardEpilogue(const float* bias, std::int64_t half, Activation activation, bf16* activated, std::int64_t stride)
      : bias_(bias), half_(half), activation_(activation), activated_(activated), stride_(stride) {}
  void apply(const GemmBlock& block) const override;

 private:
  const float* bias_;
  std::int64_t half_;
  Activation activation_;
  bf16* activated_;
  std::int64_t stride_;
};

// d_pre = block * f'(pre); d_pre may be pre.
class Bf16DerivativeEpilogue final : public GemmEpilogue {
 public:
  // half: the column where swiglu's up begins, 0 for other activations.
  Bf16DerivativeEpilogue(Activation activation, const bf16* pre, std::int64_t pre_stride, bf16* d_pre,
                         std::int64_t d_pre_stride, std::int64_t half)
      : activation_(activation),
        pre_(pre),
        pre_stride_(pre_stride),
        d_pre_(d_pre),
        d_pre_stride_(d_pre_stride),
        half_(half) {}
  void apply(const GemmBlock& block) const override;

 private:
  Activation activation_;
  const bf16* pre_;
  std::int64_t pre_stride_;
  bf16* d_pre_;
  std::int64_t d_pre_stride_;
  std::int64_t half_;
};

// to[c] = f(pre[c]), c < cols; swiglu: silu(pre[c]) up[c].
void activate_bf16_row(Activation activation, std::int64_t cols, const bf16* pre, const bf16* up, bf16* to);

}  // namespace polaron::cpu
