// What low-rank orthogonalization keeps of a matrix, by sketch and rank, against a table of means over eight trials
// that was made with an independent program (numpy): the relative residual ||M - Q Q^T M||_F / ||M||_F and the captured
// share
// ||Q^T M||_* / ||M||_* of 256 x 512 matrices.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cpu/families.h"
#include "cpu/singular_values.h"
#include "ops/reference.h"

namespace polaron::test {
namespace {

constexpr std::int64_t kRows = 256, kCols = 512;
constexpr std::int64_t kRanks[] = {16, 32, 64, 128, 192, 256};

struct Basis {
  const char* name;
  bool drawn;  // false: the leading left singular vectors
  Sketch kind;
  int power;
  double residual[6], captured[6];
};
struct Spectrum {
  const char* name;
  double (*sigma)(double j);
  Basis bases[4];
};
const Spectrum kSpectra[] = {
    {"1/j",
     [](double j) { return 1 / j; },
     {{"columns", true, Sketch::columns, 0, {.295, .206, .135, .080, .048, 0}, {.499, .611, .731, .856, .937, 1}},
      {"gaussian", true, Sketch::gaussian, 0, {.291, .205, .135, .080, .047, 0}, {.499, .613, .731, .856, .937, 1}},
      {"power 1", true, Sketch::gaussian, 1, {.196, .136, .090, .053, .032, 0}, {.545, .655, .768, .881, .949, 1}},
      {"SVD", false, Sketch::gaussian, 0, {.186, .128, .084, .049, .028, 0}, {.552, .663, .775, .887, .953, 1}}}},
    {"exp(-j/20)",
     [](double j) { return std::exp(-j / 20); },
     {{"columns", true, Sketch::columns, 0, {.645, .375, .103, .006, .000, 0}, {.460, .735, .944, .998, 1, 1}},
      {"gaussian", true, Sketch::gaussian, 0, {.646, .371, .107, .006, .000, 0}, {.458, .737, .943, .998, 1, 1}},
      {"power 1", true, Sketch::gaussian, 1, {.497, .224, .045, .002, .000, 0}, {.530, .789, .958, .998, 1, 1}},
      {"SVD", false, Sketch::gaussian, 0, {.449, .202, .041, .002, .000, 0}, {.551, .798, .959, .998, 1, 1}}}},
};

struct Matrix {
  std::vector<float> values;  // U S V^T, [kRows, kCols]
  std::vector<float> left;    // U, [kRows, kRows]
  double norm = 0, nuclear_norm = 0;
};

struct Kept {
  double residual = 0, captured = 0;
};

class PaperTable : public testing::Test {
 protected:
  // With U and V of random directions.
  Matrix matrix(const Spectrum& spectrum, std::uint64_t seed) {
    std::mt19937_64 engine(seed);
    std::normal_distribution<float> normal;
    Matrix m{std::vector<float>(kRows * kCols), std::vector<float>(kRows * kRows)};
    std::vector<float> right(kCols * kRows);
    for (float& x : m.left) x = normal(engine);
    for (float& x : right) x = normal(engine);
    ops_->orthonormal_basis(stream_, 1, kRows, kRows, BasisMethod::householder, m.left.data());
    ops_->orthonormal_basis(stream_, 1, kCols, kRows, BasisMethod::householder, right.data());
    std::vector<float> scaled = m.left;
    double squares = 0;
    for (std::int64_t l = 0; l < kRows; ++l) {
      const double sigma = spectrum.sigma(static_cast<double>(l + 1));
      m.nuclear_norm += sigma;
      squares += sigma * sigma;
      for (std::int64_t i = 0; i < kRows; ++i)
        scaled[static_cast<std::size_t>(i * kRows + l)] *= static_cast<float>(sigma);
    }
    m.norm = std::sqrt(squares);
    linear_->forward(stream_, Tensor(scaled.data(), DType::f32, kRows, kRows),
                     Tensor(right.data(), DType::f32, kCols, kRows), {}, Activation::none,
                     Tensor(m.values.data(), DType::f32, kRows, kCols), {});
    return m;
  }

  std::vector<float> basis_of(const Matrix& m, const Basis& basis, std::int64_t rank, std::uint32_t trial) {
    std::vector<float> q(static_cast<std::size_t>(kRows * rank));
    if (!basis.drawn) {
      for (std::int64_t i = 0; i < kRows; ++i) std::copy_n(m.left.data() + i * kRows, rank, q.data() + i * rank);
      return q;
    }
    const PhiloxKey key = make_key(1, RandomPurpose::test, trial, static_cast<std::uint32_t>(rank));
    ops_->sketch(stream_, {1, kRows, kCols}, rank, basis.kind, basis.power, std::span(&key, 1), m.values.data(),
                 q.data());
    ops_->orthonormal_basis(stream_, 1, kRows, rank, BasisMethod::householder, q.data());
    return q;
  }

