// `polaron bench orthogonalize`: how much of a matrix's nuclear norm a low-rank orthogonalization captures, and what it
// costs, against rank and sketch, on matrices of known singular values.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "commands/bench_model.h"
#include "cpu/singular_values.h"
#include "optim/newton_schulz_tables.h"
#include "train/console.h"

namespace polaron {
namespace {

// A random matrix with these singular values, rows <= cols of them: U and V are orthonormal bases of Gaussian matrices.
class TestMatrix {
 public:
  TestMatrix(Backend& backend, Stream& stream, std::int64_t rows, std::int64_t cols, const std::vector<double>& sigmas)
      : rows_(rows), cols_(cols), memory_(backend.device(), static_cast<std::size_t>(rows * cols) * sizeof(float)) {
    Device& device = backend.device();
    const auto bytes = [](std::int64_t n) { return static_cast<std::size_t>(n) * sizeof(float); };
    DeviceBuffer left(device, bytes(rows * rows));
    DeviceBuffer right(device, bytes(cols * rows));
    fill_random(device, stream, left.as<float>(), rows * rows, 1.0F, 11);
    fill_random(device, stream, right.as<float>(), cols * rows, 1.0F, 12);
    backend.matrix().orthonormal_basis(stream, 1, rows, rows, BasisMethod::householder, left.as<float>());
    backend.matrix().orthonormal_basis(stream, 1, cols, rows, BasisMethod::householder, right.as<float>());
    std::vector<float> scaled(static_cast<std::size_t>(rows * rows));
    device.download(stream, scaled.data(), left.data(), left.bytes());
    stream.synchronize();
    for (std::int64_t j = 0; j < rows; ++j) {
      const double sigma = sigmas[static_cast<std::size_t>(j)];
      nuclear_norm_ += sigma;
      squares_ += sigma * sigma;
      for (std::int64_t i = 0; i < rows; ++i) {
        auto& entry = scaled[static_cast<std::size_t>(i * rows + j)];
        entry = static_cast<float>(entry * sigma);
      }
    }
    device.upload(stream, left.data(), scaled.data(), left.bytes());
    // (U S) V^T: a linear layer with V as its weight.
    backend.linear().forward(stream, Tensor(left.data(), DType::f32, rows, rows),
                             Tensor(right.data(), DType::f32, cols, rows), {}, Activation::none,
                             Tensor(memory_.data(), DType::f32, rows, cols), {});
    stream.synchronize();
  }
  const float* data() const { return memory_.as<float>(); }
  std::int64_t elements() const { return rows_ * cols_; }
  double nuclear_norm() const { return nuclear_norm_; }
  double squares() const { return squares_; }

