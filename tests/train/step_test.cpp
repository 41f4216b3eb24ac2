// Steps on a device that works by itself, as a GPU does: what has been queued is done when the host waits for it.
#include "train/step.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpu/cpu_backend.h"
#include "data/shard_files.h"
#include "optim/stepper.h"
#include "support/forwarding_backend.h"
#include "train/session.h"

namespace polaron {
namespace {

// Downloads wait, with what they will bring, until somebody does.
struct Queue {
  std::vector<std::function<void()>> waiting;
  std::size_t done = 0;
  void run_to(std::size_t end) {
    for (; done < end; ++done) waiting[done]();
  }
};

class LateStream : public Stream {
 public:
  explicit LateStream(Queue& queue) : queue_(queue) {}
  void synchronize() override { queue_.run_to(queue_.waiting.size()); }

 private:
  Queue& queue_;
};

class LateEvent : public Event {
 public:
  explicit LateEvent(Queue& queue) : queue_(queue) {}
  void record(Stream&) override { at_ = queue_.waiting.size(); }
  void make_wait(Stream&) override {}
  bool finished() override { return queue_.done >= at_; }
  void synchronize() override { queue_.run_to(at_); }

 private:
  Queue& queue_;
  std::size_t at_ = 0;
};

class LateDevice : public test::ForwardingDevice {
 public:
  LateDevice(Device& inner, Queue& queue) : ForwardingDevice(inner), queue_(queue) {}
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<LateStream>(queue_); }
  std::unique_ptr<Event> make_event() override { return std::make_unique<LateEvent>(queue_); }
  void download(Stream&, void* host, const void* device, std::size_t bytes) override {
    const auto* const from = static_cast<const std::byte*>(device);
    queue_.waiting.emplace_back([host, content = std::vector<std::byte>(from, from + bytes)] {
      std::memcpy(host, content.data(), content.size());
    });
  }

 private:
  Queue& queue_;
};

class LateBackend : public test::ForwardingBackend {
 public:
  explicit LateBackend(Queue& queue)
      : ForwardingBackend(make_cpu_backend(1)), device_(ForwardingBackend::device(), queue) {}
  Device& device() override { return device_; }

 private:
  LateDevice device_;
};

class LateSteps : public testing::Test {
 protected:
  LateSteps() {
    std::vector<std::uint32_t> ids;
    for (std::uint32_t i = 0; i < 1000; ++i) ids.push_back(i * 7 % 61);
    testing_data::write_shard(folder_.file("train_0.bin"), ids);
    config_.model = test::tiny_gpt2();
    config_.data.train = folder_.file("train_*.bin");
    config_.optimizer = test::matrices_under(test::settings_of(OptimizerKind::muon));
    config_.training.steps = 10;
    config_.training.sequence_length = 16;
    config_.training.batch = config_.training.micro_batch = 2;
  }
  void begin() {
    session_.emplace(config_, true, *communicator_, ChosenBackend{std::make_unique<LateBackend>(queue_), "late"});
    steps_.emplace(*session_);
    loader_ = session_->open_loader(0);
  }
  void queue_step(std::int64_t step) {
    steps_->queue(*loader_, step, std::numeric_limits<double>::infinity(), [] { return false; });
  }

  testing_data::TemporaryFolder folder_;
  Config config_;
  Queue queue_;
  std::unique_ptr<Communicator> communicator_ = make_single_process_communicator();
  std::optional<Session> session_;
  std::optional<StepRunner> steps_;
  std::unique_ptr<Loader> loader_;
};

TEST_F(LateSteps, are_one_ahead_of_what_the_host_knows) {
  begin();
  queue_step(0);
  EXPECT_FALSE(steps_->outcome(false).has_value());
  queue_step(1);
  const std::optional<StepOutcome> first = steps_->outcome(false);
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->step, 0);
  EXPECT_NEAR(first->loss, 4.1, 0.5);  // log(61)
  EXPECT_FALSE(steps_->outcome(false).has_value());
}

TEST_F(LateSteps, are_all_known_before_a_limit_on_the_loss_is_computed) {
  config_.training.skip_loss_spikes = 3;
  begin();
  for (const std::int64_t step : {0, 1, 2}) {
    queue_step(step);
    const std::optional<StepOutcome> outcome = steps_->outcome(false);
    ASSERT_TRUE(outcome.has_value()) << step;
    EXPECT_EQ(outcome->step, step);
  }
}

TEST_F(LateSteps, leave_nothing_under_way_to_memory_that_is_gone) {
  begin();
  queue_step(0);
  ASSERT_LT(queue_.done, queue_.waiting.size());
  steps_.reset();
  EXPECT_EQ(queue_.done, queue_.waiting.size());
}

}  // namespace
}  // namespace polaron
