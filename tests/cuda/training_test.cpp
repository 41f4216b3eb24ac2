// Training as a whole on the CUDA backend under emulation: tiny models go where the CPU backend takes them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "backend/philox.h"
#include "cpu/cpu_backend.h"
#include "cuda/backend.h"
#include "data/shard_files.h"
#include "emulation/cublaslt.h"
#include "emulation/emulation.h"
#include "emulation/runtime.h"
#include "library_file.h"
#include "machine.h"
#include "model/features.h"
#include "optim/stepper.h"
#include "support/errors.h"
#include "train/choices.h"
#include "train/cuda_library.h"
#include "train/session.h"
#include "train/step.h"

namespace polaron::test {
namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

// A shard of tokens that can be learned: mostly each token follows from the one before, and a separator (0) opens a
// document now and then.
class Data {
 public:
  explicit Data(std::int64_t vocabulary) {
    std::vector<std::uint32_t> ids = {0};
    const PhiloxKey key = make_key(3, RandomPurpose::test, 0, 0);
    const auto tokens = static_cast<std::uint32_t>(vocabulary);
    for (std::uint64_t i = 1; i < 3000; ++i) {
      const Philox4 drawn = philox(key, i);
      const std::uint32_t next = (7 * ids.back() + 3) % tokens;
      ids.push_back(drawn.word[0] % 11 == 0 ? 0 : drawn.word[0] % 4 == 0 ? drawn.word[1] % tokens : next);
    }
    testing_data::write_shard(folder_.file("train_0.bin"), ids);
    testing_data::write_bytes(
        folder_.file("vocabulary.json"),
        R"({"format": "polaron vocabulary", "version": 1, "kind": "opaque", "name": "test", "separator": 0, )"
        R"("special_tokens": {}, "size": )" +
            std::to_string(vocabulary) + "}");
  }
  std::string pattern() const { return folder_.file("train_*.bin"); }

 private:
  testing_data::TemporaryFolder folder_;
};

struct Case {
  std::string name;
  TransformerConfig model;
  OptimizerSettings matrices;
  std::string precision = "fp32";
  double tolerance = 1e-4;
  Recompute recompute = Recompute::none;
  std::int64_t steps = 20;
  friend std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }
};

Config config_of(const Case& c, const Data& data) {
  Config config;
  config.model = c.model;
  config.precision = c.precision;
  config.allow_slow_bf16 = true;
  config.data.train = data.pattern();
  config.optimizer = matrices_under(c.matrices);
  config.training.steps = c.steps;
  config.training.sequence_length = 16;
  config.training.batch = 4;
  config.training.micro_batch = 2;
  config.training.recompute = c.recompute;
  config.schedule.warmup_steps = 3;
  return config;
}

OptimizerSettings low_rank(BasisKind basis) {
  OptimizerSettings s = settings_of(OptimizerKind::low_rank_muon);
  s.basis = basis;
  return s;
}

std::vector<Case> cases() {
  const auto muon = settings_of(OptimizerKind::muon);
  std::vector<Case> all;
  for (const auto& [name, model] : {std::pair{"gpt2", tiny_gpt2()}, std::pair{"llama", tiny_llama()},
                                    std::pair{"modded_gpt2", tiny_modded_gpt2()}}) {
    const std::string model_name = name;
    all.push_back({model_name + "_muon", model, muon});
    all.push_back({model_name + "_low_rank_cholesky", model, low_rank(BasisKind::cholesky_qr)});
    all.push_back({model_name + "_low_rank_householder", model, low_rank(BasisKind::householder)});
    all.push_back({model_name + "_bf16", model, muon, "bf16", 2e-2});
    all.back().steps = 10;  // each takes twice as long
  }
  all.push_back({"gpt2_recomputed", tiny_gpt2(), muon, "fp32", 1e-4, Recompute::block});
  all.push_back(
      {"llama_recomputed_bf16", tiny_llama(), low_rank(BasisKind::cholesky_qr), "bf16", 2e-2, Recompute::block, 10});
  return all;
}

ChosenBackend on_cpu() { return {make_cpu_backend(1), "the CPU"}; }
ChosenBackend on_cuda() { return {cuda::make_backend(0), "an emulated device"}; }

// A session with what its steps need.
struct Training {
  Training(const Config& config, ChosenBackend backend)
      : session(config, true, *communicator, std::move(backend)), steps(session), loader(session.open_loader(0)) {}

