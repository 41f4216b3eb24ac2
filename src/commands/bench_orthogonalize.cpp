// `polaron bench orthogonalize`: how much of a matrix's nuclear norm a low-rank orthogonalization captures, and what it
// costs, against rank and sketch, on matrices of known singular values.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "commands/bench_model.h"
#include "optim/newton_schulz_tables.h"
#include "train/console.h"

namespace polaron {
namespace {

// A random matrix with singular values i^-decay: U and V are orthonormal bases of Gaussian matrices.
class TestMatrix {
 public:
  TestMatrix(Backend& backend, Stream& stream, std::int64_t rows, std::int64_t cols, double decay)
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
      const double sigma = std::pow(static_cast<double>(j + 1), -decay);
      nuclear_norm_ += sigma;
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

 private:
  std::int64_t rows_, cols_;
  DeviceBuffer memory_;
  double nuclear_norm_ = 0;
};

struct Row {
  std::string method;
  std::int64_t rank;
  double ms;
  double captured;  // <X, O> / nuclear norm
};

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
  const DeviceBuffer product = buffer(rows * cols);
  const NewtonSchulzSpec spec = newton_schulz_spec("polar_express", 0);
  const DeviceBuffer scratch = buffer(ops.newton_schulz_scratch(shape, spec.dtype));

  Console console;
  console.line(fmt::format("{}   {} x {}", chosen.why, rows, cols));
  nlohmann::json results = nlohmann::json::array();
  for (const double decay : {0.5, 1.0, 2.0}) {
    const TestMatrix matrix(backend, *stream, rows, cols, decay);
    const auto captured = [&](const float* orthogonal) {
      std::vector<float> x(static_cast<std::size_t>(matrix.elements()));
      std::vector<float> o(x.size());
      device.download(*stream, x.data(), matrix.data(), x.size() * sizeof(float));
      device.download(*stream, o.data(), orthogonal, o.size() * sizeof(float));
      stream->synchronize();
      double sum = 0;
      for (std::size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(x[i]) * static_cast<double>(o[i]);
      return sum / matrix.nuclear_norm();
    };
    const auto reload = [&] { device.copy(*stream, stack.data(), matrix.data(), stack.bytes()); };
    std::vector<Row> measured;
    const double full_ms = median_ms(command.repeats, [&](std::int64_t) {
      reload();
      ops.newton_schulz(*stream, shape, spec, stack.as<float>(), scratch.as<float>());
      stream->synchronize();
    });
    measured.push_back({"Newton-Schulz, full", rows, full_ms, captured(stack.as<float>())});
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
        // O = Q Z, through the update op: W = 0 - (-1) Q Z.
        device.zero(*stream, product.data(), product.bytes());
        const float scale = 1.0F;
        const MatrixView view{product.as<float>(), rows, cols, cols};
        ops.update_factors(*stream, {-1.0F, 0.0F}, {}, rank, basis.as<float>(), factor.as<float>(),
                           std::span(&scale, 1), std::span(&view, 1));
        measured.push_back({name, rank, ms, captured(product.as<float>())});
      };
      low_rank("columns", Sketch::columns, 0);
      low_rank("gaussian", Sketch::gaussian, 0);
      low_rank("power 1", Sketch::gaussian, 1);
      low_rank("power 2", Sketch::gaussian, 2);
    }
    Table table;
    table.title = fmt::format("singular values i^-{:g}", decay);
    table.headers = {"method", "rank", "ms", "times faster", "captured"};
    for (const Row& row : measured) {
      table.rows.push_back({row.method, fmt::format("{}", row.rank), fmt::format("{:.2f}", row.ms),
                            fmt::format("{:.1f}", full_ms / row.ms), fmt::format("{:.3f}", row.captured)});
      results.push_back(
          {{"decay", decay}, {"method", row.method}, {"rank", row.rank}, {"ms", row.ms}, {"captured", row.captured}});
    }
    console.table(table);
  }
  write_results(command, nlohmann::json{{"rows", rows}, {"cols", cols}, {"results", results}}.dump(2) + "\n");
  return Exit::done;
}

}  // namespace polaron
