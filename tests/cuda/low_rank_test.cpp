// Sketches, bases, projections and low-rank orthogonalization as a whole on every machine, against double precision.
#include <cstring>
#include <set>

#include "cuda/matrix.h"
#include "matrix_family.h"

namespace polaron::test {
namespace {

class LowRankFamily : public MatrixFamily {
 protected:
  Dense basis_of(const Dense& y) const { return dense(on().basis(1, y.rows, y.cols, floats(y)), y.rows, y.cols); }
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

TEST_P(LowRankFamily, bases_are_orthonormal_and_span_the_sketch) {
  // Around the tiles of the Cholesky factor.
  for (const auto& [rows, rank] :
       {std::pair<std::int64_t, std::int64_t>{90, 31}, {64, 64}, {7, 1}, {1, 1}, {70, 65}, {200, 130}, {210, 200}}) {
    const Dense y = rounded(gaussian(rows, rank, 5)), q = basis_of(y);
    EXPECT_LT(relative_error(product(transposed(q), q), identity(rank)), 3e-6) << rows << "x" << rank;
    EXPECT_LT(relative_error(product(q, product(transposed(q), y)), y), 3e-6) << rows << "x" << rank;
  }
}

TEST_P(LowRankFamily, hard_matrices_come_out_as_in_double_precision) {
  constexpr std::int64_t kRows = 96, kCols = 130, kRank = 72;
  const auto matrices = hard_matrices(kRows, kCols);
  const auto count = static_cast<std::int64_t>(matrices.size());
  std::vector<Dense> all;
  for (const auto& [spectrum, x] : matrices) all.push_back(x);
  const StackShape shape{count, kRows, kCols};
  const NewtonSchulzSpec spec = newton_schulz_spec("polar_express");
  for (const Sketch kind : kSketches) {
    const std::vector<float> y = on().sketch(shape, kRank, kind, 0, keys_from(0, count), stacked(all));
    std::vector<float> q = on().basis(count, kRows, kRank, y);
    // Beyond the numerical rank of the sketch a basis is anything; there it is set to zero on both sides.
    std::vector<Dense> expected_q;
    for (std::int64_t m = 0; m < count; ++m) {
      expected_q.push_back(orthonormal_basis_of(matrix_of(y, m, kRows, kRank), 1e-6));
      EXPECT_LT(svd(matrix_of(q, m, kRows, kRank)).values.front(), 1.0 + 1e-5) << matrices[m].first;
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
      EXPECT_LE(norm(difference), 5e-4 * norm(expected)) << matrices[m].first << ", " << name_of(kind);
    }
  }
}

TEST_P(LowRankFamily, zero_columns_of_the_sketch_stay_zero_and_change_nothing_else) {
  const Dense y = rounded(gaussian(80, 66, 21));
  Dense holes(80, 70);
  std::vector<std::int64_t> places;
  for (std::int64_t j = 0; j < 70; ++j) {
    if (j != 0 && j != 3 && j != 64 && j != 69) places.push_back(j);
  }
  for (std::int64_t i = 0; i < 80; ++i) {
    for (std::int64_t j = 0; j < 66; ++j) holes(i, places[static_cast<std::size_t>(j)]) = y(i, j);
  }
  const Dense without = basis_of(y), q = basis_of(holes);
  Dense expected(80, 70);
  for (std::int64_t i = 0; i < 80; ++i) {
    for (std::int64_t j = 0; j < 66; ++j) expected(i, places[static_cast<std::size_t>(j)]) = without(i, j);
    for (const std::int64_t zero : {0, 3, 64, 69}) EXPECT_EQ(q(i, zero), 0.0);
  }
  EXPECT_LT(relative_error(q, expected), 2e-6);
}

TEST_P(LowRankFamily, the_scale_of_the_sketch_does_not_matter) {
  const Dense y = rounded(gaussian(50, 20, 6)), q = basis_of(y);
  for (const double factor : {1e-30, 1e-10, 1e10, 1e36})
    EXPECT_LT(relative_error(basis_of(scaled(y, factor)), q), 1e-5) << factor;
}

TEST_P(LowRankFamily, a_sketch_that_is_not_finite_spoils_only_itself) {
  for (const float bad : {std::nanf(""), HUGE_VALF}) {
    std::vector<float> y = random_floats(3 * 30 * 12, 7);
    const std::vector<float> good = on().basis(3, 30, 12, y);
    y[360 + 100] = bad;
    const std::vector<float> q = on().basis(3, 30, 12, y);
    EXPECT_TRUE(std::equal(good.begin(), good.begin() + 360, q.begin()));
    EXPECT_TRUE(std::equal(good.begin() + 720, good.end(), q.begin() + 720));
    EXPECT_TRUE(std::any_of(q.begin() + 360, q.begin() + 720, [](float v) { return std::isnan(v); }));
  }
}

TEST_P(LowRankFamily, zero_gives_exactly_zero) {
  for (const Sketch kind : kSketches) {
    const std::vector<Dense> o =
        on().low_rank({2, 12, 50}, 4, kind, newton_schulz_spec("polar_express"), std::vector<float>(2 * 12 * 50));
    for (const Dense& matrix : o) EXPECT_EQ(norm(matrix), 0.0) << name_of(kind);
  }
  EXPECT_EQ(on().basis(1, 6, 2, std::vector<float>(12)), std::vector<float>(12));
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

TEST_P(LowRankFamily, what_needs_lapack_is_refused_by_name_where_there_is_none) {
  if (is_cpu()) GTEST_SKIP() << "the CPU backend has LAPACK";
  const auto message = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const Values y(machine, std::vector<float>(12));
  EXPECT_NE(message([&] {
              ops().exact_polar(machine.stream(), {1, 3, 4}, y.data());
            }).find("exact"),
            std::string::npos);
  EXPECT_NE(message([&] {
              ops().orthonormal_basis(machine.stream(), 1, 6, 2, BasisMethod::householder, y.data());
            }).find("householder"),
            std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Places, LowRankFamily, testing::ValuesIn(places()), name_of_place);

// gram [rank, rank] -> length * inverse Cholesky factor, by the kernels under emulation.
std::vector<float> inverse_factor(const Machine& machine, std::int64_t count, std::int64_t rank, bool lengthen,
                                  const std::vector<float>& gram) {
  const Values input(machine, gram), result(machine, std::vector<float>(gram.size(), 5.0F));
  const auto floats = static_cast<std::size_t>(cuda::inverse_factor_floats(count, rank));
  const Values scratch(machine, std::vector<float>(floats, std::nanf("")));
  cuda::inverse_cholesky_factor(machine.stream(), count, rank, lengthen, input.data(), result.data(), scratch.data());
  return result.values();
}

TEST(CholeskyKernels, find_the_inverse_factor_of_the_shifted_matrix) {
  const Machine machine{cuda::emulation::Options{}};
  for (const std::int64_t rank : {1, 2, 63, 64, 65, 130, 200}) {
    std::vector<Dense> grams;
    for (std::uint64_t m = 0; m < 2; ++m) {
      const Dense y = gaussian(2 * rank, rank, 30 + m);
      grams.push_back(rounded(scaled(product(transposed(y), y), 0.01)));
    }
    for (const bool lengthen : {false, true}) {
      const std::vector<float> result = inverse_factor(machine, 2, rank, lengthen, stacked(grams));
      for (std::int64_t m = 0; m < 2; ++m) {
        Dense shifted = grams[static_cast<std::size_t>(m)];
        double trace = 0.0;
        for (std::int64_t i = 0; i < rank; ++i) trace += shifted(i, i);
        const double shift = 1e-6 * trace + 1e-30;
        for (std::int64_t i = 0; i < rank; ++i) shifted(i, i) += shift;
        const Dense inverse = matrix_of(result, m, rank, rank);
        for (std::int64_t i = 0; i < rank; ++i) {
          for (std::int64_t j = i + 1; j < rank; ++j) ASSERT_EQ(inverse(i, j), 0.0);
        }
        // inverse gram inverse^T = length^2 I.
        EXPECT_LT(relative_error(product(inverse, product(shifted, transposed(inverse))),
                                 scaled(identity(rank), lengthen ? 1.0 + shift : 1.0)),
                  1e-5)
            << rank;
      }
    }
  }
}

TEST(CholeskyKernels, drop_the_row_and_column_of_a_pivot_that_is_not_positive) {
  const Machine machine{cuda::emulation::Options{}};
  for (const std::int64_t bad : {0, 5, 69}) {
    const std::int64_t rank = 70;
    const Dense y = gaussian(140, rank, 40);
    Dense gram = rounded(product(transposed(y), y)), rest = gram;
    gram(bad, bad) = -1.0;
    for (std::int64_t i = 0; i < rank; ++i) rest(i, bad) = rest(bad, i) = 0.0;
    rest(bad, bad) = gram(bad, bad);  // the same trace, so the same shift
    const Dense expected = matrix_of(inverse_factor(machine, 1, rank, false, floats(rest)), 0, rank, rank);
    const Dense actual = matrix_of(inverse_factor(machine, 1, rank, false, floats(gram)), 0, rank, rank);
    for (std::int64_t i = 0; i < rank; ++i) {
      EXPECT_EQ(actual(i, bad), 0.0);
      EXPECT_EQ(actual(bad, i), 0.0);
    }
    EXPECT_LT(relative_error(actual, expected), 1e-6) << bad;
  }
}

TEST(CholeskyKernels, answer_what_is_not_a_number_with_nan) {
  const Machine machine{cuda::emulation::Options{}};
  std::vector<float> gram = floats(identity(3));
  gram[4] = std::nanf("");
  const std::vector<float> result = inverse_factor(machine, 1, 3, true, gram);
  for (const std::size_t diagonal : {0U, 4U, 8U}) EXPECT_TRUE(std::isnan(result[diagonal]));
}

TEST(CudaLowRank, gives_the_same_bits_for_every_order_of_threads) {
  expect_same_bits_in_all_orders([](const Machine& machine) {
    const MatrixOpsOn on(machine);
    const std::vector<float> x = random_floats(2 * 75 * 90, 1);
    const std::vector<float> y = on.sketch({2, 75, 90}, 70, Sketch::columns, 1, keys_from(0, 2), x);
    const std::vector<float> q = on.basis(2, 75, 70, y);
    const auto bytes = std::as_bytes(std::span(q));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  });
}

}  // namespace
}  // namespace polaron::test
