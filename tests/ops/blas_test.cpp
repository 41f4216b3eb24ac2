// The wrapper of OpenBLAS, and its choice of kernels.
#include "cpu/blas.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "ops/reference.h"

namespace polaron::test {
namespace {

// Every combination of transpositions, with strides larger than the widths.
void check_products() {
  const std::int64_t m = 5, n = 7, k = 9;
  for (const bool a_transposed : {false, true}) {
    for (const bool b_transposed : {false, true}) {
      Matrix a = Matrix::random(a_transposed ? k : m, a_transposed ? m : k, 1, 1.0, 0.0, 2);
      Matrix b = Matrix::random(b_transposed ? n : k, b_transposed ? k : n, 2, 1.0, 0.0, 3);
      Matrix c = Matrix::random(m, n, 3, 1.0, 0.0, 1);
      Doubles expected = c.values();
      for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
          expected[i * n + j] *= 0.5;
          for (std::int64_t p = 0; p < k; ++p) {
            expected[i * n + j] += static_cast<double>(a_transposed ? a.at(p, i) : a.at(i, p)) *
                                   static_cast<double>(b_transposed ? b.at(j, p) : b.at(p, j));
          }
        }
      }
      cpu::sgemm(a_transposed, b_transposed, m, n, k, a.tensor().f32(), a.tensor().stride, b.tensor().f32(),
                 b.tensor().stride, 0.5F, c.tensor().f32(), c.tensor().stride);
      expect_close(c, expected, 1e-6,
                   std::string("a") + (a_transposed ? "^T" : "") + " b" + (b_transposed ? "^T" : ""));
    }
  }
}

TEST(Blas, sgemm_multiplies_row_major_matrices_of_any_stride) { check_products(); }

TEST(Blas, choosing_kernels_keeps_products_right_and_the_environment_clean) {
  const char* before = std::getenv("OPENBLAS_CORETYPE");
  const std::string setting = before == nullptr ? "" : before;
  cpu::select_blas_kernels();
  cpu::select_blas_kernels();
  const char* after = std::getenv("OPENBLAS_CORETYPE");
  EXPECT_EQ(setting, after == nullptr ? "" : after);
  check_products();
}

}  // namespace
}  // namespace polaron::test
