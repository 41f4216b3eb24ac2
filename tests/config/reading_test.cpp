#include <cmath>

#include "support.h"

namespace polaron {
namespace {

TEST(Reading, a_minimal_config_gets_gpt2_defaults_and_derived_values) {
  const Config c = parse(minimal);
  EXPECT_EQ(c.name, "a");
  EXPECT_EQ(c.output, "runs/a");
  EXPECT_EQ(c.device, "auto");
  EXPECT_EQ(c.precision, "auto");
  const TransformerConfig& m = c.model;
  EXPECT_EQ(m.preset, ModelPreset::gpt2);
  EXPECT_EQ(m.kv_heads, 4);
  EXPECT_EQ(m.head_size, 16);
  EXPECT_EQ(m.mlp_hidden, 256);
  EXPECT_EQ(m.vocabulary, 0);
  EXPECT_EQ(m.mlp, MlpKind::gelu);
  EXPECT_EQ(m.norm, NormChoice::layernorm);
  EXPECT_EQ(m.norm_eps, 1e-5);
  EXPECT_EQ(m.positions, Positions::learned);
  EXPECT_TRUE(m.biases);
  EXPECT_TRUE(m.tied_embeddings);
  EXPECT_TRUE(m.init_scale_residual);
  EXPECT_EQ(m.attention_scale, 0.25);
  EXPECT_EQ(c.training.sequence_length, 32);
  EXPECT_EQ(c.training.micro_batch, 4);
  EXPECT_EQ(c.training.tokens, 10 * 4 * 32);
}

TEST(Reading, a_micro_batch_may_be_left_to_the_memory) {
  const Config c = parse(with(R"({"training": {"micro_batch": "auto"}})"));
  EXPECT_EQ(c.training.micro_batch, kAutoMicroBatch);
  EXPECT_NE(to_json(c).find(R"("micro_batch": "auto")"), std::string::npos) << to_json(c);
  EXPECT_EQ(parse(to_json(c)), c);
  EXPECT_EQ(parse(minimal, {"training.micro_batch=auto"}), c);
}

TEST(Reading, spectra_are_measured_where_they_are_asked_for_and_then_at_a_cadence_of_their_own) {
  EXPECT_EQ(parse(minimal).diagnostics.spectra.every, 0);
  EXPECT_EQ(parse(with(R"({"diagnostics": {"spectra": {}}})")).diagnostics.spectra.every, kSpectraEvery);
  EXPECT_EQ(parse(minimal, {"diagnostics.spectra.ranks=[4]"}).diagnostics.spectra.every, kSpectraEvery);
  EXPECT_EQ(parse(with(R"({"diagnostics": {"spectra": {"every": 7}}})")).diagnostics.spectra.every, 7);
  const Config without = parse(minimal);
  EXPECT_EQ(parse(to_json(without)), without);
}

TEST(Reading, the_llama_preset_decides_the_architecture) {
  const TransformerConfig m = parse(with(R"({"model": {"preset": "llama"}})")).model;
  EXPECT_EQ(m.preset, ModelPreset::llama);
  EXPECT_EQ(m.mlp, MlpKind::swiglu);
  EXPECT_EQ(m.norm, NormChoice::rmsnorm);
  EXPECT_EQ(m.norm_eps, 1e-5);
  EXPECT_EQ(m.positions, Positions::rotary);
  EXPECT_EQ(m.rotary_base, 10000.0);
  EXPECT_FALSE(m.biases);
  EXPECT_FALSE(m.tied_embeddings);
  EXPECT_FALSE(m.init_scale_residual);
}

TEST(Reading, a_key_given_beside_a_preset_wins_over_it) {
  const TransformerConfig m =
      parse(with(R"({"model": {"biases": true, "preset": "llama", "norm": "layernorm", "norm_eps": 1e-6}})")).model;
  EXPECT_TRUE(m.biases);
  EXPECT_EQ(m.norm, NormChoice::layernorm);
  EXPECT_EQ(m.norm_eps, 1e-6);
  EXPECT_EQ(m.mlp, MlpKind::swiglu);
}

TEST(Reading, the_hidden_size_of_swiglu_is_eight_thirds_of_the_width_rounded_up_to_64) {
  const auto hidden = [](std::int64_t width) {
    return parse(with(R"({"model": {"mlp": "swiglu", "heads": 1, "width": )" + std::to_string(width) + "}}"))
        .model.mlp_hidden;
  };
  EXPECT_EQ(hidden(24), 64);     // 64 exactly
  EXPECT_EQ(hidden(25), 128);    // 66.7
  EXPECT_EQ(hidden(48), 128);    // 128 exactly
  EXPECT_EQ(hidden(768), 2048);  // 2048 exactly
  EXPECT_EQ(hidden(512), 1408);  // 1365.3
  EXPECT_EQ(hidden(1), 64);
}

TEST(Reading, a_given_head_size_need_not_be_width_over_heads) {
  const TransformerConfig m = parse(with(R"({"model": {"width": 50, "heads": 3, "head_size": 10}})")).model;
  EXPECT_EQ(m.head_size, 10);
  EXPECT_EQ(m.attention_scale, 1 / std::sqrt(10.0));
}

TEST(Reading, context_and_sequence_length_default_to_each_other) {
  const Config from_sequence =
      parse(with(R"({"model": {"context_length": null}, "training": {"sequence_length": 24}})"));
  EXPECT_EQ(from_sequence.model.context_length, 24);
  const Config shorter = parse(with(R"({"training": {"sequence_length": 24}})"));
  EXPECT_EQ(shorter.model.context_length, 32);
  EXPECT_EQ(shorter.training.sequence_length, 24);
}

TEST(Reading, tokens_are_rounded_up_to_whole_steps) {
  const auto steps_for = [](int tokens) {
    const std::string count = std::to_string(tokens);
    return parse(with(R"({"training": {"steps": null, "tokens": )" + count + "}}")).training;
  };
  EXPECT_EQ(steps_for(1).steps, 1);
  EXPECT_EQ(steps_for(128).steps, 1);
  EXPECT_EQ(steps_for(129).steps, 2);
  EXPECT_EQ(steps_for(129).tokens, 256);
}

TEST(Reading, numbers_may_be_written_in_any_way_that_means_them) {
  const Config c = parse(with(R"({"training": {"steps": 1e3, "gradient_clip": 2}, "seed": 18446744073709551615})"));
  EXPECT_EQ(c.training.steps, 1000);
  EXPECT_EQ(c.training.gradient_clip, 2.0);
  EXPECT_EQ(c.seed, 18446744073709551615ULL);
  const Config whole =
      parse(with(R"({"seed": 1e3, "optimizer": {"matrices": {"type": "low_rank_muon", "rank": 1e1}}})"));
  EXPECT_EQ(whole.seed, 1000U);
  EXPECT_EQ(whole.optimizer.matrices.rank, (RankSpec{10, 1}));
}

TEST(Reading, comments_of_both_kinds_and_a_schema_line_are_allowed) {
  const std::string text = "// a comment\n{\"$schema\": \"s.json\", /* another */" + std::string(minimal.substr(1));
  EXPECT_EQ(parse(text), parse(minimal));
}

TEST(Reading, the_effective_config_reads_back_to_the_same_config) {
  const char* patches[] = {
      "{}",
      R"({"model": {"preset": "llama", "kv_heads": 2, "logit_softcap": 15, "attention_window": 8}})",
      R"({"name": "ü \"x\"", "output": "o", "seed": 9007199254740993, "threads": 3, "init_from": "runs/b"})",
      R"({"training": {"steps": null, "tokens": 1000, "micro_batch": 2, "recompute": "block", "loss_chunk": 7}})",
      R"({"schedule": {"type": "wsd", "warmup_steps": 2, "decay_fraction": 0.1}})",
      R"({"schedule": {"type": "constant"}})",
      R"({"optimizer": {"matrices": {"type": "low_rank_muon", "rank": "3/8", "sketch": "power", "power_iterations": 2,
          "momentum_warmup_steps": 5, "momentum_start": 0.7}}})",
      R"({"optimizer": {"matrices": {"type": "low_rank_msgd", "rank": 7, "scale": "match_rms_adamw"}}})",
      R"({"optimizer": {"matrices": {"orthogonalizer": "exact"}, "head": {"type": "sgd", "nesterov": true}}})",
      R"({"optimizer": {"matrices": {"type": "adamw", "lr": 0.1234567890123456789, "beta2": 0.999}}})",
      R"({"optimizer": {"overrides": [{"pattern": "*mlp*", "lr": 0.5}, {"pattern": "a", "type": "sgd"}]}})",
      R"({"data": {"validation": "v", "vocabulary": "w", "shuffle": false}, "validation": {"every": 3, "tokens": 9},
          "checkpoint": {"every": 1, "keep": 0}, "sample": {"every": 2, "prompt": "x\u0001\n", "temperature": 0.3}})",
  };
  for (const char* patch : patches) {
    SCOPED_TRACE(patch);
    const Config c = parse(with(patch));
    const std::string text = to_json(c);
    const Config again = parse_config(text, "another name.json");
    EXPECT_EQ(again, c);
    EXPECT_EQ(to_json(again), text);
  }
}

TEST(Reading, the_effective_config_leaves_nothing_to_derive) {
  const auto document = nlohmann::json::parse(to_json(parse(minimal)));
  EXPECT_EQ(document["model"]["mlp_hidden"], 256);
  EXPECT_EQ(document["model"]["attention_scale"], 0.25);
  EXPECT_EQ(document["training"]["sequence_length"], 32);
  EXPECT_EQ(document["training"]["tokens"], 1280);
  EXPECT_EQ(document["optimizer"]["matrices"]["type"], "muon");
  EXPECT_EQ(document["optimizer"]["matrices"]["lr"], 0.02);
  EXPECT_FALSE(document["optimizer"]["matrices"].contains("rank")) << "muon has no rank";
  EXPECT_EQ(document["optimizer"]["vectors"]["beta2"], 0.95);
}

}  // namespace
}  // namespace polaron
