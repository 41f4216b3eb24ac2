#include "ops/matrix_reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "cpu/families.h"
#include "ops/reference.h"

namespace polaron::test {

Dense product(const Dense& a, const Dense& b) {
  Dense c(a.rows, b.cols);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t k = 0; k < a.cols; ++k) {
      const double factor = a(i, k);
      for (std::int64_t j = 0; j < b.cols; ++j) c(i, j) += factor * b(k, j);
    }
  }
  return c;
}

Dense transposed(const Dense& a) {
  Dense t(a.cols, a.rows);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < a.cols; ++j) t(j, i) = a(i, j);
  }
  return t;
}

Dense scaled(const Dense& a, double factor) {
  Dense result = a;
  for (double& value : result.data) value *= factor;
  return result;
}

Dense identity(std::int64_t n) {
  Dense result(n, n);
  for (std::int64_t i = 0; i < n; ++i) result(i, i) = 1.0;
  return result;
}

double inner(const Dense& a, const Dense& b) {
  return std::inner_product(a.data.begin(), a.data.end(), b.data.begin(), 0.0);
}

double norm(const Dense& a) { return std::sqrt(inner(a, a)); }

double relative_error(const Dense& actual, const Dense& expected) {
  Dense difference = actual;
  for (std::size_t i = 0; i < difference.data.size(); ++i) difference.data[i] -= expected.data[i];
  return norm(difference) / norm(expected);
}

Dense dense(const std::vector<float>& values, std::int64_t rows, std::int64_t cols) {
  Dense result(rows, cols);
  std::copy_n(values.begin(), result.data.size(), result.data.begin());
  return result;
}

std::vector<float> floats(const Dense& a) {
  std::vector<float> result(a.data.size());
  std::transform(a.data.begin(), a.data.end(), result.begin(), [](double value) { return static_cast<float>(value); });
  return result;
}

Dense rounded(const Dense& a) { return dense(floats(a), a.rows, a.cols); }

Dense gaussian(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  Dense result(rows, cols);
  for (double& value : result.data) value = normal(generator);
  return result;
}

Dense orthonormal(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  return orthonormal_basis_of(gaussian(rows, cols, seed), 1e-12);
}

Dense with_spectrum(std::int64_t rows, std::int64_t cols, const std::vector<double>& values, std::uint64_t seed) {
  const auto k = static_cast<std::int64_t>(values.size());
  Dense u = orthonormal(rows, k, 2 * seed + 1);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < k; ++j) u(i, j) *= values[static_cast<std::size_t>(j)];
  }
  return product(u, transposed(orthonormal(cols, k, 2 * seed + 2)));
}

Dense orthonormal_basis_of(const Dense& y, double tolerance) {
  Dense q = transposed(y);  // rows are the columns of y
  const auto length = [&](std::int64_t j) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < q.cols; ++i) sum += q(j, i) * q(j, i);
    return std::sqrt(sum);
  };
  const auto shrink = [&](std::int64_t j, double factor) {
    for (std::int64_t i = 0; i < q.cols; ++i) q(j, i) *= factor;
  };
  std::vector<double> rest(static_cast<std::size_t>(q.rows));
  double largest = 0.0;
  for (std::int64_t j = 0; j < q.rows; ++j) largest = std::max(largest, length(j));
  for (std::int64_t j = 0; j < q.rows; ++j) {
    for (int pass = 0; pass < 2; ++pass) {
      for (std::int64_t k = 0; k < j; ++k) {
        double overlap = 0.0;
        for (std::int64_t i = 0; i < q.cols; ++i) overlap += q(k, i) * q(j, i);
        for (std::int64_t i = 0; i < q.cols; ++i) q(j, i) -= overlap * q(k, i);
      }
      const double remaining = length(j);
      if (pass == 0) rest[static_cast<std::size_t>(j)] = remaining;
      shrink(j, remaining > (pass == 0 ? 1e-13 * largest : 0.0) ? 1.0 / remaining : 0.0);
    }
  }
  for (std::int64_t j = 0; j < q.rows; ++j) {
    if (!(rest[static_cast<std::size_t>(j)] > tolerance * largest)) shrink(j, 0.0);
  }
  return transposed(q);
}

