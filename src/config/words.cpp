#include "config/words.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace polaron {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> two_back(b.size() + 1);
  std::vector<std::size_t> previous(b.size() + 1);
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) previous[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t change = previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({previous[j] + 1, row[j - 1] + 1, change});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) row[j] = std::min(row[j], two_back[j - 2] + 1);
    }
    std::swap(two_back, previous);
    std::swap(previous, row);
  }
  return previous[b.size()];
}

std::string_view nearest_name(std::string_view name, std::span<const std::string> candidates) {
  constexpr std::size_t longest = 64;  // nobody mistypes a name this long
  if (name.size() > longest) return {};
  std::string_view best;
  std::size_t best_distance = longest;
  for (const std::string& candidate : candidates) {
    std::size_t distance = edit_distance(name, candidate);
    // "warmup" for "warmup_steps" is far in letters but near in mind.
    if (name.size() >= 3 && candidate.starts_with(name)) distance = std::min<std::size_t>(distance, 1);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best_distance <= std::max<std::size_t>(1, std::max(name.size(), best.size()) / 2) ? best : std::string_view();
}

std::string quoted_list(std::span<const std::string> names) {
  std::string list;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) list += i + 1 == names.size() ? " and " : ", ";
    list += '"' + names[i] + '"';
  }
  return list;
}

namespace {

// 1e15 rather than 1000000000000000.
std::string short_number(double value) {
  if (!std::isfinite(value)) return {};
  std::string brief = fmt::format("{:g}", value);
  if (std::abs(value) < 1e6 || std::stod(brief) != value) return fmt::format("{}", value);
  if (const auto plus = brief.find('+'); plus != std::string::npos) brief.erase(plus, 1);
  return brief;
}

}  // namespace

std::string limits_text(const Info& info) {
  const bool low = std::isfinite(info.min);
  const bool high = std::isfinite(info.max);
  const std::string min = short_number(info.min);
  const std::string max = short_number(info.max);
  if (low && high && !info.above_min && !info.below_max) return fmt::format(" from {} to {}", min, max);
  std::string text;
  if (low) text += fmt::format(" {} {}", info.above_min ? "above" : "of at least", min);
  if (high) text += fmt::format("{} {} {}", low ? " and" : "", info.below_max ? "below" : "of at most", max);
  return text;
}

}  // namespace polaron
