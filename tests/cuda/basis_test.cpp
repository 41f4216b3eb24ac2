// Orthonormal bases of sketches by both methods, exact polar factors, and the kernels for Cholesky factors, on every
// machine against double precision.
#include <dlfcn.h>

#include <cmath>
#include <string>

#include "cuda/cusolver.h"
#include "cuda/matrix.h"
#include "matrix_family.h"
#include "support/errors.h"

namespace polaron::test {
namespace {

class BasisFamily : public MatrixFamily {
 protected:
  Dense basis_of(BasisMethod method, const Dense& y) const {
    return dense(on().basis(method, 1, y.rows, y.cols, floats(y)), y.rows, y.cols);
  }
  template <class Body>
  void for_methods(Body&& body) const {
    for (const BasisMethod method : kBasisMethods) {
      const testing::ScopedTrace trace(__FILE__, __LINE__, name_of(method));
      body(method);
    }
  }
};

TEST_P(BasisFamily, bases_are_orthonormal_and_span_the_sketch) {
  for_methods([&](BasisMethod method) {
    // Around the tiles of the Cholesky factor.
    for (const auto& [rows, rank] :
         {std::pair<std::int64_t, std::int64_t>{90, 31}, {64, 64}, {7, 1}, {1, 1}, {70, 65}, {200, 130}, {210, 200}}) {
      const Dense y = rounded(gaussian(rows, rank, 5)), q = basis_of(method, y);
      EXPECT_LT(relative_error(product(transposed(q), q), identity(rank)), 3e-6) << rows << "x" << rank;
      EXPECT_LT(relative_error(product(q, product(transposed(q), y)), y), 3e-6) << rows << "x" << rank;
    }
  });
}

TEST_P(BasisFamily, bases_in_tf32_are_orthonormal_and_span_the_sketch_to_its_rounding) {
  machine.ops().set_tf32(true);
  for (const auto& [rows, rank] : {std::pair<std::int64_t, std::int64_t>{90, 31}, {70, 65}, {200, 130}}) {
    // Singular values down to 1e-2: a direction is moved by the rounding divided by its own.
    std::vector<double> values;
    for (std::int64_t i = 0; i < rank; ++i) {
      values.push_back(std::pow(10.0, -2.0 * static_cast<double>(i) / static_cast<double>(rank)));
    }
    const Dense y = rounded(transposed(with_spectrum(rank, rows, values, 5)));
    const Dense q = basis_of(BasisMethod::cholesky_qr, y);
    EXPECT_LT(relative_error(product(transposed(q), q), identity(rank)), 1e-3) << rows << "x" << rank;
    EXPECT_LT(relative_error(product(q, product(transposed(q), y)), y), 1e-3) << rows << "x" << rank;
  }
}

TEST_P(BasisFamily, zero_columns_of_the_sketch_stay_zero_and_change_nothing_else) {
  for_methods([&](BasisMethod method) {
    const Dense y = rounded(gaussian(80, 66, 21));
    Dense holes(80, 70);
    std::vector<std::int64_t> places;
    for (std::int64_t j = 0; j < 70; ++j) {
      if (j != 0 && j != 3 && j != 64 && j != 69) places.push_back(j);
    }
    for (std::int64_t i = 0; i < 80; ++i) {
      for (std::int64_t j = 0; j < 66; ++j) holes(i, places[static_cast<std::size_t>(j)]) = y(i, j);
    }
    const Dense without = basis_of(method, y), q = basis_of(method, holes);
    Dense expected(80, 70);
    for (std::int64_t i = 0; i < 80; ++i) {
      for (std::int64_t j = 0; j < 66; ++j) expected(i, places[static_cast<std::size_t>(j)]) = without(i, j);
      for (const std::int64_t zero : {0, 3, 64, 69}) EXPECT_EQ(q(i, zero), 0.0);
    }
    EXPECT_LT(relative_error(q, expected), 2e-6);
  });
}

TEST_P(BasisFamily, the_scale_of_the_sketch_does_not_matter) {
  for_methods([&](BasisMethod method) {
    const Dense y = rounded(gaussian(50, 20, 6)), q = basis_of(method, y);
    for (const double factor : {1e-30, 1e-10, 1e10, 1e36})
      EXPECT_LT(relative_error(basis_of(method, scaled(y, factor)), q), 1e-5) << factor;
  });
}

TEST_P(BasisFamily, a_sketch_that_is_not_finite_spoils_only_itself) {
  for_methods([&](BasisMethod method) {
    for (const float bad : {std::nanf(""), HUGE_VALF}) {
      std::vector<float> y = random_floats(3 * 30 * 12, 7);
      const std::vector<float> good = on().basis(method, 3, 30, 12, y);
      y[360 + 100] = bad;
      const std::vector<float> q = on().basis(method, 3, 30, 12, y);
      EXPECT_TRUE(std::equal(good.begin(), good.begin() + 360, q.begin()));
      EXPECT_TRUE(std::equal(good.begin() + 720, good.end(), q.begin() + 720));
      EXPECT_TRUE(std::any_of(q.begin() + 360, q.begin() + 720, [](float v) { return std::isnan(v); }));
    }
  });
}

TEST_P(BasisFamily, what_a_backend_takes_by_itself_is_householder_on_a_cpu_and_cholesky_qr_elsewhere) {
  const std::vector<float> y = random_floats(40 * 9, 20);
  const bool cpu = GetParam().kind == Place::cpu;
  EXPECT_EQ(on().basis(BasisMethod::automatic, 1, 40, 9, y),
            on().basis(cpu ? BasisMethod::householder : BasisMethod::cholesky_qr, 1, 40, 9, y));
}

TEST_P(BasisFamily, exact_polar_factors_are_those_of_the_singular_vectors) {
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{30, 47}, {25, 25}, {1, 9}, {1, 1}, {60, 70}}) {
    const std::vector<Dense> x = {rounded(gaussian(rows, cols, 17)), rounded(scaled(gaussian(rows, cols, 18), 1e30))};
    const std::vector<float> o = on().exact_polar({2, rows, cols}, stacked(x));
    for (std::int64_t m = 0; m < 2; ++m) {
      EXPECT_LT(relative_error(matrix_of(o, m, rows, cols), polar(x[static_cast<std::size_t>(m)], 0.0)), 1e-4)
          << rows << "x" << cols;
    }
  }
}

