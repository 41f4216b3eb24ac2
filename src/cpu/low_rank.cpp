// Low-rank orthogonalization (arXiv 2509.11983): the sketch Y of X, an orthonormal basis Q of its columns, and Q^T X.
#include <cblas.h>
#include <lapacke.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/blas.h"
#include "cpu/matrix_kernels.h"

namespace polaron::cpu {
namespace {

constexpr std::int64_t kLapackBlock = 32;  // columns whose reflections are applied together

void check(lapack_int info, const char* routine) {
  if (info < 0) throw std::logic_error(std::string(routine) + " was called with an illegal argument");
}

// q [rows, count] = the first columns of the product of the reflections that sgeqrt left below the diagonal of
// `columns` and in `factors`. Column-major. What sorgqr does, which applies them one by one up to 128 columns: twice as
// fast there.
void form_basis(lapack_int rows, lapack_int count, lapack_int block, const float* columns, const float* factors,
                float* q, float* work) {
  std::fill(q, q + std::int64_t{rows} * count, 0.0F);
  for (lapack_int j = 0; j < count; ++j) q[std::int64_t{j} * rows + j] = 1.0F;
  for (lapack_int first = (count - 1) / block * block; first >= 0; first -= block) {
    const std::int64_t corner = std::int64_t{first} * rows + first;
    check(LAPACKE_slarfb_work(LAPACK_COL_MAJOR, 'L', 'N', 'F', 'C', rows - first, count - first,
                              std::min(block, count - first), columns + corner, rows,
                              factors + std::int64_t{first} * block, block, q + corner, rows, work, count - first),
          "slarfb");
  }
}

// y [rows, rank] -> Q by Householder reflections. LAPACK wants columns: it works on a transposed copy. It would make an
// arbitrary direction of a column that is zero; those are left out.
void householder(std::int64_t rows, std::int64_t rank, float* y, float* workspace) {
  float* columns = workspace;
  float* q = columns + rows * rank;
  float* factors = q + rows * rank;
  float* work = factors + rank * kLapackBlock;
  auto* kept = reinterpret_cast<std::uint32_t*>(work + rank * kLapackBlock);
  transpose(y, rows, rank, columns);
  std::int64_t count = 0;
  for (std::int64_t j = 0; j < rank; ++j) {
    const float* column = columns + j * rows;
    if (std::all_of(column, column + rows, [](float value) { return value == 0.0F; })) continue;
    if (count < j) std::copy(column, column + rows, columns + count * rows);
    kept[count++] = static_cast<std::uint32_t>(j);
  }
  if (count == 0) return;
  const auto m = static_cast<lapack_int>(rows), k = static_cast<lapack_int>(count);
  const auto block = static_cast<lapack_int>(std::min(count, kLapackBlock));
  check(LAPACKE_sgeqrt_work(LAPACK_COL_MAJOR, m, k, block, columns, m, factors, block, work), "sgeqrt");
  form_basis(m, k, block, columns, factors, q, work);
  if (count == rank) {
    transpose(q, rank, rows, y);
    return;
  }
  for (std::int64_t c = 0; c < count; ++c) {  // the columns left out are zero already
    for (std::int64_t i = 0; i < rows; ++i) y[i * rank + kept[c]] = q[c * rows + i];
  }
}

// gram [rank, rank] -> its lower Cholesky factor after a shift of the diagonal; returns the shift, or NaN if gram is
// not finite. 1e-6 of the trace (8 units of fp32 rounding of the whole matrix) has been enough for any finite matrix
// that was seen; more is tried before giving up.
double shifted_cholesky(std::int64_t rank, const float* gram, float* factor) {
  double trace = 0.0;
  for (std::int64_t i = 0; i < rank; ++i) trace += static_cast<double>(gram[i * rank + i]);
  const auto k = static_cast<lapack_int>(rank);
  for (double shift = 1e-6 * trace + 1e-30; shift <= 1e-3 * trace + 1e-30; shift *= 10.0) {
    std::copy(gram, gram + rank * rank, factor);
    for (std::int64_t i = 0; i < rank; ++i) factor[i * rank + i] += static_cast<float>(shift);
    // Row-major lower is column-major upper.
    if (LAPACKE_spotrf_work(LAPACK_COL_MAJOR, 'U', k, factor, k) == 0) return shift;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

// y [rows, rank] -> Q by three passes of Q <- Q L^-T with L L^T = Q^T Q + shift. Directions that y has only in its
// rounding errors end up anywhere between zero and orthonormal, zero columns zero. NaN throughout where y is not
// finite.
void cholesky_qr(std::int64_t rows, std::int64_t rank, float* y, float* workspace) {
  const std::int64_t elements = rows * rank;
  const double norm = std::sqrt(sum_of_squares(y, elements));
  if (norm == 0.0) return;
  scale(y, 1.0 / norm, y, elements);  // Q is the same; y^T y could overflow or underflow otherwise
  float* gram = workspace;
  float* factor = gram + rank * rank;
  const int m = static_cast<int>(rows), k = static_cast<int>(rank);
  constexpr int kPasses = 3;
  for (int pass = 1; pass <= kPasses; ++pass) {
    cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, k, m, 1.0F, y, k, 0.0F, gram, k);
    const double shift = shifted_cholesky(rank, gram, factor);
    if (std::isnan(shift)) {
      std::fill(y, y + elements, std::numeric_limits<float>::quiet_NaN());
      return;
    }
    // The last pass gets columns of length 1, which the shift makes too short by sqrt(1 + shift).
    const float length = pass == kPasses ? static_cast<float>(std::sqrt(1.0 + shift)) : 1.0F;
    cblas_strsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, m, k, length, factor, k, y, k);
  }
}

// Of the first `among` columns.
void gather_columns(const PhiloxKey& key, std::int64_t rows, std::int64_t cols, std::int64_t among, std::int64_t rank,
                    const float* x, float* y, float* workspace) {
  auto* chosen = reinterpret_cast<std::uint32_t*>(workspace);
  for (std::int64_t j = 0; j < rank; ++j) {
    chosen[j] = keyed_permutation(key, static_cast<std::uint32_t>(among), static_cast<std::uint32_t>(j));
  }
  for_ranges(rows, 256, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const float* row = x + i * cols;
      for (std::int64_t j = 0; j < rank; ++j) y[i * rank + j] = row[chosen[j]];
    }
  });
}

