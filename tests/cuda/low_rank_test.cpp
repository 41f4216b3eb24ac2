// Sketches and low-rank orthogonalization as a whole on every machine, against double precision.
#include <cstring>
#include <set>

#include "matrix_family.h"

namespace polaron::test {
namespace {

class LowRankFamily : public MatrixFamily {
 protected:
  Dense basis_of(const Dense& y) const {
    return dense(on().basis(BasisMethod::cholesky_qr, 1, y.rows, y.cols, floats(y)), y.rows, y.cols);
  }
};

std::vector<PhiloxKey> keys_from(std::uint32_t first, std::int64_t count) {
  std::vector<PhiloxKey> keys;
  for (std::int64_t i = 0; i < count; ++i) keys.push_back(test_key(first + static_cast<std::uint32_t>(i)));
  return keys;
}

TEST_P(LowRankFamily, columns_are_those_of_the_keyed_permutation_to_the_integer) {
  struct Case {
    StackShape shape;
    std::int64_t rank;
  };
  // Around the blocks of rows and columns; more matrices than a launch takes.
  for (const Case& c : {Case{{3, 20, 70}, 15}, Case{{1, 65, 300}, 65}, Case{{1, 270, 300}, 260}, Case{{130, 2, 9}, 2},
                        Case{{2, 1, 1}, 1}}) {
    const auto [count, rows, cols] = c.shape;
    std::vector<float> stack(static_cast<std::size_t>(count * rows * cols));
    for (std::size_t e = 0; e < stack.size(); ++e) stack[e] = static_cast<float>(e);  // exact below 2^24
    const std::vector<PhiloxKey> keys = keys_from(4, count);
    const std::vector<float> sketches = on().sketch(c.shape, c.rank, Sketch::columns, 0, keys, stack);
    for (std::int64_t m = 0; m < count; ++m) {
      std::set<std::uint32_t> distinct;
      for (std::int64_t j = 0; j < c.rank; ++j) {
        const std::uint32_t column = keyed_permutation(keys[static_cast<std::size_t>(m)],
                                                       static_cast<std::uint32_t>(cols), static_cast<std::uint32_t>(j));
        distinct.insert(column);
        for (std::int64_t i = 0; i < rows; ++i) {
          ASSERT_EQ(sketches[static_cast<std::size_t>((m * rows + i) * c.rank + j)],
                    stack[static_cast<std::size_t>((m * rows + i) * cols + column)]);
        }
      }
      EXPECT_EQ(static_cast<std::int64_t>(distinct.size()), c.rank);
    }
  }
}

TEST_P(LowRankFamily, leading_columns_are_drawn_from_as_many_columns_as_there_are_rows) {
  const std::int64_t rows = 30, cols = 300, rank = 11;
  std::vector<float> stack(static_cast<std::size_t>(rows * cols));
  for (std::size_t e = 0; e < stack.size(); ++e) stack[e] = static_cast<float>(e);
  const std::vector<PhiloxKey> keys = keys_from(9, 1);
  const std::vector<float> sketch = on().sketch({1, rows, cols}, rank, Sketch::leading_columns, 0, keys, stack);
  for (std::int64_t j = 0; j < rank; ++j) {
    const std::uint32_t column =
        keyed_permutation(keys[0], static_cast<std::uint32_t>(rows), static_cast<std::uint32_t>(j));
    EXPECT_LT(column, rows);
    EXPECT_EQ(sketch[static_cast<std::size_t>(j)], stack[column]);
  }
}

TEST_P(LowRankFamily, gaussian_numbers_are_the_generators_to_the_bit) {
  const std::int64_t n = 50;  // of an identity, the sketch is the test matrix itself
  const std::vector<Dense> identities = {identity(n), identity(n)};
  const std::vector<float> y = on().sketch({2, n, n}, n, Sketch::gaussian, 0, keys_from(8, 2), stacked(identities));
  for (std::uint32_t m = 0; m < 2; ++m) {
    for (std::uint32_t e = 0; e < n * n; ++e) ASSERT_EQ(y[m * n * n + e], sketch_gaussian(test_key(8 + m), e));
  }
}

TEST_P(LowRankFamily, gaussian_sketches_are_products_with_the_test_matrix) {
  for (const std::int64_t rank : {1, 9, 33}) {
    const Dense x = rounded(gaussian(33, 130, 2));
    Dense omega(130, rank);
    for (std::size_t e = 0; e < omega.data.size(); ++e)
      omega.data[e] = static_cast<double>(sketch_gaussian(test_key(8), e));
    const Dense y = dense(on().sketch({1, 33, 130}, rank, Sketch::gaussian, 0, keys_from(8, 1), floats(x)), 33, rank);
    EXPECT_LT(relative_error(y, product(x, omega)), 1e-6);
  }
}

TEST_P(LowRankFamily, power_iteration_multiplies_the_basis_by_x_and_its_transpose) {
  const Dense x = rounded(with_spectrum(40, 60, powers(40, -1.0), 3));
  for (const Sketch kind : kSketches) {
    Dense q =
        orthonormal_basis_of(dense(on().sketch({1, 40, 60}, 10, kind, 0, keys_from(1, 1), floats(x)), 40, 10), 0.0);
    for (int power = 1; power <= 2; ++power) {
      q = orthonormal_basis_of(product(x, product(transposed(x), q)), 0.0);
      const Dense actual =
          basis_of(dense(on().sketch({1, 40, 60}, 10, kind, power, keys_from(1, 1), floats(x)), 40, 10));
      const double overlap = norm(product(transposed(q), actual));  // of the same subspace it is all of actual
      EXPECT_NEAR(overlap * overlap, 10.0, 1e-4) << name_of(kind) << ", power " << power;
    }
  }
}

TEST_P(LowRankFamily, a_rank_beyond_the_rows_is_refused) {
  const std::vector<float> stack(4 * 6);
  EXPECT_THROW(on().sketch({1, 4, 6}, 5, Sketch::columns, 0, keys_from(0, 1), stack), std::logic_error);
  EXPECT_THROW(on().sketch({1, 4, 6}, 0, Sketch::columns, 0, keys_from(0, 1), stack), std::logic_error);
  EXPECT_THROW(on().sketch({1, 4, 6}, 2, Sketch::columns, 0, {}, stack), std::logic_error);
}

TEST_P(LowRankFamily, hard_matrices_come_out_as_in_double_precision) {
  constexpr std::int64_t kRows = 96, kCols = 130, kRank = 72;
  const auto matrices = hard_matrices(kRows, kCols);
  const auto count = static_cast<std::int64_t>(matrices.size());
  std::vector<Dense> all;
  for (const auto& [spectrum, x] : matrices) all.push_back(x);
  const StackShape shape{count, kRows, kCols};
  const NewtonSchulzSpec spec = newton_schulz_spec("polar_express");
  for (const auto& [kind, method] : {std::pair{Sketch::columns, BasisMethod::cholesky_qr},
                                     {Sketch::gaussian, BasisMethod::cholesky_qr},
                                     {Sketch::gaussian, BasisMethod::householder}}) {
    const std::vector<float> y = on().sketch(shape, kRank, kind, 0, keys_from(0, count), stacked(all));
    std::vector<float> q = on().basis(method, count, kRows, kRank, y);
    // Beyond the numerical rank of the sketch a basis is anything; there it is set to zero on both sides.
    std::vector<Dense> expected_q;
    for (std::int64_t m = 0; m < count; ++m) {
      expected_q.push_back(orthonormal_basis_of(matrix_of(y, m, kRows, kRank), 1e-6));
      if (method == BasisMethod::cholesky_qr) {
        EXPECT_LT(svd(matrix_of(q, m, kRows, kRank)).values.front(), 1.0 + 1e-5) << matrices[m].first;
      }
      for (std::int64_t j = 0; j < kRank; ++j) {
        bool independent = false;
        for (std::int64_t i = 0; i < kRows; ++i) independent = independent || expected_q.back()(i, j) != 0.0;
        for (std::int64_t i = 0; i < kRows && !independent; ++i) q[(m * kRows + i) * kRank + j] = 0.0F;
      }
    }
    const std::vector<float> z =
        on().newton_schulz({count, kRank, kCols}, spec, on().project(shape, kRank, q, stacked(all)));
    for (std::int64_t m = 0; m < count; ++m) {
      const Dense& exact = expected_q[m];
      const Dense expected = product(exact, newton_schulz_of(spec, product(transposed(exact), all[m])));
      Dense difference = product(matrix_of(q, m, kRows, kRank), matrix_of(z, m, kRank, kCols));
      for (std::size_t e = 0; e < difference.data.size(); ++e) difference.data[e] -= expected.data[e];
      // Exactly zero where the sketch has missed the one column that is not.
      EXPECT_LE(norm(difference), 5e-4 * norm(expected))
          << matrices[m].first << ", " << name_of(kind) << ", " << name_of(method);
    }
  }
}

TEST_P(LowRankFamily, zero_gives_exactly_zero) {
  for (const Sketch kind : kSketches) {
    for (const BasisMethod method : kBasisMethods) {
      const std::vector<Dense> o = on().low_rank({2, 12, 50}, 4, kind, newton_schulz_spec("polar_express"),
                                                 std::vector<float>(2 * 12 * 50), method);
      for (const Dense& matrix : o) EXPECT_EQ(norm(matrix), 0.0) << name_of(kind) << ", " << name_of(method);
    }
  }
}

TEST_P(LowRankFamily, a_rank_one_matrix_keeps_its_sign) {
  const Dense x = rounded(with_spectrum(24, 100, {3.0}, 5));
  for (const std::string_view table : newton_schulz_names()) {
    for (const Sketch kind : kSketches) {
      const Dense o = on().low_rank({1, 24, 100}, 6, kind, newton_schulz_spec(table), floats(x)).front();
      const double along = inner(o, x) / 3.0;
      EXPECT_GT(along, 0.65) << table << ", " << name_of(kind);
      EXPECT_LT(along, 1.2) << table << ", " << name_of(kind);
      EXPECT_LT(relative_error(o, scaled(x, along / 3.0)), 1e-3) << table << ", " << name_of(kind);
    }
  }
}

TEST_P(LowRankFamily, full_rank_is_full_newton_schulz) {
  for (const std::int64_t cols : {45, 160}) {
    const Dense x = rounded(gaussian(45, cols, 8));
    const NewtonSchulzSpec spec = newton_schulz_spec("polar_express");
    const Dense full = dense(on().newton_schulz({1, 45, cols}, spec, floats(x)), 45, cols);
    for (const Sketch kind : kSketches)
      EXPECT_LT(relative_error(on().low_rank({1, 45, cols}, 45, kind, spec, floats(x)).front(), full), 1e-4);
  }
}

INSTANTIATE_TEST_SUITE_P(Places, LowRankFamily, testing::ValuesIn(places()), name_of_place);

TEST(CudaLowRank, gives_the_same_bits_for_every_order_of_threads) {
  expect_same_bits_in_all_orders([](const Machine& machine) {
    const MatrixOpsOn on(machine);
    const std::vector<float> x = random_floats(2 * 75 * 90, 1);
    const std::vector<float> y = on.sketch({2, 75, 90}, 70, Sketch::columns, 1, keys_from(0, 2), x);
    const std::vector<float> q = on.basis(BasisMethod::cholesky_qr, 2, 75, 70, y);
    const auto bytes = std::as_bytes(std::span(q));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  });
}

}  // namespace
}  // namespace polaron::test
