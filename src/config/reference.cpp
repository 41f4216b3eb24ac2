// docs/config.md and the JSON schema, from the field table. Both are plain text with a fixed frame, so they are written
// as text.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "config/catalogue.h"
#include "config/config.h"
#include "config/enum_names.h"
#include "config/words.h"

namespace polaron {
namespace {

constexpr std::string_view introduction = R"(# Configuration

<!-- Written by `polaron config --markdown > docs/config.md` from src/config; do not edit by hand. -->

A run is described by one JSON file. Keys that are not given take the defaults listed here; `polaron plan CONFIG` shows
what comes out, and a run saves the effective configuration, complete, beside its results. This is a whole config:

```jsonc
{
  // Comments are allowed, // like this and /* like this */.
  "data": {"train": "data/mine/train_*.bin", "validation": "data/mine/validation_*.bin"},
  "model": {"preset": "gpt2", "layers": 6, "width": 384, "heads": 6, "context_length": 256},
  "training": {"steps": 2000, "batch": 32},
  "schedule": {"type": "wsd", "warmup_steps": 100},
  "optimizer": {"matrices": {"type": "low_rank_muon", "rank": "1/4"}},
  "validation": {"every": 200}
}
```

Everything is checked before anything is computed, and a mistake ends the program with exit code 2 and a message with
the file, the place and the nearest valid name:

```text
error: configs/mine.json: /optimizer/matrices/rnak: unknown key; did you mean "rank"?
```

Unknown keys, keys given twice, values of the wrong type or outside their limits, keys that the chosen type would not
use, and combinations that cannot be are all refused; nothing is ignored. Whole numbers may be written as `1e9`. Editors
check and complete a config that says `"$schema": "polaron.schema.json"` (a path from the config to
`configs/polaron.schema.json`).

## Layers

`"extends": "other.json"` puts the file over another one, named relative to it, which may extend a third. Then every
`--set key.path=value` of the command line is put on top: the value is JSON, or else taken as a string, and an entry of
a list is named by its number from 0.

```text
polaron train configs/gpt2-124m.json --set training.steps=500 --set data.train='data/mine/train_*.bin'
polaron train configs/gpt2-124m.json --set optimizer.matrices.type=adamw --set optimizer.matrices.lr=6e-4
```

Objects are merged key by key; lists and single values replace what was there; `null` takes an inherited key away, so
that its default holds again. Three rules keep layers from contradicting each other:

- A layer that gives one of `training.steps` and `training.tokens` takes the inherited other one away.
- A layer that gives an optimizer group another `type` starts the group anew: rates and ranks meant for one method are
  no guide for another. All `--set`s together are one layer, in any order.
- A layer that gives `schedule` another `type` takes those inherited keys away that the new type does not use.
)";

std::string limits_or(const FieldEntry& entry) {
  switch (entry.type) {
    case FieldType::boolean:
      return "`true`, `false`";
    case FieldType::integer:
      return "integer" + limits_text(entry.info) +
             (entry.info.word.empty() ? "" : fmt::format(", or `\"{}\"`", entry.info.word));
    case FieldType::number:
      return "number" + limits_text(entry.info);
    case FieldType::string:
      return "string";
    case FieldType::rank:
      return "integer of at least 1, or a fraction such as `\"1/8\"`";
    case FieldType::integers:
      return "list of integers";
    case FieldType::skips:
      return "list of pairs `[from, to]`";
    case FieldType::choice:
      break;
  }
  std::string list;
  for (const Choice& choice : entry.choices) list += fmt::format("{}`\"{}\"`", list.empty() ? "" : ", ", choice.name);
  return list;
}

std::string table(const std::vector<FieldEntry>& fields, bool used_by) {
  std::string text = used_by ? "| key | value | default | used by | meaning |\n|---|---|---|---|---|\n"
                             : "| key | value | default | meaning |\n|---|---|---|---|\n";
  for (const FieldEntry& entry : fields) {
    const std::string standard = entry.info.default_text.empty() ? fmt::format("`{}`", entry.default_value)
                                                                 : std::string(entry.info.default_text);
    text += fmt::format("| `{}` | {} | {} | ", entry.name, limits_or(entry), standard);
    if (used_by) text += fmt::format("{} | ", entry.info.applies_to.empty() ? "all" : entry.info.applies_to);
    text += entry.info.help;
    if (!used_by && !entry.info.applies_to.empty()) text += fmt::format(" (for {})", entry.info.applies_to);
    text += " |\n";
  }
  for (const FieldEntry& entry : fields) {
    if (entry.choices.empty()) continue;
    text += fmt::format("\n`{}`:\n\n", entry.name);
    for (const Choice& choice : entry.choices) text += fmt::format("- `\"{}\"`: {}\n", choice.name, choice.help);
  }
  return text;
}

// One column a variant; one row each field whose default depends on the variant.
struct Variant {
  std::string_view name;
  std::vector<FieldEntry> fields;
};

std::string comparison(const std::vector<Variant>& variants, std::string_view skip) {
  std::string text = "| key |";
  for (const Variant& variant : variants) text += fmt::format(" `{}` |", variant.name);
  text += "\n|---|";
  for (std::size_t i = 0; i < variants.size(); ++i) text += "---|";
  text += '\n';
  for (std::size_t row = 0; row < variants.front().fields.size(); ++row) {
    std::set<std::string> values;
    std::string cells;
    for (const Variant& variant : variants) {
      const FieldEntry& entry = variant.fields[row];
      if (entry.info.applies) values.insert(entry.default_value);
      cells += entry.info.applies ? fmt::format(" `{}` |", entry.default_value) : std::string(" - |");
    }
    const auto& [name, type, standard, choices, info] = variants.front().fields[row];
    const bool depends = values.size() > 1 || info.default_text.starts_with("depends");
    if (depends && name != skip) text += fmt::format("| `{}` |{}\n", name, cells);
  }
  return text;
}

std::string preset_table() {
  std::vector<Variant> variants;
  for (const auto& preset : enum_names(ModelPreset{})) {
    TransformerConfig values;
    apply_preset(values, preset.value);
    variants.push_back({preset.name, entries_of(values)});
  }
  return comparison(variants, "preset");
}

std::string kind_table(OptimizerGroup group) {
  std::vector<Variant> variants;
  for (const auto& kind : enum_names(OptimizerKind{})) {
    if (group != OptimizerGroup::matrices && is_matrix_kind(kind.value)) continue;
    variants.push_back({kind.name, entries_of(default_settings(group, kind.value))});
  }
  return comparison(variants, "type");
}

std::string json_string(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + '"';
}

// Whether null may stand in a value's place: where it takes an inherited key away.
enum class Null : bool { refused, allowed };

// The schema of one key, on one line.
std::string property(const FieldEntry& entry, Null null) {
  std::string rule;
  const Info& info = entry.info;
  switch (entry.type) {
    case FieldType::boolean:
      rule = R"("type": "boolean")";
      break;
    case FieldType::string:
      rule = R"("type": "string")";
      break;
    case FieldType::rank:
      rule = R"("anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]+/[0-9]+$"}])";
      break;
    case FieldType::integers:
      rule = fmt::format(R"("type": "array", "items": {{"type": "integer", "minimum": {}}})", info.min);
      break;
    case FieldType::skips:
      rule =
          R"("type": "array", "items": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2})";
      break;
    case FieldType::choice:
      for (const Choice& choice : entry.choices) rule += (rule.empty() ? "" : ", ") + json_string(choice.name);
      rule = "\"enum\": [" + rule + "]";
      break;
    case FieldType::integer:
    case FieldType::number:
      rule = entry.type == FieldType::integer ? R"("type": "integer")" : R"("type": "number")";
      if (std::isfinite(info.min))
        rule += fmt::format(", \"{}\": {}", info.above_min ? "exclusiveMinimum" : "minimum", info.min);
      if (std::isfinite(info.max))
        rule += fmt::format(", \"{}\": {}", info.below_max ? "exclusiveMaximum" : "maximum", info.max);
      if (!info.word.empty()) rule = fmt::format(R"("anyOf": [{{{}}}, {{"enum": ["{}"]}}])", rule, info.word);
      break;
  }
  if (null == Null::allowed) rule = fmt::format(R"("anyOf": [{{{}}}, {{"type": "null"}}])", rule);
  if (info.default_text.empty()) rule += ", \"default\": " + entry.default_value;
  std::string help(info.help);
  if (!info.default_text.empty()) help += fmt::format(". Default: {}", info.default_text);
  if (!info.applies_to.empty()) help += fmt::format(". For {}", info.applies_to);
  return fmt::format("{}: {{{}, \"description\": {}}}", json_string(entry.name), rule, json_string(help));
}

