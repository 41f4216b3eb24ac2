// configs/paper: every file's recipe, as its optimizers get it, against the published one (docs/paper.md).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"
#include "model/parameters.h"
#include "optim/assignment.h"
#include "optim/schedule.h"

namespace polaron {
namespace {

const std::filesystem::path folder = std::filesystem::path(POLARON_SOURCE_DIR) / "configs/paper";

constexpr auto kMuon = OptimizerKind::muon;
constexpr auto kLowRank = OptimizerKind::low_rank_muon;
constexpr auto kAdamW = OptimizerKind::adamw;
constexpr std::int64_t kNever = -1;

struct Recipe {
  const char* file;
  std::int64_t sequence_length;
  OptimizerKind matrices;
  std::int64_t rank, newton_schulz_steps;
  // Of the authors' code; all false in the clean recipes.
  std::int64_t previous_batch_dropped_every = kNever;  // kNever: the batch before is not added at all; 0: it always is
  bool shared_columns = false;

  bool of_authors() const { return std::string_view(file).starts_with("authors/"); }
  bool of_llama() const { return std::string_view(file).find("llama") != std::string_view::npos; }
};

// The scripts train_{gpt,llama}_{tiny,small,medium}: their sequences, k, Newton-Schulz iterations, and the steps at
// which they clear the gradient of the batch before. gpt_medium orthogonalizes in full by default. The GPT scripts
// alone stack q, k, v and o.
const Recipe kModded[] = {
    {"gpt2-tiny.json", 49152, kLowRank, 200, 5},
    {"gpt2-small.json", 65536, kLowRank, 100, 5},
    {"gpt2-medium.json", 65536, kLowRank, 200, 5},
    {"llama-tiny.json", 49152, kLowRank, 200, 5},
    {"llama-small.json", 49152, kLowRank, 200, 5},
    {"llama-medium.json", 49152, kLowRank, 200, 5},
    {"authors/gpt2-tiny.json", 49152, kLowRank, 200, 5, 0, true},
    {"authors/gpt2-small.json", 65536, kLowRank, 100, 5, 100, true},
    {"authors/gpt2-medium.json", 65536, kMuon, 0, 50, 100, true},
    {"authors/llama-tiny.json", 49152, kLowRank, 200, 5, 500},
    {"authors/llama-small.json", 49152, kLowRank, 200, 8, 500},
    {"authors/llama-medium.json", 49152, kLowRank, 200, 5, 500},
    {"authors/gpt2-tiny-adamw.json", 49152, kAdamW, 0, 0, 0, true},
    {"authors/gpt2-small-adamw.json", 65536, kAdamW, 0, 0, 100, true},
    {"authors/gpt2-medium-adamw.json", 65536, kAdamW, 0, 0, 100, true},
    {"authors/llama-tiny-adamw.json", 49152, kAdamW, 0, 0, 500},
    {"authors/llama-small-adamw.json", 49152, kAdamW, 0, 0, 500},
    {"authors/llama-medium-adamw.json", 49152, kAdamW, 0, 0, 500},
};

// Their rates times sqrt(max(rows, columns)): 0.1 * 0.0018 is modded-nanogpt's, 15 times 0.0018 and 0.025 the authors'.
struct LargeRecipe {
  const char* file;
  double lr;
};
const LargeRecipe kLarge[] = {{"gpt2-large.json", 0.00018},
                              {"llama-large.json", 0.00018},
                              {"authors/gpt2-large.json", 0.027},
                              {"authors/llama-large.json", 0.025}};

class PaperRecipe : public testing::Test {
 protected:
  void load(const char* file) {
    config_ = load_config(folder / file);
    const ParameterTable table(config_.model);
    assignment_ = assign_optimizers(config_.optimizer, config_.model, table);
    roles_.clear();
    for (const ElementwiseItem& item : assignment_.elementwise) roles_.push_back(table[item.parameter].role);
    names_.clear();
    for (const ElementwiseItem& item : assignment_.elementwise) names_.push_back(table[item.parameter].name);
  }

  // Calls visit(settings, role, name) for what is under AdamW; anything under SGD fails the test.
  template <class Visit>
  void for_each_adamw(Visit visit) const {
    for (std::size_t i = 0; i < assignment_.elementwise.size(); ++i) {
      EXPECT_EQ(assignment_.elementwise[i].settings.kind, kAdamW) << names_[i];
      visit(assignment_.elementwise[i].settings, roles_[i], names_[i]);
    }
  }

  static void expect_adamw(const OptimizerSettings& s, double lr, double beta1, double eps, double decay) {
    EXPECT_EQ(s.lr, lr);
    EXPECT_EQ(s.beta1, beta1);
    EXPECT_EQ(s.beta2, 0.95);
    EXPECT_EQ(s.eps, eps);
    EXPECT_EQ(s.weight_decay, decay);
  }

