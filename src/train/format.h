// Numbers, text and tables as a person reads them. Knows no terminal: console.h puts them on one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace polaron {

std::string format_grouped(std::int64_t number);    // "12,345"
std::string format_count(std::int64_t number);      // grouped below 10,000, then "12.3K", "124.4M", "1.6B"
std::string format_bytes(std::int64_t bytes);       // "512 B", "1.2 kB", "1.2 GB": powers of 1000
std::string format_flops(double flops_per_second);  // "320.1 GFLOP/s"; "n/a" when not positive and finite
std::string format_milliseconds(double ms);        // "3.21 ms", "212 ms", "12.34 s", "212 s"; from an hour on "1:02:03"
std::string format_perplexity(double perplexity);  // "24.89", "50,257", "1.2e+08", "inf", "nan"
std::string format_percent(std::optional<double> fraction);  // "41.2%"; "n/a" for nothing

// `text` with everything that a terminal could take for a command replaced by U+FFFD: control characters except newline
// and tab, and bytes that are not UTF-8. For text that a model or a file wrote.
std::string printable(std::string_view text);

// Bytes of `text` without a last character of UTF-8 that has begun and lacks bytes: what can be shown of text that
// still grows.
std::size_t complete_characters(std::string_view text);

// Columns that `text` takes: its code points, hence right but for wide and combining characters.
int display_width(std::string_view text);

// Columns stand two spaces apart. One is aligned right when every cell in it that is not empty starts with a digit
// (after a sign) or is "n/a" or "-". An empty row draws a rule, say above a total.
struct Table {
  std::string title;                 // none when empty
  std::vector<std::string> headers;  // none when empty
  std::vector<std::vector<std::string>> rows;
};

// The table with a newline after each line. Where it is wider than `width` columns (0: no limit), its widest columns of
// text are cut, to 8 characters at least.
std::string format_table(const Table& table, int width = 0);

// `text` (printable) in lines of at most `width` columns (0: no limit), broken at spaces where there are some, each
// with `prefix` before it and a newline after it.
std::string wrap(std::string_view text, std::string_view prefix, int width);

}  // namespace polaron
