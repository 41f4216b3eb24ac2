#include "train/spectra.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "cpu/singular_values.h"
#include "optim/directions.h"

namespace polaron {
namespace {

// "blocks.3.attention.qkv.weight[q]" -> "blocks.3.attention.qkv.weight.q": brackets mean something in a pattern.
std::string plain_name(std::string label) {
  std::replace(label.begin(), label.end(), '[', '.');
  label.erase(std::remove(label.begin(), label.end(), ']'), label.end());
  return label;
}

bool matches(const std::string& pattern, const std::string& name, std::int64_t layers) {
  if (!pattern.empty()) return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
  return name.starts_with(fmt::format("blocks.{}.", layers / 2));
}

std::vector<float> transposed(const std::vector<float>& from, std::int64_t rows, std::int64_t cols) {
  std::vector<float> to(from.size());
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      to[static_cast<std::size_t>(j * rows + i)] = from[static_cast<std::size_t>(i * cols + j)];
    }
  }
  return to;
}

double sum_of(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

}  // namespace

Spectra::Spectra(Session& session) : session_(session) {
  const std::string& pattern = session.config.diagnostics.spectra.matrices;
  const std::int64_t layers = session.config.model.layers;
  const Assignment& assignment = session.optimizer->assignment();
  const int me = session.communicator.rank();
  const auto add = [&](const std::string& label, const OptimizerSettings& settings, std::size_t parameter,
                       std::size_t block, std::int64_t rank, const float* momentum) {
    const Parameter& p = session.table[parameter];
    const MatrixBlock& b = p.blocks[block];
    chosen_.push_back({plain_name(label), b.rows, p.cols, p.stored_cols, p.offset + b.row * p.stored_cols, &settings,
                       rank, momentum, parameter, block});
  };
  std::size_t found = 0;
  const auto wanted = [&](const std::string& label) {
    const bool match = matches(pattern, plain_name(label), layers);
    found += match ? 1 : 0;
    return match;
  };
  for (std::size_t c = 0; c < assignment.classes.size(); ++c) {
    const MatrixClass& matrices = assignment.classes[c];
    const Ownership::Class& owned = session.optimizer->ownership().matrices(c);
    for (std::size_t i = 0; i < owned.order.size(); ++i) {
      const MatrixItem& item = matrices.items[owned.order[i]];
      if (!wanted(item.label)) continue;
      if (owned.exchange == Exchange::sketch && session.communicator.size() > 1) {
        throw Error(Exit::usage,
                    "diagnostics.spectra: with parallel.exchange \"sketch\" no process has a whole gradient or "
                    "momentum. Choose another exchange, or leave diagnostics.spectra out.");
      }
      if (i < owned.first(me) || i >= owned.first(me) + owned.count(me)) continue;
      const float* momentum = nullptr;
      for (const StateTensor& state : session.optimizer->state()) {
        if (state.name == "momentum." + item.label) momentum = state.parts.front().data;
      }
      add(item.label, matrices.settings, item.parameter, item.block, matrices.rank, momentum);
    }
  }
  // Under AdamW or SGD a matrix is one of many in a flat range: only its gradient is looked at, where one process has
  // it whole.
  std::size_t divided = 0;
  for (const ElementwiseItem& item : assignment.elementwise) {
    const Parameter& p = session.table[item.parameter];
    if (p.role != Role::matrix) continue;
    for (std::size_t b = 0; b < p.blocks.size(); ++b) {
      const std::string label = p.blocks[b].name.empty() ? p.name : fmt::format("{}[{}]", p.name, p.blocks[b].name);
      if (session.communicator.size() > 1) {
        divided += matches(pattern, plain_name(label), layers) ? 1 : 0;
      } else if (wanted(label)) {
        add(label, item.settings, item.parameter, b, 0, nullptr);
      }
    }
  }
  if (found == 0 && divided > 0) {
    throw Error(Exit::usage,
                "diagnostics.spectra: where several processes train, none has the whole gradient of a matrix under "
                "adamw or sgd. Start one process, choose matrices under another optimizer, or leave "
                "diagnostics.spectra out.");
  }
  if (found == 0) {
    throw Error(Exit::usage,
                fmt::format("diagnostics.spectra.matrices: no matrix is named like \"{}\". Names are such as "
                            "blocks.0.attention.qkv.weight.q and blocks.0.mlp.down.weight.",
                            pattern));
  }
}

std::vector<float> Spectra::download(const float* data, const Chosen& matrix, std::int64_t stride) {
  std::vector<float> rows(static_cast<std::size_t>((matrix.rows - 1) * stride + matrix.cols));
  session_.backend.device().download(*session_.stream, rows.data(), data, rows.size() * sizeof(float));
  session_.stream->synchronize();
  if (stride == matrix.cols) return rows;
  std::vector<float> dense;
  for (std::int64_t i = 0; i < matrix.rows; ++i) {
    dense.insert(dense.end(), rows.begin() + i * stride, rows.begin() + i * stride + matrix.cols);
  }
  return dense;
}

