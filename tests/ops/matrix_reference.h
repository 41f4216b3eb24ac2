// What the tests of the matrix ops share: dense linear algebra in double precision, written plainly, matrices with a
// given spectrum, and the ops on vectors of floats.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/optimizer_ops.h"

namespace polaron::test {

// Row-major matrix of doubles.
struct Dense {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> data;

  Dense() = default;
  Dense(std::int64_t rows_, std::int64_t cols_) : rows(rows_), cols(cols_) {
    data.resize(static_cast<std::size_t>(rows * cols));
  }
  double& operator()(std::int64_t i, std::int64_t j) { return data[static_cast<std::size_t>(i * cols + j)]; }
  double operator()(std::int64_t i, std::int64_t j) const { return data[static_cast<std::size_t>(i * cols + j)]; }
};

Dense product(const Dense& a, const Dense& b);
Dense transposed(const Dense& a);
Dense scaled(const Dense& a, double factor);
Dense identity(std::int64_t n);
double inner(const Dense& a, const Dense& b);
double norm(const Dense& a);  // Frobenius
double relative_error(const Dense& actual,
                      const Dense& expected);  // ||actual - expected|| / ||expected||; NaN if any is

Dense dense(const std::vector<float>& values, std::int64_t rows, std::int64_t cols);  // values may hold more
std::vector<float> floats(const Dense& a);
Dense rounded(const Dense& a);  // to fp32

Dense gaussian(std::int64_t rows, std::int64_t cols, std::uint64_t seed);
Dense orthonormal(std::int64_t rows, std::int64_t cols, std::uint64_t seed);  // rows >= cols
// U diag(values) V^T with random orthonormal U [rows, k], V [cols, k].
Dense with_spectrum(std::int64_t rows, std::int64_t cols, const std::vector<double>& values, std::uint64_t seed);

// Modified Gram-Schmidt, twice, in column order. In the end columns are set to zero of which those before them leave no
// more than `tolerance` of the largest column's length.
Dense orthonormal_basis_of(const Dense& y, double tolerance);

struct Svd {
  Dense u;                     // [rows, n], n = min(rows, cols)
  std::vector<double> values;  // descending
  Dense v;                     // [cols, n]
};
Svd svd(const Dense& x);  // one-sided Jacobi
double nuclear_norm(const Dense& x);
Dense polar(const Dense& x, double least);  // U V^T over singular values > least

Dense newton_schulz_of(const NewtonSchulzSpec& spec, Dense x);

// Matrices [rows, cols] on which orthogonalization is known to be hard, by name; rounded to fp32.
std::vector<std::pair<std::string, Dense>> hard_matrices(std::int64_t rows, std::int64_t cols);

// The CPU's matrix ops on one stack held in vectors.
class MatrixOpsHarness {
 public:
  MatrixOpsHarness();
  ~MatrixOpsHarness();
  MatrixOps& ops() { return *ops_; }
  Stream& stream() { return *stream_; }

  std::vector<float> newton_schulz(const StackShape& shape, const NewtonSchulzSpec& spec, std::vector<float> stack);
  std::vector<float> exact_polar(const StackShape& shape, std::vector<float> stack);
  std::vector<float> sketch(const StackShape& shape, std::int64_t rank, Sketch kind, int power,
                            const std::vector<PhiloxKey>& keys, const std::vector<float>& stack);
  std::vector<float> basis(const StackShape& shape, std::int64_t rank, BasisMethod method, std::vector<float> sketch);
  std::vector<float> project(const StackShape& shape, std::int64_t rank, const std::vector<float>& basis,
                             const std::vector<float>& stack);
  // One matrix: the basis of its sketch.
  Dense basis_of(const Dense& x, std::int64_t rank, Sketch kind, BasisMethod method, std::uint32_t key = 0,
                 int power = 0);
  // One matrix: Q NS(Q^T X), multiplied in double.
  Dense low_rank(const Dense& x, std::int64_t rank, Sketch kind, BasisMethod method, const NewtonSchulzSpec& spec,
                 std::uint32_t key = 0);

 private:
  std::unique_ptr<MatrixOps> ops_;
  std::unique_ptr<Stream> stream_;
};

// Both of each, for tests that hold for every combination.
inline constexpr BasisMethod kBasisMethods[] = {BasisMethod::householder, BasisMethod::cholesky_qr};
inline constexpr Sketch kSketches[] = {Sketch::columns, Sketch::gaussian};
const char* name_of(BasisMethod method);
const char* name_of(Sketch sketch);

// 1, 2^exponent, ..., n^exponent.
std::vector<double> powers(std::int64_t n, double exponent);

inline PhiloxKey test_key(std::uint32_t tensor) { return make_key(7, RandomPurpose::test, 3, tensor); }

}  // namespace polaron::test
