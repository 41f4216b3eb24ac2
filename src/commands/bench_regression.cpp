// `polaron bench regression`: a problem small enough to see what orthogonalization does against heavy-tailed noise:
// min 1/2 ||A X B - C||_F^2 with C = A X* B, from X = 0, by gradient descent, MSGD and low-rank MSGD with momentum,
// when every gradient carries noise whose tails fall like |x|^-(1 + alpha).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <tuple>

#include "commands/bench_model.h"
#include "cpu/singular_values.h"
#include "optim/newton_schulz_tables.h"
#include "train/console.h"

namespace polaron {
namespace {

using Matrix = std::vector<double>;  // row-major

// a [m, k] times b [k, n].
Matrix product(const Matrix& a, const Matrix& b, std::int64_t m, std::int64_t k, std::int64_t n) {
  Matrix c(static_cast<std::size_t>(m * n));
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t l = 0; l < k; ++l) {
      const double factor = a[static_cast<std::size_t>(i * k + l)];
      for (std::int64_t j = 0; j < n; ++j) {
        c[static_cast<std::size_t>(i * n + j)] += factor * b[static_cast<std::size_t>(l * n + j)];
      }
    }
  }
  return c;
}

double uniform(const PhiloxKey& key, std::uint64_t i) {  // in (0, 1)
  return (static_cast<double>(philox(key, i).word[0]) + 0.5) / 4294967296.0;
}

// Symmetric alpha-stable, scale 1, by Chambers, Mallows and Stuck (1976); alpha 2 is normal of variance 2.
double stable(double alpha, double u, double v) {
  const double angle = std::numbers::pi * (u - 0.5), w = -std::log(v);
  return std::sin(alpha * angle) / std::pow(std::cos(angle), 1 / alpha) *
         std::pow(std::cos((1 - alpha) * angle) / w, (1 - alpha) / alpha);
}

// A^T A or B B^T with eigenvalues i^-1 in random directions: an orthonormal basis by Gram and Schmidt.
Matrix spread_gram(std::int64_t n, std::uint64_t seed, std::uint32_t tensor) {
  const PhiloxKey key = make_key(seed, RandomPurpose::test, 1, tensor);
  Matrix q(static_cast<std::size_t>(n * n)), gram(static_cast<std::size_t>(n * n));
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<double>(sketch_gaussian(key, i));
  for (std::int64_t i = 0; i < n; ++i) {
    double* const row = q.data() + i * n;
    for (std::int64_t pass = 0; pass < 2; ++pass) {
      for (std::int64_t j = 0; j < i; ++j) {
        double dot = 0;
        for (std::int64_t l = 0; l < n; ++l) dot += row[l] * q[static_cast<std::size_t>(j * n + l)];
        for (std::int64_t l = 0; l < n; ++l) row[l] -= dot * q[static_cast<std::size_t>(j * n + l)];
      }
    }
    double norm = 0;
    for (std::int64_t l = 0; l < n; ++l) norm += row[l] * row[l];
    for (std::int64_t l = 0; l < n; ++l) row[l] /= std::sqrt(norm);
    for (std::int64_t a = 0; a < n; ++a) {
      for (std::int64_t b = 0; b < n; ++b) {
        gram[static_cast<std::size_t>(a * n + b)] += row[a] * row[b] / static_cast<double>(i + 1);
      }
    }
  }
  return gram;
}

struct Method {
  std::string name;
  bool orthogonal;    // or plain gradient descent
  std::int64_t rank;  // 0: full
};

// The problem with one seed. P = A^T A and S = B B^T: the gradient is P (X - X*) S.
class Regression {
 public:
  Regression(Backend& backend, Stream& stream, std::int64_t rows, std::int64_t cols, std::uint64_t seed)
      : ops_(backend.matrix()),
        device_(backend.device()),
        stream_(stream),
        rows_(rows),
        cols_(cols),
        seed_(seed),
        left_(spread_gram(rows, seed, 1)),
        right_(spread_gram(cols, seed, 2)),
        target_(static_cast<std::size_t>(rows * cols)),
        stack_(device_, bytes(rows * cols)),
        basis_(device_, bytes(rows * rows)),
        factor_(device_, bytes(rows * cols)),
        product_(device_, bytes(rows * cols)),
        spec_(newton_schulz_spec("you", 0)),
        scratch_(device_, bytes(ops_.newton_schulz_scratch({1, rows, cols}, spec_.dtype))) {
    const PhiloxKey key = make_key(seed, RandomPurpose::test, 1, 3);
    const double scale = 1 / std::sqrt(static_cast<double>(cols));
    for (std::size_t i = 0; i < target_.size(); ++i) target_[i] = scale * static_cast<double>(sketch_gaussian(key, i));
    const Matrix start = gradient(Matrix(target_.size()));
    start_ = nuclear_norm(start);
    for (const double g : start) size_ += g * g;
    size_ = std::sqrt(size_ / static_cast<double>(start.size()));
  }