  StepOutcome step(std::int64_t number, double limit = kNoLimit) {
    steps.queue(*loader, number, limit, [] { return false; });
    return *steps.outcome(true);
  }
  std::vector<double> losses(std::int64_t count) {
    std::vector<double> result;
    for (std::int64_t i = 0; i < count; ++i) {
      const StepOutcome outcome = step(i);
      EXPECT_TRUE(outcome.applied);
      result.push_back(outcome.loss);
    }
    return result;
  }
  std::vector<std::byte> bytes(const void* from, std::size_t count) {
    std::vector<std::byte> result(count);
    session.backend.device().download(*session.stream, result.data(), from, count);
    session.stream->synchronize();
    return result;
  }
  // Weights, working copies and optimizer state.
  std::vector<std::vector<std::byte>> everything() {
    std::vector<std::vector<std::byte>> all = {bytes(session.weights.data(), session.weights.bytes()),
                                               bytes(session.working.data(), session.working.bytes())};
    for (const StateTensor& s : session.optimizer->state()) {
      all.push_back(bytes(s.parts.front().data, static_cast<std::size_t>(s.elements()) * sizeof(float)));
    }
    return all;
  }

  std::unique_ptr<Communicator> communicator = make_single_process_communicator();
  Session session;
  StepRunner steps;
  std::unique_ptr<Loader> loader;
};

class CudaTraining : public testing::TestWithParam<Case> {
 protected:
  template <class MakeBackend>
  static void expect_losses_of_the_cpu(MakeBackend&& make_backend) {
    const Data data(GetParam().model.vocabulary);
    const Config config = config_of(GetParam(), data);
    const std::vector<double> expected = Training(config, on_cpu()).losses(config.training.steps);
    const std::vector<double> actual = Training(config, make_backend()).losses(config.training.steps);
    EXPECT_LT(expected.back(), expected.front() - 0.3);  // it learns
    double largest = 0.0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(actual[i], expected[i], GetParam().tolerance) << "step " << i;
      largest = std::max(largest, std::abs(actual[i] - expected[i]));
    }
    RecordProperty("largest_difference", std::to_string(largest));
  }
};

TEST_P(CudaTraining, has_the_losses_of_the_cpu_when_emulated) {
  const cuda::emulation::WithOptions lazy({.os_threads = 1, .lazy_streams = true});
  expect_losses_of_the_cpu(on_cuda);
}

TEST_P(CudaTraining, has_the_losses_of_the_cpu_on_a_device) {
  std::string why_not;
  if (open_device(why_not) == nullptr) GTEST_SKIP() << why_not;
  expect_losses_of_the_cpu([] {
    return ChosenBackend{open_cuda_library(cuda_library_file()).make_backend(0), "a device"};
  });
}

TEST(CudaSession, computes_in_bf16_unless_told_otherwise) {
  const Data data(tiny_gpt2().vocabulary);
  const Case given{"auto", tiny_gpt2(), low_rank(BasisKind::cholesky_qr), "auto"};
  const Training automatic(config_of(given, data), on_cuda());
  EXPECT_EQ(automatic.session.config.precision, "bf16");
  EXPECT_GT(automatic.session.working.bytes(), 0U);
  EXPECT_EQ(automatic.session.optimizer->assignment().classes.front().settings.newton_schulz_precision,
            NewtonSchulzPrecision::bf16);
}

TEST(CudaSession, tf32_changes_the_losses_of_fp32_a_little) {
  const Data data(tiny_gpt2().vocabulary);
  const cuda::emulation::WithOptions lazy({.os_threads = 1, .lazy_streams = true});
  const auto losses = [&](const std::string& precision) {
    Training run(config_of({precision, tiny_gpt2(), low_rank(BasisKind::cholesky_qr), precision}, data), on_cuda());
    EXPECT_EQ(run.session.working.bytes(), 0U);
    return run.losses(3);
  };
  const auto exact = losses("fp32"), rounded = losses("tf32");
  for (std::size_t i = 0; i < exact.size(); ++i) {
    EXPECT_NE(exact[i], rounded[i]);
    EXPECT_NEAR(exact[i], rounded[i], 1e-3);
  }
}

