// What bad input gets: exit code 2 and a message that names the file, the pointer and what would be right.
#include "support.h"

namespace polaron {
namespace {

struct Bad {
  const char* patch;
  const char* pointer;
  const char* reason;
};

void expect_refused(const std::vector<Bad>& cases) {
  for (const Bad& bad : cases) {
    SCOPED_TRACE(bad.patch);
    const std::string message = refusal_of(with(bad.patch));
    EXPECT_TRUE(message.starts_with("configs/a.json: " + std::string(bad.pointer) + ": ")) << message;
    EXPECT_NE(message.find(bad.reason), std::string::npos) << message;
  }
}

TEST(Refusal, unknown_keys_come_with_the_nearest_valid_one) {
  expect_refused({
      {R"({"modle": {}})", "/modle", R"(unknown key; did you mean "model"?)"},
      {R"({"optimizer": {"matrices": {"rnak": 3}}})", "/optimizer/matrices/rnak", R"(did you mean "rank"?)"},
      {R"({"optimizer": {"matrix": {}}})", "/optimizer/matrix", R"(did you mean "matrices"?)"},
      {R"({"training": {"warmup_step": 3}})", "/training/warmup_step", "did you mean schedule.warmup_steps?"},
      {R"({"schedule": {"warmup": 3}})", "/schedule/warmup", R"(did you mean "warmup_steps"?)"},
      {R"({"batch": 3})", "/batch", "did you mean training.batch?"},
      {R"({"model": {"vocab_size": 5}})", "/model/vocab_size", R"(did you mean)"},
      {R"({"model": {"dropout": 0.1}})", "/model/dropout", R"(the keys here are "preset", "layers")"},
      {R"({"model": {"a/b~": 1}})", "/model/a~1b~0", "unknown key"},
      {R"({"optimizer": {"overrides": [{"pattern": "x", "learning_rate": 1}]}})",
       "/optimizer/overrides/0/learning_rate", "unknown key"},
  });
}

TEST(Refusal, values_of_the_wrong_type_name_what_was_expected_and_what_came) {
  expect_refused({
      {R"({"model": {"layers": "two"}})", "/model/layers",
       R"(expected an integer from 1 to 10000, got the string "two")"},
      {R"({"model": {"layers": 1.5}})", "/model/layers", "expected an integer from 1 to 10000, got 1.5"},
      {R"({"model": {"layers": true}})", "/model/layers", "got true"},
      {R"({"model": {"layers": [2]}})", "/model/layers", "got a list"},
      {R"({"model": {"biases": 1}})", "/model/biases", "expected true or false, got 1"},
      {R"({"model": {"norm_eps": "1e-5"}})", "/model/norm_eps", "expected a number above 0"},
      {R"({"model": {"init_std": true}})", "/model/init_std", "expected a number above 0, got true"},
      {R"({"model": {"mlp": "gelo"}})", "/model/mlp", R"(did you mean "gelu"?)"},
      {R"({"model": {"mlp": 3}})", "/model/mlp",
       R"(expected one of "gelu", "gelu_exact", "swiglu" and "relu2", got 3)"},
      {R"({"model": {"preset": "gpt3"}})", "/model/preset", R"(did you mean "gpt2"?)"},
      {R"({"model": 7})", "/model", "expected an object, {...}, got 7"},
      {R"({"data": {"train": 7}})", "/data/train", "expected a string, got 7"},
      {R"({"device": "gpu"})", "/device", R"(expected one of "auto", "cpu" and "cuda", got the string "gpu")"},
      {R"({"seed": -1})", "/seed", "expected an integer from 0 to 2^64 - 1, got -1"},
      {R"({"optimizer": {"overrides": {}}})", "/optimizer/overrides", "expected a list"},
      {R"({"optimizer": {"overrides": [3]}})", "/optimizer/overrides/0", "expected an object"},
      {R"({"optimizer": {"matrices": {"type": "moun"}}})", "/optimizer/matrices/type", R"(did you mean "muon"?)"},
      {R"({"optimizer": {"matrices": {"coefficients": "polar"}}})", "/optimizer/matrices/coefficients",
       R"(did you mean "polar_express"?)"},
      {R"({"extends": 3})", "/extends", "expected the name of another config"},
      {R"({"$schema": 3})", "/$schema", "expected a string"},
  });
}

TEST(Refusal, numbers_outside_their_limits) {
  expect_refused({
      {R"({"model": {"layers": 0}})", "/model/layers", "got 0"},
      {R"({"model": {"width": -64}})", "/model/width", "got -64"},
      {R"({"model": {"heads": 0}})", "/model/heads", "got 0"},
      {R"({"model": {"kv_heads": 0}})", "/model/kv_heads", "got 0"},
      {R"({"model": {"head_size": 0}})", "/model/head_size", "got 0"},
      {R"({"model": {"mlp_hidden": 0}})", "/model/mlp_hidden", "got 0"},
      {R"({"model": {"vocabulary": -1}})", "/model/vocabulary", "got -1"},
      {R"({"model": {"context_length": 0}})", "/model/context_length", "got 0"},
      {R"({"model": {"width": 1e20}})", "/model/width", "got 1e+20"},
      {R"({"model": {"width": 18446744073709551615}})", "/model/width", "got 18446744073709551615"},
      {R"({"model": {"norm_eps": 0}})", "/model/norm_eps", "above 0, got 0"},
      {R"({"model": {"attention_scale": 0}})", "/model/attention_scale", "above 0, got 0"},
      {R"({"model": {"skips": 3}})", "/model/skips", "a list of pairs [from, to]"},
      {R"({"model": {"skips": [[0, 1, 2]]}})", "/model/skips", "a list of pairs [from, to]"},
      {R"({"model": {"skips": [[0, 9]]}})", "/model/skips", "there is no block 9: the model has blocks 0 to "},
      {R"({"model": {"skips": [[1, 1]]}})", "/model/skips", "not from 1 to 1"},
      {R"({"model": {"layers": 4, "skips": [[0, 2], [0, 3]]}})", "/model/skips", "share a block"},
      {R"({"model": {"attention_free_blocks": ["1"]}})", "/model/attention_free_blocks", "an integer"},
      {R"({"model": {"attention_free_blocks": [9]}})", "/model/attention_free_blocks", "there is no block 9"},
      {R"({"model": {"layers": 4, "value_embeddings": 1, "attention_free_blocks": [3]}})",
       "/model/attention_free_blocks", "block 3 has a value embedding"},
      {R"({"model": {"layers": 5, "value_embeddings": 3}})", "/model/value_embeddings", "the model has 5 blocks"},
      {R"({"model": {"window_block": 3}})", "/model/window_block", "3 does not divide sequences of "},
      {R"({"model": {"window_block": 4, "window_final": 6}})", "/model/window_final",
       "6 is no multiple of window_block 4"},
      {R"({"model": {"window_final": 4}})", "/model/window_final", "needs window_block"},
      {R"({"model": {"window_block": 4, "long_window_blocks": [9]}})", "/model/long_window_blocks", "no block 9"},
      {R"({"model": {"v_norm": true}})", "/model/v_norm", "needs qk_norm"},
      {R"({"model": {"vocabulary": 300, "tied_embeddings": false, "head_vocabulary": 299}})", "/model/head_vocabulary",
       "299 is less than the 300 of vocabulary"},
      {R"({"model": {"head_vocabulary": 300}})", "/model/head_vocabulary", "tied_embeddings is true"},
      {R"({"model": {"logit_softcap": -1}})", "/model/logit_softcap", "of at least 0, got -1"},
      {R"({"training": {"steps": 0}})", "/training/steps", "got 0"},
      {R"({"training": {"steps": null, "tokens": 0}})", "/training/tokens", "got 0"},
      {R"({"training": {"batch": 0}})", "/training/batch", "got 0"},
      {R"({"training": {"micro_batch": -2}})", "/training/micro_batch", "got -2"},
      {R"({"training": {"micro_batch": -1}})", "/training/micro_batch", "or \"auto\", got -1"},
      {R"({"training": {"micro_batch": "most"}})", "/training/micro_batch", "or \"auto\", got the string \"most\""},
      {R"({"training": {"batch": "auto"}})", "/training/batch", "got the string \"auto\""},
      {R"({"training": {"sequence_length": 0}})", "/training/sequence_length", "got 0"},
      {R"({"training": {"gradient_clip": -1}})", "/training/gradient_clip", "got -1"},
      {R"({"schedule": {"warmup_steps": -1}})", "/schedule/warmup_steps", "got -1"},
      {R"({"schedule": {"final_fraction": 1.5}})", "/schedule/final_fraction", "from 0 to 1, got 1.5"},
      {R"({"threads": -1})", "/threads", "got -1"},
      {R"({"validation": {"every": -1}})", "/validation/every", "got -1"},
      {R"({"checkpoint": {"keep": -1}})", "/checkpoint/keep", "got -1"},
      {R"({"sample": {"tokens": 0}})", "/sample/tokens", "got 0"},
      {R"({"sample": {"temperature": 0}})", "/sample/temperature", "above 0, got 0"},
      {R"({"sample": {"top_k": -1}})", "/sample/top_k", "got -1"},
      {R"({"optimizer": {"matrices": {"lr": -1}}})", "/optimizer/matrices/lr", "of at least 0, got -1"},
      {R"({"optimizer": {"matrices": {"weight_decay": -0.1}}})", "/optimizer/matrices/weight_decay", "got -0.1"},
      {R"({"optimizer": {"matrices": {"momentum": 1}}})", "/optimizer/matrices/momentum", "below 1, got 1"},
      {R"({"optimizer": {"head": {"beta1": 1.0}}})", "/optimizer/head/beta1", "below 1, got 1.0"},
      {R"({"optimizer": {"head": {"beta2": -0.5}}})", "/optimizer/head/beta2", "got -0.5"},
      {R"({"optimizer": {"head": {"eps": 0}}})", "/optimizer/head/eps", "above 0, got 0"},
      {R"({"optimizer": {"matrices": {"newton_schulz_steps": 101}}})", "/optimizer/matrices/newton_schulz_steps",
       "from 0 to 100, got 101"},
  });
  for (const char* rank : {"0", "-4", "1.5", "true", "\"8\"", "\"1/0\"", "\"0/4\"", "\"4/4\"", "\"5/4\"", "\"-1/4\"",
                           "\"1/\"", "\"/4\"", "\"1/4/2\"", "\"a/b\"", "\"123456789123456789123/4\"", "\"\""}) {
    const std::string patch =
        R"({"optimizer": {"matrices": {"type": "low_rank_muon", "rank": )" + std::string(rank) + "}}}";
    expect_refused({{patch.c_str(), "/optimizer/matrices/rank", "expected a rank"}});
  }
}

TEST(Refusal, numbers_that_fp32_takes_to_their_limit_to_zero_or_to_infinity) {
  expect_refused({
      {R"({"optimizer": {"head": {"beta2": 0.999999999}}})", "/optimizer/head/beta2",
       "below 1, got 0.999999999, which becomes 1 in fp32"},
      {R"({"optimizer": {"matrices": {"momentum": 0.99999999}}})", "/optimizer/matrices/momentum", "becomes 1 in fp32"},
      {R"({"optimizer": {"head": {"eps": 1e-60}}})", "/optimizer/head/eps", "above 0, got 1e-60, which becomes 0"},
      {R"({"optimizer": {"head": {"lr": 1e300}}})", "/optimizer/head/lr", "becomes inf in fp32"},
      {R"({"training": {"gradient_clip": 1e-300}})", "/training/gradient_clip", "becomes 0 in fp32"},
      {R"({"model": {"logit_softcap": 1e-300}})", "/model/logit_softcap", "becomes 0 in fp32"},
  });
  const Config c = parse(with(R"({"training": {"gradient_clip": 0}, "optimizer": {"head": {"beta2": 0.9999999}}})"));
  EXPECT_EQ(c.optimizer.head.beta2, 0.9999999) << "kept as it was given";
}

TEST(Refusal, sizes_that_no_count_of_bytes_holds) {
  expect_refused({
      {R"({"model": {"width": 16777216, "layers": 10000}})", "/model", "parameters, more than 1e+13"},
      {R"({"model": {"vocabulary": 2147483647, "width": 8192}})", "/model", "parameters, more than 1e+13"},
      {R"({"model": {"preset": "llama", "context_length": 16777216}, "training": {"batch": 16777216}})",
       "/training/micro_batch", "16777216 sequences of 16777216 tokens"},
      {R"({"model": {"vocabulary": 2147483647}, "training": {"batch": 16777216, "loss_chunk": 1e15}})",
       "/training/micro_batch", "activations, more than 1e+17"},
  });
  EXPECT_EQ(refusal_of(with(R"({"model": {"width": 16384, "layers": 200, "vocabulary": 1000000, "context_length": 4096},
                                "training": {"batch": 4096, "steps": 1000}})")),
            "accepted");
}

TEST(Refusal, required_keys_that_are_missing) {
  expect_refused({
      {R"({"data": null})", "/data/train", "missing"},
      {R"({"model": null})", "/model/layers", "missing"},
      {R"({"model": {"width": null}})", "/model/width", "missing"},
      {R"({"model": {"heads": null}})", "/model/heads", "missing"},
      {R"({"model": {"context_length": null}})", "/model/context_length", "training.sequence_length"},
      {R"({"training": {"batch": null}})", "/training/batch", "missing"},
      {R"({"training": {"steps": null}})", "/training/steps", "tokens"},
      {R"({"optimizer": {"overrides": [{"lr": 1}]}})", "/optimizer/overrides/0/pattern", "missing"},
      {R"({"optimizer": {"overrides": [{"pattern": "x"}]}})", "/optimizer/overrides/0", "without anything to override"},
  });
}

TEST(Refusal, combinations_that_cannot_be) {
  expect_refused({
      {R"({"model": {"heads": 3}})", "/model/width", "64 is not divisible by 3 heads"},
      {R"({"model": {"kv_heads": 3}})", "/model/kv_heads", "3 does not divide 4 heads"},
      {R"({"model": {"kv_heads": 8}})", "/model/kv_heads", "8 does not divide 4 heads"},
      {R"({"model": {"preset": "llama", "head_size": 15}})", "/model/head_size", "15 is odd"},
      {R"({"model": {"positions": "rotary", "width": 12}})", "/model/head_size", "3 is odd"},
      {R"({"training": {"sequence_length": 33}})", "/training/sequence_length", "33 is more than the 32"},
      {R"({"training": {"micro_batch": 3}})", "/training/micro_batch", "3 does not divide batch 4"},
      {R"({"training": {"tokens": 1281}})", "/training/tokens", "11 steps of 4 x 32, but steps is 10"},
      {R"({"training": {"steps": 1e15}})", "/training/steps", "more than 1e+15 tokens"},
      {R"({"schedule": {"warmup_steps": 10}})", "/schedule/warmup_steps", "not less than the run's 10 steps"},
      {R"({"schedule": {"type": "wsd", "warmup_steps": 6, "decay_fraction": 0.5}})", "/schedule/decay_fraction",
       "before the warm-up of 6 steps ends"},
      {R"({"schedule": {"decay_fraction": 0.5}})", "/schedule/decay_fraction", "decay_fraction is for wsd"},
      {R"({"schedule": {"type": "constant", "final_fraction": 0}})", "/schedule/final_fraction",
       "is for linear, cosine and wsd; the type here is constant"},
      {R"({"validation": {"every": 5}})", "/validation/every", "data.validation"},
      {R"({"precision": "fp8"})", "/precision", "bf16"},
      {R"({"name": "a/b"})", "/name", "folder's name"},
      {R"({"name": ".."})", "/name", "folder's name"},
  });
}

TEST(Refusal, model_settings_that_would_change_nothing) {
  expect_refused({
      {R"({"model": {"rotary_base": 500000}})", "/model/rotary_base", R"(is for positions "rotary")"},
      {R"({"model": {"rotary_frequencies": "half_truncated"}})", "/model/rotary_frequencies",
       R"(is for positions "rotary")"},
      {R"({"model": {"init_gain": 1}})", "/model/init_gain", R"(is for init "fan_in")"},
      {R"({"model": {"zero_init_head": true}})", "/model/zero_init_head", "tied_embeddings is true"},
      {R"({"model": {"long_window_blocks": [0]}})", "/model/long_window_blocks", "needs window_block"},
  });
}

TEST(Refusal, optimizer_settings_that_the_type_does_not_use) {
  expect_refused({
      {R"({"optimizer": {"matrices": {"type": "muon", "rank": 8}}})", "/optimizer/matrices/rank",
       "rank is for low_rank_muon and low_rank_msgd; the type here is muon"},
      {R"({"optimizer": {"matrices": {"rank": 8}}})", "/optimizer/matrices/rank", "the type here is muon"},
      {R"({"optimizer": {"matrices": {"beta1": 0.9}}})", "/optimizer/matrices/beta1", "beta1 is for adamw"},
      {R"({"optimizer": {"matrices": {"type": "msgd", "momentum": 0.9}}})", "/optimizer/matrices/momentum",
       "is for sgd, muon and low_rank_muon; the type here is msgd"},
      {R"({"optimizer": {"head": {"momentum": 0.9}}})", "/optimizer/head/momentum", "the type here is adamw"},
      {R"({"optimizer": {"head": {"type": "sgd", "momentum_form": "ema"}}})", "/optimizer/head/momentum_form",
       "is for muon and low_rank_muon; the type here is sgd"},
      {R"({"optimizer": {"head": {"type": "sgd", "scale": "none"}}})", "/optimizer/head/scale", "the type here is sgd"},
      {R"({"optimizer": {"matrices": {"momentum_start": 0.5}}})", "/optimizer/matrices/momentum_start",
       "momentum_warmup_steps is 0 here"},
      {R"({"optimizer": {"matrices": {"orthogonalizer": "exact", "coefficients": "you"}}})",
       "/optimizer/matrices/coefficients", "the orthogonalizer here is exact"},
      {R"({"optimizer": {"matrices": {"type": "low_rank_muon", "power_iterations": 2}}})",
       "/optimizer/matrices/power_iterations", "is for the power sketch"},
      {R"({"optimizer": {"embeddings": {"type": "muon"}}})", "/optimizer/embeddings/type",
       "muon is for matrices; embeddings take adamw or sgd"},
      {R"({"optimizer": {"vectors": {"type": "low_rank_msgd"}}})", "/optimizer/vectors/type", "is for matrices"},
      {R"({"optimizer": {"overrides": [{"pattern": "x", "rank": 4}]}})", "/optimizer/overrides/0/rank",
       "is for low_rank_muon and low_rank_msgd"},
  });
}

TEST(Refusal, text_that_is_not_json_is_located_by_line_and_column) {
  const auto message = refusal_of("{\n  \"name\": \"x\",\n  \"seed\": 12x\n}");
  EXPECT_TRUE(message.starts_with("configs/a.json:3:13: not valid JSON: ")) << message;
  const auto comma = refusal_of("{\"seed\": 1,\n}");
  EXPECT_TRUE(comma.starts_with("configs/a.json:2:1: not valid JSON: ")) << comma;
  EXPECT_NE(comma.find("no comma before a closing bracket"), std::string::npos) << comma;
  for (const char* text : {"", "   ", "{", "[", "{\"a\": }", "{} {}", "{\"seed\": 1e999}", "nul", "\xff",
                           "{\"a\": \"\xff\"}", "// only a comment", "/*"}) {
    SCOPED_TRACE(text);
    const auto broken = refusal_of(text);
    EXPECT_TRUE(broken.starts_with("configs/a.json:1:")) << broken;
    EXPECT_NE(broken.find("not valid JSON"), std::string::npos) << broken;
  }
}

TEST(Refusal, a_document_must_be_an_object_without_duplicate_keys_and_not_deep) {
  EXPECT_EQ(refusal_of("[]"), "configs/a.json: a config is a JSON object, {...}");
  EXPECT_EQ(refusal_of("3"), "configs/a.json: a config is a JSON object, {...}");
  EXPECT_EQ(refusal_of(R"({"model": {"width": 1, "heads": 2, "width": 1}})"),
            "configs/a.json: /model/width: given twice in one object");
  EXPECT_EQ(refusal_of(R"({"optimizer": {"overrides": [{}, {"lr": 1, "lr": 1}]}})"),
            "configs/a.json: /optimizer/overrides/1/lr: given twice in one object");
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += R"({"a":)";
  EXPECT_NE(refusal_of(deep).find("nested too deeply"), std::string::npos);
  std::string wide = "{";
  for (int i = 0; i < 100000; ++i) wide += "\"key" + std::to_string(i) + "\": 1, ";
  EXPECT_NE(refusal_of(wide).find("too many keys"), std::string::npos);
}

TEST(Refusal, the_same_key_in_two_objects_is_no_duplicate) {
  EXPECT_NO_THROW(parse(with(R"({"optimizer": {"head": {"lr": 1}, "vectors": {"lr": 1}}})")));
}

TEST(Refusal, files_that_cannot_be_read) {
  const Folder folder;
  const auto missing = folder.path() / "none.json";
  EXPECT_EQ(refusal([&] { load_config(missing); }), "cannot read the config " + missing.string() + ": no such file.");
  EXPECT_EQ(refusal([&] { load_config(folder.path()); }),
            "cannot read the config " + folder.path().string() + ": it is a directory.");
  const auto large = folder.write("large.json", std::string((1 << 20) + 1, ' '));
  EXPECT_NE(refusal([&] { load_config(large); }).find("larger than 1 MiB"), std::string::npos);
}

TEST(Refusal, a_very_long_unknown_key_is_cut_in_the_message) {
  const auto message = refusal_of(R"({")" + std::string(100000, 'k') + R"(": 1})");
  EXPECT_LT(message.size(), 1000U);
  EXPECT_NE(message.find("unknown key"), std::string::npos);
}

}  // namespace
}  // namespace polaron
