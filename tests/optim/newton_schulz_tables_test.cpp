#include "optim/newton_schulz_tables.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

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
  EXPECT_NEAR(band(newton_schulz_spec("classic"), 1e-2).first, 1.0, 1e-9);
  EXPECT_NEAR(band(newton_schulz_spec("classic"), 1e-2).second, 1.0, 1e-9);
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
