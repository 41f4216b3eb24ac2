#include "optim/assignment.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "config/fields.h"
#include "optim/stepper.h"
#include "support/errors.h"
#include "support/tiny_model.h"

namespace polaron {
namespace {

using test::matrices_under;
using test::settings_of;

Assignment assign(const OptimizerConfig& config, const TransformerConfig& model) {
  return assign_optimizers(config, model, ParameterTable(model));
}

std::vector<std::string> labels(const Assignment& assignment) {
  std::vector<std::string> result;
  for (const MatrixClass& c : assignment.classes) {
    for (const MatrixItem& item : c.items) result.push_back(item.label);
  }
  return result;
}

// The class and the item of a matrix.
std::pair<const MatrixClass*, const MatrixItem*> find(const Assignment& assignment, const std::string& label) {
  for (const MatrixClass& c : assignment.classes) {
    for (const MatrixItem& item : c.items) {
      if (item.label == label) return {&c, &item};
    }
  }
  ADD_FAILURE() << "no matrix " << label;
  static const MatrixClass none_class;
  static const MatrixItem none;
  return {&none_class, &none};
}

TEST(Assignment, every_parameter_is_stepped_exactly_once) {
  for (const TransformerConfig& model : {test::tiny_gpt2(), test::tiny_llama()}) {
    const ParameterTable table(model);
    for (const test::NamedSettings& named : test::all_settings()) {
      const Assignment assignment = assign_optimizers(matrices_under(named.settings), model, table);
      std::set<std::pair<std::size_t, std::size_t>> seen;
      for (const ElementwiseItem& item : assignment.elementwise) {
        for (std::size_t b = 0; b < table[item.parameter].blocks.size(); ++b) {
          EXPECT_TRUE(seen.insert({item.parameter, b}).second);
        }
      }
      for (const MatrixClass& c : assignment.classes) {
        for (const MatrixItem& item : c.items) EXPECT_TRUE(seen.insert({item.parameter, item.block}).second);
      }
      std::size_t blocks = 0;
      for (const Parameter& p : table.all()) blocks += p.blocks.size();
      EXPECT_EQ(seen.size(), blocks) << named.name;
    }
  }
}

TEST(Assignment, fused_matrices_are_stepped_block_by_block) {
  const Assignment assignment = assign(matrices_under(settings_of(OptimizerKind::muon)), test::tiny_llama());
  const std::vector<std::string> all = labels(assignment);
  EXPECT_EQ(all.size(), 14U);  // q, k, v, out, gate, up, down in two layers
  for (const char* block :
       {"attention.qkv.weight[q]", "attention.qkv.weight[k]", "attention.qkv.weight[v]", "mlp.gate_up.weight[gate]",
        "mlp.gate_up.weight[up]", "attention.out.weight", "mlp.down.weight"}) {
    EXPECT_EQ(std::count(all.begin(), all.end(), std::string("blocks.1.") + block), 1) << block;
  }
}

TEST(Assignment, matrices_of_a_shape_share_a_class_whichever_side_is_longer) {
  // 32 x 32: q and out; 16 x 32: k and v; 85 x 32: gate, up and (lying) down.
  const Assignment assignment = assign(matrices_under(settings_of(OptimizerKind::muon)), test::tiny_llama());
  ASSERT_EQ(assignment.classes.size(), 3U);
  for (const MatrixClass& c : assignment.classes) {
    EXPECT_LE(c.rows, c.cols);
    for (const MatrixItem& item : c.items) {
      EXPECT_EQ(std::min(item.rows, item.cols), c.rows);
      EXPECT_EQ(std::max(item.rows, item.cols), c.cols);
    }
  }
  EXPECT_EQ(find(assignment, "blocks.0.mlp.down.weight").first,
            find(assignment, "blocks.1.mlp.gate_up.weight[up]").first);
  EXPECT_EQ(find(assignment, "blocks.0.mlp.down.weight").second->rows, 32);
  EXPECT_EQ(find(assignment, "blocks.0.mlp.down.weight").second->cols, 85);  // without padding
}

TEST(Assignment, roles_get_the_settings_of_their_group) {
  OptimizerConfig config = matrices_under(settings_of(OptimizerKind::muon));
  config.embeddings.lr = 0.1;
  config.head.lr = 0.2;
  config.vectors.lr = 0.3;
  const TransformerConfig model = test::tiny_llama();
  const ParameterTable table(model);
  const Assignment assignment = assign_optimizers(config, model, table);
  for (const ElementwiseItem& item : assignment.elementwise) {
    const Role role = table[item.parameter].role;
    EXPECT_EQ(item.settings.lr, role == Role::embedding ? 0.1 : role == Role::head ? 0.2 : 0.3);
  }
  EXPECT_EQ(assignment.elementwise.size(), 7U);  // token table, head, five norms
}

TEST(Assignment, newton_schulz_is_as_precise_as_the_model_unless_told_otherwise) {
  OptimizerConfig config = matrices_under(settings_of(OptimizerKind::muon));
  config.overrides = {{"blocks.0.mlp.*", R"({"newton_schulz_precision": "fp32"})"},
                      {"blocks.1.mlp.*", R"({"newton_schulz_precision": "bf16"})"}};
  const TransformerConfig model = test::tiny_llama();
  const ParameterTable table(model);
  for (const DType precision : {DType::f32, DType::bf16}) {
    const Assignment assignment = assign_optimizers(config, model, table, precision);
    const auto of = [&](const char* label) { return find(assignment, label).first->settings.newton_schulz_precision; };
    EXPECT_EQ(of("blocks.0.attention.qkv.weight[q]"),
              precision == DType::bf16 ? NewtonSchulzPrecision::bf16 : NewtonSchulzPrecision::fp32);
    EXPECT_EQ(of("blocks.0.mlp.down.weight"), NewtonSchulzPrecision::fp32);
    EXPECT_EQ(of("blocks.1.mlp.down.weight"), NewtonSchulzPrecision::bf16);
  }
}

TEST(Assignment, an_override_reaches_the_parameters_that_its_pattern_names) {
  OptimizerConfig config = matrices_under(settings_of(OptimizerKind::muon));
  config.overrides = {{"blocks.0.*", R"({"lr": 0.5})"},
                      {"*.mlp.down.weight", R"({"type": "adamw", "lr": 0.25})"},
                      {"embedding.token", R"({"weight_decay": 0.75})"}};
  const TransformerConfig model = test::tiny_llama();
  const ParameterTable table(model);
  const Assignment assignment = assign_optimizers(config, model, table);
  EXPECT_EQ(find(assignment, "blocks.0.attention.qkv.weight[q]").first->settings.lr, 0.5);
  EXPECT_EQ(find(assignment, "blocks.1.attention.qkv.weight[q]").first->settings.lr, 0.02);
  // The first pattern that matches counts.
  EXPECT_EQ(find(assignment, "blocks.0.mlp.down.weight").first->settings.lr, 0.5);
  const std::vector<std::string> all = labels(assignment);
  EXPECT_EQ(std::count(all.begin(), all.end(), "blocks.1.mlp.down.weight"), 0);
  for (const ElementwiseItem& item : assignment.elementwise) {
    const Parameter& p = table[item.parameter];
    if (p.name == "blocks.1.mlp.down.weight") {
      EXPECT_EQ(item.settings.lr, 0.25);
    } else if (p.name == "embedding.token") {
      EXPECT_EQ(item.settings.weight_decay, 0.75);
    } else {
      EXPECT_EQ(item.settings.lr, p.layer == 0 ? 0.5 : 0.01) << p.name;
    }
  }
}

TEST(Assignment, a_group_that_was_changed_for_no_parameter_is_told) {
  OptimizerConfig config = default_config().optimizer;
  for (const TransformerConfig& model : {test::tiny_gpt2(), test::tiny_llama()}) {
    EXPECT_TRUE(assign(config, model).idle_groups.empty());
  }
  config.head.lr = config.vectors.lr = 1;
  EXPECT_EQ(assign(config, test::tiny_gpt2()).idle_groups, std::vector<std::string>{"head"});  // its head is tied
  EXPECT_TRUE(assign(config, test::tiny_llama()).idle_groups.empty());
}

TEST(Assignment, an_override_that_no_parameter_gets_is_refused) {
  OptimizerConfig config = matrices_under(settings_of(OptimizerKind::muon));
  config.overrides = {{"blocks.0.*", R"({"lr": 0.5})"}, {"*mpl*", R"({"lr": 0.5})"}};
  test::expect_parts(test::error_of(Exit::usage, [&] { assign(config, test::tiny_llama()); }),
                     {"optimizer.overrides.1", "\"*mpl*\"", "embedding.token", "blocks.*.mlp.down.weight"});
  config.overrides = {{"head.*", R"({"lr": 0.5})"}};
  EXPECT_NO_THROW(assign(config, test::tiny_llama()));
  test::expect_parts(test::error_of(Exit::usage, [&] { assign(config, test::tiny_gpt2()); }),
                     {"optimizer.overrides.0", "\"head"});
}

TEST(Assignment, an_override_behind_wider_ones_is_refused_with_the_one_that_counts) {
  OptimizerConfig config = matrices_under(settings_of(OptimizerKind::muon));
  config.overrides = {{"final_norm*", R"({"lr": 0.5})"},
                      {"*.mlp.*", R"({"lr": 0.5})"},
                      {"blocks.0.mlp.down.weight", R"({"lr": 0.25})"}};
  test::expect_parts(test::error_of(Exit::usage, [&] { assign(config, test::tiny_llama()); }),
                     {"optimizer.overrides.2", "\"blocks.0.mlp.down.weight\"", "that of 1, \"*.mlp.*\""});
}

TEST(Assignment, other_settings_make_another_class_for_the_same_shape) {
  OptimizerConfig config = matrices_under(settings_of(OptimizerKind::muon));
  config.overrides = {{"*.attention.out.weight", R"({"lr": 0.001})"}};
  const Assignment assignment = assign(config, test::tiny_llama());
  EXPECT_NE(find(assignment, "blocks.0.attention.out.weight").first,
            find(assignment, "blocks.0.attention.qkv.weight[q]").first);
  EXPECT_EQ(find(assignment, "blocks.0.attention.out.weight").first,
            find(assignment, "blocks.1.attention.out.weight").first);
}

// --- rank
// -------------------------------------------------------------------------------------------------------------

TEST(Assignment, a_rank_is_a_number_or_a_fraction_of_the_width) {
  EXPECT_EQ(resolve_rank({64, 1}, 768), 64);
  EXPECT_EQ(resolve_rank({1, 8}, 768), 96);
  EXPECT_EQ(resolve_rank({1, 3}, 32), 11);  // rounded to nearest
  EXPECT_EQ(resolve_rank({2, 3}, 32), 21);
  EXPECT_EQ(resolve_rank({1, 100}, 32), 1);  // at least 1
}

TEST(Assignment, a_fraction_of_the_width_is_the_rank_of_every_matrix) {
  OptimizerSettings settings = settings_of(OptimizerKind::low_rank_muon);
  settings.rank = {1, 4};
  const Assignment assignment = assign(matrices_under(settings), test::tiny_llama());
  for (const MatrixClass& c : assignment.classes) EXPECT_EQ(c.rank, 8);
  EXPECT_TRUE(assignment.full_rank.empty());
}

TEST(Assignment, a_rank_not_below_the_smaller_side_falls_back_to_full_and_is_listed_once) {
  OptimizerSettings settings = settings_of(OptimizerKind::low_rank_muon);
  settings.rank = {16, 1};  // k and v are 16 x 32
  const Assignment assignment = assign(matrices_under(settings), test::tiny_llama());
  EXPECT_EQ(find(assignment, "blocks.0.attention.qkv.weight[k]").first->rank, 0);
  EXPECT_EQ(find(assignment, "blocks.0.attention.qkv.weight[q]").first->rank, 16);
  EXPECT_EQ(assignment.full_rank,
            (std::vector<std::string>{"blocks.0.attention.qkv.weight[k]", "blocks.0.attention.qkv.weight[v]",
                                      "blocks.1.attention.qkv.weight[k]", "blocks.1.attention.qkv.weight[v]"}));
  settings.rank = {1000, 1};
  EXPECT_EQ(assign(matrices_under(settings), test::tiny_llama()).full_rank.size(), 14U);
}

TEST(Assignment, full_muon_falls_back_to_nothing) {
  for (const OptimizerKind kind : {OptimizerKind::muon, OptimizerKind::msgd}) {
    const Assignment assignment = assign(matrices_under(settings_of(kind)), test::tiny_llama());
    EXPECT_TRUE(assignment.full_rank.empty());
    for (const MatrixClass& c : assignment.classes) EXPECT_EQ(c.rank, 0);
  }
}

// --- scale
// ------------------------------------------------------------------------------------------------------------

TEST(Assignment, scale_rules_are_the_published_ones) {
  EXPECT_DOUBLE_EQ(step_scale(ScaleKind::original, 3072, 768), 2.0);
  EXPECT_DOUBLE_EQ(step_scale(ScaleKind::original, 768, 3072), 1.0);
  EXPECT_DOUBLE_EQ(step_scale(ScaleKind::match_rms_adamw, 1024, 400), 0.2 * 32.0);
  EXPECT_DOUBLE_EQ(step_scale(ScaleKind::match_rms_adamw, 400, 1024), 0.2 * 32.0);
  EXPECT_DOUBLE_EQ(step_scale(ScaleKind::none, 3072, 768), 1.0);
}

TEST(Assignment, scales_follow_the_logical_shape_and_not_the_padded_or_lying_one) {
  const Assignment assignment = assign(matrices_under(settings_of(OptimizerKind::muon)), test::tiny_llama());
  EXPECT_FLOAT_EQ(find(assignment, "blocks.0.mlp.gate_up.weight[gate]").second->scale, std::sqrt(85.0F / 32.0F));
  EXPECT_FLOAT_EQ(find(assignment, "blocks.0.mlp.down.weight").second->scale, 1.0F);
  EXPECT_FLOAT_EQ(find(assignment, "blocks.0.attention.qkv.weight[k]").second->scale, 1.0F);
}

TEST(Assignment, compensation_multiplies_by_the_root_of_smaller_side_over_rank) {
  OptimizerSettings settings = settings_of(OptimizerKind::low_rank_muon);
  settings.rank_lr_compensation = RankCompensation::sqrt;
  settings.rank = {8, 1};
  Assignment assignment = assign(matrices_under(settings), test::tiny_llama());
  EXPECT_FLOAT_EQ(find(assignment, "blocks.0.attention.out.weight").second->scale, 2.0F);
  EXPECT_FLOAT_EQ(find(assignment, "blocks.0.mlp.gate_up.weight[up]").second->scale, 2.0F * std::sqrt(85.0F / 32.0F));
  settings.rank = {16, 1};
  assignment = assign(matrices_under(settings), test::tiny_llama());
  EXPECT_FLOAT_EQ(find(assignment, "blocks.0.attention.qkv.weight[k]").second->scale,
                  1.0F);  // full: nothing to make up
}

// --- the start-up table
// -----------------------------------------------------------------------------------------------

TEST(Assignment, the_table_counts_every_parameter_once) {
  for (const TransformerConfig& model : {test::tiny_gpt2(), test::tiny_llama()}) {
    const ParameterTable table(model);
    for (const test::NamedSettings& named : test::all_settings()) {
      std::int64_t elements = 0;
      for (const AssignmentRow& row :
           describe(assign_optimizers(matrices_under(named.settings), model, table), table)) {
        elements += row.elements;
        EXPECT_GT(row.tensors, 0);
        EXPECT_FALSE(row.optimizer.empty());
      }
      EXPECT_EQ(elements, table.elements()) << named.name;
    }
  }
}

}  // namespace
}  // namespace polaron
