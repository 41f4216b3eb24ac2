// What the matrix ops share on one matrix, and the exact polar factor.
#include <cblas.h>
#include <lapacke.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "cpu/matrix_kernels.h"

namespace polaron::cpu {

double sum_of_squares(const float* x, std::int64_t n) {
  constexpr std::int64_t kParts = 64;  // fixed, so that the sum is the same for any number of threads
  double parts[kParts];
  const std::int64_t length = (n + kParts - 1) / kParts;
  const auto sum_parts = [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t part = first; part < last; ++part) {
      const std::int64_t end = std::min(n, (part + 1) * length);
      double sum = 0.0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t i = part * length; i < end; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      parts[part] = sum;
    }
  };
  for_ranges(kParts, length < 1024 ? kParts + 1 : kParts, sum_parts);
  double total = 0.0;
  for (const double part : parts) total += part;
  return total;
}

void scale(const float* from, double factor, float* to, std::int64_t n) {
  for_ranges(n, 1 << 16, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) to[i] = static_cast<float>(static_cast<double>(from[i]) * factor);
  });
}

void transpose(const float* from, std::int64_t rows, std::int64_t cols, float* to) {
  constexpr std::int64_t kBlock = 16;
  for (std::int64_t i0 = 0; i0 < rows; i0 += kBlock) {
    const std::int64_t i1 = std::min(rows, i0 + kBlock);
    for (std::int64_t j = 0; j < cols; ++j) {
      for (std::int64_t i = i0; i < i1; ++i) to[j * rows + i] = from[i * cols + j];
    }
  }
}

void exact_polar(std::int64_t rows, std::int64_t cols, float* x) {
  const auto refuse = [&] { std::fill(x, x + rows * cols, std::numeric_limits<float>::quiet_NaN()); };
  if (!std::isfinite(sum_of_squares(x, rows * cols))) return refuse();
  // To LAPACK, which counts columns first, x is X^T [cols, rows] = P S R^T: P arrives as its transpose [rows, cols] in
  // our order, and R^T as R [rows, rows].
  const auto m = static_cast<lapack_int>(cols), n = static_cast<lapack_int>(rows);
  std::vector<float> values(static_cast<std::size_t>(rows)), left(static_cast<std::size_t>(rows * cols)),
      right(static_cast<std::size_t>(rows * rows));
  std::vector<lapack_int> integers(static_cast<std::size_t>(8 * rows));
  const auto decompose = [&](float* work, lapack_int size) {
    return LAPACKE_sgesdd_work(LAPACK_COL_MAJOR, 'S', m, n, x, m, values.data(), left.data(), m, right.data(), n, work,
                               size, integers.data());
  };
  float best_size = 0.0F;
  if (decompose(&best_size, -1) != 0) throw std::logic_error("sgesdd did not say how much memory it needs");
  std::vector<float> work(static_cast<std::size_t>(best_size) + 1);
  const lapack_int info = decompose(work.data(), static_cast<lapack_int>(work.size()));
  if (info < 0) throw std::logic_error("sgesdd was called with an illegal argument");
  if (info > 0) return refuse();  // did not converge
  const float least = static_cast<float>(rows) * std::numeric_limits<float>::epsilon() * values[0];
  int rank = 0;
  while (rank < n && values[static_cast<std::size_t>(rank)] > least) ++rank;
  if (rank == 0) {
    std::fill(x, x + rows * cols, 0.0F);
    return;
  }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, m, rank, 1.0F, right.data(), n, left.data(), m, 0.0F, x, m);
}

}  // namespace polaron::cpu
