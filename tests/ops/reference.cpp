#include "ops/reference.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <sstream>

#include "backend/philox.h"

namespace polaron::test {
namespace {

constexpr std::uint32_t kGuard = 0x7FC0DEADU;   // a NaN, so that reading it shows as well
constexpr std::uint16_t kShortGuard = 0x7FDEU;  // the same in bf16
constexpr std::int64_t kTail = 64;              // guarded elements behind the last row

}  // namespace

std::vector<float> random_floats(std::int64_t n, std::uint64_t seed, double deviation, double mean) {
  const PhiloxKey key = make_key(seed, RandomPurpose::test, 0, 0);
  std::vector<float> values(n);
  for (std::int64_t i = 0; i < n; ++i) {
    values[i] = static_cast<float>(mean + deviation * static_cast<double>(sketch_gaussian(key, i)));
  }
  return values;
}

std::vector<std::int32_t> random_integers(std::int64_t n, std::int32_t limit, std::uint64_t seed) {
  const PhiloxKey key = make_key(seed, RandomPurpose::test, 1, 0);
  std::vector<std::int32_t> values(n);
  for (std::int64_t i = 0; i < n; ++i) {
    values[i] = static_cast<std::int32_t>(philox(key, i).word[0] % static_cast<std::uint32_t>(limit));
  }
  return values;
}

Doubles to_doubles(const std::vector<float>& values) { return {values.begin(), values.end()}; }

double unit_roundoff(DType type) { return type == DType::bf16 ? 0x1p-8 : 0.0; }

Matrix::Matrix(std::int64_t rows, std::int64_t cols, std::int64_t padding, DType type)
    : type_(type), rows_(rows), cols_(cols), stride_(cols + padding) {
  const std::int64_t size = rows * stride_ + kTail;
  if (type == DType::bf16) {
    halves_.assign(size, bf16{kShortGuard});
  } else {
    floats_.assign(size, std::bit_cast<float>(kGuard));
  }
  for (std::int64_t r = 0; r < rows_; ++r) {
    for (std::int64_t c = 0; c < cols_; ++c) at(r, c) = 0.0F;
  }
}

Matrix Matrix::random(std::int64_t rows, std::int64_t cols, std::uint64_t seed, double deviation, double mean,
                      std::int64_t padding, DType type) {
  Matrix matrix(rows, cols, padding, type);
  const std::vector<float> values = random_floats(rows * cols, seed, deviation, mean);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) matrix.at(r, c) = values[r * cols + c];
  }
  return matrix;
}

Matrix Matrix::filled(std::int64_t rows, std::int64_t cols, float value, std::int64_t padding, DType type) {
  Matrix matrix(rows, cols, padding, type);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) matrix.at(r, c) = value;
  }
  return matrix;
}

Matrix::~Matrix() {
  const std::uint32_t guard = type_ == DType::bf16 ? kShortGuard : kGuard;
  for (std::int64_t i = 0; i < size(); ++i) {
    const bool inside = i < rows_ * stride_ && i % stride_ < cols_;
    if (!inside && bits(i) != guard) {
      ADD_FAILURE() << "an op wrote outside a [" << rows_ << ", " << cols_ << "] matrix of stride " << stride_
                    << ", at element " << i;
      return;
    }
  }
}

Tensor Matrix::tensor() {
  void* const data = type_ == DType::bf16 ? static_cast<void*>(halves_.data()) : floats_.data();
  return {data, type_, rows_, cols_, stride_};
}

void Matrix::put(std::int64_t at, float value) {
  if (type_ == DType::bf16) {
    halves_[at] = to_bf16(value);
  } else {
    floats_[at] = value;
  }
}

std::uint32_t Matrix::bits(std::int64_t at) const {
  return type_ == DType::bf16 ? halves_[at].bits : std::bit_cast<std::uint32_t>(floats_[at]);
}

Doubles Matrix::values() const {
  Doubles result;
  result.reserve(rows_ * cols_);
  for (std::int64_t r = 0; r < rows_; ++r) {
    for (std::int64_t c = 0; c < cols_; ++c) result.push_back(at(r, c));
  }
  return result;
}

