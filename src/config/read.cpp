// JSON -> Config, along the field table.
#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "config/catalogue.h"
#include "config/documents.h"
#include "config/enum_names.h"
#include "config/fields.h"
#include "config/resolve.h"
#include "config/words.h"

namespace polaron {
namespace {

struct Reading {
  std::string origin;
  bool complete = true;  // all layers are together: keys that do not apply are refused. Otherwise null is accepted
};

// A value as a message shows it.
std::string shown(const Json& value) {
  constexpr std::size_t longest = 60;
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > longest) text = text.substr(0, longest) + "...";
  return value.is_string() ? "the string " + text : text;
}

bool within(double value, const Info& info) {
  return (info.above_min ? value > info.min : value >= info.min) &&
         (info.below_max ? value < info.max : value <= info.max);
}

OptimizerSettings put_over(const OptimizerSettings* below, OptimizerGroup group, const Json& keys,
                           const std::string& pointer, const Reading& how);

class Reader {
 public:
  Reader(const Json& object, std::string pointer, const Reading& how)
      : object_(object), pointer_(std::move(pointer)), how_(how) {
    if (!object.is_object()) refuse(how.origin, pointer_, "expected an object, {...}, got " + shown(object));
    if (const auto type = object.find("type"); type != object.end() && type->is_string()) {
      type_ = type->get<std::string>();
    }
  }

  template <class T>
  void field(std::string_view name, T& value, const Info& info) {
    const Json* given = look_up(name, info);
    if (given == nullptr) return;
    if constexpr (std::is_enum_v<T>) {
      read_enum(*given, value, name);
    } else {
      read(*given, value, info, name);
    }
  }

  template <class S>
  void group(std::string_view name, S& settings, const GroupInfo&) {
    names_.emplace_back(name);
    if (const Json* given = find(name)) {
      Reader child(*given, join_pointer(pointer_, name), how_);
      child.prepare(settings);
      describe(child, settings);
      child.finish();
    }
  }

  void optimizer_group(std::string_view name, OptimizerSettings& settings, OptimizerGroup group, const GroupInfo&) {
    names_.emplace_back(name);
    if (const Json* given = find(name)) {
      const std::string pointer = join_pointer(pointer_, name);
      settings = put_over(nullptr, group, *given, pointer, how_);
      if (is_matrix_kind(settings.kind) && group != OptimizerGroup::matrices) {
        refuse(how_.origin, pointer + "/type",
               fmt::format("{} is for matrices; {} take adamw or sgd", name_of(settings.kind), name));
      }
    }
    groups_.emplace_back(group, settings);
  }

  void overrides(std::string_view name, std::vector<OptimizerConfig::RawOverride>& list, const GroupInfo&) {
    names_.emplace_back(name);
    const Json* given = find(name);
    if (given == nullptr) return;
    const std::string pointer = join_pointer(pointer_, name);
    if (!given->is_array()) {
      refuse(how_.origin, pointer, R"(expected a list, [{"pattern": ..., ...}], got )" + shown(*given));
    }
    list.clear();
    for (std::size_t i = 0; i < given->size(); ++i) {
      list.push_back(read_override((*given)[i], pointer + '/' + std::to_string(i)));
    }
  }

