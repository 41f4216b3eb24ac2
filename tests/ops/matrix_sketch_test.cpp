// The sketches of low-rank orthogonalization and the orthonormal bases of them, against double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "ops/matrix_reference.h"
#include "ops/reference.h"
#include "optim/newton_schulz_tables.h"

namespace polaron::test {
namespace {

Dense gaussian_test_matrix(std::int64_t cols, std::int64_t rank, std::uint32_t key) {
  Dense omega(cols, rank);
  for (std::size_t e = 0; e < omega.data.size(); ++e) {
    omega.data[e] = static_cast<double>(sketch_gaussian(test_key(key), e));
  }
  return omega;
}

Dense sketch_of(const Dense& x, std::int64_t rank, Sketch kind, std::uint32_t key) {
  if (kind == Sketch::gaussian) return product(x, gaussian_test_matrix(x.cols, rank, key));
  Dense y(x.rows, rank);
  for (std::int64_t j = 0; j < rank; ++j) {
    const std::uint32_t column =
        keyed_permutation(test_key(key), static_cast<std::uint32_t>(x.cols), static_cast<std::uint32_t>(j));
    for (std::int64_t i = 0; i < x.rows; ++i) y(i, j) = x(i, column);
  }
  return y;
}

// --- sketches

TEST(Sketch, columns_are_those_of_the_keyed_permutation) {
  MatrixOpsHarness harness;
  const StackShape shape{3, 20, 70};
  const std::vector<float> stack = random_floats(3 * 20 * 70, 1);
  const std::vector<float> sketches =
      harness.sketch(shape, 15, Sketch::columns, 0, {test_key(4), test_key(5), test_key(6)}, stack);
  for (std::uint32_t m = 0; m < 3; ++m) {
    std::set<std::uint32_t> distinct;
    for (std::uint32_t j = 0; j < 15; ++j) {
      const std::uint32_t column = keyed_permutation(test_key(4 + m), 70, j);
      distinct.insert(column);
      for (std::uint32_t i = 0; i < 20; ++i) {
        EXPECT_EQ(sketches[(m * 20 + i) * 15 + j], stack[(m * 20 + i) * 70 + column]);
      }
    }
    EXPECT_EQ(distinct.size(), 15U);
  }
}

TEST(Sketch, gaussian_is_a_product_with_the_keyed_test_matrix) {
  MatrixOpsHarness harness;
  for (const std::int64_t rank : {1, 9, 33}) {
    const Dense x = rounded(gaussian(33, 130, 2));
    const Dense y = dense(harness.sketch({1, 33, 130}, rank, Sketch::gaussian, 0, {test_key(8)}, floats(x)), 33, rank);
    EXPECT_LT(relative_error(y, sketch_of(x, rank, Sketch::gaussian, 8)), 1e-6);
  }
}

TEST(Sketch, power_iteration_multiplies_the_basis_by_x_and_its_transpose) {
  MatrixOpsHarness harness;
  const Dense x = rounded(with_spectrum(40, 60, powers(40, -1.0), 3));
  for (const Sketch kind : kSketches) {
    Dense q = orthonormal_basis_of(sketch_of(x, 10, kind, 1), 0.0);
    for (int power = 1; power <= 2; ++power) {
      q = orthonormal_basis_of(product(x, product(transposed(x), q)), 0.0);
      const Dense actual = harness.basis_of(x, 10, kind, BasisMethod::householder, 1, power);
      // The same subspace: what `actual` has outside of q.
      const double overlap = norm(product(transposed(q), actual));
      EXPECT_NEAR(overlap * overlap, 10.0, 5e-6) << name_of(kind) << ", power " << power;
    }
  }
}

TEST(Sketch, power_iteration_captures_more) {
  MatrixOpsHarness harness;
  const Dense x = rounded(with_spectrum(48, 90, powers(48, -1.0), 4));
  double captured[3];
  for (int power = 0; power < 3; ++power) {
    captured[power] =
        norm(product(transposed(harness.basis_of(x, 8, Sketch::gaussian, BasisMethod::householder, 2, power)), x));
  }
  EXPECT_GT(captured[1], captured[0]);
  EXPECT_GT(captured[2], captured[1]);
}

TEST(Sketch, a_rank_beyond_the_rows_is_refused) {
  MatrixOpsHarness harness;
  const std::vector<float> stack(4 * 6);
  EXPECT_THROW(harness.sketch({1, 4, 6}, 5, Sketch::columns, 0, {test_key(0)}, stack), std::logic_error);
  EXPECT_THROW(harness.sketch({1, 4, 6}, 0, Sketch::columns, 0, {test_key(0)}, stack), std::logic_error);
  EXPECT_THROW(harness.sketch({1, 4, 6}, 2, Sketch::columns, 0, {}, stack), std::logic_error);
}

// --- bases

TEST(Basis, columns_are_orthonormal_and_span_the_sketch) {
  MatrixOpsHarness harness;
  for (const auto& [rows, rank] :
       {std::pair<std::int64_t, std::int64_t>{90, 31}, {64, 64}, {7, 1}, {1, 1}, {300, 130}}) {
    const Dense y = rounded(gaussian(rows, rank, 5));
    for (const BasisMethod method : kBasisMethods) {
      const Dense q = dense(harness.basis({1, rows, rows}, rank, method, floats(y)), rows, rank);
      EXPECT_LT(relative_error(product(transposed(q), q), identity(rank)), 3e-6)
          << name_of(method) << " " << rows << "x" << rank;
      EXPECT_LT(relative_error(product(q, product(transposed(q), y)), y), 3e-6)
          << name_of(method) << " " << rows << "x" << rank;
    }
  }
}

TEST(Basis, both_methods_agree_with_double_precision_on_hard_matrices) {
  constexpr std::int64_t kRows = 96, kCols = 130, kRank = 72;
  MatrixOpsHarness harness;
  for (const auto& [spectrum, x] : hard_matrices(kRows, kCols)) {
    for (const Sketch kind : kSketches) {
      const std::vector<float> y = harness.sketch({1, kRows, kCols}, kRank, kind, 0, {test_key(0)}, floats(x));
      // Beyond the numerical rank of the sketch a basis is anything; there it is set to zero on both sides.
      const Dense expected_q = orthonormal_basis_of(dense(y, kRows, kRank), 1e-6);
      for (const BasisMethod method : kBasisMethods) {
        Dense q = dense(harness.basis({1, kRows, kCols}, kRank, method, y), kRows, kRank);
        for (std::int64_t j = 0; j < kRank; ++j) {
          bool independent = false;
          for (std::int64_t i = 0; i < kRows; ++i) independent = independent || expected_q(i, j) != 0.0;
          for (std::int64_t i = 0; i < kRows && !independent; ++i) q(i, j) = 0.0;
        }
        const std::vector<float> b = harness.project({1, kRows, kCols}, kRank, floats(q), floats(x));
        for (const char* table : {"polar_express", "jordan", "you"}) {
          const NewtonSchulzSpec spec = newton_schulz_spec(table);
          const Dense expected = product(expected_q, newton_schulz_of(spec, product(transposed(expected_q), x)));
          const Dense z = dense(harness.newton_schulz({1, kRank, kCols}, spec, b), kRank, kCols);
          EXPECT_LT(relative_error(product(q, z), expected), 5e-4)
              << spectrum << ", " << name_of(kind) << ", " << name_of(method) << ", " << table;
        }
      }
    }
  }
}

TEST(Basis, by_default_it_is_householders) {
  MatrixOpsHarness harness;
  const std::vector<float> y = random_floats(40 * 9, 20);
  EXPECT_EQ(harness.basis({1, 40, 40}, 9, BasisMethod::automatic, y),
            harness.basis({1, 40, 40}, 9, BasisMethod::householder, y));
}

TEST(Basis, zero_columns_of_the_sketch_stay_zero_and_change_nothing_else) {
  MatrixOpsHarness harness;
  const Dense y = rounded(gaussian(40, 6, 21));
  Dense holes(40, 9);
  constexpr std::int64_t kPlaces[] = {1, 2, 4, 5, 6, 8};
  for (std::int64_t i = 0; i < 40; ++i) {
    for (std::int64_t j = 0; j < 6; ++j) holes(i, kPlaces[j]) = y(i, j);
  }
  for (const BasisMethod method : kBasisMethods) {
    const Dense dense_q = dense(harness.basis({1, 40, 40}, 6, method, floats(y)), 40, 6);
    const Dense q = dense(harness.basis({1, 40, 40}, 9, method, floats(holes)), 40, 9);
    Dense expected(40, 9);
    for (std::int64_t i = 0; i < 40; ++i) {
      for (std::int64_t j = 0; j < 6; ++j) expected(i, kPlaces[j]) = dense_q(i, j);
      for (const std::int64_t zero : {0, 3, 7}) EXPECT_EQ(q(i, zero), 0.0) << name_of(method);
    }
    EXPECT_LT(relative_error(q, expected), 1e-6) << name_of(method);
  }
}

TEST(Basis, deficient_sketches_stay_finite_and_never_longer_than_one) {
  MatrixOpsHarness harness;
  for (const auto& [spectrum, x] : hard_matrices(80, 100)) {
    for (const Sketch kind : kSketches) {
      for (const BasisMethod method : kBasisMethods) {
        const Dense q = harness.basis_of(x, 80, kind, method);
        const double largest = svd(q).values.front();
        EXPECT_LT(largest, 1.0 + 1e-5) << spectrum << ", " << name_of(kind) << ", " << name_of(method);
      }
    }
  }
}

TEST(Basis, the_scale_of_the_sketch_does_not_matter) {
  MatrixOpsHarness harness;
  const Dense y = rounded(gaussian(50, 20, 6));
  for (const BasisMethod method : kBasisMethods) {
    const Dense q = dense(harness.basis({1, 50, 50}, 20, method, floats(y)), 50, 20);
    for (const double factor : {1e-30, 1e-10, 1e10, 1e36}) {
      const std::vector<float> multiple = floats(scaled(y, factor));
      const Dense other = dense(harness.basis({1, 50, 50}, 20, method, multiple), 50, 20);
      EXPECT_LT(relative_error(other, q), 1e-5) << name_of(method) << " times " << factor;
    }
  }
}

TEST(Basis, a_sketch_that_is_not_finite_spoils_only_itself) {
  MatrixOpsHarness harness;
  for (const BasisMethod method : kBasisMethods) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      std::vector<float> y = random_floats(3 * 30 * 12, 7);
      const std::vector<float> good = harness.basis({3, 30, 30}, 12, method, y);
      y[360 + 100] = bad;
      const std::vector<float> q = harness.basis({3, 30, 30}, 12, method, y);
      EXPECT_TRUE(std::equal(good.begin(), good.begin() + 360, q.begin())) << name_of(method);
      EXPECT_TRUE(std::equal(good.begin() + 720, good.end(), q.begin() + 720)) << name_of(method);
      EXPECT_TRUE(std::any_of(q.begin() + 360, q.begin() + 720, [](float v) { return std::isnan(v); }))
          << name_of(method);
    }
  }
}

}  // namespace
}  // namespace polaron::test
