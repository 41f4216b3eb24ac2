// Low-rank orthogonalization as a whole: the identities of the method (arXiv 2509.11983) and the inputs on which it
// could go wrong. Where a test needs the exact polar factor it takes it from LAPACK or from Jacobi rotations.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/matrix_reference.h"
#include "ops/reference.h"
#include "optim/newton_schulz_tables.h"

namespace polaron::test {
namespace {

// Q msgn(Q^T x) by the ops, the polar factor by LAPACK.
Dense low_rank_polar(MatrixOpsHarness& harness, const Dense& x, const Dense& q) {
  const std::vector<float> b = harness.project({1, x.rows, x.cols}, q.cols, floats(q), floats(x));
  return product(q, dense(harness.exact_polar({1, q.cols, x.cols}, b), q.cols, x.cols));
}

TEST(LowRank, zero_gives_exactly_zero) {
  MatrixOpsHarness harness;
  for (const std::string_view table : newton_schulz_names()) {
    for (const Sketch kind : kSketches) {
      for (const BasisMethod method : kBasisMethods) {
        const Dense o = harness.low_rank(Dense(12, 50), 4, kind, method, newton_schulz_spec(table));
        EXPECT_EQ(norm(o), 0.0) << table << ", " << name_of(kind) << ", " << name_of(method);
      }
    }
  }
  EXPECT_EQ(harness.basis({1, 6, 6}, 2, BasisMethod::cholesky_qr, std::vector<float>(12)), std::vector<float>(12));
}

TEST(LowRank, full_rank_is_full_newton_schulz) {
  MatrixOpsHarness harness;
  for (const std::int64_t cols : {45, 160}) {
    for (const auto& [spectrum, x] : {std::pair<const char*, Dense>{"gaussian", rounded(gaussian(45, cols, 8))},
                                      {"1/i", rounded(with_spectrum(45, cols, powers(45, -1.0), 9))}}) {
      for (const std::string_view table : newton_schulz_names()) {
        const NewtonSchulzSpec spec = newton_schulz_spec(table);
        const Dense full = dense(harness.newton_schulz({1, 45, cols}, spec, floats(x)), 45, cols);
        for (const Sketch kind : kSketches) {
          for (const BasisMethod method : kBasisMethods) {
            EXPECT_LT(relative_error(harness.low_rank(x, 45, kind, method, spec), full), 1e-4)
                << spectrum << ", " << table << ", " << name_of(kind) << ", " << name_of(method);
          }
        }
      }
    }
  }
}

TEST(LowRank, a_rank_one_matrix_keeps_its_sign) {
  MatrixOpsHarness harness;
  const Dense x = rounded(with_spectrum(24, 100, {3.0}, 5));
  for (const std::string_view table : newton_schulz_names()) {
    for (const Sketch kind : kSketches) {
      for (const BasisMethod method : kBasisMethods) {
        const Dense o = harness.low_rank(x, 6, kind, method, newton_schulz_spec(table));
        const double along = inner(o, x) / 3.0;
        EXPECT_GT(along, 0.65) << table << ", " << name_of(kind) << ", " << name_of(method);
        EXPECT_LT(along, 1.2) << table << ", " << name_of(kind) << ", " << name_of(method);
        EXPECT_LT(relative_error(o, scaled(x, along / 3.0)), 1e-3)
            << table << ", " << name_of(kind) << ", " << name_of(method);
      }
    }
  }
}

TEST(LowRank, the_scale_of_the_input_does_not_matter) {
  MatrixOpsHarness harness;
  const Dense x = rounded(gaussian(30, 50, 3));
  for (const BasisMethod method : kBasisMethods) {
    NewtonSchulzSpec spec = newton_schulz_spec("polar_express");
    spec.norm_eps = 0.0F;
    const Dense o = harness.low_rank(x, 9, Sketch::columns, method, spec);
    for (const double factor : {1e-20, 1e-3, 1e3, 1e20}) {
      const Dense multiple = rounded(scaled(x, factor));
      EXPECT_LT(relative_error(harness.low_rank(multiple, 9, Sketch::columns, method, spec), o), 2e-5)
          << name_of(method) << " times " << factor;
    }
  }
}

TEST(LowRank, a_rank_above_that_of_the_matrix_is_full_newton_schulz) {
  MatrixOpsHarness harness;
  Dense single(20, 40);  // one column is not zero: the Gaussian sketch sees it, few column sketches do
  for (std::int64_t i = 0; i < 20; ++i) single(i, 11) = static_cast<double>(static_cast<float>(std::cos(i)));
  const NewtonSchulzSpec spec = newton_schulz_spec("polar_express");
  const Dense full = newton_schulz_of(spec, single);
  for (const BasisMethod method : kBasisMethods) {
    EXPECT_LT(relative_error(harness.low_rank(single, 5, Sketch::gaussian, method, spec), full), 1e-5);
  }
}

TEST(LowRank, the_polar_factor_of_the_projection_is_the_projected_polar_factor) {  // identity 1
  MatrixOpsHarness harness;
  const Dense x = rounded(gaussian(30, 55, 10));
  for (const Sketch kind : kSketches) {
    const Dense q = harness.basis_of(x, 11, kind, BasisMethod::householder);
    const Dense projection = product(q, product(transposed(q), x));
    EXPECT_LT(relative_error(low_rank_polar(harness, x, q), polar(projection, 1e-3)), 1e-5) << name_of(kind);
  }
}

TEST(LowRank, exactly_rank_many_singular_values_are_one) {  // identity 2
  MatrixOpsHarness harness;
  const Dense x = rounded(gaussian(30, 55, 11));
  for (const std::int64_t rank : {1, 7, 30}) {
    const Dense o = low_rank_polar(harness, x, harness.basis_of(x, rank, Sketch::columns, BasisMethod::householder));
    const std::vector<double> values = svd(o).values;
    for (std::int64_t i = 0; i < 30; ++i) {
      EXPECT_NEAR(values[static_cast<std::size_t>(i)], i < rank ? 1.0 : 0.0, 1e-5) << rank;
    }
    EXPECT_NEAR(inner(o, o), static_cast<double>(rank), 1e-5);
  }
}

TEST(LowRank, the_captured_nuclear_norm_grows_with_the_basis) {  // identity 3
  MatrixOpsHarness harness;
  const Dense x = rounded(with_spectrum(40, 64, powers(40, -0.5), 12));
  const double all = nuclear_norm(x);
  for (const Sketch kind : kSketches) {
    double before = 0.0;
    // The columns of a sketch of one key are nested; those of the Gaussian ones are not, for Omega is filled row by
    // row.
    for (const std::int64_t rank : {4, 8, 16, 32}) {
      const Dense q = harness.basis_of(x, rank, kind, BasisMethod::cholesky_qr, 6);
      const double captured = inner(x, low_rank_polar(harness, x, q));
      EXPECT_NEAR(captured, nuclear_norm(product(transposed(q), x)), 1e-6 * all) << name_of(kind);
      EXPECT_LE(captured, all) << name_of(kind);
      EXPECT_TRUE(kind != Sketch::columns || captured >= before) << rank;
      before = captured;
    }
  }
}

TEST(LowRank, from_the_rank_of_the_matrix_on_it_is_the_polar_factor) {  // identity 4
  MatrixOpsHarness harness;
  const Dense x = with_spectrum(32, 50, {1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4}, 13);
  const Dense expected = polar(x, 1e-6);
  for (const Sketch kind : kSketches) {
    for (const std::int64_t rank : {7, 8, 20, 32}) {
      const Dense q = harness.basis_of(rounded(x), rank, kind, BasisMethod::householder, 2);
      EXPECT_LT(relative_error(low_rank_polar(harness, rounded(x), q), expected), 2e-5) << name_of(kind) << " " << rank;
    }
  }
}

TEST(LowRank, the_distance_to_the_polar_factor_has_its_lower_bound) {  // identity 5
  MatrixOpsHarness harness;
  const Dense x = rounded(with_spectrum(28, 44, powers(28, -0.3), 14));
  const Svd parts = svd(x);
  const Dense full = polar(x, 1e-6);
  for (const std::int64_t rank : {3, 14, 25}) {
    const double bound = std::sqrt(1.0 - static_cast<double>(rank) / 28.0);
    for (const Sketch kind : kSketches) {
      const Dense q = harness.basis_of(x, rank, kind, BasisMethod::householder);
      EXPECT_GE(relative_error(low_rank_polar(harness, x, q), full), bound - 1e-6) << name_of(kind);
    }
    Dense leading(28, rank);  // equality for the leading singular vectors
    for (std::int64_t i = 0; i < 28; ++i) {
      for (std::int64_t j = 0; j < rank; ++j) leading(i, j) = parts.u(i, j);
    }
    EXPECT_NEAR(relative_error(low_rank_polar(harness, x, rounded(leading)), full), bound, 1e-9);
  }
}

TEST(LowRank, gaussian_sketches_leave_no_more_than_theory_allows) {  // identity 6, Halko, Martinsson and Tropp
  MatrixOpsHarness harness;
  const std::int64_t rank = 16;
  const Dense x = rounded(with_spectrum(64, 128, powers(64, -1.0), 15));
  double bound = std::numeric_limits<double>::infinity();
  for (std::int64_t j = 2; j <= rank - 2; ++j) {
    double tail = 0.0;
    for (std::int64_t i = j + 1; i <= 64; ++i) tail += 1.0 / static_cast<double>(i * i);
    bound = std::min(bound, std::sqrt((1.0 + static_cast<double>(j) / static_cast<double>(rank - j - 1)) * tail));
  }
  double mean = 0.0;
  for (std::uint32_t trial = 0; trial < 8; ++trial) {
    const Dense q = harness.basis_of(x, rank, Sketch::gaussian, BasisMethod::householder, trial);
    Dense rest = product(q, product(transposed(q), x));
    for (std::size_t e = 0; e < rest.data.size(); ++e) rest.data[e] -= x.data[e];
    mean += norm(rest) / 8.0;
  }
  EXPECT_LT(mean, bound);
}

TEST(LowRank, the_matrices_of_a_group_do_not_see_each_other) {
  const Threads guard(2);
  MatrixOpsHarness harness;
  constexpr std::int64_t kRows = 21, kCols = 34, kRank = 8, kCount = 5;
  const std::vector<float> stack = random_floats(kCount * kRows * kCols, 16);
  std::vector<PhiloxKey> keys;
  for (std::uint32_t i = 0; i < kCount; ++i) keys.push_back(test_key(i));
  for (const Sketch kind : kSketches) {
    const StackShape all{kCount, kRows, kCols}, two{2, kRows, kCols};
    const std::vector<float> together = harness.sketch(all, kRank, kind, 1, keys, stack);
    for (const BasisMethod method : kBasisMethods) {
      const std::vector<float> q = harness.basis(all, kRank, method, together);
      const std::vector<float> b = harness.project(all, kRank, q, stack);
      const std::vector<float> x2(stack.begin() + 2 * kRows * kCols, stack.begin() + 4 * kRows * kCols);
      const std::vector<float> q2 =
          harness.basis(two, kRank, method, harness.sketch(two, kRank, kind, 1, {keys[2], keys[3]}, x2));
      const std::vector<float> b2 = harness.project(two, kRank, q2, x2);
      EXPECT_TRUE(std::equal(q2.begin(), q2.end(), q.begin() + 2 * kRows * kRank)) << name_of(method);
      EXPECT_TRUE(std::equal(b2.begin(), b2.end(), b.begin() + 2 * kRank * kCols)) << name_of(method);
    }
  }
}

// --- the exact polar factor

TEST(ExactPolar, agrees_with_the_singular_vectors) {
  MatrixOpsHarness harness;
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{30, 47}, {25, 25}, {1, 9}, {1, 1}}) {
    const Dense x = rounded(gaussian(rows, cols, 17));
    const Dense o = dense(harness.exact_polar({1, rows, cols}, floats(x)), rows, cols);
    EXPECT_LT(relative_error(o, polar(x, 0.0)), 5e-6) << rows << "x" << cols;
  }
}

TEST(ExactPolar, leaves_out_singular_values_that_are_rounding_errors) {
  MatrixOpsHarness harness;
  const Dense x = with_spectrum(20, 33, {2.0, 1.0, 0.5}, 18);
  const Dense o = dense(harness.exact_polar({1, 20, 33}, floats(x)), 20, 33);
  EXPECT_LT(relative_error(o, polar(x, 1e-6)), 1e-5);
  EXPECT_EQ(harness.exact_polar({2, 3, 5}, std::vector<float>(30)), std::vector<float>(30));
}

TEST(ExactPolar, answers_infinities_with_nan) {
  MatrixOpsHarness harness;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> stack = random_floats(2 * 6 * 9, 19);
    stack[3] = bad;
    const std::vector<float> o = harness.exact_polar({2, 6, 9}, stack);
    EXPECT_TRUE(std::all_of(o.begin(), o.begin() + 54, [](float v) { return std::isnan(v); }));
    EXPECT_TRUE(std::none_of(o.begin() + 54, o.end(), [](float v) { return std::isnan(v); }));
  }
}

}  // namespace
}  // namespace polaron::test