TEST(CudaSession, changes_nothing_in_a_step_that_is_not_finite_or_whose_loss_is_a_spike) {
  const Data data(tiny_gpt2().vocabulary);
  const Config config = config_of({"gate", tiny_gpt2(), low_rank(BasisKind::cholesky_qr), "bf16"}, data);
  const cuda::emulation::WithOptions lazy({.os_threads = 1, .lazy_streams = true});
  Training run(config, on_cuda());
  run.losses(2);
  const auto before = run.everything();
  const StepOutcome spike = run.step(2, 0.01);
  EXPECT_FALSE(spike.applied);
  EXPECT_TRUE(std::isfinite(spike.loss));
  EXPECT_TRUE(run.everything() == before);

  // A weight that is not finite makes loss and gradients so; everything else must stay.
  const auto nan = to_bf16(std::numeric_limits<float>::quiet_NaN());
  auto* const working = run.session.working.as<bf16>();
  bf16 mended{};
  std::memcpy(&mended, before[1].data(), sizeof(mended));
  run.session.backend.device().upload(*run.session.stream, working, &nan, sizeof(nan));
  const auto poisoned = run.everything();
  EXPECT_FALSE(poisoned == before);
  const StepOutcome outcome = run.step(3);
  EXPECT_FALSE(outcome.applied);
  EXPECT_FALSE(std::isfinite(outcome.loss));
  EXPECT_TRUE(run.everything() == poisoned);

  run.session.backend.device().upload(*run.session.stream, working, &mended, sizeof(mended));
  EXPECT_TRUE(run.everything() == before);
  EXPECT_TRUE(run.step(4).applied);
  EXPECT_FALSE(run.everything() == before);
}

TEST(CudaSession, has_the_same_bits_in_two_runs) {
  const Data data(tiny_llama().vocabulary);
  const Config config = config_of({"same", tiny_llama(), low_rank(BasisKind::cholesky_qr), "bf16"}, data);
  const auto result = [&](const cuda::emulation::Options& options) {
    const cuda::emulation::WithOptions with(options);
    Training run(config, on_cuda());
    run.losses(3);
    return run.everything();
  };
  const auto expected = result({.os_threads = 1});
  EXPECT_TRUE(result({.order = cuda::emulation::Order::reverse, .os_threads = 1, .lazy_streams = true}) == expected);
}

using cuda::emulation::fake_cublaslt;
using cuda::emulation::fake_device;

// The fake library and device as they are, when the test ends.
class Restored {
 public:
  Restored() = default;
  Restored(const Restored&) = delete;
  Restored& operator=(const Restored&) = delete;
  ~Restored() {
    fake_cublaslt() = library_;
    fake_device() = device_;
  }

 private:
  cuda::emulation::FakeCublasLt library_ = fake_cublaslt();
  cuda::emulation::FakeDevice device_ = fake_device();
};

TEST(CudaSession, takes_the_librarys_first_algorithms_unless_it_may_time_them) {
  const Restored restored;
  fake_cublaslt().milliseconds = {2.0F, 2.0F, 1.0F, 1.0F};  // not the first is the fastest
  const Data data(tiny_gpt2().vocabulary);
  Config config = config_of({"choices", tiny_gpt2(), low_rank(BasisKind::cholesky_qr), "bf16"}, data);
  const cuda::emulation::WithOptions options({.os_threads = 1});
  const auto ran = [](Training& run, std::int64_t steps) {
    fake_cublaslt().ran.clear();
    run.losses(steps);
    return std::set<int>(fake_cublaslt().ran.begin(), fake_cublaslt().ran.end());
  };
  const std::set<int> first = {cuda::emulation::kManyLanes}, fastest = {cuda::emulation::kSplit};
  {
    Training run(config, on_cuda());
    settle_choices(run.session, run.steps, {});
    EXPECT_EQ(ran(run, 2), first);
  }
  config.deterministic = false;
  std::vector<std::byte> tuned;
  std::vector<std::vector<std::byte>> result;
  {
    Training run(config, on_cuda());
    const auto before = run.everything();
    settle_choices(run.session, run.steps, {});
    EXPECT_TRUE(run.everything() == before);
    EXPECT_EQ(ran(run, 2), fastest);
    tuned = run.session.backend.tuned();
    result = run.everything();
  }
  fake_cublaslt().milliseconds = {1.0F, 2.0F, 3.0F, 1.0F};  // on another day
  {
    Training run(config, on_cuda());
    settle_choices(run.session, run.steps, tuned);
    EXPECT_EQ(ran(run, 2), fastest);
    EXPECT_TRUE(run.everything() == result);
  }
  fake_device().name = "another device";
  Training run(config, on_cuda());
  settle_choices(run.session, run.steps, tuned);
  EXPECT_EQ(ran(run, 2), first);
}

