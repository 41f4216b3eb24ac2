// The fixture of the matrix ops' tests: the ops of one machine on stacks that are held in vectors, and what several of
// these tests compare with.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "family.h"
#include "ops/matrix_reference.h"
#include "optim/newton_schulz_tables.h"

namespace polaron::test {

inline Matrix row_of(const std::vector<float>& values) {
  Matrix row(1, static_cast<std::int64_t>(values.size()));
  for (std::size_t i = 0; i < values.size(); ++i) row.at(0, static_cast<std::int64_t>(i)) = values[i];
  return row;
}

// fp32 values in a machine's memory, one after the other.
class Values {
 public:
  Values(const Machine& machine, const std::vector<float>& values) : array_(machine, row_of(values)) {}
  float* data() const { return array_.tensor().f32(); }
  std::vector<float> values() const {
    const Doubles all = array_.values();
    std::vector<float> result(all.size());
    std::transform(all.begin(), all.end(), result.begin(), [](double value) { return static_cast<float>(value); });
    return result;
  }
  const Array& array() const { return array_; }

 private:
  Array array_;
};

inline std::vector<float> stacked(const std::vector<Dense>& matrices) {
  std::vector<float> all;
  for (const Dense& matrix : matrices) {
    const std::vector<float> values = floats(matrix);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

// Matrix i of a stack.
inline Dense matrix_of(const std::vector<float>& stack, std::int64_t i, std::int64_t rows, std::int64_t cols) {
  const auto first = stack.begin() + i * rows * cols;
  return dense({first, first + rows * cols}, rows, cols);
}

// The ops of a machine, on vectors.
class MatrixOpsOn {
 public:
  explicit MatrixOpsOn(const Machine& machine) : machine_(machine), ops_(machine.ops().matrix()) {}

  std::vector<float> newton_schulz(const StackShape& shape, const NewtonSchulzSpec& spec,
                                   const std::vector<float>& stack) const {
    // Scratch arrives as it happens to be, wherever it happens to be.
    const auto floats = static_cast<std::size_t>(ops_.newton_schulz_scratch(shape, spec.dtype));
    const Values x(machine_, stack), scratch(machine_, std::vector<float>(floats + 1, std::nanf("")));
    ops_.newton_schulz(machine_.stream(), shape, spec, x.data(), scratch.data() + 1);
    return x.values();
  }
  std::vector<float> sketch(const StackShape& shape, std::int64_t rank, Sketch kind, int power,
                            const std::vector<PhiloxKey>& keys, const std::vector<float>& stack) const {
    const Values x(machine_, stack);
    const Values y(machine_, std::vector<float>(static_cast<std::size_t>(shape.count * shape.rows * rank)));
    ops_.sketch(machine_.stream(), shape, rank, kind, power, keys, x.data(), y.data());
    return y.values();
  }
  std::vector<float> basis(BasisMethod method, std::int64_t count, std::int64_t rows, std::int64_t rank,
                           const std::vector<float>& sketches) const {
    const Values y(machine_, sketches);
    ops_.orthonormal_basis(machine_.stream(), count, rows, rank, method, y.data());
    return y.values();
  }
  std::vector<float> exact_polar(const StackShape& shape, const std::vector<float>& stack) const {
    const Values x(machine_, stack);
    ops_.exact_polar(machine_.stream(), shape, x.data());
    return x.values();
  }
  std::vector<float> project(const StackShape& shape, std::int64_t rank, const std::vector<float>& bases,
                             const std::vector<float>& stack) const {
    const Values q(machine_, bases), x(machine_, stack);
    const Values b(machine_, std::vector<float>(static_cast<std::size_t>(shape.count * rank * shape.cols)));
    ops_.project(machine_.stream(), shape, rank, q.data(), x.data(), b.data());
    return b.values();
  }
  // Q NS(Q^T X) of each matrix, multiplied in double.
  std::vector<Dense> low_rank(const StackShape& shape, std::int64_t rank, Sketch kind, const NewtonSchulzSpec& spec,
                              const std::vector<float>& stack, BasisMethod method = BasisMethod::cholesky_qr) const {
    std::vector<PhiloxKey> keys;
    for (std::int64_t i = 0; i < shape.count; ++i) keys.push_back(test_key(static_cast<std::uint32_t>(i)));
    const std::vector<float> q =
        basis(method, shape.count, shape.rows, rank, sketch(shape, rank, kind, 0, keys, stack));
    const std::vector<float> z = newton_schulz({shape.count, rank, shape.cols}, spec, project(shape, rank, q, stack));
    std::vector<Dense> all;
    for (std::int64_t i = 0; i < shape.count; ++i)
      all.push_back(product(matrix_of(q, i, shape.rows, rank), matrix_of(z, i, rank, shape.cols)));
    return all;
  }

 private:
  const Machine& machine_;
  MatrixOps& ops_;
};

class MatrixFamily : public Family {
 protected:
  MatrixOpsOn on() const { return MatrixOpsOn(machine); }
  MatrixOps& ops() const { return machine.ops().matrix(); }
};

}  // namespace polaron::test
