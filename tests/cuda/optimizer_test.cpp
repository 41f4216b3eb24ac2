// Optimizers as a whole on the CUDA backend: a few steps of small models go where the CPU backend's go.
#include <gtest/gtest.h>

#include <memory>

#include "base/error.h"
#include "cuda/backend.h"
#include "emulation/emulation.h"
#include "library_file.h"
#include "machine.h"
#include "optim/stepper.h"
#include "train/cuda_library.h"

namespace polaron::test {
namespace {

std::vector<NamedSettings> settings() {
  std::vector<NamedSettings> all = all_settings();
  for (const OptimizerKind kind : {OptimizerKind::muon, OptimizerKind::low_rank_muon}) {
    OptimizerSettings s = settings_of(kind);
    s.newton_schulz_precision = NewtonSchulzPrecision::bf16;
    all.push_back({kind == OptimizerKind::muon ? "muon_bf16" : "low_rank_muon_bf16", s});
  }
  return all;
}

// What a few steps change in the weights, and the optimizer's state after them.
struct Outcome {
  std::vector<float> change;
  std::vector<std::vector<float>> state;
};

Outcome run(const TransformerConfig& model, const OptimizerConfig& config, std::unique_ptr<Backend> backend) {
  Stepper stepper(model, config, 1, std::move(backend));
  stepper.set_gate(0.5F, true);
  const std::vector<float> before = stepper.weights();
  stepper.run(3);
  stepper.set_gate(0.5F, false);
  stepper.run(1);  // changes nothing
  Outcome outcome{stepper.weights(), stepper.state()};
  for (std::size_t i = 0; i < before.size(); ++i) outcome.change[i] -= before[i];
  return outcome;
}

class CudaOptimizer : public testing::TestWithParam<NamedSettings> {
 protected:
  template <class MakeBackend>
  void expect_what_the_cpu_does(MakeBackend&& make_backend) const {
    const OptimizerConfig config = matrices_under(GetParam().settings);
    // Products of bf16 that are summed in another order are rounded otherwise now and then: 2^-8 of an element.
    const bool low = GetParam().settings.newton_schulz_precision == NewtonSchulzPrecision::bf16;
    for (const TransformerConfig& model : {tiny_gpt2(), tiny_llama()}) {
      const Outcome expected = run(model, config, make_cpu_backend(1)), actual = run(model, config, make_backend());
      EXPECT_LT(distance(actual.change, expected.change), (low ? 2e-2 : 2e-4) * norm_of(expected.change));
      ASSERT_EQ(actual.state.size(), expected.state.size());
      for (std::size_t i = 0; i < expected.state.size(); ++i)
        EXPECT_LE(distance(actual.state[i], expected.state[i]), 1e-6 * norm_of(expected.state[i])) << i;
    }
  }
};

TEST_P(CudaOptimizer, goes_where_the_cpus_goes_when_emulated) {
  const cuda::emulation::WithOptions lazy({.lazy_streams = true});
  expect_what_the_cpu_does([] { return cuda::make_backend(0); });
}

TEST_P(CudaOptimizer, goes_where_the_cpus_goes_on_a_device) {
  std::string why_not;
  if (open_device(why_not) == nullptr) GTEST_SKIP() << why_not;
  expect_what_the_cpu_does([] { return open_cuda_library(cuda_library_file()).make_backend(0); });
}

INSTANTIATE_TEST_SUITE_P(Settings, CudaOptimizer, testing::ValuesIn(settings()),
                         [](const testing::TestParamInfo<NamedSettings>& chosen) { return chosen.param.name; });

}  // namespace
}  // namespace polaron::test
