#include "train/format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>

#include "train/duration.h"

namespace polaron {
namespace {

// "1.2" and the unit, for units that are each 1000 times the one before. 999.96 of a unit is 1.0 of the next.
std::string in_units(double value, std::string_view space, std::span<const std::string_view> units) {
  std::size_t unit = 0;
  while (unit + 1 < units.size() && std::abs(value) >= 999.95) {
    value /= 1000;
    ++unit;
  }
  return fmt::format("{:.1f}{}{}", value, space, units[unit]);
}

constexpr std::string_view replacement = "\xEF\xBF\xBD";  // U+FFFD

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

// Bytes of the UTF-8 sequence that `text` starts with; 0 when it starts with none (Unicode 15, table 3-7).
std::size_t sequence_length(std::string_view text) {
  const auto byte = [&text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xC2 && first <= 0xDF ? 2 : first >= 0xE0 && first <= 0xEF ? 3 : 4;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if (!is_continuation(text[i])) return 0;
  }
  const unsigned second = byte(1);
  const bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  const bool surrogate = first == 0xED && second > 0x9F;
  const bool beyond = first == 0xF4 && second > 0x8F;
  return overlong || surrogate || beyond ? 0 : length;
}

// The first `count` code points.
std::string_view first_columns(std::string_view text, int count) {
  std::size_t end = 0;
  while (end < text.size() && (count > 0 || is_continuation(text[end]))) {
    if (!is_continuation(text[end])) --count;
    ++end;
  }
  while (end < text.size() && is_continuation(text[end])) ++end;
  return text.substr(0, end);
}

bool looks_like_number(std::string_view cell) {
  if (cell == "n/a" || cell == "-") return true;
  const std::size_t sign = cell.starts_with('-') || cell.starts_with('+') ? 1 : 0;
  return cell.size() > sign && cell[sign] >= '0' && cell[sign] <= '9';
}

struct Column {
  int width = 0;
  bool right = false;
};

std::vector<Column> layout(const Table& table, int width_limit) {
  std::size_t count = table.headers.size();
  for (const auto& row : table.rows) count = std::max(count, row.size());
  std::vector<Column> columns(count);
  for (std::size_t c = 0; c < count; ++c) {
    bool any = false;
    bool numbers = true;
    if (c < table.headers.size()) columns[c].width = display_width(table.headers[c]);
    for (const auto& row : table.rows) {
      if (c >= row.size() || row[c].empty()) continue;
      any = true;
      numbers = numbers && looks_like_number(row[c]);
      columns[c].width = std::max(columns[c].width, display_width(row[c]));
    }
    columns[c].right = any && numbers;
  }
  if (width_limit <= 0) return columns;
  constexpr int least = 8;
  int total = 2 * (static_cast<int>(count) - 1);
  for (const Column& column : columns) total += column.width;
  for (; total > width_limit; --total) {
    Column* widest = nullptr;
    for (Column& column : columns) {
      if (!column.right && column.width > least && (!widest || column.width > widest->width)) widest = &column;
    }
    if (!widest) break;
    --widest->width;
  }
  return columns;
}

std::string format_row(const std::vector<std::string>& row, const std::vector<Column>& columns) {
  std::string line;
  for (std::size_t c = 0; c < columns.size() && c < row.size(); ++c) {
    std::string cell = row[c];
    if (display_width(cell) > columns[c].width) {
      cell = std::string(first_columns(cell, columns[c].width - 3)) + "...";
    }
    const std::string padding(static_cast<std::size_t>(columns[c].width - display_width(cell)), ' ');
    line += c == 0 ? "" : "  ";
    line += columns[c].right ? padding + cell : cell + padding;
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return line + '\n';
}

}  // namespace

std::string format_grouped(std::int64_t number) {
  std::string text = std::to_string(number);
  for (std::ptrdiff_t at = std::ssize(text) - 3, first = number < 0 ? 1 : 0; at > first; at -= 3) {
    text.insert(static_cast<std::size_t>(at), 1, ',');
  }
  return text;
}

std::string format_count(std::int64_t number) {
  constexpr std::array<std::string_view, 4> units{"K", "M", "B", "T"};
  if (number > -10'000 && number < 10'000) return format_grouped(number);
  return in_units(static_cast<double>(number) / 1e3, "", units);
}

std::string format_bytes(std::int64_t bytes) {
  constexpr std::array<std::string_view, 5> units{"kB", "MB", "GB", "TB", "PB"};
  if (bytes > -1000 && bytes < 1000) return fmt::format("{} B", bytes);
  return in_units(static_cast<double>(bytes) / 1e3, " ", units);
}

std::string format_flops(double flops_per_second) {
  constexpr std::array<std::string_view, 4> units{"MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"};
  if (!std::isfinite(flops_per_second) || flops_per_second <= 0) return "n/a";
  return in_units(flops_per_second / 1e6, " ", units);
}

std::string format_milliseconds(double ms) {
  if (!std::isfinite(ms)) return "n/a";
  if (ms < 9.995) return fmt::format("{:.2f} ms", ms);
  if (ms < 999.5) return fmt::format("{:.0f} ms", ms);
  if (ms < 99'995) return fmt::format("{:.2f} s", ms / 1e3);
  return ms < 3.6e6 ? fmt::format("{:.0f} s", ms / 1e3) : format_duration(ms / 1e3);
}

std::string format_perplexity(double perplexity) {
  if (std::isnan(perplexity)) return "nan";
  if (perplexity < 999.995) return fmt::format("{:.2f}", perplexity);
  return perplexity < 999'999.5 ? format_grouped(std::llround(perplexity)) : fmt::format("{:.1e}", perplexity);
}

std::string format_percent(std::optional<double> fraction) {
  return fraction && std::isfinite(*fraction) ? fmt::format("{:.1f}%", 100 * *fraction) : "n/a";
}

std::string printable(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const std::size_t length = sequence_length(text);
    const auto first = static_cast<unsigned char>(text[0]);
    const bool c0 = first < 0x20 && first != '\n' && first != '\t';
    const bool c1 = length == 2 && first == 0xC2 && static_cast<unsigned char>(text[1]) < 0xA0;
    result += length == 0 || c0 || first == 0x7F || c1 ? replacement : text.substr(0, length);
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return result;
}

std::size_t complete_characters(std::string_view text) {
  std::size_t begin = text.size();  // of the last character
  while (begin > 0 && text.size() - begin < 4 && (begin == text.size() || is_continuation(text[begin]))) --begin;
  if (begin == text.size()) return begin;
  const auto first = static_cast<unsigned char>(text[begin]);
  const std::size_t whole = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : first >= 0xC0 ? 2 : 1;
  return text.size() - begin < whole ? begin : text.size();
}

int display_width(std::string_view text) {
  return static_cast<int>(std::ranges::count_if(text, [](char c) { return !is_continuation(c); }));
}

std::string format_table(const Table& table, int width) {
  const std::vector<Column> columns = layout(table, width);
  std::string rule;
  for (const Column& column : columns) {
    rule += (rule.empty() ? "" : "  ") + std::string(static_cast<std::size_t>(column.width), '-');
  }
  std::string text;
  if (!table.title.empty()) text += table.title + '\n';
  if (!table.headers.empty()) text += format_row(table.headers, columns) + rule + '\n';
  for (const auto& row : table.rows) text += row.empty() ? rule + '\n' : format_row(row, columns);
  return text;
}

std::string wrap(std::string_view text, std::string_view prefix, int width) {
  const int room = width > 0 ? std::max(width - display_width(prefix), 1) : 0;
  std::string result;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t newline = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, newline - begin);
    begin = newline + 1;
    while (room > 0 && display_width(line) > room) {
      std::string_view part = first_columns(line, room + 1);
      const std::size_t space = part.find_last_of(' ');
      part = space == std::string_view::npos || space == 0 ? first_columns(line, room) : part.substr(0, space);
      result.append(prefix).append(part).append("\n");
      line.remove_prefix(part.size());
      if (line.starts_with(' ')) line.remove_prefix(1);
    }
    result.append(prefix).append(line).append("\n");
  }
  return result;
}

}  // namespace polaron
