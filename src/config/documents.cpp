#include "config/documents.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <vector>

#include "config/enum_names.h"
#include "config/fields.h"

namespace polaron {

void refuse(const std::string& origin, const std::string& pointer, const std::string& text) {
  throw Error(Exit::usage, pointer.empty() ? origin + ": " + text : origin + ": " + pointer + ": " + text);
}

std::string join_pointer(const std::string& pointer, std::string_view key) {
  constexpr std::size_t longest = 100;
  std::string result = pointer + '/';
  for (const char c : key.substr(0, longest)) {
    if (c == '~') {
      result += "~0";
    } else if (c == '/') {
      result += "~1";
    } else {
      result += c;
    }
  }
  return key.size() > longest ? result + "..." : result;
}

std::string read_config_text(const std::filesystem::path& path, const std::string& named_by) {
  constexpr std::size_t limit = 1 << 20;
  const auto fail = [&](const std::string& why) {
    throw Error(Exit::usage, fmt::format("{}cannot read the config {}: {}.", named_by, path.string(), why));
  };
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) fail("no such file");
  if (std::filesystem::is_directory(status)) fail("it is a directory");
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("it may not be opened");
  std::string text(limit + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) fail("reading failed");
  text.resize(static_cast<std::size_t>(file.gcount()));
  if (text.size() > limit) fail("it is larger than 1 MiB, so hardly a config");
  return text;
}

namespace {

// Builds the document while it is parsed, since nlohmann's own builder lets the last of two equal keys win.
class Builder : public nlohmann::json_sax<Json> {
 public:
  Builder(std::string_view text, const std::string& origin) : text_(text), origin_(origin) {}

  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (open_.back()->contains(name)) refuse(origin_, join_pointer(pointer(), name), "given twice in one object");
    if (open_.back()->size() == most_keys) refuse(origin_, pointer(), "too many keys for a config");
    keys_.back() = name;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const Json::exception& error) override {
    std::string what = error.what();
    if (const auto column = what.find("column"); column != std::string::npos) {
      what.erase(0, what.find(": ", column) + 2);
    } else {
      what.erase(0, what.find("] ") + 2);
    }
    const std::string_view before = text_.substr(0, std::min(position > 0 ? position - 1 : 0, text_.size()));
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const auto line_start = before.rfind('\n') + 1;  // npos + 1 = 0
    const auto last = before.find_last_not_of(" \t\r\n");
    const bool comma = position <= text_.size() && last != std::string_view::npos && before[last] == ',' &&
                       (text_[before.size()] == '}' || text_[before.size()] == ']');
    refuse(fmt::format("{}:{}:{}", origin_, line, before.size() - line_start + 1), "",
           fmt::format("not valid JSON: {}{}", what, comma ? "; JSON has no comma before a closing bracket" : ""));
  }

 private:
  Json* put(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_object()) return &(parent[keys_.back()] = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }
  bool add(Json value) {
    put(std::move(value));
    return true;
  }
  bool open(Json value) {
    constexpr std::size_t deepest = 32;  // a config needs five levels
    if (open_.size() == deepest) refuse(origin_, pointer(), "nested too deeply");
    Json* placed = put(std::move(value));
    open_.push_back(placed);
    keys_.emplace_back();
    return true;
  }
  bool close() {
    open_.pop_back();
    keys_.pop_back();
    return true;
  }
  std::string pointer() const {
    std::string result;
    for (std::size_t i = 0; i + 1 < open_.size(); ++i) {
      result = join_pointer(result, open_[i]->is_object() ? keys_[i] : std::to_string(open_[i]->size() - 1));
    }
    return result;
  }

  std::string_view text_;
  const std::string& origin_;
  static constexpr std::size_t most_keys = 1000;

  Json root_;
  std::vector<Json*> open_;        // a container's address holds while it is open: its parent gets no other element
  std::vector<std::string> keys_;  // the current key of each
};

const Json* member(const Json& object, std::string_view name) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(std::string(name));
  return found == object.end() ? nullptr : &*found;
}