  Kept kept_by(const Matrix& m, std::vector<float> q, std::int64_t rank) {
    std::vector<float> b(static_cast<std::size_t>(rank * kCols)), left(m.values.size());
    ops_->project(stream_, {1, kRows, kCols}, rank, q.data(), m.values.data(), b.data());
    std::vector<float> transposed(b.size());
    for (std::int64_t i = 0; i < rank; ++i) {
      for (std::int64_t j = 0; j < kCols; ++j) {
        transposed[static_cast<std::size_t>(j * rank + i)] = b[static_cast<std::size_t>(i * kCols + j)];
      }
    }
    linear_->forward(stream_, Tensor(q.data(), DType::f32, kRows, rank),
                     Tensor(transposed.data(), DType::f32, kCols, rank), {}, Activation::none,
                     Tensor(left.data(), DType::f32, kRows, kCols), {});
    double squares = 0;  // of the difference itself: 1 - ||Q^T M||^2 loses what is below the root of fp32's rounding
    for (std::size_t i = 0; i < left.size(); ++i) {
      const double difference = static_cast<double>(m.values[i]) - static_cast<double>(left[i]);
      squares += difference * difference;
    }
    Kept kept{std::sqrt(squares) / m.norm, 0};
    for (const double sigma : singular_values(b, rank, kCols)) kept.captured += sigma / m.nuclear_norm;
    return kept;
  }

  // By the leading `rank` left singular vectors, from the singular values.
  static Kept kept_by_leading(const Spectrum& spectrum, const Matrix& m, std::int64_t rank) {
    double left = 0, sum = 0;
    for (std::int64_t j = 1; j <= kRows; ++j) {
      const double sigma = spectrum.sigma(static_cast<double>(j));
      (j <= rank ? sum : left) += j <= rank ? sigma : sigma * sigma;
    }
    return {std::sqrt(left) / m.norm, sum / m.nuclear_norm};
  }

  std::unique_ptr<MatrixOps> ops_ = cpu::make_matrix_ops();
  std::unique_ptr<LinearOps> linear_ = cpu::make_linear_ops();
  HostStream stream_;
};

// Means of other draws differ by the noise of eight trials, which is a share of what is left over, and the table is
// rounded to three digits. No basis keeps more than the leading singular vectors (Eckart and Young).
TEST_F(PaperTable, residual_and_captured_share_are_those_of_the_table_within_its_noise) {
  constexpr double kRounding = 0.0005, kNoiseOfResidual = 0.03, kNoiseOfRest = 0.015;
  for (const Spectrum& spectrum : kSpectra) {
    const Matrix m = matrix(spectrum, 5);
    for (const Basis& basis : spectrum.bases) {
      for (std::size_t r = 0; r < std::size(kRanks); ++r) {
        const std::int64_t rank = kRanks[r];
        const std::string what = std::string(spectrum.name) + ", " + basis.name + ", rank " + std::to_string(rank);
        const int trials = basis.drawn ? 8 : 1;
        Kept mean;
        for (int trial = 0; trial < trials; ++trial) {
          const Kept kept = kept_by(m, basis_of(m, basis, rank, static_cast<std::uint32_t>(trial)), rank);
          mean.residual += kept.residual / trials;
          mean.captured += kept.captured / trials;
        }
        const Kept best = kept_by_leading(spectrum, m, rank);
        if (!basis.drawn || rank == kRows) {  // nothing is left to chance
          EXPECT_NEAR(mean.residual, best.residual, 2e-6) << what;
          EXPECT_NEAR(mean.captured, best.captured, 2e-6) << what;
          EXPECT_NEAR(mean.residual, basis.residual[r], kRounding) << what;
          EXPECT_NEAR(mean.captured, basis.captured[r], kRounding) << what;
          continue;
        }
        EXPECT_NEAR(mean.residual, basis.residual[r], kRounding + kNoiseOfResidual * basis.residual[r]) << what;
        EXPECT_NEAR(mean.captured, basis.captured[r], kRounding + kNoiseOfRest * (1 - basis.captured[r])) << what;
        EXPECT_GT(mean.residual, best.residual) << what;
        EXPECT_LT(mean.captured, best.captured) << what;
      }
    }
  }
}

// Where the right singular vectors are not spread over the columns, columns miss what a Gaussian sketch finds.
TEST_F(PaperTable, columns_miss_energy_that_few_columns_hold) {
  constexpr std::int64_t kRank = 16, kHeld = 8;
  constexpr int kTrials = 8;
  std::mt19937_64 engine(5);
  std::normal_distribution<float> normal;
  Matrix m{std::vector<float>(kRows * kCols), {}};
  for (std::int64_t i = 0; i < kRows; ++i) {
    for (std::int64_t j = 0; j < kHeld; ++j)
      m.values[static_cast<std::size_t>(i * kCols + j * kCols / kHeld)] = normal(engine);
  }
  for (const double sigma : singular_values(m.values, kRows, kCols)) {
    m.nuclear_norm += sigma;
    m.norm = std::hypot(m.norm, sigma);
  }
  for (const Basis& basis : kSpectra[0].bases) {
    if (!basis.drawn) continue;
    Kept mean;
    for (int trial = 0; trial < kTrials; ++trial) {
      const Kept kept = kept_by(m, basis_of(m, basis, kRank, static_cast<std::uint32_t>(trial)), kRank);
      mean.residual += kept.residual / kTrials;
      mean.captured += kept.captured / kTrials;
    }
    if (basis.kind == Sketch::columns) {  // 16 of 512 columns find a quarter of one of the 8
      EXPECT_GT(mean.residual, 0.8);
      EXPECT_LT(mean.captured, 0.5);
    } else {
      EXPECT_LT(mean.residual, 1e-5) << basis.name;
      EXPECT_NEAR(mean.captured, 1.0, 1e-5) << basis.name;
    }
  }
}

}  // namespace
}  // namespace polaron::test
