#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace polaron {
namespace {

ScheduleConfig schedule(ScheduleKind kind, std::int64_t warmup, double final_fraction = 0.1) {
  ScheduleConfig s;
  s.kind = kind;
  s.warmup_steps = warmup;
  s.final_fraction = final_fraction;
  return s;
}

constexpr ScheduleKind kKinds[] = {ScheduleKind::constant, ScheduleKind::linear, ScheduleKind::cosine,
                                   ScheduleKind::wsd, ScheduleKind::trapezoid};

TEST(Schedule, warmup_rises_along_a_line_and_the_first_step_already_moves) {
  for (const ScheduleKind kind : kKinds) {
    const ScheduleConfig s = schedule(kind, 10);
    EXPECT_DOUBLE_EQ(lr_factor(s, 0, 100), 0.1);
    EXPECT_DOUBLE_EQ(lr_factor(s, 4, 100), 0.5);
    EXPECT_DOUBLE_EQ(lr_factor(s, 9, 100), 1.0);
    EXPECT_DOUBLE_EQ(lr_factor(s, 10, 100), 1.0);
  }
}

TEST(Schedule, without_warmup_the_first_step_has_the_peak_rate) {
  for (const ScheduleKind kind : kKinds) EXPECT_DOUBLE_EQ(lr_factor(schedule(kind, 0), 0, 100), 1.0);
}

TEST(Schedule, the_last_step_has_the_final_fraction) {
  for (const ScheduleKind kind : {ScheduleKind::linear, ScheduleKind::cosine, ScheduleKind::wsd}) {
    for (const std::int64_t steps : {2, 7, 100}) {
      for (const std::int64_t warmup : {std::int64_t{0}, std::int64_t{1}, steps / 2, steps - 1}) {
        for (const double fraction : {0.0, 0.1, 1.0}) {
          EXPECT_NEAR(lr_factor(schedule(kind, warmup, fraction), steps - 1, steps), fraction, 1e-12)
              << static_cast<int>(kind) << " " << steps << " steps, " << warmup << " of warm-up";
        }
      }
    }
  }
}

TEST(Schedule, a_run_of_one_step_takes_it_at_the_peak_rate) {
  for (const ScheduleKind kind : kKinds) EXPECT_DOUBLE_EQ(lr_factor(schedule(kind, 0), 0, 1), 1.0);
}

TEST(Schedule, trapezoid_is_the_authors) {
  ScheduleConfig s = schedule(ScheduleKind::trapezoid, 0);
  s.decay_fraction = 0.7;
  EXPECT_EQ(lr_factor(s, 1788, 5960), 1.0);
  EXPECT_NEAR(lr_factor(s, 1789, 5960), 0.99976, 1e-5);
  EXPECT_NEAR(lr_factor(s, 2980, 5960), 0.714286, 1e-6);
  EXPECT_NEAR(lr_factor(s, 4470, 5960), 0.357143, 1e-6);
  EXPECT_NEAR(lr_factor(s, 5959, 5960), 2.397e-4, 1e-7);
  s.warmup_steps = 500;
  s.decay_fraction = 5812.0 / 20344.0;
  EXPECT_DOUBLE_EQ(lr_factor(s, 0, 20344), 1.0 / 500);
  EXPECT_DOUBLE_EQ(lr_factor(s, 14532, 20344), 1.0);
  EXPECT_NEAR(lr_factor(s, 20343, 20344), 1.0 / 5812, 1e-12);
}

TEST(Schedule, constant_stays) {
  for (const std::int64_t step : {10, 50, 99}) {
    EXPECT_DOUBLE_EQ(lr_factor(schedule(ScheduleKind::constant, 10), step, 100), 1.0);
  }
}

TEST(Schedule, linear_is_halfway_in_the_middle) {
  // From step 10 (factor 1) to step 100 (factor 0.1): step 55 is the middle.
  EXPECT_NEAR(lr_factor(schedule(ScheduleKind::linear, 10), 55, 101), 0.55, 1e-12);
  EXPECT_NEAR(lr_factor(schedule(ScheduleKind::linear, 10), 19, 101), 0.91, 1e-12);
}

TEST(Schedule, cosine_is_halfway_in_the_middle_and_flat_at_both_ends) {
  const ScheduleConfig s = schedule(ScheduleKind::cosine, 10);
  EXPECT_NEAR(lr_factor(s, 55, 101), 0.55, 1e-12);
  EXPECT_NEAR(lr_factor(s, 40, 101), 0.1 + 0.9 * 0.75, 1e-12);  // a third of the way: (1 + cos 60 degrees) / 2
  EXPECT_GT(lr_factor(s, 11, 101), 0.999);
  EXPECT_LT(lr_factor(s, 99, 101), 0.101);
}

TEST(Schedule, wsd_holds_the_peak_and_falls_along_a_line_in_the_last_part) {
  ScheduleConfig s = schedule(ScheduleKind::wsd, 10, 0.0);
  s.decay_fraction = 0.2;  // steps 80 to 99
  for (const std::int64_t step : {10, 40, 79, 80}) EXPECT_DOUBLE_EQ(lr_factor(s, step, 100), 1.0);
  EXPECT_NEAR(lr_factor(s, 81, 100), 1.0 - 1.0 / 19.0, 1e-12);
  EXPECT_NEAR(lr_factor(s, 98, 100), 1.0 / 19.0, 1e-12);
  EXPECT_NEAR(lr_factor(s, 99, 100), 0.0, 1e-12);
}

TEST(Schedule, the_factor_never_rises_after_the_warmup) {
  for (const ScheduleKind kind : kKinds) {
    for (std::int64_t step = 10; step < 100; ++step) {
      EXPECT_LE(lr_factor(schedule(kind, 10), step, 100), lr_factor(schedule(kind, 10), step - 1, 100) + 1e-15);
    }
  }
}

TEST(Schedule, momentum_rises_along_a_line_from_its_start) {
  OptimizerSettings s;
  s.momentum = 0.95;
  s.momentum_start = 0.85;
  s.momentum_warmup_steps = 10;
  EXPECT_DOUBLE_EQ(momentum_at(s, 0), 0.85);
  EXPECT_DOUBLE_EQ(momentum_at(s, 5), 0.9);
  EXPECT_DOUBLE_EQ(momentum_at(s, 10), 0.95);
  EXPECT_DOUBLE_EQ(momentum_at(s, 1000), 0.95);
  s.momentum_warmup_steps = 0;
  EXPECT_DOUBLE_EQ(momentum_at(s, 0), 0.95);
}

}  // namespace
}  // namespace polaron