  Config config_;
  Assignment assignment_;
  std::vector<Role> roles_;  // of assignment_.elementwise
  std::vector<std::string> names_;
};

TEST_F(PaperRecipe, every_config_of_the_paper_is_in_one_of_the_tables) {
  std::set<std::string> known, found;
  for (const Recipe& recipe : kModded) known.insert(recipe.file);
  for (const LargeRecipe& recipe : kLarge) known.insert(recipe.file);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::string name = entry.path().lexically_relative(folder).string();
    if (name.ends_with(".json") && !name.starts_with("base/")) found.insert(name);
  }
  EXPECT_EQ(found, known);
}

TEST_F(PaperRecipe, of_the_modded_models_has_their_batches_steps_and_schedules) {
  for (const Recipe& recipe : kModded) {
    SCOPED_TRACE(recipe.file);
    load(recipe.file);
    EXPECT_EQ(config_.training.sequence_length, recipe.sequence_length);
    EXPECT_EQ(config_.model.context_length, recipe.sequence_length);
    EXPECT_EQ(config_.training.batch, 8);  // a sequence for each of eight processes
    EXPECT_EQ(config_.training.steps, 5960);
    EXPECT_EQ(config_.training.gradient_clip, 0);
    EXPECT_FALSE(config_.data.shuffle);
    EXPECT_EQ(config_.validation.tokens, 10485760);
    if (recipe.of_authors()) {
      EXPECT_EQ(config_.validation.every, 10);
    }
    const auto factor = [&](std::int64_t step) { return lr_factor(config_.schedule, step, 5960); };
    EXPECT_EQ(factor(0), 1.0);
    EXPECT_EQ(factor(1788), 1.0);
    EXPECT_NEAR(factor(1789), 0.99976, 5e-6);
    EXPECT_NEAR(factor(2980), 0.714286, 5e-7);
    EXPECT_NEAR(factor(4470), 0.357143, 5e-7);
    EXPECT_NEAR(factor(5959), 2.397e-4, 5e-8);
  }
}

TEST_F(PaperRecipe, of_the_modded_models_has_their_muon) {
  for (const Recipe& recipe : kModded) {
    SCOPED_TRACE(recipe.file);
    load(recipe.file);
    EXPECT_EQ(assignment_.classes.empty(), recipe.matrices == kAdamW);
    EXPECT_TRUE(assignment_.full_rank.empty());  // no published size is small enough
    for (const MatrixClass& c : assignment_.classes) {
      const OptimizerSettings& s = c.settings;
      EXPECT_EQ(s.kind, recipe.matrices);
      EXPECT_EQ(c.rank, recipe.rank);
      EXPECT_EQ(s.lr, 0.025);
      EXPECT_EQ(s.momentum_form, MomentumForm::ema);
      EXPECT_TRUE(s.nesterov);
      EXPECT_DOUBLE_EQ(momentum_at(s, 0), 0.85);
      EXPECT_DOUBLE_EQ(momentum_at(s, 150), 0.90);
      EXPECT_DOUBLE_EQ(momentum_at(s, 300), 0.95);
      EXPECT_DOUBLE_EQ(momentum_at(s, 5959), 0.95);
      EXPECT_EQ(s.orthogonalizer, Orthogonalizer::newton_schulz);
      EXPECT_EQ(s.coefficients, "jordan");
      EXPECT_EQ(s.newton_schulz_steps, recipe.newton_schulz_steps);
      EXPECT_EQ(s.rank_lr_compensation, RankCompensation::none);
      if (recipe.matrices == kLowRank) {
        EXPECT_EQ(s.sketch, recipe.of_authors() ? SketchKind::columns_authors : SketchKind::columns);
      }
      for (const MatrixItem& item : c.items) {
        const bool mlp = item.label.find(".mlp.") != std::string::npos;
        const bool out_of_mlp = item.label.find(".mlp.down.") != std::string::npos;
        EXPECT_EQ(s.weight_decay, mlp ? 0.02 : 0.01) << item.label;
        // sqrt(max(1, rows / columns)): hidden sizes are 4 d, or 16/9 d rounded down.
        EXPECT_NEAR(item.scale, !mlp || out_of_mlp ? 1.0 : recipe.of_llama() ? 1.33317 : 2.0, 2e-4) << item.label;
      }
    }
  }
}

TEST_F(PaperRecipe, of_the_modded_models_has_their_adamw) {
  for (const Recipe& recipe : kModded) {
    SCOPED_TRACE(recipe.file);
    load(recipe.file);
    int tables = 0, heads = 0, scalars = 0, matrices = 0;
    for_each_adamw([&](const OptimizerSettings& s, Role role, const std::string& name) {
      SCOPED_TRACE(name);
      switch (role) {
        case Role::embedding:
          expect_adamw(s, 0.3, 0.8, 1e-10, 0);
          EXPECT_EQ(s.bf16_moments, recipe.of_authors());
          EXPECT_EQ(s.bf16_weights, recipe.of_authors());
          ++tables;
          break;
        case Role::head:
          expect_adamw(s, 1.0 / 320, 0.8, 1e-10, 0);
          EXPECT_FALSE(s.bf16_weights || s.bf16_moments);
          ++heads;
          break;
        case Role::scalar:
          expect_adamw(s, 0.015, 0.8, 1e-10, 0);
          EXPECT_FALSE(s.bf16_weights || s.bf16_moments);
          ++scalars;
          break;
        case Role::matrix:  // the baseline: one rate, no master weights, the same decay in the MLP
          expect_adamw(s, 1e-4, 0.8, 1e-10, 0.01);
          EXPECT_TRUE(s.bf16_weights);
          ++matrices;
          break;
        case Role::vector:
          EXPECT_TRUE(recipe.of_llama());
          if (recipe.of_authors()) {
            EXPECT_EQ(s.lr, 0);  // LayerNorms are in no optimizer
          } else {
            EXPECT_GT(s.lr, 0);
          }
          break;
      }
    });
    EXPECT_EQ(tables, 4);  // of tokens and of values
    EXPECT_EQ(heads, 1);
    EXPECT_EQ(scalars, 1);
    EXPECT_EQ(matrices > 0, recipe.matrices == kAdamW);
  }
}

TEST_F(PaperRecipe, has_the_quirks_of_the_authors_code_in_authors_and_none_elsewhere) {
  for (const Recipe& recipe : kModded) {
    SCOPED_TRACE(recipe.file);
    load(recipe.file);
    QuirksConfig expected;
    expected.previous_batch_gradient = recipe.previous_batch_dropped_every != kNever;
    expected.previous_batch_dropped_every = std::max<std::int64_t>(0, recipe.previous_batch_dropped_every);
    expected.shared_columns = recipe.shared_columns;
    EXPECT_EQ(config_.quirks, expected);
    EXPECT_EQ(expected.previous_batch_gradient, recipe.of_authors());
    if (recipe.of_authors()) continue;
    for (const MatrixClass& c : assignment_.classes) EXPECT_NE(c.settings.sketch, SketchKind::columns_authors);
    for_each_adamw([&](const OptimizerSettings& s, Role, const std::string& name) {
      EXPECT_FALSE(s.bf16_weights || s.bf16_moments) << name;
    });
  }
  for (const LargeRecipe& recipe : kLarge) {
    SCOPED_TRACE(recipe.file);
    load(recipe.file);
    EXPECT_EQ(config_.quirks, QuirksConfig());  // that loop has no second backward pass
  }
}

TEST_F(PaperRecipe, of_the_large_models_is_the_published_one) {
  for (const LargeRecipe& recipe : kLarge) {
    SCOPED_TRACE(recipe.file);
    load(recipe.file);
    EXPECT_EQ(config_.training.sequence_length, 1024);
    EXPECT_EQ(config_.training.batch, 480);
    EXPECT_EQ(config_.training.steps, 20344);
    EXPECT_EQ(config_.training.gradient_clip, 0);
    EXPECT_EQ(config_.validation.every, 125);
    EXPECT_EQ(config_.validation.tokens, 10403840);
    const auto factor = [&](std::int64_t step) { return lr_factor(config_.schedule, step, 20344); };
    EXPECT_DOUBLE_EQ(factor(0), 1.0 / 500);
    EXPECT_DOUBLE_EQ(factor(249), 0.5);
    EXPECT_EQ(factor(500), 1.0);
    EXPECT_NEAR(factor(14532), 1.0, 1e-12);
    EXPECT_NEAR(factor(14533), 5811.0 / 5812, 1e-12);
    EXPECT_NEAR(factor(20343), 1.0 / 5812, 1e-12);

    EXPECT_TRUE(assignment_.full_rank.empty());
    EXPECT_FALSE(assignment_.classes.empty());
    for (const MatrixClass& c : assignment_.classes) {
      const OptimizerSettings& s = c.settings;
      EXPECT_EQ(s.kind, kLowRank);
      EXPECT_EQ(c.rank, 400);
      EXPECT_EQ(s.weight_decay, 0);
      EXPECT_EQ(s.momentum_form, MomentumForm::heavy);
      EXPECT_TRUE(s.nesterov);
      EXPECT_EQ(momentum_at(s, 0), 0.95);
      EXPECT_EQ(s.coefficients, "jordan");
      EXPECT_EQ(s.newton_schulz_steps, 5);
      EXPECT_EQ(s.rank_lr_compensation, RankCompensation::none);
      for (const MatrixItem& item : c.items) {
        const double longer = static_cast<double>(std::max(c.rows, c.cols));
        EXPECT_NEAR(s.lr * static_cast<double>(item.scale) / (recipe.lr * std::sqrt(longer)), 1.0, 1e-6) << item.label;
      }
    }
    int tables = 0;
    for_each_adamw([&](const OptimizerSettings& s, Role role, const std::string& name) {
      if (role != Role::embedding) return;
      SCOPED_TRACE(name);
      expect_adamw(s, 0.0018, 0.9, 1e-8, 0);
      ++tables;
    });
    EXPECT_EQ(tables, 1);  // tied
  }
}

}  // namespace
}  // namespace polaron