// An object schema with these lines as its properties, indented by `depth` levels.
std::string object_schema(const std::vector<std::string>& properties, std::string_view help, int depth, Null null) {
  const std::string indent(static_cast<std::size_t>(2 * depth), ' ');
  std::string text = "{\n";
  text += indent + "  \"type\": " + (null == Null::allowed ? R"(["object", "null"])" : R"("object")") + ",\n";
  if (!help.empty()) text += indent + "  \"description\": " + json_string(help) + ",\n";
  text += indent + "  \"additionalProperties\": false,\n" + indent + "  \"properties\": {\n";
  for (std::size_t i = 0; i < properties.size(); ++i) {
    text += indent + "    " + properties[i] + (i + 1 < properties.size() ? ",\n" : "\n");
  }
  return text + indent + "  }\n" + indent + "}";
}

std::vector<std::string> properties_of(const std::vector<FieldEntry>& fields, Null null = Null::allowed) {
  std::vector<std::string> lines;
  for (const FieldEntry& entry : fields) lines.push_back(property(entry, null));
  return lines;
}

// The keys of a group that is not for matrices: what adamw or sgd use.
std::vector<std::string> elementwise_properties() {
  const auto adamw = entries_of(default_settings(OptimizerGroup::vectors, OptimizerKind::adamw));
  OptimizerSettings settings = default_settings(OptimizerGroup::vectors, OptimizerKind::sgd);
  settings.momentum_warmup_steps = 1;  // so that momentum_start applies
  const auto sgd = entries_of(settings);
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < adamw.size(); ++i) {
    if (!adamw[i].info.applies && !sgd[i].info.applies) continue;
    FieldEntry entry = adamw[i];
    if (entry.name == "type") {
      std::erase_if(entry.choices,
                    [](const Choice& choice) { return is_matrix_kind(*value_of<OptimizerKind>(choice.name)); });
    }
    lines.push_back(property(entry, Null::allowed));
  }
  return lines;
}

