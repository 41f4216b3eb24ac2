// Quirks of the authors' code (docs/paper.md): each does what it says in a run, and resumes to the bit.
#include "support.h"

namespace polaron::test {
namespace {
using nlohmann::json;

class Quirks : public testing::Test {
 protected:
  Quirks() { folder_.write_data(); }
  std::vector<double> losses_of(const std::string& name, const json& patch, const Arguments& more = {}) {
    Arguments arguments = {"train", folder_.write_config(name, patch)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    expect_ended(folder_.run(arguments), 0);
    return folder_.losses(name);
  }
  Workspace folder_;
};

json with_previous(std::int64_t dropped_every) {
  return {{"quirks", {{"previous_batch_gradient", true}, {"previous_batch_dropped_every", dropped_every}}},
          {"training", {{"gradient_clip", 0}}},
          {"checkpoint", {{"every", 5}}}};
}

TEST_F(Quirks, the_gradient_of_the_batch_before_moves_every_step_but_the_first) {
  const std::vector<double> clean = losses_of("clean", {{"training", {{"gradient_clip", 0}}}});
  const std::vector<double> both = losses_of("both", with_previous(0));
  ASSERT_EQ(clean.size(), both.size());
  EXPECT_EQ(clean[0], both[0]);
  EXPECT_EQ(clean[1], both[1]) << "the first update has no batch before it";
  EXPECT_NE(clean[2], both[2]);
  EXPECT_EQ(losses_of("dropped", with_previous(1)), clean);
}

TEST_F(Quirks, a_run_with_the_gradient_of_the_batch_before_resumes_to_the_bit) {
  const std::vector<double> whole = losses_of("whole", with_previous(3));
  losses_of("parts", with_previous(3), {"--set", "training.steps=5", "--set", "schedule.type=constant"});
  json constant = with_previous(3);
  constant["schedule"] = {{"type", "constant"}};
  const std::vector<double> expected = losses_of("expected", constant);
  const std::vector<double> resumed = losses_of("parts", constant, {"--resume"});
  EXPECT_EQ(resumed, expected);
  EXPECT_NE(whole, expected);
}

TEST_F(Quirks, of_the_optimizer_change_the_run_and_are_refused_where_they_mean_nothing) {
  const json adamw = {{"optimizer", {{"matrices", {{"type", "adamw"}, {"rank", nullptr}}}}}};
  const std::vector<double> clean = losses_of("adamw", adamw);
  for (const char* key : {"bf16_weights", "bf16_moments"}) {
    json patch = adamw;
    patch["optimizer"]["matrices"][key] = true;
    EXPECT_NE(losses_of(key, patch), clean) << key;
  }
  json low_rank = {{"optimizer", {{"matrices", {{"type", "low_rank_muon"}, {"rank", 4}}}}}};
  const std::vector<double> columns = losses_of("columns", low_rank);
  low_rank["quirks"] = {{"shared_columns", true}};
  EXPECT_NE(losses_of("shared", low_rank), columns);
  low_rank.erase("quirks");
  low_rank["optimizer"]["matrices"]["sketch"] = "columns_authors";
  EXPECT_NE(losses_of("leading", low_rank), columns);
  low_rank["optimizer"]["matrices"]["bf16_weights"] = true;
  const Outcome refused = folder_.run({"train", folder_.write_config("refused", low_rank)});
  expect_ended(refused, 2);
  EXPECT_TRUE(contains(refused.err, "bf16_weights is for adamw")) << refused.err;
}

}  // namespace
}  // namespace polaron::test