 private:
  std::int64_t rows_, cols_;
  DeviceBuffer memory_;
  double nuclear_norm_ = 0, squares_ = 0;
};

struct Row {
  std::string method;
  std::int64_t rank;
  double ms;
  double captured;                  // <X, O> / ||X||_*; of low rank with O = Q msgn(Q^T X), so ||Q^T X||_* / ||X||_*
  double residual;                  // ||X - Q Q^T X||_F / ||X||_F
  std::optional<double> by_output;  // <X, O> / ||X||_* with the O that was computed; none where none was
};

std::vector<float> download(Device& device, Stream& stream, const float* from, std::int64_t n) {
  std::vector<float> host(static_cast<std::size_t>(n));
  device.download(stream, host.data(), from, host.size() * sizeof(float));
  stream.synchronize();
  return host;
}

double inner_product(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

struct Spectrum {
  const char* name;
  double (*sigma)(double j);  // j = 1, 2, ...
};
constexpr Spectrum kSpectra[] = {{"i^-0.5", [](double j) { return 1 / std::sqrt(j); }},
                                 {"i^-1", [](double j) { return 1 / j; }},
                                 {"i^-2", [](double j) { return 1 / (j * j); }},
                                 {"exp(-i/20)", [](double j) { return std::exp(-j / 20); }}};

}  // namespace

Exit run_bench_orthogonalize(const BenchCommand& command) {
  const ChosenBackend chosen = make_backend(command.device, command.threads);
  Backend& backend = *chosen.backend;
  Device& device = backend.device();
  MatrixOps& ops = backend.matrix();
  const auto stream = device.make_stream();
  const std::int64_t given_columns = command.columns > 0 ? command.columns : command.size;
  const std::int64_t rows = std::min(command.size, given_columns);
  const std::int64_t cols = std::max(command.size, given_columns);
  const StackShape shape{1, rows, cols};
  const auto buffer = [&](std::int64_t n) { return DeviceBuffer(device, static_cast<std::size_t>(n) * sizeof(float)); };
  const DeviceBuffer stack = buffer(rows * cols);
  const DeviceBuffer basis = buffer(rows * rows);
  const DeviceBuffer factor = buffer(rows * cols);
  const NewtonSchulzSpec spec = newton_schulz_spec("polar_express", 0);
  const DeviceBuffer scratch = buffer(ops.newton_schulz_scratch(shape, spec.dtype));

  Console console;
  console.line(fmt::format("{}   {} x {}", chosen.why, rows, cols));
  nlohmann::json results = nlohmann::json::array();
  for (const Spectrum& spectrum : kSpectra) {
    std::vector<double> sigmas;
    for (std::int64_t j = 1; j <= rows; ++j) sigmas.push_back(spectrum.sigma(static_cast<double>(j)));
    const TestMatrix matrix(backend, *stream, rows, cols, sigmas);
    const auto captured = [&](const float* orthogonal) {
      return inner_product(download(device, *stream, matrix.data(), matrix.elements()),
                           download(device, *stream, orthogonal, matrix.elements())) /
             matrix.nuclear_norm();
    };
    const auto reload = [&] { device.copy(*stream, stack.data(), matrix.data(), stack.bytes()); };
    std::vector<Row> measured;
    const double full_ms = median_ms(command.repeats, [&](std::int64_t) {
      reload();
      ops.newton_schulz(*stream, shape, spec, stack.as<float>(), scratch.as<float>());
      stream->synchronize();
    });
    const double newton_schulz_share = captured(stack.as<float>());
    measured.push_back({"Newton-Schulz, full", rows, full_ms, newton_schulz_share, 0, newton_schulz_share});
    // One decomposition: at every rank the best subspace, whose share and residual are known.
    const double svd_ms = median_ms(1, [&](std::int64_t) {
      reload();
      ops.exact_polar(*stream, shape, stack.as<float>());
      stream->synchronize();
    });
    const double svd_share = captured(stack.as<float>());
    measured.push_back({"SVD, full", rows, svd_ms, svd_share, 0, svd_share});
    for (std::int64_t rank = rows / 16; rank <= rows / 2 && rank > 0; rank *= 2) {
      const auto low_rank = [&](const char* name, Sketch kind, int power) {
        const double ms = median_ms(command.repeats, [&](std::int64_t i) {
          const PhiloxKey key = make_key(2, RandomPurpose::test, static_cast<std::uint64_t>(i), 0);
          ops.sketch(*stream, shape, rank, kind, power, std::span(&key, 1), matrix.data(), basis.as<float>());
          ops.orthonormal_basis(*stream, 1, rows, rank, BasisMethod::automatic, basis.as<float>());
          ops.project(*stream, shape, rank, basis.as<float>(), matrix.data(), factor.as<float>());
          ops.newton_schulz(*stream, {1, rank, cols}, spec, factor.as<float>(), scratch.as<float>());
          stream->synchronize();
        });
        // Of the last call: Z = msgn(B) as it was computed, and from the basis that it left B = Q^T X again, which Z
        // took the place of. <X, Q Z> = <B, Z>.
        const std::vector<float> z = download(device, *stream, factor.as<float>(), rank * cols);
        ops.project(*stream, shape, rank, basis.as<float>(), matrix.data(), factor.as<float>());
        const std::vector<float> b = download(device, *stream, factor.as<float>(), rank * cols);
        const double residual = std::sqrt(std::max(0.0, 1 - inner_product(b, b) / matrix.squares()));
        double share = 0;  // of the exact polar factor of Q^T X
        for (const double sigma : singular_values(b, rank, cols)) share += sigma / matrix.nuclear_norm();
        measured.push_back({name, rank, ms, share, residual, inner_product(b, z) / matrix.nuclear_norm()});
      };
      low_rank("columns", Sketch::columns, 0);
      low_rank("gaussian", Sketch::gaussian, 0);
      low_rank("power 1", Sketch::gaussian, 1);
      low_rank("power 2", Sketch::gaussian, 2);
      double share = 0, left = 0;
      for (std::size_t j = 0; j < sigmas.size(); ++j) {
        if (static_cast<std::int64_t>(j) < rank) {
          share += sigmas[j] / matrix.nuclear_norm();
        } else {
          left += sigmas[j] * sigmas[j] / matrix.squares();
        }
      }
      measured.push_back({"exact", rank, svd_ms, share, std::sqrt(left), std::nullopt});
    }
    Table table;
    table.title = fmt::format("singular values {}", spectrum.name);
    table.headers = {"method", "rank", "ms", "times faster", "captured", "by its output", "residual"};
    for (const Row& row : measured) {
      table.rows.push_back({row.method, fmt::format("{}", row.rank), fmt::format("{:.2f}", row.ms),
                            fmt::format("{:.1f}", full_ms / row.ms), fmt::format("{:.3f}", row.captured),
                            row.by_output ? fmt::format("{:.3f}", *row.by_output) : "-",
                            fmt::format("{:.3f}", row.residual)});
      results.push_back({{"spectrum", spectrum.name},
                         {"method", row.method},
                         {"rank", row.rank},
                         {"ms", row.ms},
                         {"captured", row.captured},
                         {"residual", row.residual}});
      if (row.by_output) results.back()["captured_by_output"] = *row.by_output;
    }
    console.table(table);
  }
  write_results(command, nlohmann::json{{"rows", rows}, {"cols", cols}, {"results", results}}.dump(2) + "\n");
  return Exit::done;
}

}  // namespace polaron
