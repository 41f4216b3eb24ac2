#include "train/huggingface.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/helpers.h"
#include "model/features.h"
#include "parity/fixture.h"

namespace polaron {
namespace {

using nlohmann::json;
using test::TestFolder;

using Shapes = std::map<std::string, std::vector<std::int64_t>>;

TransformerConfig read_config_text(const std::string& text) {
  const TestFolder folder;
  test::put(folder / "config.json", text);
  return read_huggingface_config(folder / "config.json");
}

// --- names and shapes
// -------------------------------------------------------------------------------------------------

TEST(HuggingFace, names_and_shapes_are_those_that_transformers_wrote) {
  for (const char* model : test::kFixtureModels) {
    const std::filesystem::path folder = test::fixtures() / model;
    Shapes written;
    const SafetensorsReader file(folder / "model.safetensors");
    for (const TensorInfo& info : file.tensors()) {
      if (info.name.ends_with(".attn.bias")) continue;  // a causal mask
      const bool bare = std::string_view(model) == "gpt2_variant";
      written[(bare ? "transformer." : "") + info.name] = info.shape;
    }
    const TransformerConfig config = read_huggingface_config(folder / "config.json");
    Shapes exported;
    for (const ExportedTensor& tensor : exported_tensors(config, ParameterTable(config))) {
      exported[tensor.name] = tensor.shape();
    }
    EXPECT_EQ(exported, written) << model;
  }
}

TEST(HuggingFace, every_layout_holds_every_parameter_exactly_once) {
  for (const test::Feature& feature : test::all_features()) {
    const ParameterTable table(feature.config);
    std::vector<int> seen(static_cast<std::size_t>(table.stored_elements()));
    std::set<std::string> names;
    for (const ExportedTensor& tensor : exported_tensors(feature.config, table)) {
      EXPECT_TRUE(names.insert(tensor.name).second) << feature.name << ": " << tensor.name << " occurs twice";
      const Parameter& p = table[tensor.parameter];
      for (std::int64_t i = 0; i < tensor.rows; ++i) {
        for (std::int64_t j = 0; j < tensor.cols; ++j) {
          ++seen[static_cast<std::size_t>(p.offset + (tensor.first_row + i) * p.stored_cols + j)];
        }
      }
    }
    const std::vector<char> padding = test::padding_of(table);
    for (std::size_t i = 0; i < seen.size(); ++i) ASSERT_EQ(seen[i], padding[i] != 0 ? 0 : 1) << feature.name;
  }
}

TEST(HuggingFace, models_that_transformers_has_no_class_for_keep_their_own_names) {
  EXPECT_EQ(layout_of(test::tiny_gpt2()), CheckpointLayout::gpt2);
  EXPECT_EQ(layout_of(test::tiny_llama()), CheckpointLayout::llama);
  const std::map<std::string, CheckpointLayout> expected = {
      {"gelu_exact", CheckpointLayout::gpt2},
      {"untied_gpt2", CheckpointLayout::gpt2},
      {"large_norm_eps", CheckpointLayout::gpt2},
      {"relu2", CheckpointLayout::native},
      {"learned_positions_without_biases", CheckpointLayout::native},
      {"swiglu_with_biases", CheckpointLayout::llama},
      {"tied_rotary", CheckpointLayout::llama},
      {"grouped_queries_4_to_1", CheckpointLayout::llama},
      {"heads_wider_than_the_model", CheckpointLayout::llama},
      {"documents", CheckpointLayout::llama},  // a mask of the data, not of the model
      {"qk_norm", CheckpointLayout::native},
      {"logit_softcap", CheckpointLayout::native},
      {"attention_window", CheckpointLayout::native},
      {"attention_scale", CheckpointLayout::native},
      {"layernorm_without_gains", CheckpointLayout::native},
      {"rmsnorm_without_gains", CheckpointLayout::native},
  };
  std::size_t met = 0;
  for (const test::Feature& feature : test::all_features()) {
    const auto found = expected.find(feature.name);
    if (found == expected.end()) continue;
    ++met;
    EXPECT_EQ(layout_of(feature.config), found->second) << feature.name;
  }
  EXPECT_EQ(met, expected.size());
}

// --- config.json
// ------------------------------------------------------------------------------------------------------

TEST(HuggingFace, a_written_config_reads_back_as_it_was) {
  for (const test::Feature& feature : test::all_features()) {
    EXPECT_EQ(read_config_text(huggingface_config(feature.config, 3)), feature.config) << feature.name;
  }
}

// What transformers (or a tool that knows only its keys) keeps of a config.json is enough for the model's function.
TEST(HuggingFace, the_keys_of_transformers_alone_give_the_same_model) {
  for (const test::Feature& feature : test::all_features()) {
    if (layout_of(feature.config) == CheckpointLayout::native) continue;
    json document = json::parse(huggingface_config(feature.config, -1));
    document.erase("polaron");
    TransformerConfig config = read_config_text(document.dump());
    config.preset = feature.config.preset;
    config.document_mask = feature.config.document_mask;
    config.init_std = feature.config.init_std;
    config.init_scale_residual = feature.config.init_scale_residual;
    EXPECT_NEAR(config.attention_scale, feature.config.attention_scale, 1e-12);
    config.attention_scale = feature.config.attention_scale;
    EXPECT_EQ(config, feature.config) << feature.name;
  }
}

TEST(HuggingFace, config_json_says_what_transformers_asks_for) {
  const json gpt2 = json::parse(huggingface_config(test::tiny_gpt2(), 7));
  EXPECT_EQ(gpt2.at("architectures"), json({"GPT2LMHeadModel"}));
  EXPECT_EQ(gpt2.at("model_type"), "gpt2");
  EXPECT_EQ(gpt2.at("activation_function"), "gelu_new");
  EXPECT_EQ(gpt2.at("n_inner"), 70);
  EXPECT_EQ(gpt2.at("vocab_size"), 61);  // without padding
  EXPECT_EQ(gpt2.at("tie_word_embeddings"), true);
  EXPECT_EQ(gpt2.at("eos_token_id"), 7);
  EXPECT_EQ(gpt2.at("attn_pdrop"), 0.0);
  const json llama = json::parse(huggingface_config(test::tiny_llama(), -1));
  EXPECT_EQ(llama.at("architectures"), json({"LlamaForCausalLM"}));
  EXPECT_EQ(llama.at("intermediate_size"), 85);
  EXPECT_EQ(llama.at("num_key_value_heads"), 2);
  EXPECT_EQ(llama.at("head_dim"), 8);
  EXPECT_EQ(llama.at("rope_theta"), 10000.0);
  EXPECT_EQ(llama.at("tie_word_embeddings"), false);
  EXPECT_TRUE(llama.at("eos_token_id").is_null());
  TransformerConfig native = test::tiny_llama();
  native.qk_norm = true;
  EXPECT_EQ(json::parse(huggingface_config(native, -1)).at("model_type"), "polaron");
}

TEST(HuggingFace, both_places_of_the_rotary_base_are_read) {
  EXPECT_EQ(read_huggingface_config(test::fixtures() / "llama" / "config.json").rotary_base, 10000.0);
  EXPECT_EQ(read_huggingface_config(test::fixtures() / "llama_variant" / "config.json").rotary_base, 500000.0);
  json document = json::parse(test::get(test::fixtures() / "llama" / "config.json"));
  document["rope_parameters"]["rope_theta"] = 1234.0;
  EXPECT_EQ(read_config_text(document.dump()).rotary_base, 1234.0);
}

// --- what is refused
// --------------------------------------------------------------------------------------------------

// Reads a fixture's config.json with `patch` merged over it; the message of the Error.
std::string refusal(const char* model, const std::string& patch) {
  const TestFolder folder;
  json document = json::parse(test::get(test::fixtures() / model / "config.json"));
  document.merge_patch(json::parse(patch));
  test::put(folder / "config.json", document.dump());
  const std::string message = test::data_error([&] { read_huggingface_config(folder / "config.json"); });
  EXPECT_TRUE(test::contains(message, (folder / "config.json").string()));
  return message;
}

TEST(HuggingFace, settings_without_counterpart_are_refused_by_name) {
  const auto expect_names = [](const char* model, const std::string& patch, const char* setting) {
    EXPECT_TRUE(test::contains(refusal(model, patch), setting)) << patch;
  };
  expect_names("gpt2", R"({"activation_function": "relu"})", "activation_function");
  expect_names("gpt2", R"({"scale_attn_weights": false})", "scale_attn_weights");
  expect_names("gpt2", R"({"scale_attn_by_inverse_layer_idx": true})", "scale_attn_by_inverse_layer_idx");
  expect_names("gpt2", R"({"n_head": 5})", "n_head");
  expect_names("gpt2", R"({"n_head": 0})", "n_head");
  expect_names("gpt2", R"({"model_type": "opt"})", "opt");
  expect_names("gpt2", R"({"model_type": null})", "model_type");
  expect_names("gpt2", R"({"n_embd": "wide"})", "n_embd");
  expect_names("gpt2", R"({"n_layer": null})", "n_layer");
  expect_names("gpt2", R"({"n_layer": 1.5})", "n_layer");
  expect_names("gpt2", R"({"n_layer": -1})", "layers");
  expect_names("gpt2", R"({"tie_word_embeddings": 1})", "tie_word_embeddings");
  expect_names("gpt2", R"({"vocab_size": 0})", "vocabulary");
  expect_names("llama", R"({"hidden_act": "gelu"})", "hidden_act");
  expect_names("llama", R"({"num_key_value_heads": 3})", "num_key_value_heads");
  expect_names("llama", R"({"rope_parameters": {"rope_type": "llama3"}})", "rope_scaling");
  expect_names("llama_variant", R"({"rope_scaling": {"type": "linear", "factor": 2.0}})", "rope_scaling");
  expect_names("llama", R"({"attention_bias": true})", "attention_bias");
  expect_names("llama", R"({"head_dim": 11})", "head_size");  // odd: nothing to rotate by halves
  expect_names("llama", R"({"rms_norm_eps": -1.0})", "norm_eps");
}

TEST(HuggingFace, a_damaged_own_description_is_refused_by_key) {
  json document = json::parse(huggingface_config(test::tiny_llama(), -1));
  const auto refused = [&](const char* key, const json& value) {
    json changed = document;
    changed["polaron"][key] = value;
    const TestFolder folder;
    test::put(folder / "config.json", changed.dump());
    const std::string message = test::data_error([&] { read_huggingface_config(folder / "config.json"); });
    EXPECT_TRUE(test::contains(message, (folder / "config.json").string()));
    EXPECT_TRUE(test::contains(message, key));
  };
  refused("mlp", "gated_tanh");
  refused("norm", "batchnorm");
  refused("positions", "alibi");
  refused("preset", "bert");
  refused("kv_heads", 3);
  refused("head_size", 7);
  refused("width", 0);
  refused("layers", std::int64_t{1} << 40);
  refused("a_key_of_the_future", true);
  document["polaron"].erase("width");
  EXPECT_TRUE(test::contains(test::data_error([&] { read_config_text(document.dump()); }), "width"));
}

TEST(HuggingFace, an_own_description_without_a_later_feature_means_that_feature_off) {
  json document = json::parse(huggingface_config(test::tiny_llama(), -1));
  document["polaron"].erase("x0_mixing");
  EXPECT_EQ(read_config_text(document.dump()), test::tiny_llama());
}

TEST(HuggingFace, a_config_that_is_no_json_object_is_refused) {
  for (const char* text : {"", "{", "[1, 2]", "\"gpt2\"", "null"}) {
    EXPECT_TRUE(test::contains(test::data_error([&] { read_config_text(text); }), "config.json")) << text;
  }
}

TEST(HuggingFace, differences_of_architecture_are_named) {
  const TransformerConfig there = test::tiny_llama();
  EXPECT_TRUE(architecture_differences(there, there).empty());
  TransformerConfig here = there;
  here.init_std = 1.0;
  here.init_scale_residual = true;
  here.document_mask = true;
  EXPECT_TRUE(architecture_differences(there, here).empty());
  here.heads = 8;
  here.mlp = MlpKind::relu2;
  std::set<std::string> keys;
  for (const ArchitectureDifference& difference : architecture_differences(there, here)) keys.insert(difference.key);
  EXPECT_EQ(keys, (std::set<std::string>{"heads", "mlp"}));
}

}  // namespace
}  // namespace polaron
