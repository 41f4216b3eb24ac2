// How the steps of Newton-Schulz on X [rows, cols] are cut into runs that work on [rows, rows] matrices alone; the same
// on every backend.
//
// One step is X <- M X with M = a I + b A + c A^2, A = X X^T. Several steps in a row need only one pass over X: M and
// the next A = M A M are polynomials of the first A, so a run of steps ends in X <- M_s ... M_1 X ("Gram
// Newton-Schulz", github.com/Dao-AILab/gram-newton-schulz). The price is that A holds the squares of the singular
// values: those below sqrt(eps) of the largest drown in A's rounding error, and the error they get grows with the
// square of the run's slope at 0, the product of its a's. Runs are therefore cut where that product would exceed
// kRunSlope, after which A is computed afresh. Measured in fp32 against double precision, for every named table on
// flat, decaying and rank-deficient spectra from 96 x 768 to 768 x 3072: with 64 the errors are those of single steps
// or less, never cutting makes them up to several hundred times larger.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "backend/optimizer_ops.h"

namespace polaron {

// The coefficients of a step; spec.table is not empty.
inline const NewtonSchulzRow& row_of(const NewtonSchulzSpec& spec, int step) {
  return spec.table[std::min(static_cast<std::size_t>(step), spec.table.size() - 1)];
}

// One past the last step of the run that starts with `step`.
inline int end_of_run(const NewtonSchulzSpec& spec, std::int64_t rows, std::int64_t cols, int step) {
  constexpr double kRunSlope = 64.0;
  constexpr std::int64_t kWide = 3;  // cols >= kWide * rows: runs of steps do less arithmetic than single ones
  double slope = std::abs(static_cast<double>(row_of(spec, step).a));
  int end = step + 1;
  while (cols >= kWide * rows && end < spec.steps) {
    slope *= std::abs(static_cast<double>(row_of(spec, end).a));
    if (!(slope <= kRunSlope)) break;
    ++end;
  }
  return end;
}

inline int number_of_runs(const NewtonSchulzSpec& spec, std::int64_t rows, std::int64_t cols) {
  int runs = 0;
  for (int step = 0; step < spec.steps; step = end_of_run(spec, rows, cols, step)) ++runs;
  return runs;
}

}  // namespace polaron