  // Of the gradient's nuclear norm, as a share of the first one's.
  struct Outcome {
    std::vector<std::int64_t> steps;  // until it is each of the tolerances, to 5 steps; more than all: never
    double last;                      // after all steps
  };
  Outcome run(const Method& method, double lr, double alpha, double noise, const std::vector<double>& tolerances,
              std::int64_t steps) {
    Matrix x(target_.size()), momentum(target_.size());
    Outcome outcome{std::vector<std::int64_t>(tolerances.size(), steps + 1), 0};
    const auto reached = [&](std::int64_t step, double share) {
      for (std::size_t i = 0; i < tolerances.size(); ++i) {
        if (share <= tolerances[i]) outcome.steps[i] = std::min(outcome.steps[i], step);
      }
    };
    for (std::int64_t t = 0; t < steps; ++t) {
      const Matrix g = gradient(x);
      if (t % 5 == 0) reached(t, nuclear_norm(g) / start_);
      const PhiloxKey key = make_key(seed_, RandomPurpose::test, static_cast<std::uint64_t>(t), 4);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double draw = stable(alpha, uniform(key, 2 * i), uniform(key, 2 * i + 1));
        momentum[i] = kMomentum * momentum[i] + (1 - kMomentum) * (g[i] + noise * size_ * draw);
      }
      const double rate = lr * (1 - static_cast<double>(t) / static_cast<double>(steps));
      const Matrix direction = method.orthogonal ? orthogonalized(momentum, method.rank, t) : momentum;
      for (std::size_t i = 0; i < x.size(); ++i) x[i] -= rate * direction[i];
    }
    outcome.last = nuclear_norm(gradient(x)) / start_;
    reached(steps, outcome.last);
    return outcome;
  }

 private:
  static constexpr double kMomentum = 0.9;
  static std::size_t bytes(std::int64_t n) { return static_cast<std::size_t>(n) * sizeof(float); }

  Matrix gradient(const Matrix& x) const {
    Matrix difference(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) difference[i] = x[i] - target_[i];
    return product(product(left_, difference, rows_, rows_, cols_), right_, rows_, cols_, cols_);
  }
  double nuclear_norm(const Matrix& x) const {
    const std::vector<float> values(x.begin(), x.end());
    double sum = 0;
    for (const double value : singular_values(values, rows_, cols_)) sum += value;
    return sum;
  }
  // By the backend's ops, as training does it.
  Matrix orthogonalized(const Matrix& matrix, std::int64_t rank, std::int64_t step) {
    std::vector<float> values(matrix.begin(), matrix.end());
    const StackShape shape{1, rows_, cols_};
    device_.upload(stream_, stack_.data(), values.data(), stack_.bytes());
    const DeviceBuffer* result = &stack_;
    if (rank == 0) {
      ops_.newton_schulz(stream_, shape, spec_, stack_.as<float>(), scratch_.as<float>());
    } else {
      const PhiloxKey key = make_key(seed_, RandomPurpose::sketch, static_cast<std::uint64_t>(step), 0);
      ops_.sketch(stream_, shape, rank, Sketch::columns, 0, std::span(&key, 1), stack_.as<float>(), basis_.as<float>());
      ops_.orthonormal_basis(stream_, 1, rows_, rank, BasisMethod::automatic, basis_.as<float>());
      ops_.project(stream_, shape, rank, basis_.as<float>(), stack_.as<float>(), factor_.as<float>());
      ops_.newton_schulz(stream_, {1, rank, cols_}, spec_, factor_.as<float>(), scratch_.as<float>());
      device_.zero(stream_, product_.data(), product_.bytes());
      const float scale = 1.0F;
      const MatrixView view{product_.as<float>(), rows_, cols_, cols_};
      ops_.update_factors(stream_, {-1.0F, 0.0F}, {}, rank, basis_.as<float>(), factor_.as<float>(),
                          std::span(&scale, 1), std::span(&view, 1));
      result = &product_;
    }
    device_.download(stream_, values.data(), result->data(), result->bytes());
    stream_.synchronize();
    return {values.begin(), values.end()};
  }

  MatrixOps& ops_;
  Device& device_;
  Stream& stream_;
  std::int64_t rows_, cols_;
  std::uint64_t seed_;
  Matrix left_, right_, target_;
  double start_ = 0;  // nuclear norm of the first gradient
  double size_ = 0;   // root mean square of its entries
  DeviceBuffer stack_, basis_, factor_, product_;
  NewtonSchulzSpec spec_;
  DeviceBuffer scratch_;
};

