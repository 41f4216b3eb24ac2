// Config -> JSON, along the field table.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <type_traits>

#include "config/documents.h"
#include "config/enum_names.h"
#include "config/fields.h"

namespace polaron {
namespace {

class Writer {
 public:
  explicit Writer(Json& object) : object_(object) {}

  template <class T>
  void field(std::string_view name, const T& value, const Info& info) {
    if (!info.applies) return;
    Json& place = object_[std::string(name)];
    if constexpr (std::is_enum_v<T>) {
      place = name_of(value);
    } else if constexpr (std::is_same_v<T, RankSpec>) {
      if (value.is_fraction()) {
        place = fmt::format("{}/{}", value.numerator, value.denominator);
      } else {
        place = value.numerator;
      }
    } else if constexpr (std::is_same_v<T, std::vector<Skip>>) {
      place = Json::array();
      for (const Skip& skip : value) place.push_back({skip.from, skip.to});
    } else {
      place = value;
      if constexpr (std::is_same_v<T, std::int64_t>) {
        if (!info.word.empty() && value == -1) place = info.word;
      }
    }
  }
  template <class S>
  void group(std::string_view name, S& settings, const GroupInfo&) {
    Writer child(object_[std::string(name)] = Json::object());
    describe(child, settings);
  }
  void optimizer_group(std::string_view name, OptimizerSettings& settings, OptimizerGroup, const GroupInfo& info) {
    group(name, settings, info);
  }
  void overrides(std::string_view name, const std::vector<OptimizerConfig::RawOverride>& list, const GroupInfo&) {
    Json& entries = object_[std::string(name)] = Json::array();
    for (const auto& entry : list) {
      entries.push_back({{"pattern", entry.pattern}});
      entries.back().update(parse_strict(entry.json, ""));
    }
  }

 private:
  Json& object_;
};

template <class S>
Json written(S values) {
  Json document = Json::object();
  Writer writer(document);
  describe(writer, values);
  return document;
}

}  // namespace

std::string to_json(const Config& config) {
  return written(config).dump(2, ' ', false, Json::error_handler_t::replace) + '\n';
}

std::string model_to_json(const TransformerConfig& model) {
  return written(model).dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace polaron