  void finish() const {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(names_.begin(), names_.end(), key) == names_.end()) refuse_unknown(key);
    }
  }

 private:
  const Json* find(std::string_view name) const {
    const auto found = object_.find(std::string(name));
    if (found == object_.end() || (found->is_null() && !how_.complete)) return nullptr;
    return &*found;
  }

  // The key's value, if it is given; apart from field() because that is compiled once a key.
  const Json* look_up(std::string_view name, const Info& info) {
    names_.emplace_back(name);
    const Json* given = find(name);
    if (given != nullptr && how_.complete && !info.applies) refuse_idle(name, info);
    return given;
  }

  // What must be known before the fields are read, because their defaults depend on it.
  template <class S>
  void prepare(S&) {}
  void prepare(TransformerConfig& model) {
    const Json* preset = find("preset");
    if (preset == nullptr || !preset->is_string()) return;
    if (const auto known = value_of<ModelPreset>(preset->get_ref<const std::string&>())) apply_preset(model, *known);
  }
  void prepare(ScheduleConfig& schedule) {
    if (type_.empty()) type_ = name_of(schedule.kind);
  }
  void prepare(SpectraConfig& spectra) { spectra.every = kSpectraEvery; }  // who gives the group wants it

  [[noreturn]] void refuse_idle(std::string_view name, const Info& info) const {
    std::string text = fmt::format("{} is for {}", name, info.applies_to);
    if (!info.applies_instead.empty()) {
      text += fmt::format("; {}", info.applies_instead);
    } else if (!type_.empty()) {
      text += fmt::format("; the type here is {}", type_);
    }
    refuse(how_.origin, join_pointer(pointer_, name), text);
  }

  [[noreturn]] void expected(std::string_view name, const std::string& wanted, const Json& got,
                             const std::string& advice = "") const {
    refuse(how_.origin, join_pointer(pointer_, name), fmt::format("expected {}, got {}{}", wanted, shown(got), advice));
  }

  void read(const Json& given, bool& value, const Info&, std::string_view name) const {
    if (!given.is_boolean()) expected(name, "true or false", given);
    value = given.get<bool>();
  }

  // 1e9 and 1.0 are integers as well, up to 2^53, where they are certainly the integers that they look.
  static bool whole(const Json& given) {
    constexpr double exact = 9007199254740992.0;
    return given.is_number_float() && std::trunc(given.get<double>()) == given.get<double>() &&
           std::abs(given.get<double>()) <= exact;
  }

  void read(const Json& given, std::int64_t& value, const Info& info, std::string_view name) const {
    if (!info.word.empty() && given.is_string() && given.get_ref<const std::string&>() == info.word) {
      value = -1;
      return;
    }
    const bool is_integer = given.is_number_integer() || whole(given);  // beyond int64 the limits refuse it
    if (!is_integer || !within(given.get<double>(), info)) {
      expected(name,
               "an integer" + limits_text(info) + (info.word.empty() ? "" : fmt::format(", or \"{}\"", info.word)),
               given);
    }
    value = given.is_number_float() ? static_cast<std::int64_t>(given.get<double>()) : given.get<std::int64_t>();
  }

  void read(const Json& given, std::uint64_t& value, const Info&, std::string_view name) const {
    const bool natural = given.is_number_unsigned() || (whole(given) && given.get<double>() >= 0);
    if (!natural) expected(name, "an integer from 0 to 2^64 - 1", given);
    value = given.get<std::uint64_t>();
  }

  void read(const Json& given, double& value, const Info& info, std::string_view name) const {
    if (!given.is_number() || !within(given.get<double>(), info)) expected(name, "a number" + limits_text(info), given);
    value = given.get<double>();
    // Numbers are used in fp32. Their limits hold for what they become, and zero, often "off", is only for who asks.
    const double used = static_cast<float>(value);
    if (!std::isfinite(used) || (used == 0 && value != 0) || !within(used, info)) {
      expected(name, "a number" + limits_text(info), given, fmt::format(", which becomes {} in fp32", used));
    }
  }

  void read(const Json& given, std::string& value, const Info& info, std::string_view name) const {
    if (!given.is_string() && info.choices.empty()) expected(name, "a string", given);
    if (!info.choices.empty()) {
      std::vector<std::string> names;
      for (const Choice& choice : info.choices) names.emplace_back(choice.name);
      read_choice(given, names, name);
    }
    value = given.get<std::string>();
  }

  template <class E>
  void read_enum(const Json& given, E& value, std::string_view name) const {
    std::vector<std::string> names;
    for (const auto& known : enum_names(E{})) names.emplace_back(known.name);
    read_choice(given, names, name);
    value = *value_of<E>(given.get_ref<const std::string&>());
  }

  void read_choice(const Json& given, const std::vector<std::string>& names, std::string_view name) const {
    std::string advice;
    if (given.is_string()) {
      const auto& text = given.get_ref<const std::string&>();
      if (std::find(names.begin(), names.end(), text) != names.end()) return;
      const std::string_view near = nearest_name(text, names);
      if (!near.empty()) advice = fmt::format("; did you mean \"{}\"?", near);
    }
    expected(name, "one of " + quoted_list(names), given, advice);
  }

  void read(const Json& given, RankSpec& value, const Info&, std::string_view name) const {
    constexpr std::int64_t largest = 1 << 24;
    RankSpec rank{0, 1};
    if (given.is_string()) {
      const std::string text = given.get<std::string>();
      const auto slash = text.find('/');
      const auto digits = [](const std::string& part) {
        return !part.empty() && part.size() <= 8 && part.find_first_not_of("0123456789") == std::string::npos;
      };
      if (slash != std::string::npos && digits(text.substr(0, slash)) && digits(text.substr(slash + 1))) {
        rank = {std::stoll(text.substr(0, slash)), std::stoll(text.substr(slash + 1))};
        if (rank.numerator >= rank.denominator) rank.numerator = 0;
      }
    } else if ((given.is_number_integer() || whole(given)) && within(given.get<double>(), {.min = 1, .max = largest})) {
      rank = {given.get<std::int64_t>(), 1};
    }
    if (rank.numerator < 1) {
      expected(name, R"(a rank: an integer of at least 1, or a fraction of the width below 1 such as "1/8")", given);
    }
    value = rank;
  }

  // A number of a block of the model.
  std::int64_t read_block(const Json& given, std::string_view name) const {
    std::int64_t block = 0;
    read(given, block, {.min = 0, .max = most_blocks}, name);
    return block;
  }
  void read(const Json& given, std::vector<std::int64_t>& value, const Info& info, std::string_view name) const {
    if (!given.is_array()) expected(name, "a list of integers", given);
    value.clear();
    for (const Json& entry : given) {
      value.emplace_back();
      read(entry, value.back(), info, name);
    }
  }
  void read(const Json& given, std::vector<Skip>& value, const Info&, std::string_view name) const {
    constexpr const char* wanted = "a list of pairs [from, to] of block numbers";
    if (!given.is_array()) expected(name, wanted, given);
    value.clear();
    for (const Json& entry : given) {
      if (!entry.is_array() || entry.size() != 2) expected(name, wanted, entry);
      value.push_back({read_block(entry[0], name), read_block(entry[1], name)});
    }
  }

  OptimizerConfig::RawOverride read_override(const Json& given, const std::string& pointer) const {
    if (!given.is_object()) refuse(how_.origin, pointer, "expected an object, {...}, got " + shown(given));
    const auto pattern = given.find("pattern");
    if (pattern == given.end() || !pattern->is_string() || pattern->get_ref<const std::string&>().empty()) {
      refuse(how_.origin, pointer + "/pattern", R"(missing; give a glob of parameter names, such as "*mlp*")");
    }
    Json keys = given;
    keys.erase("pattern");
    if (keys.empty()) refuse(how_.origin, pointer, "an override without anything to override");
    for (const auto& [key, value] : keys.items()) {
      if (value.is_null()) refuse(how_.origin, join_pointer(pointer, key), "null has no meaning in an override");
    }
    put_over(nullptr, OptimizerGroup::matrices, keys, pointer, {how_.origin, false});
    if (how_.complete) fits_some_group(keys, pointer);
    return {pattern->get<std::string>(), keys.dump()};
  }

  // Which parameters a pattern matches is not known here, but an override that suits no role at all is a mistake.
  void fits_some_group(const Json& keys, const std::string& pointer) const {
    std::string reason;
    for (const auto& [group, settings] : groups_) {
      try {
        put_over(&settings, group, keys, pointer, how_);
        return;
      } catch (const Error& error) {
        if (reason.empty()) reason = error.what();
      }
    }
    throw Error(Exit::usage, reason);
  }

  [[noreturn]] void refuse_unknown(const std::string& key) const {
    std::string advice;
    if (const std::string_view near = nearest_name(key, names_); !near.empty()) {
      advice = fmt::format("did you mean \"{}\"?", near);
    } else {
      for (const GroupEntry& group : catalogue()) {
        for (const FieldEntry& entry : group.fields) {
          if (!advice.empty() || key.size() > 64 || edit_distance(entry.name, key) > 1) continue;
          advice = fmt::format("did you mean {}?", group.path.empty() ? entry.name : group.path + '.' + entry.name);
        }
      }
    }
    if (advice.empty()) advice = "the keys here are " + quoted_list(names_);
    refuse(how_.origin, join_pointer(pointer_, key), "unknown key; " + advice);
  }

  const Json& object_;
  std::string pointer_;
  const Reading& how_;
  std::string type_;                // the object's "type", if it has one
  std::vector<std::string> names_;  // known keys
  std::vector<std::pair<OptimizerGroup, OptimizerSettings>> groups_;

  friend TransformerConfig polaron::parse_model(std::string_view, const std::string&);
  friend OptimizerSettings put_over(const OptimizerSettings*, OptimizerGroup, const Json&, const std::string&,
                                    const Reading&);
};