TEST(CudaSession, fills_the_free_memory_with_auto_micro_batches_and_says_what_would_fit) {
  const Restored restored;
  const Data data(tiny_gpt2().vocabulary);
  Config config = config_of({"auto", tiny_gpt2(), settings_of(OptimizerKind::muon)}, data);
  const auto communicator = make_single_process_communicator();
  const auto open = [&] { return std::make_unique<Session>(config, true, *communicator, on_cuda()); };
  config.training.batch = 12;
  std::map<std::int64_t, std::size_t> needed;  // bytes by micro-batch
  for (const std::int64_t count : {1, 4, 6}) {
    config.training.micro_batch = count;
    needed[count] = static_cast<std::size_t>(open()->memory.total());
  }
  const std::size_t taken = cuda::emulation::device_bytes();
  config.training.micro_batch = kAutoMicroBatch;
  fake_device().memory = taken + (needed[4] / 15 + 2) * 16;  // a sixteenth is left alone
  ASSERT_GT(needed[6], needed[4] + 100);
  const auto session = open();
  EXPECT_EQ(session->config.training.micro_batch, 4);
  EXPECT_NE(session->micro_batch_note.find("\"auto\": 4"), std::string::npos) << session->micro_batch_note;

  const auto expect_part = [&](const std::string& part) { EXPECT_TRUE(contains(error_of(Exit::device, open), part)); };
  const std::size_t more = cuda::emulation::device_bytes();
  config.training.micro_batch = 12;
  fake_device().memory = more + needed[6] - 1;
  expect_part("micro_batch 4 would fit;");
  expect_part("emulated device");
  fake_device().memory = more + needed[1] - 1;
  expect_part("micro_batch 1 would fit with training.recompute \"block\"");
  fake_device().memory = more + needed[1] / 2;
  expect_part("Not even training.micro_batch 1");
}

TEST(CudaSession, names_the_call_by_which_a_failing_kernel_is_found) {
  const Data data(tiny_gpt2().vocabulary);
  Training run(config_of({"failing", tiny_gpt2(), settings_of(OptimizerKind::muon)}, data), on_cuda());
  cuda::emulation::fail_next("cudaEventQuery", cudaErrorLaunchFailure);
  expect_parts(error_of(Exit::device, [&] { run.step(0); }), {"cudaEventQuery", "CUDA_LAUNCH_BLOCKING"});
}

// Every class of memory but what ops keep is planned to the byte, and of that an upper bound within 512 bytes: memory
// of ops that a model happens not to need.
void expect_planned_memory(const Config& config, const std::string& what) {
  constexpr std::int64_t kBound = 512, kStep = 64;  // kStep: the outcome of a step
  const auto before = static_cast<std::int64_t>(cuda::emulation::device_bytes());
  Training run(config, on_cuda());
  run.losses(1);
  const std::int64_t taken = static_cast<std::int64_t>(cuda::emulation::device_bytes()) - before;
  const std::int64_t planned = run.session.memory.total();
  EXPECT_LE(taken, planned + kStep) << what << " takes more than planned";
  EXPECT_GE(taken, planned - kBound) << what << " takes less than planned";
}

TEST(CudaMemoryPlan, is_what_models_take) {
  for (const Feature& feature : all_features()) {
    if (feature.config.window_block > 0) continue;  // in tokens that these sequences are too short for
    const Data data(feature.config.vocabulary);
    const bool preset = feature.name == "gpt2" || feature.name == "llama" || feature.name == "all_of_the_authors_gpt2";
    for (const std::string precision : {"fp32", "bf16"}) {
      if (precision == "bf16" && !preset) continue;
      Config config = config_of({"", feature.config, settings_of(OptimizerKind::adamw), precision}, data);
      config.training.batch = 2;
      expect_planned_memory(config, feature.name + " " + precision);
    }
  }
}

TEST(CudaMemoryPlan, is_what_optimizers_take) {
  const Data data(tiny_llama().vocabulary);
  for (const NamedSettings& named : all_settings()) {
    Config config = config_of({"", tiny_llama(), named.settings}, data);
    expect_planned_memory(config, named.name);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaTraining, testing::ValuesIn(cases()),
                         [](const testing::TestParamInfo<Case>& chosen) { return chosen.param.name; });

}  // namespace
}  // namespace polaron::test
