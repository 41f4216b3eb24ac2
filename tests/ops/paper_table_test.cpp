// What low-rank orthogonalization keeps of a matrix, by sketch and rank, against a table of means over eight trials
// that was made with an independent program (numpy): the relative residual ||M - Q Q^T M||_F / ||M||_F and the captured
// share
// ||Q^T M||_* / ||M||_* of 256 x 512 matrices.
#include <gtest/gtest.h>

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
constexpr std::int64_t kRanks[] = {16, 32, 64, 128, 192};

struct Basis {
  const char* name;
  Sketch kind;
  int power;
  double residual[5], captured[5];
};
struct Spectrum {
  const char* name;
  double (*sigma)(double j);
  Basis bases[3];
};
const Spectrum kSpectra[] = {
    {"1/j",
     [](double j) { return 1 / j; },
     {{"columns", Sketch::columns, 0, {.295, .206, .135, .080, .048}, {.499, .611, .731, .856, .937}},
      {"gaussian", Sketch::gaussian, 0, {.291, .205, .135, .080, .047}, {.499, .613, .731, .856, .937}},
      {"power 1", Sketch::gaussian, 1, {.196, .136, .090, .053, .032}, {.545, .655, .768, .881, .949}}}},
    {"exp(-j/20)",
     [](double j) { return std::exp(-j / 20); },
     {{"columns", Sketch::columns, 0, {.645, .375, .103, .006, .000}, {.460, .735, .944, .998, 1}},
      {"gaussian", Sketch::gaussian, 0, {.646, .371, .107, .006, .000}, {.458, .737, .943, .998, 1}},
      {"power 1", Sketch::gaussian, 1, {.497, .224, .045, .002, .000}, {.530, .789, .958, .998, 1}}}},
};

class PaperTable : public testing::Test {
 protected:
  // U S V^T with orthonormal U and V of random directions.
  std::vector<float> matrix(const Spectrum& spectrum, std::uint64_t seed) {
    std::mt19937_64 engine(seed);
    std::normal_distribution<float> normal;
    std::vector<float> left(kRows * kRows), right(kCols * kRows), product(kRows * kCols);
    for (float& x : left) x = normal(engine);
    for (float& x : right) x = normal(engine);
    ops_->orthonormal_basis(stream_, 1, kRows, kRows, BasisMethod::householder, left.data());
    ops_->orthonormal_basis(stream_, 1, kCols, kRows, BasisMethod::householder, right.data());
    for (std::int64_t l = 0; l < kRows; ++l) {
      const auto sigma = static_cast<float>(spectrum.sigma(static_cast<double>(l + 1)));
      for (std::int64_t i = 0; i < kRows; ++i) left[static_cast<std::size_t>(i * kRows + l)] *= sigma;
    }
    cpu::make_linear_ops()->forward(stream_, Tensor(left.data(), DType::f32, kRows, kRows),
                                    Tensor(right.data(), DType::f32, kCols, kRows), {}, Activation::none,
                                    Tensor(product.data(), DType::f32, kRows, kCols), {});
    return product;
  }

  std::unique_ptr<MatrixOps> ops_ = cpu::make_matrix_ops();
  HostStream stream_;
};

TEST_F(PaperTable, residual_and_captured_share_are_those_of_the_table_within_its_noise) {
  constexpr int kTrials = 8;
  for (const Spectrum& spectrum : kSpectra) {
    const std::vector<float> m = matrix(spectrum, 5);
    double nuclear = 0, squares = 0;
    for (std::int64_t j = 1; j <= kRows; ++j) {
      const double sigma = spectrum.sigma(static_cast<double>(j));
      nuclear += sigma;
      squares += sigma * sigma;
    }
    for (const Basis& basis : spectrum.bases) {
      for (std::size_t r = 0; r < std::size(kRanks); ++r) {
        const std::int64_t rank = kRanks[r];
        double residual = 0, captured = 0;
        for (std::uint32_t trial = 0; trial < kTrials; ++trial) {
          std::vector<float> q(static_cast<std::size_t>(kRows * rank)), b(static_cast<std::size_t>(rank * kCols));
          const PhiloxKey key = make_key(1, RandomPurpose::test, trial, static_cast<std::uint32_t>(rank));
          ops_->sketch(stream_, {1, kRows, kCols}, rank, basis.kind, basis.power, std::span(&key, 1), m.data(),
                       q.data());
          ops_->orthonormal_basis(stream_, 1, kRows, rank, BasisMethod::householder, q.data());
          ops_->project(stream_, {1, kRows, kCols}, rank, q.data(), m.data(), b.data());
          double kept = 0;
          for (const float x : b) kept += static_cast<double>(x) * static_cast<double>(x);
          residual += std::sqrt(std::max(0.0, 1 - kept / squares)) / kTrials;
          for (const double sigma : singular_values(b, rank, kCols)) captured += sigma / nuclear / kTrials;
        }
        const std::string what = std::string(spectrum.name) + ", " + basis.name + ", rank " + std::to_string(rank);
        EXPECT_NEAR(residual, basis.residual[r], 0.012) << what;
        EXPECT_NEAR(captured, basis.captured[r], 0.012) << what;
      }
    }
  }
}

}  // namespace
}  // namespace polaron::test
