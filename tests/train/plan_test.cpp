// `polaron plan` promises what a run then takes: every class of memory against the device's own count.
#include "train/plan.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "optim/optimizer.h"
#include "optim/stepper.h"
#include "support/forwarding_backend.h"
#include "support/tiny_model.h"
#include "train/device_batch.h"

namespace polaron {
namespace {

// The CPU backend with a device that counts the bytes it has given out.
class CountingBackend final : public test::ForwardingBackend {
 public:
  CountingBackend() : ForwardingBackend(make_cpu_backend(1)), device_(ForwardingBackend::device()) {}
  std::int64_t allocated() const { return device_.allocated; }
  Device& device() override { return device_; }

 private:
  struct Counting final : test::ForwardingDevice {
    using ForwardingDevice::ForwardingDevice;
    void* allocate(std::size_t bytes) override {
      allocated += static_cast<std::int64_t>(bytes);
      return ForwardingDevice::allocate(bytes);
    }
    void release(void* data, std::size_t bytes) noexcept override {
      allocated -= static_cast<std::int64_t>(bytes);
      ForwardingDevice::release(data, bytes);
    }
    std::int64_t allocated = 0;
  };

  Counting device_;
};

Config config_of(const TransformerConfig& model, const OptimizerSettings& matrices) {
  Config config;
  config.model = model;
  config.optimizer = test::matrices_under(matrices);
  config.training.batch = 8;
  config.training.micro_batch = 4;
  config.training.sequence_length = 16;
  return config;
}

struct Planned {
  explicit Planned(const Config& config_)
      : config(config_),
        table(config.model),
        assignment(assign_optimizers(config.optimizer, config.model, table)),
        memory(plan_memory(config, table, assignment, Ownership(assignment, table, 1, Exchange::parameters), 0,
                           backend)) {}
  Config config;
  CountingBackend backend;
  ParameterTable table;
  Assignment assignment;
  MemoryPlan memory;
};

TEST(MemoryPlan, allocates_nothing) {
  const Planned planned(config_of(test::tiny_llama(), test::settings_of(OptimizerKind::low_rank_muon)));
  EXPECT_EQ(planned.backend.allocated(), 0);
}

TEST(MemoryPlan, every_class_is_what_the_run_then_takes) {
  for (const TransformerConfig& model : {test::tiny_gpt2(), test::tiny_llama()}) {
    for (const test::NamedSettings& named : test::all_settings()) {
      for (const Recompute recompute : {Recompute::none, Recompute::block}) {
        Config config = config_of(model, named.settings);
        config.training.recompute = recompute;
        Planned planned(config);
        CountingBackend& backend = planned.backend;
        std::int64_t before = 0;
        const auto taken = [&] { return backend.allocated() - std::exchange(before, backend.allocated()); };

        const auto bytes = static_cast<std::size_t>(planned.table.stored_elements()) * sizeof(float);
        const DeviceBuffer weights(backend.device(), bytes);
        EXPECT_EQ(taken(), planned.memory.weights) << named.name;
        const DeviceBuffer gradients(backend.device(), bytes);
        EXPECT_EQ(taken(), planned.memory.gradients) << named.name;
        const auto communicator = make_single_process_communicator();
        const Optimizer optimizer(planned.assignment, planned.table, backend, *communicator, Exchange::parameters, 1,
                                  {weights.as<float>(), gradients.as<float>(), nullptr});
        EXPECT_EQ(taken(), planned.memory.optimizer_state + planned.memory.optimizer_scratch) << named.name;
        const Transformer transformer(model, planned.table, activation_shape(config), backend,
                                      FlatBuffers{weights.as<float>(), gradients.as<float>(), nullptr});
        EXPECT_EQ(taken(), planned.memory.activations) << named.name;
        const BatchUploader uploader(backend.device(), config.model, activation_shape(config).rows());
        EXPECT_EQ(taken(), planned.memory.batches) << named.name;
        EXPECT_EQ(backend.allocated(), planned.memory.total()) << named.name;
      }
    }
  }
}

TEST(MemoryPlan, the_largest_micro_batch_is_a_divisor_of_the_share_that_fits) {
  Config config = config_of(test::tiny_llama(), test::settings_of(OptimizerKind::muon));
  config.training.batch = 24;
  Planned planned(config);
  for (const int processes : {1, 2}) {
    const Ownership ownership(planned.assignment, planned.table, processes, Exchange::parameters);
    const auto total = [&](std::int64_t micro_batch) {
      config.training.micro_batch = micro_batch;
      return plan_memory(config, planned.table, planned.assignment, ownership, 0, planned.backend).total();
    };
    const auto largest = [&](std::int64_t bytes) {
      Config automatic = config;
      automatic.training.micro_batch = kAutoMicroBatch;
      return largest_micro_batch(automatic, planned.table, planned.assignment, ownership, 0, planned.backend, bytes);
    };
    const std::int64_t share = 24 / processes;
    EXPECT_EQ(largest(total(share)), share);
    EXPECT_EQ(largest(total(share) - 1), share / 2);
    EXPECT_EQ(largest(total(5)), 4);
    EXPECT_EQ(largest(total(1)), 1);
    EXPECT_EQ(largest(total(1) - 1), 0);
  }
}

TEST(MemoryPlan, state_is_what_the_optimizer_is_known_for) {
  const auto plan = [](OptimizerKind kind) {
    OptimizerSettings settings = test::settings_of(kind);
    settings.rank = {4, 1};
    Config config = config_of(test::tiny_llama(), settings);
    config.model.width = 256;  // large enough for rounding to 256 bytes not to matter
    config.model.head_size = 64;
    config.model.mlp_hidden = 512;
    const Planned planned(config);
    struct {
      double state, scratch;
    } result{static_cast<double>(planned.memory.optimizer_state),
             static_cast<double>(planned.memory.optimizer_scratch)};
    return result;
  };
  const ParameterTable table([] {
    TransformerConfig model = test::tiny_llama();
    model.width = 256;
    model.head_size = 64;
    model.mlp_hidden = 512;
    return model;
  }());
  const double matrices = 4.0 * static_cast<double>(table.elements(Role::matrix));
  const double others = 4.0 * static_cast<double>(table.stored_elements()) - matrices;
  EXPECT_NEAR(plan(OptimizerKind::adamw).state, 2.0 * (matrices + others), 0.01 * matrices);
  EXPECT_NEAR(plan(OptimizerKind::sgd).state, matrices + 2.0 * others, 0.01 * matrices);
  EXPECT_NEAR(plan(OptimizerKind::muon).state, matrices + 2.0 * others, 0.01 * matrices);
  EXPECT_NEAR(plan(OptimizerKind::low_rank_muon).state, matrices + 2.0 * others, 0.01 * matrices);
  EXPECT_NEAR(plan(OptimizerKind::msgd).state, 2.0 * others, 0.01 * matrices);
  EXPECT_NEAR(plan(OptimizerKind::low_rank_msgd).state, 2.0 * others, 0.01 * matrices);
  EXPECT_LT(plan(OptimizerKind::low_rank_muon).scratch, plan(OptimizerKind::muon).scratch);
  EXPECT_LT(plan(OptimizerKind::adamw).scratch, 2048.0);
}

TEST(FlopsPerToken, follows_the_convention_6n_plus_6lct) {
  TransformerConfig model = test::tiny_llama();
  const ParameterTable table(model);
  // q, k, v, out, gate, up, down of two layers, and the head; not the token table, which is looked up.
  const std::int64_t n = 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 85 * 32) + 61 * 32;
  const FlopsPerToken flops = flops_per_token(model, table, 16);
  EXPECT_EQ(flops.matmul_parameters, n);
  EXPECT_DOUBLE_EQ(flops.matmul, 6.0 * static_cast<double>(n));
  EXPECT_DOUBLE_EQ(flops.attention, 6.0 * 2 * 32 * 16);
  EXPECT_DOUBLE_EQ(flops.total(), flops.matmul + flops.attention);
  model.tied_embeddings = true;  // the table is then the head
  EXPECT_EQ(flops_per_token(model, ParameterTable(model), 16).matmul_parameters, n);
}

TEST(FlopsPerToken, of_gpt2_124m_is_the_known_number) {
  const auto file = std::filesystem::path(POLARON_SOURCE_DIR) / "configs" / "gpt2-124m.json";
  const TransformerConfig model = load_config(file).model;
  const FlopsPerToken flops = flops_per_token(model, ParameterTable(model), 1024);
  // 124.4 M parameters without the position table, biases and norms: 6 x 123.5 M, and 6 x 12 x 768 x 1024.
  EXPECT_EQ(flops.matmul_parameters, 12LL * 12 * 768 * 768 + 50257LL * 768);
  EXPECT_NEAR(flops.total(), 7.98e8, 0.01e8);
}

// Bytes between parameters whose offsets are aligned.
std::int64_t gaps(const ParameterTable& table) {
  std::int64_t used = 0;
  for (const Parameter& p : table.all()) used += 4 * p.stored_elements();
  return 4 * table.stored_elements() - used;
}

TrafficPlan traffic_of(const Planned& planned, int processes, Exchange exchange) {
  return plan_traffic(Ownership(planned.assignment, planned.table, processes, exchange), false);
}

TEST(TrafficPlan, of_one_process_is_nothing) {
  const Planned planned(config_of(test::tiny_llama(), test::settings_of(OptimizerKind::low_rank_muon)));
  for (const Exchange exchange : {Exchange::parameters, Exchange::factors, Exchange::sketch}) {
    EXPECT_EQ(traffic_of(planned, 1, exchange).total(), 0);
  }
}

TEST(TrafficPlan, counts_gradients_parameters_factors_and_sketches_by_exchange) {
  const Planned planned(config_of(test::tiny_llama(), test::settings_of(OptimizerKind::low_rank_muon)));
  // Rank 8; per layer two of 32 x 32, two of 16 x 32, three of 85 x 32, stored with rows and columns of 64.
  const std::int64_t stored = 4 * planned.table.stored_elements();
  std::int64_t matrices = 0;
  for (const MatrixClass& c : planned.assignment.classes) {
    for (const MatrixItem& item : c.items) matrices += 4 * item.rows * planned.table[item.parameter].stored_cols;
  }
  const std::int64_t factors = 4LL * 2 * (2 * 64 * 8 + 2 * 48 * 8 + 3 * 117 * 8);
  std::int64_t rows_of_padding = 0;
  for (const Parameter& p : planned.table.all()) {
    if (p.role == Role::matrix) rows_of_padding += 4 * (p.stored_rows - p.rows()) * p.stored_cols;
  }
  const std::int64_t gradients = stored - rows_of_padding - gaps(planned.table);

  const TrafficPlan parameters = traffic_of(planned, 4, Exchange::parameters);
  EXPECT_EQ(parameters.gradients, 3 * gradients);
  EXPECT_EQ(parameters.parameters, 3 * gradients);
  EXPECT_EQ(parameters.factors + parameters.sketches, 0);
  const TrafficPlan with_factors = traffic_of(planned, 4, Exchange::factors);
  EXPECT_EQ(with_factors.gradients, 3 * gradients);
  EXPECT_EQ(with_factors.parameters, 3 * (gradients - matrices));
  EXPECT_EQ(with_factors.factors, 3 * factors);
  const TrafficPlan with_sketches = traffic_of(planned, 4, Exchange::sketch);
  EXPECT_EQ(with_sketches.gradients, 3 * (gradients - matrices));
  EXPECT_EQ(with_sketches.parameters, 3 * (gradients - matrices));
  EXPECT_EQ(with_sketches.sketches, 2 * 3 * factors);
  const Planned full(config_of(test::tiny_llama(), test::settings_of(OptimizerKind::muon)));
  EXPECT_EQ(traffic_of(full, 4, Exchange::factors).total(), traffic_of(full, 4, Exchange::parameters).total());
}

}  // namespace
}  // namespace polaron
