#include "support.h"

namespace polaron {
namespace {

TEST(Extends, objects_merge_key_by_key_and_lists_replace) {
  const Folder folder;
  folder.write("base.json", with(R"({"model": {"layers": 5, "biases": false}, "seed": 1,
      "optimizer": {"overrides": [{"pattern": "a", "lr": 1}, {"pattern": "b", "lr": 1}]}})"));
  const auto file = folder.write("child.json", R"({"extends": "base.json", "model": {"layers": 7},
      "optimizer": {"overrides": [{"pattern": "c", "lr": 2}]}})");
  const Config c = load_config(file);
  EXPECT_EQ(c.model.layers, 7);
  EXPECT_EQ(c.model.width, 64);
  EXPECT_FALSE(c.model.biases);
  EXPECT_EQ(c.seed, 1U);
  ASSERT_EQ(c.optimizer.overrides.size(), 1U);
  EXPECT_EQ(c.optimizer.overrides[0].pattern, "c");
  EXPECT_EQ(c.name, "child") << "the name comes from the file that was asked for";
}

TEST(Extends, a_chain_is_followed_relative_to_each_file) {
  const Folder folder;
  folder.write("base/deep/first.json", with(R"({"seed": 1, "threads": 1})"));
  folder.write("base/second.json", R"({"extends": "deep/first.json", "threads": 2})");
  const Config c = load_config(folder.write("third.json", R"({"extends": "base/second.json"})"));
  EXPECT_EQ(c.seed, 1U);
  EXPECT_EQ(c.threads, 2);
}

TEST(Extends, null_takes_an_inherited_key_away) {
  const Folder folder;
  folder.write("base.json", with(R"({"model": {"biases": false}, "sample": {"every": 9, "tokens": 3}})"));
  const Config c = load_config(folder.write("child.json", R"({"extends": "base.json", "model": {"biases": null},
      "sample": null})"));
  EXPECT_TRUE(c.model.biases);
  EXPECT_EQ(c.sample.every, 0);
  EXPECT_EQ(c.sample.tokens, 64);
}

TEST(Extends, a_circle_is_refused_and_shown) {
  const Folder folder;
  folder.write("b.json", R"({"extends": "c.json"})");
  folder.write("c.json", R"({"extends": "./b.json"})");
  const auto a = folder.write("a.json", R"({"extends": "b.json"})");
  EXPECT_NE(refusal([&] { load_config(a); }).find("in a circle: b.json -> c.json -> b.json"), std::string::npos);
  const auto self = folder.write("self.json", R"({"extends": "self.json"})");
  EXPECT_NE(refusal([&] { load_config(self); }).find("in a circle: self.json -> self.json"), std::string::npos);
}

TEST(Extends, a_missing_parent_is_named_with_the_file_that_wants_it) {
  const Folder folder;
  const auto file = folder.write("a.json", R"({"extends": "no/such.json"})");
  const auto message = refusal([&] { load_config(file); });
  EXPECT_EQ(message, file.string() + ": /extends: cannot read the config " + (folder.path() / "no/such.json").string() +
                         ": no such file.");
  const auto directory = folder.write("b.json", R"({"extends": "."})");
  EXPECT_NE(refusal([&] { load_config(directory); }).find("is not a file"), std::string::npos);
}

TEST(Extends, a_mistake_is_reported_for_the_file_that_holds_it) {
  const Folder folder;
  const auto base = folder.write("base.json", with(R"({"model": {"widht": 3}})"));
  const auto child = folder.write("child.json", R"({"extends": "base.json"})");
  EXPECT_TRUE(refusal([&] { load_config(child); }).starts_with(base.string() + ": /model/widht: "));
  folder.write("good.json", minimal);
  const auto middle = folder.write("middle.json", R"({"extends": "good.json", "sead": 3})");
  const auto last = folder.write("last.json", R"({"extends": "middle.json"})");
  EXPECT_TRUE(refusal([&] { load_config(last); }).starts_with(middle.string() + ": /sead: "));
  const auto broken = folder.write("broken.json", "{");
  const auto heir = folder.write("heir.json", R"({"extends": "broken.json"})");
  EXPECT_TRUE(refusal([&] { load_config(heir); }).starts_with(broken.string() + ":1:"));
}

TEST(Extends, a_mistake_that_a_later_file_would_hide_is_still_reported) {
  const Folder folder;
  folder.write("base.json", with(R"({"model": {"width": "wide"}})"));
  const auto child = folder.write("child.json", R"({"extends": "base.json", "model": {"width": 64}})");
  EXPECT_NE(refusal([&] { load_config(child); }).find("/model/width"), std::string::npos);
}

TEST(Layers, a_later_layer_decides_alone_how_long_to_train) {
  const Folder folder;
  folder.write("base.json", with(R"({"training": {"steps": null, "tokens": 1280}})"));
  const auto child = folder.write("child.json", R"({"extends": "base.json", "training": {"steps": 3}})");
  EXPECT_EQ(load_config(child).training.steps, 3);
  EXPECT_EQ(parse(minimal, {"training.tokens=129"}).training.steps, 2);
  EXPECT_NE(refusal_of(minimal, {"training.tokens=129", "training.steps=7"}).find("give one of the two"),
            std::string::npos);
}

TEST(Layers, a_run_can_be_prolonged_from_its_effective_config) {
  const std::string effective = to_json(parse(minimal));
  EXPECT_EQ(parse(effective, {"training.steps=20"}).training.tokens, 20 * 4 * 32);
  // Another batch for as many steps: the tokens are taken away, the steps stay.
  const Folder folder;
  folder.write("base.json", effective);
  const auto child =
      folder.write("child.json", R"({"extends": "base.json", "training": {"batch": 8, "tokens": null}})");
  EXPECT_EQ(load_config(child).training.tokens, parse(effective).training.steps * 8 * 32);
}

TEST(Layers, another_optimizer_type_starts_the_group_anew) {
  const auto low_rank = with(R"({"optimizer": {"matrices": {"type": "low_rank_muon", "rank": 8, "lr": 0.03}}})");
  const auto adamw = parse(low_rank, {"optimizer.matrices.type=adamw"}).optimizer.matrices;
  EXPECT_EQ(adamw.kind, OptimizerKind::adamw);
  EXPECT_EQ(adamw.lr, 3e-4);
  const auto with_lr = parse(low_rank, {"optimizer.matrices.lr=6e-4", "optimizer.matrices.type=adamw"});
  EXPECT_EQ(with_lr.optimizer.matrices.lr, 6e-4) << "the order of --set does not matter";
  const auto same = parse(low_rank, {"optimizer.matrices.type=low_rank_muon"}).optimizer.matrices;
  EXPECT_EQ(same.lr, 0.03) << "the same type again changes nothing";
  EXPECT_EQ(same.rank, (RankSpec{8, 1}));
  const auto spelled_out = parse(with(R"({"optimizer": {"matrices": {"lr": 0.5}}})"), {"optimizer.matrices.type=muon"});
  EXPECT_EQ(spelled_out.optimizer.matrices.lr, 0.5) << "muon is what the group had by default";
}

TEST(Layers, another_schedule_keeps_the_warm_up_and_drops_what_it_does_not_use) {
  const auto wsd = with(R"({"schedule": {"type": "wsd", "warmup_steps": 2, "decay_fraction": 0.5}})");
  const auto cosine = parse(wsd, {"schedule.type=cosine"}).schedule;
  EXPECT_EQ(cosine.kind, ScheduleKind::cosine);
  EXPECT_EQ(cosine.warmup_steps, 2);
}

TEST(Set, values_are_json_or_else_strings) {
  const Config c = parse(minimal, {"training.steps=25", "model.biases=false", "optimizer.matrices.type=low_rank_muon",
                                   "optimizer.matrices.rank=1/8", "data.train=x/*.bin", "name=\"7\"",
                                   "data.validation=a=b", "sample.prompt="});
  EXPECT_EQ(c.training.steps, 25);
  EXPECT_FALSE(c.model.biases);
  EXPECT_EQ(c.optimizer.matrices.rank, (RankSpec{1, 8}));
  EXPECT_EQ(c.data.train, "x/*.bin");
  EXPECT_EQ(c.name, "7");
  EXPECT_EQ(c.data.validation, "a=b") << "only the first = separates";
  EXPECT_EQ(c.sample.prompt, "");
}

TEST(Set, later_overrides_win_and_whole_objects_merge) {
  EXPECT_EQ(parse(minimal, {"seed=1", "seed=2"}).seed, 2U);
  const Config c = parse(minimal, {R"(model={"layers": 9, "context_length": null})", "training.sequence_length=8"});
  EXPECT_EQ(c.model.layers, 9);
  EXPECT_EQ(c.model.width, 64);
  EXPECT_EQ(c.model.context_length, 8);
  EXPECT_EQ(parse(with(R"({"seed": 5})"), {"seed=null"}).seed, Config().seed);
}

TEST(Set, entries_of_lists_are_named_by_their_number) {
  const auto two = with(R"({"optimizer": {"overrides": [{"pattern": "a", "lr": 1}, {"pattern": "b", "lr": 1}]}})");
  const auto& overrides = parse(two, {"optimizer.overrides.1.pattern=c"}).optimizer.overrides;
  EXPECT_EQ(overrides[0].pattern, "a");
  EXPECT_EQ(overrides[1].pattern, "c");
  EXPECT_NE(refusal_of(two, {"optimizer.overrides.2.lr=1"}).find("a list of 2 entries"), std::string::npos);
  EXPECT_NE(refusal_of(two, {"optimizer.overrides.first.lr=1"}).find("a list of 2 entries"), std::string::npos);
}

TEST(Set, mistakes_name_the_override) {
  const std::pair<const char*, const char*> cases[] = {
      {"training.stpes=5", R"(--set training.stpes=5: /training/stpes: unknown key; did you mean "steps"?)"},
      {"trainig.steps=5", R"(--set trainig.steps=5: /trainig: unknown key; did you mean "training"?)"},
      {"optimizer.matrices.rnak=5", R"(/optimizer/matrices/rnak: unknown key; did you mean "rank"?)"},
      {"training.steps=many", R"(--set training.steps=many: /training/steps: expected an integer)"},
      {"training.steps.x=5", "--set training.steps.x=5: /training/steps: a single value"},
      {"training..steps=5", "unknown key"},
      {"training.steps", "expected key.path=value"},
      {"=5", "expected key.path=value"},
      {"", "expected key.path=value"},
      {"extends=b.json", "extends can only be given in a file"},
      {"name=\xff", "not UTF-8"},
  };
  for (const auto& [spec, words] : cases) {
    SCOPED_TRACE(spec);
    const auto message = refusal_of(minimal, {spec});
    EXPECT_NE(message.find(words), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace polaron