std::string optimizer_schema(const std::vector<GroupEntry>& groups, std::string_view help) {
  std::vector<std::string> lines;
  for (const GroupEntry& group : groups) {
    if (!group.path.starts_with("optimizer.")) continue;
    const std::string name = group.path.substr(group.path.find('.') + 1);
    std::string rule;
    if (group.fields.empty()) {
      rule = R"("type": ["array", "null"], "items": {"$ref": "#/$defs/override"})";
    } else {
      rule = fmt::format(R"("$ref": "#/$defs/{}")", name == "matrices" ? "matrix_optimizer" : "elementwise_optimizer");
    }
    lines.push_back(
        fmt::format("{}: {{{}, \"description\": {}}}", json_string(name), rule, json_string(group.info.intro)));
  }
  return object_schema(lines, help, 2, Null::allowed);
}

}  // namespace

std::string config_reference_markdown() {
  std::string text(introduction);
  for (const GroupEntry& group : catalogue()) {
    const bool role = group.path.starts_with("optimizer."), nested = group.path.find('.') != std::string::npos;
    if (group.path.empty()) {
      text += "\n## The run\n\nKeys of the outermost object.\n";
    } else {
      text += fmt::format("\n{} {}\n\n{}\n", nested ? "###" : "##", group.path, group.info.intro);
    }
    if (!group.info.example.empty()) text += fmt::format("\n```json\n{}\n```\n", group.info.example);
    if (group.path == "optimizer") {
      text += "\n### Keys of an optimizer group\n\n";
      text += table(entries_of(default_settings(OptimizerGroup::matrices, OptimizerKind::muon)), true);
      text += "\nDefaults that depend on `type`, for matrices (-: the type does not use the key):\n\n";
      text += kind_table(OptimizerGroup::matrices);
      const OptimizerSettings matched =
          default_settings(OptimizerGroup::matrices, OptimizerKind::muon, ScaleKind::match_rms_adamw);
      text +=
          fmt::format("\nand with the `match_rms_adamw` scale `lr` {} and `weight_decay` {}; for the other roles:\n\n",
                      matched.lr, matched.weight_decay);
      text += kind_table(OptimizerGroup::vectors);
    } else if (!role && !group.fields.empty()) {
      text += '\n' + table(group.fields, false);
    }
    if (group.path == "model") {
      text += "\nWhat the presets decide:\n\n" + preset_table();
    }
  }
  return text;
}

std::string config_json_schema() {
  const std::vector<GroupEntry> groups = catalogue();
  std::vector<std::string> root{
      R"("$schema": {"type": "string", "description": "the schema's address, for editors"})",
      R"("extends": {"type": "string", "description": "the config that this one is put over, relative to this file"})"};
  for (const std::string& line : properties_of(groups.front().fields)) root.push_back(line);
  for (const GroupEntry& group : groups) {
    if (group.path.find('.') != std::string::npos || group.path.empty()) continue;
    std::vector<std::string> properties = properties_of(group.fields);
    for (const GroupEntry& child : groups) {
      if (!child.path.starts_with(group.path + '.') || group.path == "optimizer") continue;
      properties.push_back(json_string(child.path.substr(group.path.size() + 1)) + ": " +
                           object_schema(properties_of(child.fields), child.info.intro, 4, Null::allowed));
    }
    const std::string schema = group.path == "optimizer"
                                   ? optimizer_schema(groups, group.info.intro)
                                   : object_schema(properties, group.info.intro, 2, Null::allowed);
    root.push_back(json_string(group.path) + ": " + schema);
  }
  const auto matrix = entries_of(default_settings(OptimizerGroup::matrices, OptimizerKind::muon));
  std::vector<std::string> entry{R"("pattern": {"type": "string", "description": "glob of parameter names"})"};
  for (const std::string& line : properties_of(matrix, Null::refused)) entry.push_back(line);
  std::string body = object_schema(root, "Config of a polaron run: docs/config.md", 0, Null::refused);
  body.erase(0, 2);  // its "{\n", so that the heads below come first
  return "{\n  \"$schema\": \"https://json-schema.org/draft/2020-12/schema\",\n  \"title\": \"polaron config\",\n"
         "  \"$defs\": {\n    \"matrix_optimizer\": " +
         object_schema(properties_of(matrix), "", 2, Null::allowed) +
         ",\n    \"elementwise_optimizer\": " + object_schema(elementwise_properties(), "", 2, Null::allowed) +
         ",\n    \"override\": " + object_schema(entry, "", 2, Null::refused) + "\n  },\n" + body + '\n';
}

}  // namespace polaron
