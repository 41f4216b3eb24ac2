// What a run that goes on with other settings is told.
#include "train/config_changes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "config/config.h"

namespace polaron {
namespace {

using nlohmann::json;
using Changes = std::vector<std::string>;

json settings() {
  return {{"data", {{"train", "data/*.bin"}, {"validation", "data/validation.bin"}}},
          {"model", {{"layers", 1}, {"width", 32}, {"heads", 4}, {"context_length", 16}}},
          {"training", {{"steps", 20}, {"batch", 8}}},
          {"optimizer", {{"matrices", {{"type", "low_rank_muon"}, {"rank", 256}}}}}};
}

Changes changes_by(const json& patch) {
  json now = settings();
  now.merge_patch(patch);
  const auto effective = [](const json& config) { return to_json(parse_config(config.dump(), "config")); };
  return config_changes(effective(settings()), effective(now));
}

TEST(ConfigChanges, are_told_by_key_with_both_values) {
  EXPECT_EQ(changes_by({{"optimizer", {{"matrices", {{"rank", "1/4"}}}}}}),
            Changes{R"(optimizer.matrices.rank was 256, is now "1/4")"});
  EXPECT_EQ(changes_by({{"training", {{"steps", 30}, {"gradient_clip", 0.5}}}}),
            (Changes{"training.gradient_clip was 1.0, is now 0.5", "training.steps was 20, is now 30"}));
  EXPECT_EQ(changes_by({{"optimizer", {{"overrides", {{{"pattern", "*.up.*"}, {"lr", 0.5}}}}}}}).size(), 1U);
}

TEST(ConfigChanges, of_a_kind_tell_the_settings_that_come_and_go) {
  const Changes changes = changes_by({{"optimizer", {{"matrices", {{"type", "muon"}, {"rank", nullptr}}}}}});
  const auto has = [&](const char* text) { return std::find(changes.begin(), changes.end(), text) != changes.end(); };
  EXPECT_TRUE(has(R"(optimizer.matrices.type was "low_rank_muon", is now "muon")"));
  EXPECT_TRUE(has("optimizer.matrices.rank was 256, is now not given"));
}

TEST(ConfigChanges, are_none_where_no_number_changes_but_by_the_order_of_sums) {
  EXPECT_EQ(changes_by({{"name", "b"},
                        {"output", "runs/b"},
                        {"threads", 2},
                        {"device", "cpu"},
                        {"data", {{"train", "elsewhere/*.bin"}, {"validation", "elsewhere.bin"}}},
                        {"training", {{"micro_batch", 2}, {"recompute", "block"}, {"loss_chunk", 4}}},
                        {"checkpoint", {{"every", 7}, {"keep", 9}}},
                        {"validation", {{"every", 7}}},
                        {"sample", {{"every", 7}}},
                        {"parallel", {{"exchange", "factors"}}}}),
            Changes{});
}

}  // namespace
}  // namespace polaron