Svd svd(const Dense& x) {
  if (x.rows > x.cols) {
    Svd flipped = svd(transposed(x));
    std::swap(flipped.u, flipped.v);
    return flipped;
  }
  // Rotations from the left make the rows of a = r x orthogonal; then a = diag(values) v^T and u = r^T.
  Dense a = x;
  Dense r = identity(x.rows);
  const auto rotate = [](Dense& m, std::int64_t p, std::int64_t q, double c, double s) {
    for (std::int64_t j = 0; j < m.cols; ++j) {
      const double mp = m(p, j), mq = m(q, j);
      m(p, j) = c * mp - s * mq;
      m(q, j) = s * mp + c * mq;
    }
  };
  for (int sweep = 0; sweep < 40; ++sweep) {
    bool rotated = false;
    for (std::int64_t p = 0; p < a.rows; ++p) {
      for (std::int64_t q = p + 1; q < a.rows; ++q) {
        double pp = 0.0, qq = 0.0, pq = 0.0;
        for (std::int64_t j = 0; j < a.cols; ++j) {
          pp += a(p, j) * a(p, j);
          qq += a(q, j) * a(q, j);
          pq += a(p, j) * a(q, j);
        }
        if (std::abs(pq) <= 1e-14 * std::sqrt(pp * qq)) continue;
        const double zeta = (qq - pp) / (2.0 * pq);
        const double t = (zeta >= 0.0 ? 1.0 : -1.0) / (std::abs(zeta) + std::hypot(1.0, zeta));
        const double c = 1.0 / std::hypot(1.0, t);
        rotate(a, p, q, c, c * t);
        rotate(r, p, q, c, c * t);
        rotated = true;
      }
    }
    if (!rotated) break;
  }
  std::vector<double> lengths(static_cast<std::size_t>(a.rows));
  for (std::int64_t i = 0; i < a.rows; ++i) {
    double sum = 0.0;
    for (std::int64_t j = 0; j < a.cols; ++j) sum += a(i, j) * a(i, j);
    lengths[static_cast<std::size_t>(i)] = std::sqrt(sum);
  }
  std::vector<std::int64_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::int64_t left, std::int64_t right) {
    return lengths[static_cast<std::size_t>(left)] > lengths[static_cast<std::size_t>(right)];
  });
  Svd result{Dense(x.rows, x.rows), {}, Dense(x.cols, x.rows)};
  for (std::int64_t k = 0; k < x.rows; ++k) {
    const std::int64_t from = order[static_cast<std::size_t>(k)];
    const double value = lengths[static_cast<std::size_t>(from)];
    result.values.push_back(value);
    for (std::int64_t i = 0; i < x.rows; ++i) result.u(i, k) = r(from, i);
    for (std::int64_t j = 0; j < x.cols; ++j) result.v(j, k) = value > 0.0 ? a(from, j) / value : 0.0;
  }
  return result;
}

double nuclear_norm(const Dense& x) {
  const Svd parts = svd(x);
  return std::accumulate(parts.values.begin(), parts.values.end(), 0.0);
}

Dense polar(const Dense& x, double least) {
  Svd parts = svd(x);
  for (std::int64_t k = 0; k < parts.u.cols; ++k) {
    if (parts.values[static_cast<std::size_t>(k)] > least) continue;
    for (std::int64_t i = 0; i < parts.u.rows; ++i) parts.u(i, k) = 0.0;
  }
  return product(parts.u, transposed(parts.v));
}

Dense newton_schulz_of(const NewtonSchulzSpec& spec, Dense x) {
  const auto eps = static_cast<double>(spec.norm_eps);
  const double size = norm(x);
  x = scaled(x, 1.0 / (spec.clamp_norm ? std::max(size, eps) : size * static_cast<double>(spec.norm_factor) + eps));
  for (int step = 0; step < spec.steps; ++step) {
    const NewtonSchulzRow& row = spec.table[std::min(static_cast<std::size_t>(step), spec.table.size() - 1)];
    const Dense a = product(x, transposed(x));
    Dense m = product(a, a);
    for (std::size_t i = 0; i < m.data.size(); ++i) {
      m.data[i] = static_cast<double>(row.b) * a.data[i] + static_cast<double>(row.c) * m.data[i];
    }
    for (std::int64_t i = 0; i < m.rows; ++i) m(i, i) += static_cast<double>(row.a);
    x = product(m, x);
  }
  return x;
}

