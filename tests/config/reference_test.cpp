// The reference, the schema and the shipped configs belong to the field table.
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <set>
#include <sstream>

#include "config/catalogue.h"
#include "support.h"

namespace polaron {
namespace {

const std::filesystem::path source = POLARON_SOURCE_DIR;

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void expect_generated(const char* name, const std::string& text, const char* option) {
  const auto path = source / name;
  if (std::getenv("POLARON_REGENERATE") != nullptr) std::ofstream(path, std::ios::binary) << text;
  EXPECT_TRUE(contents(path) == text) << name
                                      << " differs from what the field table says. Regenerate it:\n  polaron config --"
                                      << option << " > " << name
                                      << "\nor run this test with POLARON_REGENERATE=1 in the environment.";
}

TEST(Reference, docs_config_md_is_what_the_table_says) {
  expect_generated("docs/config.md", config_reference_markdown(), "markdown");
}

TEST(Reference, the_schema_file_is_what_the_table_says) {
  expect_generated("configs/polaron.schema.json", config_json_schema(), "schema");
}

TEST(Reference, every_key_has_a_description_and_a_row) {
  const std::string text = config_reference_markdown();
  std::size_t keys = 0;
  for (const GroupEntry& group : catalogue()) {
    for (const FieldEntry& entry : group.fields) {
      EXPECT_FALSE(entry.info.help.empty()) << group.path << ' ' << entry.name;
      EXPECT_NE(text.find("\n| `" + entry.name + "` | "), std::string::npos) << group.path << ' ' << entry.name;
      ++keys;
    }
    if (!group.path.empty()) {
      EXPECT_NE(text.find("# " + group.path + "\n"), std::string::npos);
    }
  }
  EXPECT_GT(keys, 100U);
}

TEST(Reference, every_key_of_the_effective_config_is_in_the_table_and_the_schema) {
  const auto schema = nlohmann::json::parse(config_json_schema());
  const auto document = nlohmann::json::parse(to_json(parse(minimal)));
  for (const auto& [name, value] : document.items()) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(schema["properties"].contains(name));
    if (!value.is_object() || name == "optimizer") continue;
    for (const auto& [key, inner] : value.items()) {
      EXPECT_TRUE(schema["properties"][name]["properties"].contains(key)) << key;
    }
  }
  for (const auto& [name, group] : document["optimizer"].items()) {
    EXPECT_TRUE(schema["properties"]["optimizer"]["properties"].contains(name)) << name;
    if (name == "overrides") continue;
    const char* rules = name == "matrices" ? "matrix_optimizer" : "elementwise_optimizer";
    for (const auto& [key, inner] : group.items()) {
      EXPECT_TRUE(schema["$defs"][rules]["properties"].contains(key)) << name << ' ' << key;
    }
  }
}

// Every object of the schema closes itself against unknown keys, and every key is described.
void expect_strict(const nlohmann::json& node, const std::string& at) {
  if (!node.is_object()) return;
  if (node.contains("properties")) {
    EXPECT_EQ(node.value("additionalProperties", true), false) << at;
    for (const auto& [key, value] : node["properties"].items()) {
      EXPECT_TRUE(value.contains("description")) << at << '/' << key;
      expect_strict(value, at + '/' + key);
    }
  }
  if (node.contains("$defs")) {
    for (const auto& [key, value] : node["$defs"].items()) expect_strict(value, at + '/' + key);
  }
}

TEST(Reference, the_schema_is_strict_and_described_throughout) {
  const auto schema = nlohmann::json::parse(config_json_schema());
  EXPECT_EQ(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
  expect_strict(schema, "");
  const auto& roles = schema["$defs"]["elementwise_optimizer"]["properties"];
  EXPECT_EQ(roles["type"]["anyOf"][0]["enum"], nlohmann::json({"adamw", "sgd"}));
  EXPECT_FALSE(roles.contains("rank"));
}

bool allows_null(const nlohmann::json& rule) {
  if (rule.contains("anyOf")) return std::any_of(rule["anyOf"].begin(), rule["anyOf"].end(), allows_null);
  const auto type = rule.value("type", nlohmann::json());
  return type == "null" || (type.is_array() && std::find(type.begin(), type.end(), "null") != type.end());
}

TEST(Reference, the_schema_allows_null_where_the_program_does) {
  const auto schema = nlohmann::json::parse(config_json_schema());
  // A config in which the value at `pointer` is null.
  const auto accepted = [](const std::string& pointer) {
    auto document = nlohmann::json::parse(minimal);
    document[nlohmann::json::json_pointer(pointer)] = nullptr;
    const std::string refused = refusal_of(document.dump());
    return refused == "accepted" || refused.find(": missing; ") != std::string::npos;
  };
  const auto resolved = [&](const nlohmann::json& rule) {
    const std::string reference = rule.value("$ref", "#");
    return reference == "#" ? rule : schema[nlohmann::json::json_pointer(reference.substr(1))];
  };
  int keys = 0;
  const std::function<void(const nlohmann::json&, const std::string&)> compare = [&](const nlohmann::json& object,
                                                                                     const std::string& pointer) {
    for (const auto& [key, value] : object["properties"].items()) {
      const std::string at = pointer + '/' + key;
      const nlohmann::json rule = resolved(value);
      EXPECT_EQ(allows_null(rule), accepted(at)) << at;
      if (rule.contains("properties")) compare(rule, at);
      ++keys;
    }
  };
  compare(schema, "");
  EXPECT_GT(keys, 100);
  for (const auto& [key, rule] : schema["$defs"]["override"]["properties"].items()) {
    EXPECT_FALSE(allows_null(rule)) << key;
  }
}

TEST(Reference, keys_whose_default_the_preset_decides_say_so) {
  TransformerConfig gpt2;
  TransformerConfig llama;
  apply_preset(gpt2, ModelPreset::gpt2);
  apply_preset(llama, ModelPreset::llama);
  const auto left = entries_of(gpt2);
  const auto right = entries_of(llama);
  for (std::size_t i = 0; i < left.size(); ++i) {
    if (left[i].name == "preset") continue;
    EXPECT_EQ(left[i].default_value != right[i].default_value, left[i].info.default_text == "preset") << left[i].name;
  }
}

// Every ```json block of docs/config.md, put over a minimal config.
TEST(Reference, its_examples_are_accepted) {
  const Folder folder;
  folder.write("base.json",
               with(R"({"data": {"validation": "v"}, "model": {"context_length": 512}, "training": {"steps": 100}})"));
  const std::string text = config_reference_markdown();
  int examples = 0;
  for (std::size_t at = text.find("```json"); at != std::string::npos; at = text.find("```json", at)) {
    const std::size_t begin = text.find('\n', at) + 1;
    const std::size_t end = text.find("```", begin);
    std::string example = text.substr(begin, end - begin);
    SCOPED_TRACE(example);
    const bool complete = text.compare(at, 8, "```jsonc") == 0;
    if (!complete) example.replace(example.find('{'), 1, R"({"extends": "base.json", )");
    const auto file = folder.write("example.json", example);
    EXPECT_EQ(refusal([&] { load_config(file); }), "accepted");
    at = end + 3;
    ++examples;
  }
  EXPECT_GE(examples, 8);
}

// Paths below configs/ of those that `base` says: what others extend, in folders of that name, or what is run.
std::vector<std::string> shipped(bool base) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(source / "configs")) {
    const std::string name = entry.path().lexically_relative(source / "configs").generic_string();
    if (!name.ends_with(".json") || name == "polaron.schema.json") continue;
    if ((entry.path().parent_path().filename() == "base") == base) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST(ShippedConfigs, each_is_accepted_and_reads_back_and_has_a_name_of_its_own) {
  const auto names = shipped(false);
  std::set<std::string> runs;  // whose folders must not be the same
  EXPECT_GE(names.size(), 34U);
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    Config c;
    ASSERT_EQ(refusal([&] { c = load_config(source / "configs" / name); }), "accepted");
    EXPECT_TRUE(runs.insert(c.output).second) << c.output;
    EXPECT_EQ(parse_config(to_json(c), "x.json"), c);
  }
}

TEST(ShippedConfigs, what_is_there_to_be_extended_is_extended) {
  std::set<std::string> extended;
  for (const bool base : {false, true}) {
    for (const std::string& name : shipped(base)) {
      const auto document = nlohmann::json::parse(contents(source / "configs" / name), nullptr, true, true);
      if (!document.contains("extends")) continue;
      const auto target = std::filesystem::path(name).parent_path() / document["extends"].get<std::string>();
      extended.insert(target.lexically_normal().generic_string());
    }
  }
  const auto bases = shipped(true);
  EXPECT_GE(bases.size(), 6U);
  for (const std::string& name : bases) EXPECT_EQ(extended.count(name), 1U) << name;
}

TEST(ShippedConfigs, models_have_the_published_shapes) {
  struct Shape {
    const char* name;
    std::int64_t layers, width, heads, mlp_hidden, vocabulary;
  };
  for (const Shape& shape :
       {Shape{"gpt2-124m", 12, 768, 12, 3072, 50257}, Shape{"gpt2-350m", 24, 1024, 16, 4096, 50257},
        Shape{"gpt2-774m", 36, 1280, 20, 5120, 50257}, Shape{"gpt2-1558m", 48, 1600, 25, 6400, 50257},
        Shape{"llama-60m", 8, 512, 8, 1376, 32000}, Shape{"llama-130m", 12, 768, 12, 2048, 32000},
        Shape{"llama-350m", 24, 1024, 16, 2736, 32000}, Shape{"llama-1b", 24, 2048, 32, 5461, 32000}}) {
    SCOPED_TRACE(shape.name);
    const TransformerConfig m = load_config(source / "configs" / (std::string(shape.name) + ".json")).model;
    EXPECT_EQ(m.layers, shape.layers);
    EXPECT_EQ(m.width, shape.width);
    EXPECT_EQ(m.heads, shape.heads);
    EXPECT_EQ(m.kv_heads, shape.heads);
    EXPECT_EQ(m.mlp_hidden, shape.mlp_hidden);
    EXPECT_EQ(m.vocabulary, shape.vocabulary);
    EXPECT_EQ(m.context_length, 1024);
    EXPECT_EQ(m.preset == ModelPreset::llama, std::string_view(shape.name).starts_with("llama"));
  }
}

TEST(ShippedConfigs, the_quickstart_is_a_small_byte_model_trained_by_low_rank_muon) {
  const Config c = load_config(source / "configs/quickstart.json");
  EXPECT_EQ(c.model.vocabulary, 0);
  EXPECT_EQ(c.output, "runs/quickstart");
  EXPECT_EQ(c.data.train, "data/quickstart/train_*.bin");
  EXPECT_EQ(c.optimizer.matrices.kind, OptimizerKind::low_rank_muon);
  EXPECT_LE(c.training.steps * c.training.batch * c.training.sequence_length, 10'000'000);
}

}  // namespace
}  // namespace polaron