template <class E>
std::optional<E> enum_member(const Json& object, std::string_view name) {
  const Json* value = member(object, name);
  if (value == nullptr || !value->is_string()) return std::nullopt;
  return value_of<E>(value->get_ref<const std::string&>());
}

// --- what a later layer takes away from the earlier ones
// ---------------------------------------------------------------

// The names of the keys that do not apply.
struct IdleKeys {
  std::vector<std::string_view> names;
  template <class T>
  void field(std::string_view name, const T&, const Info& info) {
    if (!info.applies) names.push_back(name);
  }
};

struct OptimizerTypeChange {
  Json& base;
  const Json& overlay;
  void optimizer_group(std::string_view name, const OptimizerSettings&, OptimizerGroup group, const GroupInfo&) {
    const Json* above = member(overlay, name);
    const auto found = base.find(std::string(name));
    if (above == nullptr || found == base.end()) return;
    const auto wanted = enum_member<OptimizerKind>(*above, "type");
    if (wanted && *wanted != enum_member<OptimizerKind>(*found, "type").value_or(default_kind(group)))
      base.erase(found);
  }
  template <class List>
  void overrides(std::string_view, const List&, const GroupInfo&) {}
};

// Settings that were meant for another method must not leak into a layer that changes the method; and the layer that
// says how long to train decides it alone.
void drop_superseded(Json& base, const Json& overlay) {
  if (const Json* training = member(overlay, "training"); training != nullptr && base.contains("training")) {
    const auto gives = [&](std::string_view name) {
      const Json* value = member(*training, name);
      return value != nullptr && !value->is_null();
    };
    const bool steps = gives("steps"), tokens = gives("tokens");
    Json& below = base["training"];
    if (steps != tokens && below.is_object()) below.erase(steps ? "tokens" : "steps");
  }
  if (const Json* schedule = member(overlay, "schedule"); schedule != nullptr && base.contains("schedule")) {
    ScheduleConfig wanted;
    Json& below = base["schedule"];
    const auto kind = enum_member<ScheduleKind>(*schedule, "type");
    if (kind && below.is_object()) {
      wanted.kind = *kind;
      IdleKeys idle;
      describe(idle, wanted);
      for (const std::string_view name : idle.names) below.erase(std::string(name));
    }
  }
  if (const Json* optimizer = member(overlay, "optimizer"); optimizer != nullptr && base.contains("optimizer")) {
    Json& below = base["optimizer"];
    if (!below.is_object()) return;
    OptimizerTypeChange change{below, *optimizer};
    OptimizerConfig groups;
    describe(change, groups);
  }
}

void merge(Json& base, const Json& overlay) {
  for (const auto& [key, value] : overlay.items()) {
    if (value.is_null()) {
      base.erase(key);
    } else if (value.is_object()) {
      Json& below = base[key];
      if (!below.is_object()) below = Json::object();
      merge(below, value);
    } else {
      base[key] = value;
    }
  }
}

// --- extends
// -----------------------------------------------------------------------------------------------------------

Json load_layers(std::string_view text, const std::string& origin, const LayerCheck& check,
                 std::vector<std::filesystem::path>& chain) {
  Json layer = parse_strict(text, origin);
  if (!layer.is_object()) refuse(origin, "", "a config is a JSON object, {...}");
  if (const Json* schema = member(layer, "$schema")) {
    if (!schema->is_string()) refuse(origin, "/$schema", "expected a string");
    layer.erase("$schema");
  }
  Json base = Json::object();
  if (const auto extends = layer.find("extends"); extends != layer.end()) {
    if (!extends->is_string()) refuse(origin, "/extends", "expected the name of another config, a string");
    const std::string name = extends->get<std::string>();
    layer.erase(extends);
    check(layer, origin);
    const std::filesystem::path parent = std::filesystem::path(origin).parent_path() / name;
    std::error_code error;
    const auto canonical = std::filesystem::weakly_canonical(parent, error);
    const auto seen = std::find(chain.begin(), chain.end(), canonical);
    if (seen != chain.end()) {
      std::string circle;
      for (auto link = seen; link != chain.end(); ++link) circle += link->filename().string() + " -> ";
      refuse(origin, "/extends",
             "the configs extend each other in a circle: " + circle + canonical.filename().string());
    }
    if (std::filesystem::exists(parent, error) && !std::filesystem::is_regular_file(parent, error)) {
      refuse(origin, "/extends", parent.string() + " is not a file");
    }
    chain.push_back(canonical);
    base = load_layers(read_config_text(parent, origin + ": /extends: "), parent.string(), check, chain);
  } else {
    check(layer, origin);
  }
  drop_superseded(base, layer);
  merge(base, layer);
  return base;
}

