// What processes that train together must agree on before they step.
#include <gtest/gtest.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "stepper.h"
#include "threads_communicator.h"

namespace polaron {
namespace {

// Weights of each process after some steps with summed sketches; every process has gradients of its own, and matrix ops
// that prefer groups of its own size.
std::vector<std::vector<float>> weights_by_sketches(const std::vector<std::int64_t>& groups) {
  test::ThreadsTogether together(static_cast<int>(groups.size()));
  std::vector<std::vector<float>> weights(groups.size());
  std::vector<std::string> failures(groups.size());
  {
    std::vector<std::jthread> threads;
    for (std::size_t rank = 0; rank < groups.size(); ++rank) {
      threads.emplace_back([&, rank] {
        try {
          test::Stepper stepper(
              test::tiny_llama(), test::matrices_under(test::settings_of(OptimizerKind::low_rank_muon)), 1,
              std::make_unique<test::GroupedBackend>(1, groups[rank]),
              std::make_unique<test::ThreadCommunicator>(together, static_cast<int>(rank)), Exchange::sketch);
          for (std::int64_t step = 0; step < 3; ++step) {
            stepper.step(step, test::random_weights(stepper.table(), 100 + 10 * rank + static_cast<std::size_t>(step)));
          }
          weights[rank] = stepper.weights();
        } catch (const std::exception& error) {
          failures[rank] = error.what();
        }
      });
    }
  }
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
  return weights;
}

TEST(Exchange, of_sketches_sums_alike_where_processes_prefer_other_groups) {
  const auto expected = weights_by_sketches({1, 1});
  for (const auto& weights : {weights_by_sketches({1, 3}), weights_by_sketches({1000, 2})}) {
    EXPECT_EQ(weights[0], expected[0]);
    EXPECT_EQ(weights[1], expected[1]);
  }
}

}  // namespace
}  // namespace polaron