TEST_P(BasisFamily, exact_polar_factors_leave_out_singular_values_that_are_rounding_errors) {
  const Dense x = with_spectrum(20, 33, {2.0, 1.0, 0.5}, 18);
  EXPECT_LT(relative_error(dense(on().exact_polar({1, 20, 33}, floats(x)), 20, 33), polar(x, 1e-6)), 1e-5);
  EXPECT_EQ(on().exact_polar({2, 3, 5}, std::vector<float>(30)), std::vector<float>(30));
}

TEST_P(BasisFamily, exact_polar_factors_of_what_is_not_finite_are_nan) {
  for (const float bad : {std::nanf(""), HUGE_VALF}) {
    std::vector<float> stack = random_floats(2 * 6 * 9, 19);
    stack[3] = bad;
    const std::vector<float> o = on().exact_polar({2, 6, 9}, stack);
    EXPECT_TRUE(std::all_of(o.begin(), o.begin() + 54, [](float v) { return std::isnan(v); }));
    EXPECT_TRUE(std::none_of(o.begin() + 54, o.end(), [](float v) { return std::isnan(v); }));
  }
}

INSTANTIATE_TEST_SUITE_P(Places, BasisFamily, testing::ValuesIn(places()), name_of_place);

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

TEST(Cusolver, that_cannot_be_loaded_is_named_with_the_loaders_reason_and_what_does_without) {
  expect_parts(error_of(Exit::device, [] { cuda::open_cusolver("libnowhere.so.12"); }),
               {"cuSOLVER cannot be loaded", "libnowhere.so.12", "cholesky_qr"});
  expect_parts(error_of(Exit::device, [] { cuda::open_cusolver(POLARON_LIBRARY_WITHOUT_ENTRY); }),
               {"cuSOLVER lacks the function cusolverDnCreate"});
}

TEST(Cusolver, has_every_function_where_it_is_installed) {
  const std::string name = "libcusolver.so." + std::to_string(CUSOLVER_VER_MAJOR);
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) GTEST_SKIP() << dlerror();
  EXPECT_NO_THROW(cuda::open_cusolver(name.c_str()));
}

}  // namespace
}  // namespace polaron::test
