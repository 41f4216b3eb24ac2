#include "ops/bf16_matrix.h"

#include <gtest/gtest.h>

#include <cmath>

namespace polaron::test {
namespace {

constexpr bf16 kGuard{0x7FDA};
constexpr std::int64_t kTail = 64;

}  // namespace

Bf16Matrix::Bf16Matrix(std::int64_t rows, std::int64_t cols, std::int64_t padding)
    : rows_(rows), cols_(cols), stride_(cols + padding), memory_(rows * (cols + padding) + kTail, kGuard) {
  for (std::int64_t r = 0; r < rows_; ++r) {
    for (std::int64_t c = 0; c < cols_; ++c) at(r, c) = bf16{0};
  }
}

Bf16Matrix::Bf16Matrix(const Matrix& values, std::int64_t padding) : Bf16Matrix(values.rows(), values.cols(), padding) {
  for (std::int64_t r = 0; r < rows_; ++r) {
    for (std::int64_t c = 0; c < cols_; ++c) at(r, c) = to_bf16(values.at(r, c));
  }
}

Bf16Matrix Bf16Matrix::random(std::int64_t rows, std::int64_t cols, std::uint64_t seed, double deviation, double mean,
                              std::int64_t padding) {
  return Bf16Matrix(Matrix::random(rows, cols, seed, deviation, mean), padding);
}

Bf16Matrix::~Bf16Matrix() {
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(memory_.size()); ++i) {
    const bool inside = i < rows_ * stride_ && i % stride_ < cols_;
    if (!inside && memory_[i].bits != kGuard.bits) {
      ADD_FAILURE() << "an op wrote outside a [" << rows_ << ", " << cols_ << "] bf16 matrix of stride " << stride_
                    << ", at element " << i;
      return;
    }
  }
}

Doubles Bf16Matrix::values() const {
  Doubles result;
  for (std::int64_t r = 0; r < rows_; ++r) {
    for (std::int64_t c = 0; c < cols_; ++c) result.push_back(at(r, c));
  }
  return result;
}

bool Bf16Matrix::same_bits(const Bf16Matrix& other) const {
  if (rows_ != other.rows_ || cols_ != other.cols_) return false;
  for (std::int64_t r = 0; r < rows_; ++r) {
    for (std::int64_t c = 0; c < cols_; ++c) {
      if (memory_[r * stride_ + c].bits != other.memory_[r * other.stride_ + c].bits) return false;
    }
  }
  return true;
}

void expect_rounded(const Bf16Matrix& actual, const Doubles& expected, const Doubles& errors, const std::string& name) {
  ASSERT_EQ(expected.size(), static_cast<std::size_t>(actual.rows() * actual.cols())) << name;
  ASSERT_EQ(errors.size(), expected.size()) << name;
  constexpr double kHalfUlp = 1.0 / 256.0;
  const Doubles values = actual.values();
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double allowed = kHalfUlp * std::abs(expected[i]) + (1.0 + kHalfUlp) * errors[i];
    ASSERT_LE(std::abs(values[i] - expected[i]), allowed)
        << name << " at [" << static_cast<std::int64_t>(i) / actual.cols() << ", "
        << static_cast<std::int64_t>(i) % actual.cols() << "]: got " << values[i] << ", expected " << expected[i];
  }
}

}  // namespace polaron::test