std::vector<std::pair<std::string, Dense>> hard_matrices(std::int64_t rows, std::int64_t cols) {
  const std::int64_t n = std::min(rows, cols);
  const auto spectrum = [&](std::int64_t rank, auto value) {
    std::vector<double> values(static_cast<std::size_t>(std::min(rank, n)));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = value(static_cast<double>(i) + 1.0);
    return values;
  };
  const auto flat = [](double) { return 1.0; };
  std::vector<std::pair<std::string, Dense>> all;
  const auto add = [&](const std::string& name, const std::vector<double>& values) {
    all.emplace_back(name, rounded(with_spectrum(rows, cols, values, 100 + all.size())));
  };
  add("rank 1", spectrum(1, flat));
  add("rank 8", spectrum(8, flat));
  add("rank 8 and 1e-6 noise", spectrum(n, [](double i) { return i <= 8.0 ? 1.0 : 1e-6; }));
  add("rank 20", spectrum(20, [](double i) { return 1.0 - 0.04 * i; }));
  add("rank 64", spectrum(64, [](double i) { return 1.0 - 0.014 * i; }));
  for (int power = 1; power <= 4; ++power) {
    add("i^-" + std::to_string(power), spectrum(n, [power](double i) { return std::pow(i, -power); }));
  }
  Dense holes = rounded(with_spectrum(rows, cols, spectrum(n, [](double i) { return 1.0 / i; }), 99));
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      if (i % 3 == 0 || j % 5 == 0) holes(i, j) = 0.0;
    }
  }
  all.emplace_back("zero rows and columns", holes);
  Dense single(rows, cols);
  for (std::int64_t i = 0; i < rows; ++i) single(i, cols / 3) = std::sin(1.0 + static_cast<double>(i));
  all.emplace_back("one column", rounded(single));
  all.emplace_back("gaussian", rounded(gaussian(rows, cols, 98)));
  return all;
}

MatrixOpsHarness::MatrixOpsHarness() : ops_(cpu::make_matrix_ops()), stream_(std::make_unique<HostStream>()) {}
MatrixOpsHarness::~MatrixOpsHarness() = default;

std::vector<float> MatrixOpsHarness::newton_schulz(const StackShape& shape, const NewtonSchulzSpec& spec,
                                                   std::vector<float> stack) {
  // Scratch arrives as it happens to be.
  std::vector<float> scratch(static_cast<std::size_t>(ops_->newton_schulz_scratch(shape, spec.dtype)), std::nanf(""));
  ops_->newton_schulz(*stream_, shape, spec, stack.data(), scratch.data());
  return stack;
}

std::vector<float> MatrixOpsHarness::exact_polar(const StackShape& shape, std::vector<float> stack) {
  ops_->exact_polar(*stream_, shape, stack.data());
  return stack;
}

std::vector<float> MatrixOpsHarness::sketch(const StackShape& shape, std::int64_t rank, Sketch kind, int power,
                                            const std::vector<PhiloxKey>& keys, const std::vector<float>& stack) {
  std::vector<float> result(static_cast<std::size_t>(shape.count * shape.rows * rank));
  ops_->sketch(*stream_, shape, rank, kind, power, keys, stack.data(), result.data());
  return result;
}

std::vector<float> MatrixOpsHarness::basis(const StackShape& shape, std::int64_t rank, BasisMethod method,
                                           std::vector<float> sketch) {
  ops_->orthonormal_basis(*stream_, shape.count, shape.rows, rank, method, sketch.data());
  return sketch;
}

std::vector<float> MatrixOpsHarness::project(const StackShape& shape, std::int64_t rank,
                                             const std::vector<float>& basis, const std::vector<float>& stack) {
  std::vector<float> result(static_cast<std::size_t>(shape.count * rank * shape.cols));
  ops_->project(*stream_, shape, rank, basis.data(), stack.data(), result.data());
  return result;
}

Dense MatrixOpsHarness::basis_of(const Dense& x, std::int64_t rank, Sketch kind, BasisMethod method, std::uint32_t key,
                                 int power) {
  const StackShape shape{1, x.rows, x.cols};
  return dense(basis(shape, rank, method, sketch(shape, rank, kind, power, {test_key(key)}, floats(x))), x.rows, rank);
}

Dense MatrixOpsHarness::low_rank(const Dense& x, std::int64_t rank, Sketch kind, BasisMethod method,
                                 const NewtonSchulzSpec& spec, std::uint32_t key) {
  const Dense q = basis_of(x, rank, kind, method, key);
  const std::vector<float> b = project({1, x.rows, x.cols}, rank, floats(q), floats(x));
  return product(q, dense(newton_schulz({1, rank, x.cols}, spec, b), rank, x.cols));
}

const char* name_of(BasisMethod method) { return method == BasisMethod::householder ? "Householder" : "Cholesky-QR"; }

const char* name_of(Sketch sketch) { return sketch == Sketch::columns ? "columns" : "gaussian"; }

std::vector<double> powers(std::int64_t n, double exponent) {
  std::vector<double> values;
  for (std::int64_t i = 1; i <= n; ++i) values.push_back(std::pow(static_cast<double>(i), exponent));
  return values;
}

}  // namespace polaron::test