// --- --set
// -------------------------------------------------------------------------------------------------------------

struct Override {
  std::string origin;  // "--set a.b=c"
  std::vector<std::string> path;
  Json value;
};

Override parse_override(const std::string& spec) {
  Override result;
  result.origin = "--set " + spec;
  const auto equals = spec.find('=');
  if (equals == std::string::npos || equals == 0) {
    refuse(result.origin, "", "expected key.path=value, for instance training.steps=100");
  }
  std::string_view rest = std::string_view(spec).substr(0, equals);
  for (auto dot = rest.find('.'); dot != std::string_view::npos; dot = rest.find('.')) {
    result.path.emplace_back(rest.substr(0, dot));
    rest.remove_prefix(dot + 1);
  }
  result.path.emplace_back(rest);
  if (result.path.front() == "extends") refuse(result.origin, "", "extends can only be given in a file");
  const std::string value = spec.substr(equals + 1);
  try {
    result.value = parse_strict(value, result.origin);
  } catch (const Error&) {
    result.value = value;
    try {
      static_cast<void>(result.value.dump());
    } catch (const Json::exception&) {
      refuse(result.origin, "", "not UTF-8 text");
    }
  }
  return result;
}

void apply(Json& document, const Override& change) {
  Json* at = &document;
  std::string pointer;
  for (std::size_t i = 0; i < change.path.size(); ++i) {
    const std::string& key = change.path[i];
    const bool last = i + 1 == change.path.size();
    if (at->is_object()) {
      if (last && change.value.is_null()) {
        at->erase(key);
        return;
      }
      at = &(*at)[key];
      if (!last && at->is_null()) *at = Json::object();
    } else if (at->is_array()) {
      std::size_t index = 0;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), index);
      if (error != std::errc() || end != key.data() + key.size() || index >= at->size()) {
        refuse(change.origin, pointer,
               fmt::format("a list of {} entries, counted from 0, has none named \"{}\"", at->size(), key));
      }
      at = &(*at)[index];
    } else {
      refuse(change.origin, pointer, fmt::format("a single value, which has no key \"{}\"", key));
    }
    pointer = join_pointer(pointer, key);
  }
  if (change.value.is_object()) {
    if (!at->is_object()) *at = Json::object();
    merge(*at, change.value);
  } else {
    *at = change.value;
  }
}

}  // namespace

Json parse_strict(std::string_view text, const std::string& origin) {
  Builder builder(text, origin);
  Json::sax_parse(text.begin(), text.end(), &builder, Json::input_format_t::json, true, true);
  return builder.take();
}

Json combine_layers(std::string_view text, const std::string& origin, std::span<const std::string> overrides,
                    const LayerCheck& check) {
  std::error_code error;
  std::vector<std::filesystem::path> chain{std::filesystem::weakly_canonical(origin, error)};
  Json document = load_layers(text, origin, check, chain);

  // All overrides together are one layer: --set of a type and of that type's settings may come in any order.
  std::vector<Override> changes;
  Json layer = Json::object();
  for (const std::string& spec : overrides) {
    changes.push_back(parse_override(spec));
    Json one = Json::object();
    Json* at = &one;
    for (const std::string& key : changes.back().path) at = &(*at)[key];
    *at = changes.back().value;
    if (!changes.back().value.is_null()) merge(layer, one);
  }
  drop_superseded(document, layer);
  for (const Override& change : changes) {
    apply(document, change);
    check(document, change.origin);
  }
  return document;
}

}  // namespace polaron
