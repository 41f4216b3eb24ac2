#include "optim/newton_schulz_tables.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "base/error.h"

namespace polaron {
namespace {

// A singular value, given as a share of the divisor, after the steps of a table, in double precision.
double iterate(const NewtonSchulzSpec& spec, double x) {
  for (int step = 0; step < spec.steps; ++step) {
    const NewtonSchulzRow& row = spec.table[std::min(static_cast<std::size_t>(step), spec.table.size() - 1)];
    x = static_cast<double>(row.a) * x + static_cast<double>(row.b) * std::pow(x, 3) +
        static_cast<double>(row.c) * std::pow(x, 5);
  }
  return x;
}

// Least and largest value after the iteration, from shares of the divisor between `least` and 1.
std::pair<double, double> band(const NewtonSchulzSpec& spec, double least) {
  double low = 1e9, high = -1e9;
  constexpr int kPoints = 20000;
  for (int i = 0; i <= kPoints; ++i) {
    const double value = iterate(spec, std::pow(least, 1.0 - static_cast<double>(i) / kPoints));
    low = std::min(low, value);
    high = std::max(high, value);
  }
  return {low, high};
}

TEST(NewtonSchulzTables, map_singular_values_into_the_bands_that_they_promise) {
  const auto expect_band = [](const char* name, double least, double low, double high) {
    const auto [actual_low, actual_high] = band(newton_schulz_spec(name), least);
    EXPECT_NEAR(actual_low, low, 1e-3) << name;
    EXPECT_NEAR(actual_high, high, 1e-3) << name;
  };
  expect_band("polar_express", 1e-3, 0.859, 1.141);
  expect_band("jordan", 1e-2, 0.682, 1.134);
  expect_band("torch", 1e-2, 0.682, 1.134);
  expect_band("you", 1e-2, 0.978, 1.032);
  expect_band("you", 3e-3, 0.978, 1.145);
  EXPECT_NEAR(band(newton_schulz_spec("classic"), 1e-2).first, 1.0, 1e-9);
  EXPECT_NEAR(band(newton_schulz_spec("classic"), 1e-2).second, 1.0, 1e-9);
}

// The map of one step of `jordan`, and what is known of it: the numbers are docs/paper.md's Q9 to more digits.
double jordan(double x, int steps = 1) { return iterate(newton_schulz_spec("jordan", steps), x); }

double slope_of_jordan(double x) {
  constexpr double kStep = 1e-5;
  return (jordan(x + kStep) - jordan(x - kStep)) / (2 * kStep);
}

TEST(NewtonSchulzTables, jordan_takes_one_to_seven_tenths) { EXPECT_NEAR(jordan(1.0), 0.7010, 1e-6); }

TEST(NewtonSchulzTables, both_fixed_points_of_jordan_beside_zero_repel) {
  std::vector<double> fixed;
  constexpr double kStep = 1e-5;
  for (int i = 1; i <= 150000; ++i) {
    const double x = kStep * i;
    if ((jordan(x) - x) * (jordan(x + kStep) - x - kStep) <= 0) fixed.push_back(x + kStep / 2);
  }
  ASSERT_EQ(fixed.size(), 2U);
  EXPECT_NEAR(fixed[0], 0.868026, kStep);
  EXPECT_NEAR(fixed[1], 1.263729, kStep);
  EXPECT_NEAR(jordan(0.868026), 0.868026, 1e-6);
  EXPECT_NEAR(jordan(1.263729), 1.263729, 4e-6);  // half a unit of the last digit times the slope there
  EXPECT_NEAR(slope_of_jordan(0.868026), -1.58, 5e-3);
  EXPECT_GT(slope_of_jordan(1.263729), 1.0);
}

TEST(NewtonSchulzTables, jordan_maps_its_band_onto_itself) {
  constexpr double kLow = 0.68183, kHigh = 1.1344;
  double low = 1e9, high = -1e9;
  for (int i = 0; i <= 20000; ++i) {
    const double value = jordan(kLow + (kHigh - kLow) * i / 20000);
    low = std::min(low, value);
    high = std::max(high, value);
  }
  EXPECT_NEAR(low, kLow, 5e-6);
  EXPECT_NEAR(high, kHigh, 5e-5);
}

TEST(NewtonSchulzTables, jordan_brings_what_begins_lower_into_wider_bands) {
  const auto expect_within = [](double least, int steps, double low, double high) {
    const auto [actual_low, actual_high] = band(newton_schulz_spec("jordan", steps), least);
    EXPECT_NEAR(actual_low, low, 5e-4) << least << " in " << steps;
    EXPECT_NEAR(actual_high, high, 5e-4) << least << " in " << steps;
  };
  expect_within(3e-3, 5, 0.682, 1.202);
  expect_within(1e-3, 5, 0.4705, 1.202);
  expect_within(1e-3, 8, 0.682, 1.134);
}

// Where the band itself is chaotic: after 50 steps (Q8) every direction that is not exactly 0 is in it.
TEST(NewtonSchulzTables, jordan_blows_small_directions_up_and_fifty_steps_leave_none) {
  const auto gain = [](int steps) { return jordan(1e-32, steps) / 1e-32; };
  EXPECT_NEAR(gain(5), 484.9, 0.05);
  EXPECT_NEAR(gain(8), 1.98e4, 50);
  EXPECT_NEAR(gain(50), 7.2e26, 5e24);
  const auto [low, high] = band(newton_schulz_spec("jordan", 50), 1e-24);
  EXPECT_GE(low, 0.68183);
  EXPECT_LE(high, 1.1344);
  EXPECT_EQ(jordan(0.0, 50), 0.0);
}

TEST(NewtonSchulzTables, take_their_own_number_of_steps_unless_told) {
  EXPECT_EQ(newton_schulz_spec("polar_express").steps, 5);
  EXPECT_EQ(newton_schulz_spec("classic").steps, 12);
  EXPECT_EQ(newton_schulz_spec("classic", 3).steps, 3);
  EXPECT_EQ(newton_schulz_spec("jordan", 7).steps, 7);
}

TEST(NewtonSchulzTables, only_torch_clamps_the_norm) {
  for (const std::string_view name : newton_schulz_names()) {
    EXPECT_EQ(newton_schulz_spec(name).clamp_norm, name == "torch") << name;
  }
}

TEST(NewtonSchulzTables, an_unknown_name_is_refused_with_the_known_ones) {
  try {
    newton_schulz_spec("jordann");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::usage);
    const std::string message = error.what();
    EXPECT_NE(message.find("jordann"), std::string::npos);
    for (const std::string_view name : newton_schulz_names()) EXPECT_NE(message.find(name), std::string::npos);
  }
  EXPECT_THROW(newton_schulz_spec("jordan", -1), Error);
}

}  // namespace
}  // namespace polaron
