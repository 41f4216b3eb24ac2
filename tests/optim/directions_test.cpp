#include "optim/directions.h"

#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "optim/newton_schulz_tables.h"
#include "support/tiny_model.h"

namespace polaron {
namespace {

TEST(Directions, authors_columns_are_the_leading_ones_of_tall_matrices_only) {
  OptimizerSettings settings;
  settings.sketch = SketchKind::columns_authors;
  EXPECT_EQ(sketch_rule(settings, true).kind, Sketch::leading_columns);
  EXPECT_EQ(sketch_rule(settings, false).kind, Sketch::columns);
  settings.sketch = SketchKind::columns;
  EXPECT_EQ(sketch_rule(settings, true).kind, Sketch::columns);
}

TEST(Directions, power_iterations_belong_to_the_power_sketch) {
  OptimizerSettings settings;
  settings.power_iterations = 2;
  settings.sketch = SketchKind::gaussian;
  EXPECT_EQ(sketch_rule(settings, false).power, 0);
  settings.sketch = SketchKind::power;
  EXPECT_EQ(sketch_rule(settings, false).kind, Sketch::gaussian);
  EXPECT_EQ(sketch_rule(settings, false).power, 2);
}

TEST(Directions, basis_and_precision_are_those_of_the_settings) {
  OptimizerSettings settings;
  EXPECT_EQ(sketch_rule(settings, false).basis, BasisMethod::automatic);
  settings.basis = BasisKind::householder;
  EXPECT_EQ(sketch_rule(settings, false).basis, BasisMethod::householder);
  settings.basis = BasisKind::cholesky_qr;
  EXPECT_EQ(sketch_rule(settings, false).basis, BasisMethod::cholesky_qr);
  settings.coefficients = "classic";
  settings.newton_schulz_steps = 3;
  settings.newton_schulz_precision = NewtonSchulzPrecision::bf16;
  const NewtonSchulzSpec spec = newton_schulz_spec(settings);
  EXPECT_EQ(spec.steps, 3);
  EXPECT_EQ(spec.dtype, DType::bf16);
  EXPECT_EQ(spec.table.front().a, newton_schulz_spec("classic").table.front().a);
}

TEST(Directions, every_matrix_and_step_has_a_key_of_its_own_unless_columns_are_shared) {
  const ParameterTable table(test::tiny_gpt2());
  std::set<std::tuple<std::uint32_t, std::uint64_t>> own, shared;
  std::size_t matrices = 0;
  std::set<int> layers;
  for (std::size_t p = 0; p < table.size(); ++p) {
    if (table[p].role != Role::matrix) continue;
    layers.insert(table[p].layer);
    for (std::size_t b = 0; b < table[p].blocks.size(); ++b) {
      for (const std::int64_t step : {0, 1}) {
        const PhiloxKey key = sketch_key(7, step, table, p, b, false), one = sketch_key(7, step, table, p, b, true);
        own.insert({key.tensor, key.step});
        shared.insert({one.tensor, one.step});
        ++matrices;
      }
    }
  }
  EXPECT_EQ(own.size(), matrices);
  EXPECT_EQ(shared.size(), 2 * layers.size());
  EXPECT_LT(shared.size(), own.size());
}

}  // namespace
}  // namespace polaron
