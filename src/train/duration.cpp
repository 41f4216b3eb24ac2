#include "train/duration.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/error.h"

namespace polaron {
namespace {

struct Unit {
  char letter;
  std::int64_t seconds;
};
constexpr std::array<Unit, 4> units{{{'d', 86'400}, {'h', 3'600}, {'m', 60}, {'s', 1}}};
constexpr std::int64_t longest = std::int64_t{100} * 365 * 86'400;

// What is wrong with the text, or the seconds.
struct Parsed {
  std::int64_t seconds = 0;
  std::string problem = {};
};

Parsed parse(std::string_view text) {
  if (text.empty()) return {.problem = "it is empty"};
  std::int64_t total = 0;
  std::size_t next_unit = 0;  // the largest unit that may still come
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    if (*at < '0' || *at > '9') return {.problem = fmt::format("a whole number is expected before '{}'", *at)};
    std::int64_t number = 0;
    const auto [after, error] = std::from_chars(at, end, number);
    if (error != std::errc{} || number > longest) return {.problem = "it is longer than 100 years"};
    if (after == end && at != text.data()) {
      return {.problem = fmt::format("the number {} at its end has no unit", number)};
    }
    const char letter = after == end ? 's' : *after;
    std::size_t unit = 0;
    while (unit < units.size() && units[unit].letter != letter) ++unit;
    if (unit == units.size()) return {.problem = fmt::format("'{}' is not a unit of time", letter)};
    if (unit < next_unit) return {.problem = "its units must come from the largest to the smallest, each once"};
    if (number > longest / units[unit].seconds) return {.problem = "it is longer than 100 years"};
    total += number * units[unit].seconds;
    next_unit = unit + 1;
    at = after == end ? end : after + 1;
  }
  if (total > longest) return {.problem = "it is longer than 100 years"};
  if (total == 0) return {.problem = "it must be longer than 0"};
  return {.seconds = total};
}

}  // namespace

std::int64_t parse_duration(std::string_view text, const std::string& what) {
  const Parsed parsed = parse(text);
  if (parsed.problem.empty()) return parsed.seconds;
  throw Error(Exit::usage,
              fmt::format("{}: '{}' is not a duration: {}. Give seconds (90), or numbers with the units d, "
                          "h, m and s, such as 90s, 10m, 1h30m or 2d.",
                          what, text, parsed.problem));
}

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e15) return "n/a";
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  const std::int64_t days = whole / 86'400, hours = whole / 3'600 % 24, minutes = whole / 60 % 60, rest = whole % 60;
  if (days > 0) return fmt::format("{}d {}:{:02}:{:02}", days, hours, minutes, rest);
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, rest);
  return fmt::format("{}:{:02}", minutes, rest);
}

}  // namespace polaron
