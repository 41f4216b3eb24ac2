#include "train/config_changes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "io/json_file.h"

namespace polaron {
namespace {

using nlohmann::json;

// Keys, and groups of them.
constexpr std::array<std::string_view, 18> kWithoutEffect = {"allow_slow_bf16",
                                                             "checkpoint",
                                                             "data.train",
                                                             "data.validation",
                                                             "data.vocabulary",
                                                             "deterministic",
                                                             "device",
                                                             "diagnostics",
                                                             "init_from",
                                                             "name",
                                                             "output",
                                                             "parallel",
                                                             "sample",
                                                             "threads",
                                                             "training.loss_chunk",
                                                             "training.micro_batch",
                                                             "training.recompute",
                                                             "validation"};

// training.tokens follows training.steps.
bool has_effect(const std::string& key) {
  return key != "training.tokens" &&
         std::find(kWithoutEffect.begin(), kWithoutEffect.end(), key) == kWithoutEffect.end();
}

// Null: the config has no such key.
void compare(const json* before, const json* now, const std::string& key, std::vector<std::string>& changes) {
  if (!has_effect(key)) return;
  if (before != nullptr && now != nullptr && before->is_object() && now->is_object()) {
    std::set<std::string> names;
    for (const json* each : {before, now}) {
      for (const auto& [name, value] : each->items()) names.insert(name);
    }
    const auto find = [](const json& object, const std::string& name) {
      const auto at = object.find(name);
      return at == object.end() ? nullptr : &*at;
    };
    for (const std::string& name : names) {
      compare(find(*before, name), find(*now, name), key.empty() ? name : key + "." + name, changes);
    }
  } else if (before == nullptr || now == nullptr || *before != *now) {
    const auto text = [](const json* value) { return value == nullptr ? "not given" : value->dump(); };
    changes.push_back(fmt::format("{} was {}, is now {}", key, text(before), text(now)));
  }
}

}  // namespace

std::vector<std::string> config_changes(const std::string& before, const std::string& now) {
  std::vector<std::string> changes;
  const json a = parse_json(before, "the former config"), b = parse_json(now, "the config");
  compare(&a, &b, "", changes);
  return changes;
}

}  // namespace polaron