std::vector<double> Spectra::projected(const Chosen& matrix, std::int64_t step, std::int64_t rank, bool orthogonalize,
                                       const std::vector<float>& wide) {
  Device& device = session_.backend.device();
  MatrixOps& ops = session_.backend.matrix();
  Stream& stream = *session_.stream;
  const OptimizerSettings& s = *matrix.settings;
  const StackShape shape{1, std::min(matrix.rows, matrix.cols), std::max(matrix.rows, matrix.cols)};
  const auto floats = [](std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(float); };
  const DeviceBuffer stack(device, floats(shape.elements()));
  device.upload(stream, stack.data(), wide.data(), stack.bytes());
  StackShape left = shape;
  const DeviceBuffer* out = &stack;
  DeviceBuffer basis, factor;
  if (rank > 0) {
    basis = DeviceBuffer(device, floats(shape.rows * rank));
    factor = DeviceBuffer(device, floats(rank * shape.cols));
    const PhiloxKey key = sketch_key(session_.config.seed, step - 1, session_.table, matrix.parameter, matrix.block,
                                     session_.config.quirks.shared_columns);
    const SketchRule sketch = sketch_rule(s, matrix.rows > matrix.cols);
    ops.sketch(stream, shape, rank, sketch.kind, sketch.power, std::span(&key, 1), stack.as<float>(),
               basis.as<float>());
    ops.orthonormal_basis(stream, 1, shape.rows, rank, sketch.basis, basis.as<float>());
    ops.project(stream, shape, rank, basis.as<float>(), stack.as<float>(), factor.as<float>());
    left.rows = rank;
    out = &factor;
  }
  DeviceBuffer scratch;
  if (orthogonalize && s.orthogonalizer == Orthogonalizer::exact) {
    ops.exact_polar(stream, left, out->as<float>());
  } else if (orthogonalize) {
    const NewtonSchulzSpec spec = newton_schulz_spec(s);
    scratch = DeviceBuffer(device, floats(ops.newton_schulz_scratch(left, spec.dtype)));
    ops.newton_schulz(stream, left, spec, out->as<float>(), scratch.as<float>());
  }
  std::vector<float> result(static_cast<std::size_t>(left.elements()));
  device.download(stream, result.data(), out->data(), result.size() * sizeof(float));
  stream.synchronize();
  return singular_values(result, left.rows, left.cols);
}

SpectrumRecord Spectra::measure(const Chosen& matrix, std::int64_t step, const char* of,
                                const std::vector<float>& values) {
  SpectrumRecord record;
  record.step = step;
  record.matrix = matrix.name;
  record.of = of;
  record.rows = matrix.rows;
  record.cols = matrix.cols;
  record.singular_values = singular_values(values, matrix.rows, matrix.cols);
  const std::vector<double>& s = record.singular_values;
  const double nuclear = sum_of(s);
  if (!(nuclear > 0)) return record;  // zero, or not finite
  double squares = 0, sum = 0;
  for (const double value : s) squares += value * value;
  record.stable_rank = squares / (s[0] * s[0]);
  while (sum < 0.9 * nuclear) sum += s[static_cast<std::size_t>(record.rank_90++)];
  const bool tall = matrix.rows > matrix.cols;
  const std::vector<float> wide = tall ? transposed(values, matrix.rows, matrix.cols) : values;
  for (const std::int64_t rank : session_.config.diagnostics.spectra.ranks) {
    if (rank >= std::min(matrix.rows, matrix.cols)) continue;
    record.captured[rank] = sum_of(projected(matrix, step, rank, false, wide)) / nuclear;
  }
  if (matrix.momentum == nullptr || std::string_view(of) != "momentum") return record;
  double error = 0;
  const std::vector<double> ones = projected(matrix, step, matrix.rank, true, wide);
  for (const double value : ones) error += (value * value - 1) * (value * value - 1) / static_cast<double>(ones.size());
  record.orthogonality_error = std::sqrt(error);
  return record;
}

std::vector<std::string> Spectra::measure(std::int64_t step) {
  std::string lines;
  for (const Chosen& matrix : chosen_) {
    const float* const gradient = session_.gradients.as<float>() + matrix.offset;
    lines += to_json_line(measure(matrix, step, "gradient", download(gradient, matrix, matrix.stride))) + '\n';
    if (matrix.momentum == nullptr) continue;
    lines += to_json_line(measure(matrix, step, "momentum", download(matrix.momentum, matrix, matrix.cols))) + '\n';
  }
  Communicator& communicator = session_.communicator;
  std::string all = lines;
  std::vector<double> sizes(static_cast<std::size_t>(communicator.size()));
  sizes[static_cast<std::size_t>(communicator.rank())] = static_cast<double>(lines.size());
  communicator.sum_host(sizes);
  if (communicator.rank() != 0) {
    if (!lines.empty()) communicator.send_to_root(lines.data(), static_cast<std::int64_t>(lines.size()));
    return {};
  }
  for (int from = 1; from < communicator.size(); ++from) {
    std::string theirs(static_cast<std::size_t>(sizes[static_cast<std::size_t>(from)]), '\0');
    if (theirs.empty()) continue;
    communicator.receive_at_root(theirs.data(), static_cast<std::int64_t>(theirs.size()), from);
    all += theirs;
  }
  std::vector<std::string> result;
  for (std::size_t at = 0; at < all.size();) {
    const std::size_t end = all.find('\n', at);
    result.push_back(all.substr(at, end - at));
    at = end + 1;
  }
  return result;
}

}  // namespace polaron
