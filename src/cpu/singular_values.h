// Singular values on the host, for diagnostics.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace polaron {

// The min(rows, cols) singular values of a dense row-major matrix, the largest first. They are roots of the eigenvalues
// of the smaller Gram matrix in double precision: an absolute error of about 1e-8 of the largest one, and a fraction of
// the cost of a decomposition. NaN or infinity in the matrix: all NaN.
std::vector<double> singular_values(std::span<const float> matrix, std::int64_t rows, std::int64_t cols);

}  // namespace polaron
