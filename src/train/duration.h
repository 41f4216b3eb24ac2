// Spans of time as people write them, for --max-time, and as the console shows them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace polaron {

// Seconds of "90", "90s", "10m", "1h30m" or "2d": whole numbers, each with a unit (d, h, m, s), the larger unit first
// and none twice; a number alone is seconds. Error(Exit::usage) for anything else, for 0 and for more than 100 years;
// its message starts with `what`, the option or key that the text was given to.
std::int64_t parse_duration(std::string_view text, const std::string& what);

// "0:07", "12:34", "1:02:03", "2d 3:04:05"; rounded to the nearest second. "n/a" for a negative or non-finite number.
std::string format_duration(double seconds);

}  // namespace polaron
