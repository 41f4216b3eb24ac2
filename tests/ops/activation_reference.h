// The activations in double precision, from the formulas in backend/model_ops.h.
#pragma once

#include <cmath>

#include "backend/model_ops.h"

namespace polaron::test {

inline const char* name_of(Activation activation) {
  switch (activation) {
    case Activation::none:
      return "none";
    case Activation::gelu_tanh:
      return "gelu_tanh";
    case Activation::gelu_erf:
      return "gelu_erf";
    case Activation::relu2:
      return "relu2";
    case Activation::swiglu:
      return "swiglu";
  }
  return "?";
}

// f(x); swiglu: silu(x) * up.
inline double reference_activation(Activation activation, double x, double up = 0.0) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::gelu_tanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::relu2:
      return x > 0.0 ? x * x : 0.0;
    case Activation::swiglu:
      return x / (1.0 + std::exp(-x)) * up;
  }
  return x;
}

// df/dx by central differences: the derivative is never written down a second time. The step balances the formula's
// h^2 against double precision's eps/h: errors stay below 1e-9.
inline double reference_derivative(Activation activation, double x, double up = 0.0) {
  constexpr double kStep = 1e-5;
  return (reference_activation(activation, x + kStep, up) - reference_activation(activation, x - kStep, up)) /
         (2.0 * kStep);
}

}  // namespace polaron::test
