// What the tests of Newton-Schulz in bf16 compare with, on every backend: double precision that is rounded to bf16 in
// the same places.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string_view>

#include "backend/bf16.h"
#include "ops/matrix_reference.h"
#include "optim/newton_schulz_tables.h"

namespace polaron::test {

inline double half(double x) { return static_cast<double>(to_float(to_bf16(static_cast<float>(x)))); }

inline Dense halves(Dense x) {
  for (double& value : x.data) value = half(value);
  return x;
}

// left + factor * right.
inline Dense sum(const Dense& left, double factor, const Dense& right) {
  Dense result = left;
  for (std::size_t i = 0; i < result.data.size(); ++i) result.data[i] += factor * right.data[i];
  return result;
}

inline const NewtonSchulzRow& row_at(const NewtonSchulzSpec& spec, int step) {
  return spec.table[std::min(static_cast<std::size_t>(step), spec.table.size() - 1)];
}

inline double divisor_of(const NewtonSchulzSpec& spec, const Dense& x) {
  const auto eps = static_cast<double>(spec.norm_eps);
  return spec.clamp_norm ? std::max(norm(x), eps) : norm(x) * static_cast<double>(spec.norm_factor) + eps;
}

// The contract of NewtonSchulzSpec::dtype, with sums in double.
inline Dense rounded_newton_schulz_of(const NewtonSchulzSpec& spec, const Dense& input) {
  Dense x = halves(scaled(input, 1.0 / divisor_of(spec, input)));
  for (int step = 0; step < spec.steps; ++step) {
    const NewtonSchulzRow& row = row_at(spec, step);
    const Dense a = halves(product(x, transposed(x)));
    const Dense b = halves(sum(scaled(a, static_cast<double>(row.b)), static_cast<double>(row.c), product(a, a)));
    x = halves(sum(product(b, x), static_cast<double>(row.a), x));
  }
  return x;
}

inline NewtonSchulzSpec bf16_spec(std::string_view table, int steps = 0) {
  NewtonSchulzSpec spec = newton_schulz_spec(table, steps);
  spec.dtype = DType::bf16;
  return spec;
}

// Entries 0, 1 and -1, of which a power of 4 are not 0: the norm is a power of 2.
inline Dense signs(std::int64_t rows, std::int64_t cols) {
  std::int64_t nonzero = 1;
  while (4 * nonzero <= rows * cols) nonzero *= 4;
  Dense x(rows, cols);
  std::mt19937_64 generator(3);
  for (std::int64_t i = 0; i < nonzero; ++i) x.data[static_cast<std::size_t>(i)] = generator() % 2 == 0 ? 1.0 : -1.0;
  std::shuffle(x.data.begin(), x.data.end(), generator);
  return x;
}

}  // namespace polaron::test
