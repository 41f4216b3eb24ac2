#include "train/spectra.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "cpu/singular_values.h"

namespace polaron {
namespace {

TEST(SingularValues, of_a_scaled_rotation_are_its_scales) {
  // diag(3, 1, 0) times an orthogonal matrix from the left, wide and tall.
  const double c = std::cos(0.7), s = std::sin(0.7);
  std::vector<float> wide = {static_cast<float>(3 * c),
                             static_cast<float>(-s),
                             0,
                             0,
                             static_cast<float>(3 * s),
                             static_cast<float>(c),
                             0,
                             0,
                             0,
                             0,
                             0,
                             0};
  const std::vector<double> values = singular_values(wide, 3, 4);
  ASSERT_EQ(values.size(), 3U);
  EXPECT_NEAR(values[0], 3.0, 1e-6);
  EXPECT_NEAR(values[1], 1.0, 1e-6);
  EXPECT_NEAR(values[2], 0.0, 1e-6);
  std::vector<float> tall(12);
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t j = 0; j < 4; ++j) tall[j * 3 + i] = wide[i * 4 + j];
  }
  const std::vector<double> again = singular_values(tall, 4, 3);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(again[i], values[i], 1e-9);
}

TEST(SingularValues, squares_add_up_to_the_frobenius_norm) {
  std::mt19937_64 engine(3);
  std::normal_distribution<float> normal;
  std::vector<float> matrix(37 * 61);
  double squares = 0;
  for (float& x : matrix) {
    x = normal(engine);
    squares += static_cast<double>(x) * static_cast<double>(x);
  }
  double sum = 0, before = INFINITY;
  for (const double value : singular_values(matrix, 37, 61)) {
    EXPECT_LE(value, before);
    before = value;
    sum += value * value;
  }
  EXPECT_NEAR(sum, squares, 1e-9 * squares);
}

TEST(SingularValues, of_what_is_not_finite_are_nan) {
  const std::vector<double> values = singular_values(std::vector<float>{1, NAN, 2, 3}, 2, 2);
  ASSERT_EQ(values.size(), 2U);
  for (const double value : values) EXPECT_TRUE(std::isnan(value));
}

TEST(Spectrum, is_one_line_of_json) {
  SpectrumRecord record;
  record.step = 7;
  record.matrix = "blocks.0.mlp.up.weight";
  record.of = "momentum";
  record.singular_values = {2.0, 1.0};
  record.captured[16] = 0.5;
  record.orthogonality_error = 0.25;
  const std::string line = to_json_line(record);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const auto j = nlohmann::json::parse(line);
  EXPECT_EQ(j.at("step"), 7);
  EXPECT_EQ(j.at("captured").at("16"), 0.5);
  EXPECT_EQ(j.at("singular_values").size(), 2U);
  record.orthogonality_error = -1;
  EXPECT_FALSE(nlohmann::json::parse(to_json_line(record)).contains("orthogonality_error"));
}

}  // namespace
}  // namespace polaron
