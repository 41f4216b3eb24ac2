#include "train/spikes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace polaron {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

TEST(SpikeDetector, calls_nothing_a_spike_before_it_has_seen_128_losses) {
  SpikeDetector detector(3.0, {});
  for (int i = 0; i < 127; ++i) {
    detector.add(4.0);
    EXPECT_EQ(detector.limit(), kNever);
  }
  detector.add(4.0);
  EXPECT_DOUBLE_EQ(detector.limit(), 4.0);
}

TEST(SpikeDetector, lets_pass_what_is_within_so_many_deviations) {
  SpikeDetector detector(2.5, {});
  for (int i = 0; i < 64; ++i) {
    detector.add(3.0);
    detector.add(5.0);
  }
  EXPECT_NEAR(detector.limit(), 4.0 + 2.5, 1e-12);  // mean 4, deviation 1
}

TEST(SpikeDetector, forgets_what_lies_more_than_128_losses_back) {
  SpikeDetector detector(3.0, {});
  for (int i = 0; i < 500; ++i) detector.add(100.0 + i);
  for (int i = 0; i < 128; ++i) detector.add(2.0);
  EXPECT_DOUBLE_EQ(detector.limit(), 2.0);
  EXPECT_EQ(detector.history().size(), 128U);
}

TEST(SpikeDetector, is_off_at_0_deviations) {
  SpikeDetector detector(0.0, std::vector<double>(128, 1.0));
  EXPECT_EQ(detector.limit(), kNever);
}

TEST(SpikeDetector, goes_on_from_its_history) {
  SpikeDetector straight(3.0, {});
  for (int i = 0; i < 200; ++i) straight.add(std::sin(i));
  SpikeDetector resumed(3.0, straight.history());
  EXPECT_EQ(resumed.limit(), straight.limit());
  straight.add(0.7);
  resumed.add(0.7);
  EXPECT_EQ(resumed.limit(), straight.limit());
  EXPECT_EQ(resumed.history(), straight.history());
}

TEST(SpikeDetector, takes_the_end_of_a_history_that_is_too_long) {
  std::vector<double> history(300, 50.0);
  history.insert(history.end(), 128, 2.0);
  const SpikeDetector detector(3.0, history);
  EXPECT_DOUBLE_EQ(detector.limit(), 2.0);
  EXPECT_EQ(detector.history().size(), 128U);
}

}  // namespace
}  // namespace polaron
