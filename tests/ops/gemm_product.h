// What the tests of fp32 and of bf16 products share: operands of small integers, whose sums are exact in fp32, and the
// claims that are the same for both.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/gemm.h"
#include "ops/bf16_matrix.h"
#include "ops/reference.h"

namespace polaron::test {

// An m x n product over depth k.
struct Sizes {
  std::int64_t m, n, k;
};

inline std::string describe(const Sizes& s, int threads) {
  return std::to_string(s.m) + " x " + std::to_string(s.n) + " x " + std::to_string(s.k) + ", " +
         std::to_string(threads) + " threads";
}

// Of -3 to 3; M: Matrix or Bf16Matrix.
template <class M>
M integers(std::int64_t rows, std::int64_t cols, std::uint64_t seed, std::int64_t padding) {
  Matrix matrix(rows, cols, std::is_same_v<M, Matrix> ? padding : 0);
  const std::vector<std::int32_t> values = random_integers(rows * cols, 7, seed);
  for (std::int64_t i = 0; i < rows * cols; ++i) matrix.at(i / cols, i % cols) = static_cast<float>(values[i] - 3);
  if constexpr (std::is_same_v<M, Matrix>) {
    return matrix;
  } else {
    return M(matrix, padding);
  }
}

inline const float* elements(Matrix& matrix) { return matrix.tensor().f32(); }
inline const bf16* elements(Bf16Matrix& matrix) { return matrix.tensor().bf16(); }

// Sizes and operands of a product: a is [k, m] where transposed, b [n, k].
template <class Args, class M>
void set_operands(Args& args, const Sizes& s, M& a, bool a_transposed, M& b, bool b_transposed) {
  args.m = s.m;
  args.n = s.n;
  args.k = s.k;
  args.a = elements(a);
  args.lda = a.tensor().stride;
  args.a_transposed = a_transposed;
  args.b = elements(b);
  args.ldb = b.tensor().stride;
  args.b_transposed = b_transposed;
}

// That the sums of a transposed A are stored, or added to what is there, on one thread and on several. Product: has
// operands of integers, args and store(Matrix&).
template <class Product>
void expect_sums_come_along(cpu::Gemm& gemm, const Sizes& s) {
  Product product(s, true, false);
  for (const int threads : {1, 3}) {
    const Threads fixed(threads);
    for (const bool accumulate : {false, true}) {
      Matrix c(s.m, s.n), sums = Matrix::filled(1, s.m, 2.0F);
      product.store(c);
      product.args.accumulate = accumulate;
      product.args.a_sums = sums.tensor().f32();
      gemm(product.args);
      for (std::int64_t i = 0; i < s.m; ++i) {
        double expected = accumulate ? 2.0 : 0.0;
        for (std::int64_t p = 0; p < s.k; ++p) expected += static_cast<double>(std::as_const(product.a).at(p, i));
        ASSERT_EQ(static_cast<double>(sums.at(0, i)), expected) << describe(s, threads) << ", sum " << i;
      }
    }
  }
}

}  // namespace polaron::test
