#include "cpu/singular_values.h"

#include <cblas.h>
#include <lapacke.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace polaron {

std::vector<double> singular_values(std::span<const float> matrix, std::int64_t rows, std::int64_t cols) {
  if (static_cast<std::int64_t>(matrix.size()) != rows * cols) throw std::logic_error("singular values: another size");
  const std::int64_t least = std::min(rows, cols);
  std::vector<double> values(static_cast<std::size_t>(least), std::numeric_limits<double>::quiet_NaN());
  if (!std::all_of(matrix.begin(), matrix.end(), [](float x) { return std::isfinite(x); })) return values;
  const std::vector<double> x(matrix.begin(), matrix.end());
  std::vector<double> gram(static_cast<std::size_t>(least * least));
  const auto n = static_cast<blasint>(least), k = static_cast<blasint>(std::max(rows, cols));
  cblas_dsyrk(CblasRowMajor, CblasLower, rows <= cols ? CblasNoTrans : CblasTrans, n, k, 1.0, x.data(),
              static_cast<blasint>(cols), 0.0, gram.data(), n);
  // Row-major lower is LAPACK's upper.
  if (LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'N', 'U', n, gram.data(), n, values.data()) != 0) {
    std::fill(values.begin(), values.end(), std::numeric_limits<double>::quiet_NaN());
    return values;
  }
  for (double& value : values) value = std::sqrt(std::max(value, 0.0));
  std::reverse(values.begin(), values.end());
  return values;
}

}  // namespace polaron
