// An optimizer over a small model's parameter table, fed with gradients that the test chooses.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "model/parameters.h"
#include "optim/assignment.h"
#include "optim/optimizer.h"
#include "support/forwarding_backend.h"
#include "support/tiny_model.h"

namespace polaron::test {

// Every parameter that may be under `matrices`, and AdamW for the others.
inline OptimizerConfig matrices_under(const OptimizerSettings& matrices) {
  OptimizerConfig config;
  config.matrices = matrices;
  config.embeddings.lr = config.head.lr = config.vectors.lr = config.scalars.lr = 1e-2;
  config.embeddings.weight_decay = 0.1;
  return config;
}

inline OptimizerSettings settings_of(OptimizerKind kind) {
  OptimizerSettings s;
  s.kind = kind;
  s.lr = 0.02;
  s.weight_decay = 0.1;
  s.rank = {8, 1};
  return s;
}

struct NamedSettings {
  std::string name;
  OptimizerSettings settings;
};
inline void PrintTo(const NamedSettings& named, std::ostream* out) { *out << named.name; }

// Every kind of optimizer for matrices, and the choices within the kinds.
inline std::vector<NamedSettings> all_settings() {
  std::vector<NamedSettings> all;
  const auto add = [&](const std::string& name, OptimizerKind kind, auto change) {
    OptimizerSettings s = settings_of(kind);
    change(s);
    all.push_back({name, s});
  };
  const auto unchanged = [](OptimizerSettings&) {};
  add("adamw", OptimizerKind::adamw, unchanged);
  add("sgd", OptimizerKind::sgd, [](auto& s) { s.nesterov = false; });
  add("sgd_nesterov", OptimizerKind::sgd, unchanged);
  add("sgd_without_momentum", OptimizerKind::sgd, [](auto& s) { s.momentum = 0.0; });
  add("muon", OptimizerKind::muon, unchanged);
  add("muon_heavy", OptimizerKind::muon, [](auto& s) { s.momentum_form = MomentumForm::heavy; });
  add("muon_exact", OptimizerKind::muon, [](auto& s) { s.orthogonalizer = Orthogonalizer::exact; });
  add("msgd", OptimizerKind::msgd, unchanged);
  add("low_rank_muon_columns", OptimizerKind::low_rank_muon, unchanged);
  add("low_rank_muon_gaussian", OptimizerKind::low_rank_muon, [](auto& s) { s.sketch = SketchKind::gaussian; });
  add("low_rank_muon_power", OptimizerKind::low_rank_muon, [](auto& s) {
    s.sketch = SketchKind::power;
    s.power_iterations = 2;
  });
  add("low_rank_muon_cholesky", OptimizerKind::low_rank_muon, [](auto& s) { s.basis = BasisKind::cholesky_qr; });
  add("low_rank_msgd", OptimizerKind::low_rank_msgd, unchanged);
  add("low_rank_msgd_exact", OptimizerKind::low_rank_msgd, [](auto& s) { s.orthogonalizer = Orthogonalizer::exact; });
  return all;
}

// The CPU backend with matrix ops that ask for groups of a given size.
class GroupedBackend final : public ForwardingBackend {
 public:
  GroupedBackend(int threads, std::int64_t group)
      : ForwardingBackend(make_cpu_backend(threads)), matrix_(ForwardingBackend::matrix(), group) {}
  MatrixOps& matrix() override { return matrix_; }

 private:
  class Grouped final : public ForwardingMatrixOps {
   public:
    Grouped(MatrixOps& ops, std::int64_t group) : ForwardingMatrixOps(ops), group_(group) {}
    std::int64_t preferred_group(std::int64_t, std::int64_t) const override { return group_; }

   private:
    std::int64_t group_;
  };