// The settings that `keys` give, over `below` if it has the same type, else over the type's defaults.
OptimizerSettings put_over(const OptimizerSettings* below, OptimizerGroup group, const Json& keys,
                           const std::string& pointer, const Reading& how) {
  Reader reader(keys, pointer, how);
  const OptimizerKind inherited = below != nullptr ? below->kind : default_kind(group);
  const OptimizerKind kind = value_of<OptimizerKind>(reader.type_).value_or(inherited);
  if (reader.type_.empty()) reader.type_ = name_of(kind);
  ScaleKind scale = ScaleKind::original;
  if (const Json* given = reader.find("scale"); given != nullptr && given->is_string()) {
    scale = value_of<ScaleKind>(given->get_ref<const std::string&>()).value_or(scale);
  }
  OptimizerSettings settings = below != nullptr && kind == below->kind ? *below : default_settings(group, kind, scale);
  describe(reader, settings);
  reader.finish();
  return settings;
}

Config read(const Json& document, const Reading& how) {
  Config config = default_config();
  Reader reader(document, "", how);
  describe(reader, config);
  reader.finish();
  return config;
}

}  // namespace

Config parse_config(std::string_view text, const std::string& origin, std::span<const std::string> overrides) {
  const LayerCheck check = [](const Json& layer, const std::string& layer_origin) {
    read(layer, {layer_origin, false});
  };
  const Json document = combine_layers(text, origin, overrides, check);
  Config config = read(document, {origin, true});
  resolve(config, origin);
  return config;
}