bool Matrix::same_bits(const Matrix& other) const {
  if (type_ != other.type_ || rows_ != other.rows_ || cols_ != other.cols_) return false;
  for (std::int64_t r = 0; r < rows_; ++r) {
    for (std::int64_t c = 0; c < cols_; ++c) {
      if (bits(r * stride_ + c) != other.bits(r * other.stride_ + c)) return false;
    }
  }
  return true;
}

namespace {

// places: where in a matrix of `cols` columns the elements stand. floors: of each element.
void compare(const Doubles& actual, const Doubles& expected, const std::vector<std::int64_t>& places, std::int64_t cols,
             double tolerance, const Doubles& floors, DType type, const std::string& name) {
  double squares = 0.0;
  for (const double e : expected) squares += std::isfinite(e) ? e * e : 0.0;
  const double rms = expected.empty() ? 0.0 : std::sqrt(squares / static_cast<double>(expected.size()));

  std::size_t off = 0, first = 0, worst = 0;
  double worst_ratio = 0.0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double a = actual[i], e = expected[i];
    if (a == e || (std::isnan(a) && std::isnan(e))) continue;
    const double exact = tolerance * (std::abs(e) + rms) + floors[i], unit = unit_roundoff(type);
    const double allowed = unit * std::abs(e) + (1.0 + unit) * exact;
    if (std::abs(a - e) <= allowed) continue;
    if (off++ == 0) first = i;
    const double ratio = std::isfinite(a - e) ? std::abs(a - e) / allowed : INFINITY;
    if (ratio > worst_ratio) {
      worst = i;
      worst_ratio = ratio;
    }
  }
  if (off == 0) return;
  const auto element = [&](std::size_t i) {
    std::ostringstream text;
    text.precision(9);
    text << "[" << places[i] / cols << ", " << places[i] % cols << "]: got " << actual[i] << ", expected "
         << expected[i];
    return text.str();
  };
  ADD_FAILURE() << name << ": " << off << " of " << actual.size() << " elements off; first " << element(first)
                << "; worst " << element(worst) << ", " << worst_ratio << " times the allowed error";
}

}  // namespace

void expect_close(const Doubles& actual, const Doubles& expected, double tolerance, const std::string& name,
                  std::int64_t cols, const Doubles& floors, DType type) {
  ASSERT_EQ(actual.size(), expected.size()) << name;
  ASSERT_EQ(actual.size(), floors.size()) << name;
  std::vector<std::int64_t> places(actual.size());
  std::iota(places.begin(), places.end(), 0);
  compare(actual, expected, places, cols, tolerance, floors, type, name);
}

void expect_close(const Doubles& actual, const Doubles& expected, double tolerance, const std::string& name,
                  std::int64_t cols, double floor, DType type) {
  expect_close(actual, expected, tolerance, name, cols, Doubles(actual.size(), floor), type);
}

void expect_close(const Matrix& actual, const Doubles& expected, double tolerance, const std::string& name,
                  double floor) {
  expect_close(actual.values(), expected, tolerance, name, actual.cols(), floor, actual.type());
}

void expect_derivative(const Matrix& gradient, const std::function<double(const Doubles&)>& f, Doubles x,
                       double tolerance, const std::string& name, double floor, std::int64_t most) {
  const Doubles all = gradient.values();
  const auto size = static_cast<std::int64_t>(all.size());
  ASSERT_EQ(all.size(), x.size()) << name;
  constexpr double kStep = 1e-5;
  Doubles actual, expected;
  std::vector<std::int64_t> places;
  for (std::int64_t k = 0; k < std::min(size, most); ++k) {
    const std::int64_t i = size <= most ? k : k * (size - 1) / (most - 1);
    const double value = x[i];
    x[i] = value + kStep;
    const double above = f(x);
    x[i] = value - kStep;
    const double below = f(x);
    x[i] = value;
    places.push_back(i);
    actual.push_back(all[i]);
    expected.push_back((above - below) / (2.0 * kStep));
  }
  const Doubles floors(actual.size(), floor);
  compare(actual, expected, places, gradient.cols(), tolerance, floors, gradient.type(), name);
}

double dot(const Doubles& a, const Doubles& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

Threads::Threads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
Threads::~Threads() { omp_set_num_threads(before_); }

}  // namespace polaron::test
