#include "io/json_file.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/error.h"
#include "io/file.h"

namespace polaron {
namespace {

using nlohmann::json;

constexpr int deepest = 64;

// Called by the parser for every value. The library alone would keep the last of two equal keys and would nest without
// bound; both are ways to make a file mean something else than it seems to.
class Guard {
 public:
  explicit Guard(const std::string& origin) : origin_(origin) {}

  bool operator()(int depth, json::parse_event_t event, json& value) {
    if (depth > deepest) {
      throw Error(Exit::data, fmt::format("{} is not acceptable JSON: it is nested deeper than {}.", origin_, deepest));
    }
    if (event == json::parse_event_t::object_start) keys_.emplace_back();
    if (event == json::parse_event_t::object_end) keys_.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys_.back().insert(key).second) {
        throw Error(Exit::data, fmt::format("{} is not acceptable JSON: the key {} occurs twice in one object.",
                                            origin_, in_quotes(key)));
      }
    }
    return true;
  }

 private:
  const std::string& origin_;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open, outermost first
};

}  // namespace

json parse_json(std::string_view text, const std::string& origin) {
  // The library takes a NUL for the end of its input and would not look at what follows.
  if (const auto nul = text.find('\0'); nul != std::string_view::npos) {
    throw Error(Exit::data, fmt::format("{} is not valid JSON: byte {} is NUL.", origin, nul));
  }
  try {
    Guard guard(origin);
    return json::parse(text.begin(), text.end(), [&guard](int depth, json::parse_event_t event, json& value) {
      return guard(depth, event, value);
    });
  } catch (const json::exception& error) {
    std::string reason = error.what();
    if (const auto end_of_tag = reason.find("] "); end_of_tag != std::string::npos) reason.erase(0, end_of_tag + 2);
    throw Error(Exit::data, fmt::format("{} is not valid JSON: {}.", origin, reason));
  }
}

json read_json_file(const std::filesystem::path& path, std::uint64_t limit) {
  return parse_json(read_text_file(path, limit), fmt::format("'{}'", path.string()));
}

}  // namespace polaron
