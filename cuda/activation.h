// The activations of the linear layers, where they are not part of a product's epilogue. Formulas: backend/model_ops.h.
// Rows may have strides; NaN in, NaN out.
#pragma once

#include "backend/model_ops.h"
#include "cuda/launch.h"

namespace polaron::cuda {

// activated = f(pre). pre [N, H] (swiglu: gate|up [N, 2H]), activated [N, H], of one type.
void activate(Stream& stream, Activation activation, const Tensor& pre, const Tensor& activated);

// d_pre = d_activated * f'(pre). d_activated [N, H]; pre and d_pre as above, d_pre may be pre itself.
void differentiate(Stream& stream, Activation activation, const Tensor& pre, const Tensor& d_activated,
                   const Tensor& d_pre);

}  // namespace polaron::cuda
