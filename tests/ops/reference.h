// What the tests of every op family share: matrices with guarded padding, random values, comparison with a
// double-precision reference and with central differences, a fixed number of threads. The references themselves stand
// in the test of their family: plain loops over std::vector<double>, written from the formula in the header of the op.
#pragma once

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "backend/bf16.h"
#include "backend/device.h"
#include "backend/tensor.h"

namespace polaron::test {

using Doubles = std::vector<double>;

// Approximately normal with the given mean and deviation; the same for the same seed everywhere.
std::vector<float> random_floats(std::int64_t n, std::uint64_t seed, double deviation = 1.0, double mean = 0.0);
// Uniform in [0, limit).
std::vector<std::int32_t> random_integers(std::int64_t n, std::int32_t limit, std::uint64_t seed);
Doubles to_doubles(const std::vector<float>& values);

// The types of activations, for claims that hold for each.
inline constexpr DType kActivationTypes[] = {DType::f32, DType::bf16};

// How far rounding to `type` can take a number from itself, relative to it, when fp32 counts as exact: bf16 has 8 bits
// of significand, so that neighbours in [1, 2) are 2^-7 apart and the farthest number between them is 2^-8 away.
double unit_roundoff(DType type);

// A matrix that an op reads or writes, fp32 or bf16. Memory between the rows and behind the last one is filled with a
// guard pattern, and the destructor fails the test when an op has written there. What is put into a bf16 matrix is
// rounded at once, so that values() is what an op sees.
class Matrix {
 public:
  // An element that reads and writes like a float.
  class Element {
   public:
    Element(Matrix& matrix, std::int64_t at) : matrix_(matrix), at_(at) {}
    Element(const Element&) = default;
    ~Element() = default;
    operator float() const { return matrix_.get(at_); }
    Element& operator=(float value) {
      matrix_.put(at_, value);
      return *this;
    }
    Element& operator=(const Element& other) { return *this = static_cast<float>(other); }
    Element& operator+=(float value) { return *this = static_cast<float>(*this) + value; }
    friend std::ostream& operator<<(std::ostream& out, const Element& e) { return out << static_cast<float>(e); }

   private:
    Matrix& matrix_;
    std::int64_t at_;
  };

  Matrix(std::int64_t rows, std::int64_t cols, std::int64_t padding = 0, DType type = DType::f32);  // zero
  static Matrix random(std::int64_t rows, std::int64_t cols, std::uint64_t seed, double deviation = 1.0,
                       double mean = 0.0, std::int64_t padding = 0, DType type = DType::f32);
  static Matrix filled(std::int64_t rows, std::int64_t cols, float value, std::int64_t padding = 0,
                       DType type = DType::f32);
  Matrix(const Matrix&) = default;
  Matrix& operator=(const Matrix&) = default;
  ~Matrix();

  Tensor tensor();
  DType type() const { return type_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  Element at(std::int64_t row, std::int64_t col) { return {*this, row * stride_ + col}; }
  float at(std::int64_t row, std::int64_t col) const { return get(row * stride_ + col); }
  Doubles values() const;                     // dense [rows * cols]
  bool same_bits(const Matrix& other) const;  // NaNs with the same bits are the same

 private:
  float get(std::int64_t at) const { return type_ == DType::bf16 ? to_float(halves_[at]) : floats_[at]; }
  void put(std::int64_t at, float value);
  std::uint32_t bits(std::int64_t at) const;
  std::int64_t size() const { return static_cast<std::int64_t>(floats_.size() + halves_.size()); }

  DType type_;
  std::int64_t rows_, cols_, stride_;
  std::vector<float> floats_;  // the elements of a matrix of fp32
  std::vector<bf16> halves_;   // of bf16
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
// the first element that is off, and the worst. NaN is off unless expected. Elements of a bf16 matrix may be off by
// their rounding in addition: with a an fp32 result, e what is expected, |a - e| <= d and u the unit roundoff,
// |round(a) - e| <= u |a| + |a - e| <= u |e| + (1 + u) d.
void expect_close(const Matrix& actual, const Doubles& expected, double tolerance, const std::string& name,
                  double floor = 0.0);
void expect_close(const Doubles& actual, const Doubles& expected, double tolerance, const std::string& name,
                  std::int64_t cols, double floor = 0.0, DType type = DType::f32);
// With a floor of each element's own.
void expect_close(const Doubles& actual, const Doubles& expected, double tolerance, const std::string& name,
                  std::int64_t cols, const Doubles& floors, DType type = DType::f32);

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
