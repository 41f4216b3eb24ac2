#include "optim/directions.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
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

using Draws = std::tuple<std::uint32_t, std::uint64_t>;  // what tells keys apart

Draws draws_of(const ParameterTable& table, std::int64_t step, std::size_t parameter, std::size_t block, bool shared) {
  const PhiloxKey key = sketch_key(7, step, table, parameter, block, shared);
  return {key.tensor, key.step};
}

TEST(Directions, every_matrix_and_step_has_draws_of_its_own) {
  const ParameterTable table(test::tiny_llama());
  std::set<Draws> own;
  std::size_t matrices = 0;
  for (std::size_t p = 0; p < table.size(); ++p) {
    if (table[p].role != Role::matrix) continue;
    for (std::size_t b = 0; b < table[p].blocks.size(); ++b) {
      for (const std::int64_t step : {0, 1}) {
        own.insert(draws_of(table, step, p, b, false));
        ++matrices;
      }
    }
  }
  EXPECT_EQ(own.size(), matrices);
}

TEST(Directions, shared_columns_give_k_v_and_o_the_draws_of_q_and_leave_the_mlp_its_own) {
  for (const TransformerConfig& model : {test::tiny_gpt2(), test::tiny_llama()}) {
    const ParameterTable table(model);
    for (std::size_t p = 0; p < table.size(); ++p) {
      if (table[p].role != Role::matrix) continue;
      const bool attention = table[p].name.find(".attention.") != std::string::npos;
      const std::size_t q = table.index("blocks." + std::to_string(table[p].layer) + ".attention.qkv.weight");
      for (std::size_t b = 0; b < table[p].blocks.size(); ++b) {
        for (const std::int64_t step : {0, 1}) {
          EXPECT_EQ(draws_of(table, step, p, b, true),
                    attention ? draws_of(table, step, q, 0, false) : draws_of(table, step, p, b, false))
              << table[p].name << " " << table[p].blocks[b].name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace polaron