Config load_config(const std::filesystem::path& path, std::span<const std::string> overrides) {
  return parse_config(read_config_text(path, ""), path.string(), overrides);
}

TransformerConfig parse_model(std::string_view text, const std::string& origin) {
  TransformerConfig model;
  const Json document = parse_strict(text, origin);
  const Reading how{origin, true};
  Reader reader(document, "", how);
  reader.prepare(model);
  describe(reader, model);
  reader.finish();
  return model;
}

std::optional<std::size_t> override_for(const OptimizerConfig& optimizer, std::string_view name) {
  const std::string parameter(name);
  for (std::size_t i = 0; i < optimizer.overrides.size(); ++i) {
    if (fnmatch(optimizer.overrides[i].pattern.c_str(), parameter.c_str(), 0) == 0) return i;
  }
  return std::nullopt;
}

OptimizerSettings settings_for(const OptimizerConfig& optimizer, const OptimizerSettings& group,
                               std::string_view name) {
  const std::pair<const OptimizerSettings*, OptimizerGroup> groups[] = {
      {&optimizer.matrices, OptimizerGroup::matrices}, {&optimizer.embeddings, OptimizerGroup::embeddings},
      {&optimizer.head, OptimizerGroup::head},         {&optimizer.vectors, OptimizerGroup::vectors},
      {&optimizer.scalars, OptimizerGroup::scalars},
  };
  const auto found = std::find_if(std::begin(groups), std::end(groups), [&](auto& g) { return g.first == &group; });
  if (found == std::end(groups)) throw std::logic_error("settings_for: not a group of this OptimizerConfig");
  const std::optional<std::size_t> chosen = override_for(optimizer, name);
  if (!chosen) return group;
  const std::string origin = fmt::format("optimizer override for the parameter {}", name);
  const std::string pointer = fmt::format("/optimizer/overrides/{}", *chosen);
  const OptimizerSettings result =
      put_over(&group, found->second, parse_strict(optimizer.overrides[*chosen].json, ""), pointer, {origin, true});
  if (is_matrix_kind(result.kind) && found->second != OptimizerGroup::matrices) {
    refuse(origin, pointer + "/type", fmt::format("{} is for matrices, which this is not", name_of(result.kind)));
  }
  return result;
}

}  // namespace polaron