// y = x Omega.
void multiply_by_gaussian(const PhiloxKey& key, std::int64_t rows, std::int64_t cols, std::int64_t rank, const float* x,
                          float* y, float* workspace) {
  for_ranges(cols * rank, 4096, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t e = first; e < last; ++e) workspace[e] = sketch_gaussian(key, static_cast<std::uint64_t>(e));
  });
  sgemm(false, false, rows, rank, cols, x, cols, workspace, rank, 0.0F, y, rank);
}

}  // namespace

std::size_t basis_floats(std::int64_t rows, std::int64_t rank) {
  return static_cast<std::size_t>(std::max(2 * rows * rank + rank * (2 * kLapackBlock + 1), 2 * rank * rank));
}

void orthonormal_basis(BasisMethod method, std::int64_t rows, std::int64_t rank, float* y, float* workspace) {
  (method == BasisMethod::cholesky_qr ? cholesky_qr : householder)(rows, rank, y, workspace);
}

std::size_t sketch_floats(std::int64_t rows, std::int64_t cols, std::int64_t rank, Sketch kind, int power) {
  std::size_t floats = static_cast<std::size_t>(kind == Sketch::gaussian ? cols * rank : rank);
  if (power > 0) floats = std::max(floats, std::max(basis_floats(rows, rank), static_cast<std::size_t>(rank * cols)));
  return floats;
}

void sketch(const PhiloxKey& key, std::int64_t rows, std::int64_t cols, std::int64_t rank, Sketch kind, int power,
            const float* x, float* y, float* workspace) {
  if (kind == Sketch::gaussian) {
    multiply_by_gaussian(key, rows, cols, rank, x, y, workspace);
  } else {
    gather_columns(key, rows, cols, kind == Sketch::columns ? cols : rows, rank, x, y, workspace);
  }
  for (int pass = 0; pass < power; ++pass) {
    householder(rows, rank, y, workspace);
    project(rows, cols, rank, y, x, workspace);
    sgemm(false, true, rows, rank, cols, x, cols, workspace, cols, 0.0F, y, rank);
  }
}

void project(std::int64_t rows, std::int64_t cols, std::int64_t rank, const float* basis, const float* x,
             float* projected) {
  sgemm(true, false, rank, cols, rows, basis, rank, x, cols, 0.0F, projected, cols);
}

}  // namespace polaron::cpu