  Grouped matrix_;
};

class Stepper {
 public:
  Stepper(const TransformerConfig& model, const OptimizerConfig& config, std::uint64_t seed = 1, int threads = 1)
      : Stepper(model, config, seed, make_cpu_backend(threads)) {}
  Stepper(const TransformerConfig& model, const OptimizerConfig& config, std::uint64_t seed,
          std::unique_ptr<Backend> backend,
          std::unique_ptr<Communicator> communicator = make_single_process_communicator(),
          Exchange exchange = Exchange::parameters, bool shared_columns = false)
      : table_(model),
        backend_(std::move(backend)),
        stream_(backend_->device().make_stream()),
        communicator_(std::move(communicator)),
        weights_(backend_->device(), static_cast<std::size_t>(table_.stored_elements()) * sizeof(float)),
        gradients_(backend_->device(), weights_.bytes()),
        clip_(backend_->device()),
        apply_(backend_->device()),
        optimizer_(assign_optimizers(config, model, table_), table_, *backend_, *communicator_, exchange, seed,
                   {weights_.as<float>(), gradients_.as<float>(), nullptr}, shared_columns) {
    put(weights_, random_weights(table_, 21));
    set_gate(1.0F, true);
  }

  const ParameterTable& table() const { return table_; }
  Backend& backend() { return *backend_; }
  Stream& stream() { return *stream_; }
  Communicator& communicator() { return *communicator_; }
  Optimizer& optimizer() { return optimizer_; }
  float* weights_on_device() { return weights_.as<float>(); }

  void set_gate(float clip, bool apply) {
    clip_.set(*stream_, clip);
    apply_.set(*stream_, apply ? 1 : 0);
  }
  void set_weights(const std::vector<float>& flat) { put(weights_, flat); }
  void step(std::int64_t step, const std::vector<float>& gradients, double lr_factor = 1.0) {
    put(gradients_, gradients);
    optimizer_.step(*stream_, step, lr_factor, {clip_.device(), apply_.device()});
    stream_->synchronize();
  }
  // That many steps along random gradients, different ones at every step.
  void run(std::int64_t steps) {
    for (std::int64_t i = 0; i < steps; ++i) step(i, random_weights(table_, static_cast<std::uint64_t>(100 + i)));
  }

  std::vector<float> weights() const { return get(Tensor(weights_.data(), DType::f32, 1, table_.stored_elements())); }
  std::vector<std::vector<float>> state() const {
    std::vector<std::vector<float>> result;
    for (const StateTensor& s : optimizer_.state()) {
      result.push_back(get(Tensor(s.parts.front().data, DType::f32, s.rows, s.cols)));
    }
    return result;
  }

  // A block of a parameter, dense [rows, cols], from a flat buffer.
  std::vector<float> block_of(const std::vector<float>& flat, const std::string& name, std::size_t block = 0) const {
    const Parameter& p = table_[table_.index(name)];
    std::vector<float> values;
    for (std::int64_t i = 0; i < p.blocks[block].rows; ++i) {
      const auto first = flat.begin() + p.offset + (p.blocks[block].row + i) * p.stored_cols;
      values.insert(values.end(), first, first + p.cols);
    }
    return values;
  }

 private:
  void put(const DeviceBuffer& to, const std::vector<float>& from) {
    if (from.size() * sizeof(float) != to.bytes()) throw std::logic_error("a flat buffer of another length");
    backend_->device().upload(*stream_, to.data(), from.data(), to.bytes());
    stream_->synchronize();
  }
  std::vector<float> get(const Tensor& from) const {
    std::vector<float> values(static_cast<std::size_t>(from.elements()));
    backend_->device().download(*stream_, values.data(), from.data, values.size() * sizeof(float));
    stream_->synchronize();
    return values;
  }

  ParameterTable table_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Communicator> communicator_;
  DeviceBuffer weights_, gradients_;
  DeviceScalar<float> clip_;
  DeviceScalar<std::int32_t> apply_;
  Optimizer optimizer_;
};

}  // namespace polaron::test
