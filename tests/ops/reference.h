// What the tests of every op family share: matrices with guarded padding, random values, comparison with a
// double-precision reference and with central differences, a fixed number of threads. The references themselves stand
// in the test of their family: plain loops over std::vector<double>, written from the formula in the header of the op.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "backend/device.h"
#include "backend/tensor.h"

namespace polaron::test {

using Doubles = std::vector<double>;

// Approximately normal with the given mean and deviation; the same for the same seed everywhere.
std::vector<float> random_floats(std::int64_t n, std::uint64_t seed, double deviation = 1.0, double mean = 0.0);
// Uniform in [0, limit).
std::vector<std::int32_t> random_integers(std::int64_t n, std::int32_t limit, std::uint64_t seed);
Doubles to_doubles(const std::vector<float>& values);

// An fp32 matrix that an op reads or writes. Memory between the rows and behind the last one is filled with a guard
// pattern, and the destructor fails the test when an op has written there.
class Matrix {
 public:
  Matrix(std::int64_t rows, std::int64_t cols, std::int64_t padding = 0);  // zero
  static Matrix random(std::int64_t rows, std::int64_t cols, std::uint64_t seed, double deviation = 1.0,
                       double mean = 0.0, std::int64_t padding = 0);
  static Matrix filled(std::int64_t rows, std::int64_t cols, float value, std::int64_t padding = 0);
  Matrix(const Matrix&) = default;
  Matrix& operator=(const Matrix&) = default;
  ~Matrix();

  Tensor tensor();
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  float& at(std::int64_t row, std::int64_t col) { return memory_[row * stride_ + col]; }
  float at(std::int64_t row, std::int64_t col) const { return memory_[row * stride_ + col]; }
  Doubles values() const;                     // dense [rows * cols]
  bool same_bits(const Matrix& other) const;  // NaNs with the same bits are the same

 private:
  std::int64_t rows_, cols_, stride_;
  std::vector<float> memory_;
};

// int32 [n, 1].
class Column {
 public:
  explicit Column(std::vector<std::int32_t> values) : values_(std::move(values)) {}
  Tensor tensor() { return {values_.data(), DType::i32, static_cast<std::int64_t>(values_.size()), 1}; }
  const std::vector<std::int32_t>& values() const { return values_; }

 private:
  std::vector<std::int32_t> values_;
};

// Fails the test unless |actual - expected| <= tolerance * (|expected| + rms of all expected) + floor everywhere; says
// the first element that is off, and the worst. NaN is off unless expected.
void expect_close(const Matrix& actual, const Doubles& expected, double tolerance, const std::string& name,
                  double floor = 0.0);
void expect_close(const Doubles& actual, const Doubles& expected, double tolerance, const std::string& name,
                  std::int64_t cols, double floor = 0.0);

// Fails the test unless `gradient` agrees with the central differences of f at x (dense, in the order of
// Matrix::values()), with the tolerances of expect_close. Matrices of more than `most` elements are looked at in so
// many places, spread evenly; the first and the last are among them.
void expect_derivative(const Matrix& gradient, const std::function<double(const Doubles&)>& f, Doubles x,
                       double tolerance, const std::string& name, double floor = 0.0, std::int64_t most = 60);

double dot(const Doubles& a, const Doubles& b);

// Sets the number of OpenMP threads for its lifetime.
class Threads {
 public:
  explicit Threads(int count);
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads();

 private:
  int before_;
};

// A stream for ops that finish before they return.
class HostStream final : public Stream {
 public:
  void synchronize() override {}
};

}  // namespace polaron::test
