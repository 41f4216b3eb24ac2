// Cases and formulas of mixing, for the tests of every backend.
#pragma once

#include "backend/model_ops.h"
#include "ops/reference.h"

namespace polaron::test {

struct MixSizes {
  std::int64_t rows, cols;
};
// Narrower than an access of 16 bytes, odd, aligned, and more than one block of a kernel.
inline constexpr MixSizes kMixSizes[] = {{1, 1}, {3, 5}, {7, 64}, {40, 129}, {130, 72}};

// a x + b y.
inline Doubles scaled_sum(const Doubles& x, float a, const Doubles& y, float b) {
  Doubles sum(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) sum[i] = static_cast<double>(a) * x[i] + static_cast<double>(b) * y[i];
  return sum;
}
inline Doubles mixed(const Matrix& x, float a, const Matrix& y, float b) {
  return scaled_sum(x.values(), a, y.values(), b);
}

}  // namespace polaron::test
