#include "config/catalogue.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <type_traits>
#include <utility>

#include "config/enum_names.h"

namespace polaron {
namespace {

class Collector {
 public:
  Collector(std::vector<GroupEntry>& groups, std::string path, const GroupInfo& info) : groups_(groups), path_(path) {
    index_ = groups.size();
    groups.push_back({std::move(path), info, {}});
  }

  template <class T>
  void field(std::string_view name, const T& value, const Info& info) {
    FieldEntry entry{std::string(name), FieldType::string, {}, {}, info};
    if constexpr (std::is_enum_v<T>) {
      entry.type = FieldType::choice;
      entry.default_value = fmt::format("\"{}\"", name_of(value));
      for (const auto& known : enum_names(T{})) entry.choices.push_back({known.name, known.help});
    } else if constexpr (std::is_same_v<T, RankSpec>) {
      entry.type = FieldType::rank;
      entry.default_value = value.is_fraction() ? fmt::format("\"{}/{}\"", value.numerator, value.denominator)
                                                : fmt::format("{}", value.numerator);
    } else if constexpr (std::is_same_v<T, std::vector<std::int64_t>> || std::is_same_v<T, std::vector<Skip>>) {
      entry.type = std::is_same_v<T, std::vector<Skip>> ? FieldType::skips : FieldType::integers;
      entry.default_value = "[]";
      if constexpr (std::is_same_v<T, std::vector<std::int64_t>>) {
        if (!value.empty()) entry.default_value = fmt::format("[{}]", fmt::join(value, ", "));
      }
    } else if constexpr (std::is_same_v<T, std::string>) {
      entry.type = info.choices.empty() ? FieldType::string : FieldType::choice;
      entry.default_value = fmt::format("\"{}\"", value);
      entry.choices.assign(info.choices.begin(), info.choices.end());
    } else {
      entry.type = std::is_same_v<T, bool>     ? FieldType::boolean
                   : std::is_same_v<T, double> ? FieldType::number
                                               : FieldType::integer;
      entry.default_value = fmt::format("{}", value);
      if (const auto zero = entry.default_value.find("e-0"); zero != std::string::npos) {
        entry.default_value.erase(zero + 2, 1);  // 1e-5, not 1e-05
      }
    }
    groups_[index_].fields.push_back(std::move(entry));
  }

  template <class S>
  void group(std::string_view name, S& settings, const GroupInfo& info) {
    Collector child(groups_, child_path(name), info);
    describe(child, settings);
  }
  void optimizer_group(std::string_view name, OptimizerSettings& settings, OptimizerGroup, const GroupInfo& info) {
    group(name, settings, info);
  }
  template <class List>
  void overrides(std::string_view name, const List&, const GroupInfo& info) {
    groups_.push_back({child_path(name), info, {}});
  }

 private:
  std::string child_path(std::string_view name) const {
    return path_.empty() ? std::string(name) : path_ + '.' + std::string(name);
  }

  std::vector<GroupEntry>& groups_;
  std::string path_;
  std::size_t index_;
};

template <class S>
std::vector<FieldEntry> collect(S& values) {
  std::vector<GroupEntry> groups;
  Collector collector(groups, "", {});
  describe(collector, values);
  return std::move(groups.front().fields);
}

}  // namespace

std::vector<GroupEntry> catalogue() {
  Config values = default_config();
  std::vector<GroupEntry> groups;
  Collector collector(groups, "", {});
  describe(collector, values);
  return groups;
}

std::vector<FieldEntry> entries_of(TransformerConfig values) { return collect(values); }
std::vector<FieldEntry> entries_of(OptimizerSettings values) { return collect(values); }

}  // namespace polaron