constexpr double kDiverged = 1e30;  // in the place of what is not finite, which has no order

template <class T>
T median(std::vector<T> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

Exit run_bench_regression(const BenchCommand& command) {
  const ChosenBackend chosen = make_backend(command.device, command.threads);
  Backend& backend = *chosen.backend;
  const auto stream = backend.device().make_stream();
  const auto [rows, cols] = std::minmax(command.unknown_rows, command.unknown_columns);
  std::vector<Method> methods = {{"gradient descent", false, 0}, {"MSGD", true, 0}};
  for (std::int64_t rank = rows / 2; rank >= std::max<std::int64_t>(1, rows / 16); rank /= 2) {
    methods.push_back({fmt::format("low-rank MSGD, rank {}", rank), true, rank});
  }
  std::vector<Regression> problems;
  for (std::int64_t seed = 1; seed <= command.repeats; ++seed) {
    problems.emplace_back(backend, *stream, rows, cols, static_cast<std::uint64_t>(seed));
  }
  Console console;
  console.line(fmt::format("{}   {} x {}, {} steps, noise {:g}, {} seeds", chosen.why, rows, cols, command.steps,
                           command.noise, command.repeats));
  const std::vector<double>& tolerances = command.tolerances;
  nlohmann::json results = nlohmann::json::array();
  for (const double alpha : {2.0, 1.5, 1.2}) {
    Table table;
    table.title = fmt::format("noise of tail index {:g}", alpha);
    table.headers = {"method"};
    for (const double tolerance : tolerances) table.headers.push_back(fmt::format("steps to {:g}", tolerance));
    table.headers.insert(table.headers.end(), {"at the end", "best rate"});
    for (const Method& method : methods) {
      // Each column has the rate that suits it best.
      std::vector<std::int64_t> fewest(tolerances.size(), command.steps + 1);
      double lowest = kDiverged, best_rate = 0;
      for (int power = -10; power <= 2; ++power) {
        const double lr = std::pow(2.0, power);
        std::vector<std::vector<std::int64_t>> steps(tolerances.size());
        std::vector<double> last;
        for (Regression& problem : problems) {
          const auto outcome = problem.run(method, lr, alpha, command.noise, tolerances, command.steps);
          for (std::size_t i = 0; i < steps.size(); ++i) steps[i].push_back(outcome.steps[i]);
          last.push_back(std::isfinite(outcome.last) ? outcome.last : kDiverged);
        }
        std::vector<std::int64_t> medians;
        for (std::size_t i = 0; i < steps.size(); ++i) {
          medians.push_back(median(steps[i]));
          fewest[i] = std::min(fewest[i], medians[i]);
        }
        const double end = median(last);
        if (end < lowest) std::tie(lowest, best_rate) = std::pair(end, lr);
        results.push_back({{"alpha", alpha},
                           {"method", method.name},
                           {"rank", method.rank},
                           {"lr", lr},
                           {"steps", medians},
                           {"last", end}});
      }
      std::vector<std::string> row = {method.name};
      for (const std::int64_t steps : fewest) {
        row.push_back(steps > command.steps ? "never" : fmt::format("{}", steps));
      }
      row.push_back(fmt::format("{:.3f}", lowest));
      row.push_back(fmt::format("{:g}", best_rate));
      table.rows.push_back(row);
    }
    console.table(table);
  }
  write_results(command, nlohmann::json{{"rows", rows},
                                        {"cols", cols},
                                        {"steps", command.steps},
                                        {"noise", command.noise},
                                        {"tolerances", tolerances},
                                        {"seeds", command.repeats},
                                        {"results", results}}
                                 .dump(2) +
                             "\n");
  return Exit::done;
}

}  // namespace polaron
