// Newton-Schulz orthogonalization of one matrix X [rows, cols], rows <= cols, in the runs of steps that
// backend/newton_schulz_runs.h cuts.
#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "backend/newton_schulz_runs.h"
#include "cpu/blas.h"
#include "cpu/matrix_kernels.h"

namespace polaron::cpu {
namespace {

constexpr std::int64_t kSymmetricMin = 128;  // below, sgemm is faster than ssyrk and mirror()
constexpr std::int64_t kGrain = 1 << 16;

constexpr std::int64_t kMirrorBlock = 32;

// Columns [j0, j0 + kMirrorBlock) of rows [i0, i1) below the diagonal, copied to above it.
void mirror_block(float* matrix, std::int64_t n, std::int64_t i0, std::int64_t i1, std::int64_t j0) {
  const std::int64_t j1 = std::min(i1, j0 + kMirrorBlock);
  for (std::int64_t j = j0; j < j1; ++j) {
    const float* from = matrix + j;
    float* to = matrix + j * n;
    for (std::int64_t i = std::max(i0, j + 1); i < i1; ++i) to[i] = from[i * n];
  }
}

// The upper triangle from the lower one.
void mirror(float* matrix, std::int64_t n) {
  for_ranges((n + kMirrorBlock - 1) / kMirrorBlock, 16, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t block = first; block < last; ++block) {
      const std::int64_t i0 = block * kMirrorBlock;
      const std::int64_t i1 = std::min(n, i0 + kMirrorBlock);
      for (std::int64_t j0 = 0; j0 <= i0; j0 += kMirrorBlock) mirror_block(matrix, n, i0, i1, j0);
    }
  });
}

// out = left * right, left [n, n], right [n, cols].
void multiply(const float* left, const float* right, std::int64_t n, std::int64_t cols, float* out) {
  sgemm(false, false, n, cols, n, left, n, right, cols, 0.0F, out, cols);
}

// product [n, n] = a a^T for a [n, cols].
void times_own_transpose(const float* a, std::int64_t n, std::int64_t cols, float* product) {
  cblas_ssyrk(CblasRowMajor, CblasLower, CblasNoTrans, static_cast<int>(n), static_cast<int>(cols), 1.0F, a,
              static_cast<int>(cols), 0.0F, product, static_cast<int>(n));
  mirror(product, n);
}

// out = a a for symmetric a [n, n].
void square(const float* a, std::int64_t n, float* out) {
  if (n < kSymmetricMin) {
    multiply(a, a, n, n, out);
  } else {
    times_own_transpose(a, n, n, out);
  }
}

// m = a I + b gram + c squared.
void combine(const NewtonSchulzRow& row, const float* __restrict gram, const float* __restrict squared, std::int64_t n,
             float* __restrict m) {
  for_ranges(n * n, kGrain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) m[i] = row.b * gram[i] + row.c * squared[i];
  });
  for (std::int64_t i = 0; i < n; ++i) m[i * n + i] += row.a;
}

}  // namespace

double divisor_of(const NewtonSchulzSpec& spec, std::int64_t rows, std::int64_t cols, const float* x) {
  const double norm = std::sqrt(sum_of_squares(x, rows * cols));
  if (norm == 0.0) return 0.0;
  const double eps = static_cast<double>(spec.norm_eps);
  return spec.clamp_norm ? std::max(norm, eps) : norm * static_cast<double>(spec.norm_factor) + eps;
}

std::int64_t newton_schulz_floats(std::int64_t rows, std::int64_t cols) { return rows * cols + 4 * rows * rows; }

void newton_schulz(const NewtonSchulzSpec& spec, std::int64_t rows, std::int64_t cols, float* x, float* scratch) {
  const std::int64_t elements = rows * cols;
  const double divisor = divisor_of(spec, rows, cols, x);
  if (divisor == 0.0) return;

  const int runs = number_of_runs(spec, rows, cols);

  // Every run writes the other one of x and `other`; the last must write x.
  float* other = scratch;
  float* gram = scratch + elements;
  float* product = gram + rows * rows;
  float* m = product + rows * rows;
  float* chain = m + rows * rows;
  float* from = runs % 2 == 0 ? x : other;
  float* to = runs % 2 == 0 ? other : x;
  scale(x, 1.0 / divisor, from, elements);

  for (int step = 0; step < spec.steps;) {
    const int end = end_of_run(spec, rows, cols, step);
    times_own_transpose(from, rows, cols, gram);
    for (int s = step; s < end; ++s) {
      square(gram, rows, product);
      combine(row_of(spec, s), gram, product, rows, m);
      if (s + 1 < end) {  // A <- M A M
        multiply(m, gram, rows, rows, product);
        multiply(product, m, rows, rows, gram);
      }
      if (s == step) {
        std::swap(chain, m);
      } else {
        multiply(m, chain, rows, rows, product);
        std::swap(chain, product);
      }
    }
    multiply(chain, from, rows, cols, to);
    std::swap(from, to);
    step = end;
  }
}

}  // namespace polaron::cpu
