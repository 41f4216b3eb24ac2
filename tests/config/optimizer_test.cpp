#include "config/words.h"
#include "support.h"

namespace polaron {
namespace {

OptimizerConfig optimizer(std::string_view json) {
  return parse(with(R"({"optimizer": )" + std::string(json) + "}")).optimizer;
}

TEST(OptimizerGroups, matrices_use_muon_and_the_others_adamw_unless_told_otherwise) {
  const OptimizerConfig o = parse(minimal).optimizer;
  EXPECT_EQ(o.matrices.kind, OptimizerKind::muon);
  EXPECT_EQ(o.matrices.lr, 0.02);
  EXPECT_EQ(o.matrices.momentum, 0.95);
  EXPECT_TRUE(o.matrices.nesterov);
  EXPECT_EQ(o.matrices.coefficients, "polar_express");
  for (const OptimizerSettings* group : {&o.embeddings, &o.head, &o.vectors, &o.scalars}) {
    EXPECT_EQ(group->kind, OptimizerKind::adamw);
    EXPECT_EQ(group->lr, 3e-3);
    EXPECT_EQ(group->weight_decay, 0.0);
    EXPECT_EQ(group->beta1, 0.9);
    EXPECT_EQ(group->beta2, 0.95);
    EXPECT_EQ(group->eps, 1e-8);
  }
}

TEST(OptimizerGroups, defaults_follow_the_type) {
  EXPECT_EQ(optimizer(R"({"matrices": {"type": "adamw"}})").matrices.lr, 3e-4);
  EXPECT_EQ(optimizer(R"({"matrices": {"type": "adamw"}})").matrices.weight_decay, 0.1);
  const auto sgd = optimizer(R"({"head": {"type": "sgd"}})").head;
  EXPECT_EQ(sgd.momentum, 0.9);
  EXPECT_FALSE(sgd.nesterov);
  EXPECT_EQ(sgd.momentum_form, MomentumForm::heavy);
  EXPECT_EQ(optimizer(R"({"matrices": {"scale": "match_rms_adamw"}})").matrices.lr, 3e-4);
  EXPECT_EQ(optimizer(R"({"matrices": {"scale": "match_rms_adamw", "lr": 0.1}})").matrices.lr, 0.1);
}

TEST(OptimizerGroups, a_rank_is_a_number_or_a_fraction_of_the_width) {
  const auto rank = [](const std::string& json) {
    return optimizer(R"({"matrices": {"type": "low_rank_msgd", "rank": )" + json + "}}").matrices.rank;
  };
  EXPECT_EQ(rank("64"), (RankSpec{64, 1}));
  EXPECT_FALSE(rank("64").is_fraction());
  EXPECT_EQ(rank("\"1/8\""), (RankSpec{1, 8}));
  EXPECT_EQ(rank("\"3/16\""), (RankSpec{3, 16}));
}

TEST(Overrides, the_first_pattern_that_matches_the_whole_name_counts) {
  const OptimizerConfig o = optimizer(R"({"matrices": {"lr": 0.5, "weight_decay": 0.25}, "overrides": [
      {"pattern": "blocks.0.*", "lr": 1}, {"pattern": "*.mlp.*", "lr": 2}, {"pattern": "blocks.?.attention", "lr": 3}]})");
  const auto lr = [&](std::string_view name) { return settings_for(o, o.matrices, name).lr; };
  EXPECT_EQ(lr("blocks.0.mlp.up"), 1);
  EXPECT_EQ(lr("blocks.1.mlp.up"), 2);
  EXPECT_EQ(lr("blocks.1.attention"), 3);
  EXPECT_EQ(lr("blocks.1.attention.out"), 0.5);
  EXPECT_EQ(settings_for(o, o.matrices, "blocks.0.x").weight_decay, 0.25) << "other settings are the group's";
  EXPECT_EQ(settings_for(o, o.vectors, "norm"), o.vectors);
}

TEST(Overrides, another_type_starts_from_that_types_defaults) {
  const OptimizerConfig o = optimizer(R"({"matrices": {"lr": 0.5}, "overrides": [
      {"pattern": "a", "type": "adamw", "beta2": 0.99}, {"pattern": "b", "type": "muon", "momentum": 0.5}]})");
  const auto a = settings_for(o, o.matrices, "a");
  EXPECT_EQ(a.kind, OptimizerKind::adamw);
  EXPECT_EQ(a.lr, 3e-4);
  EXPECT_EQ(a.beta2, 0.99);
  const auto b = settings_for(o, o.matrices, "b");
  EXPECT_EQ(b.lr, 0.5) << "the group's own type: nothing starts anew";
  EXPECT_EQ(b.momentum, 0.5);
}

TEST(Overrides, settings_that_do_not_suit_the_parameter_they_match_are_refused) {
  const OptimizerConfig o =
      optimizer(R"({"overrides": [{"pattern": "*a*", "momentum": 0.5}, {"pattern": "*", "type": "msgd"}]})");
  EXPECT_EQ(settings_for(o, o.matrices, "a").momentum, 0.5);
  const auto unused = refusal([&] { settings_for(o, o.embeddings, "table"); });
  EXPECT_NE(unused.find("parameter table: /optimizer/overrides/0/momentum"), std::string::npos) << unused;
  const auto kind = refusal([&] { settings_for(o, o.vectors, "norm"); });
  EXPECT_NE(kind.find("msgd is for matrices"), std::string::npos) << kind;
}

TEST(Overrides, settings_for_wants_a_group_of_the_same_config) {
  const OptimizerConfig o = optimizer("{}");
  const OptimizerSettings copy = o.matrices;
  EXPECT_THROW(settings_for(o, copy, "x"), std::logic_error);
}

TEST(Suggestions, distance_counts_insertions_deletions_changes_and_swaps) {
  EXPECT_EQ(edit_distance("", ""), 0U);
  EXPECT_EQ(edit_distance("", "abc"), 3U);
  EXPECT_EQ(edit_distance("rank", "rank"), 0U);
  EXPECT_EQ(edit_distance("rnak", "rank"), 1U);
  EXPECT_EQ(edit_distance("ran", "rank"), 1U);
  EXPECT_EQ(edit_distance("rbnk", "rank"), 1U);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3U);
}

TEST(Suggestions, only_a_near_name_is_suggested) {
  const std::vector<std::string> names{"steps", "tokens", "warmup_steps"};
  EXPECT_EQ(nearest_name("stpes", names), "steps");
  EXPECT_EQ(nearest_name("warmup", names), "warmup_steps");
  EXPECT_EQ(nearest_name("elephants", names), "");
  EXPECT_EQ(nearest_name(std::string(1000, 's'), names), "");
  EXPECT_EQ(nearest_name("steps", {}), "");
}

}  // namespace
}  // namespace polaron
