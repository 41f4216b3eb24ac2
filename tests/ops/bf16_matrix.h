// Matrices of bf16 for the tests of products.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/bf16.h"
#include "ops/reference.h"

namespace polaron::test {

// A bf16 matrix that an op reads or writes. Memory between the rows and behind the last one is filled with a guard
// pattern (a NaN, so that reading it shows), and the destructor fails the test when an op has written there.
class Bf16Matrix {
 public:
  Bf16Matrix(std::int64_t rows, std::int64_t cols, std::int64_t padding = 0);  // zero
  explicit Bf16Matrix(const Matrix& values, std::int64_t padding = 0);         // rounded
  static Bf16Matrix random(std::int64_t rows, std::int64_t cols, std::uint64_t seed, double deviation = 1.0,
                           double mean = 0.0, std::int64_t padding = 0);
  Bf16Matrix(const Bf16Matrix&) = default;
  Bf16Matrix& operator=(const Bf16Matrix&) = default;
  ~Bf16Matrix();

  Tensor tensor() { return {memory_.data(), DType::bf16, rows_, cols_, stride_}; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  bf16& at(std::int64_t row, std::int64_t col) { return memory_[row * stride_ + col]; }
  double at(std::int64_t row, std::int64_t col) const {
    return static_cast<double>(to_float(memory_[row * stride_ + col]));
  }
  Doubles values() const;  // dense
  bool same_bits(const Bf16Matrix& other) const;

 private:
  std::int64_t rows_, cols_, stride_;
  std::vector<bf16> memory_;
};

// Fails the test unless |actual - expected| <= 2^-8 |expected| + error everywhere: one rounding to bf16 of a number
// that is off by `error` (times 1 + 2^-8). errors: one for each element.
void expect_rounded(const Bf16Matrix& actual, const Doubles& expected, const Doubles& errors, const std::string& name);

}  // namespace polaron::test
