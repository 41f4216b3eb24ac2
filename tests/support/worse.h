#pragma once

#include <cmath>

namespace polaron::test {

// The larger of two errors, and NaN where one of them is that: std::max would forget it.
inline double worse(double a, double b) { return std::isnan(a) || a >= b ? a : b; }

}  // namespace polaron::test
