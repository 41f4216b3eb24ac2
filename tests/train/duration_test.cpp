#include "train/duration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"

namespace polaron {
namespace {

std::string refusal(std::string_view text) {
  try {
    const std::int64_t seconds = parse_duration(text, "--max-time");
    ADD_FAILURE() << "'" << text << "' was read as " << seconds << " s";
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::usage);
    return error.what();
  }
}

TEST(Duration, reads_seconds_and_units) {
  EXPECT_EQ(parse_duration("90", "t"), 90);
  EXPECT_EQ(parse_duration("90s", "t"), 90);
  EXPECT_EQ(parse_duration("10m", "t"), 600);
  EXPECT_EQ(parse_duration("1h30m", "t"), 5'400);
  EXPECT_EQ(parse_duration("2d", "t"), 172'800);
  EXPECT_EQ(parse_duration("1d2h3m4s", "t"), 86'400 + 7'200 + 180 + 4);
  EXPECT_EQ(parse_duration("0h5m", "t"), 300);
  EXPECT_EQ(parse_duration("100000m", "t"), 6'000'000);
}

TEST(Duration, refuses_what_could_mean_two_things_or_nothing) {
  for (const char* text : {"",     " ",  "h",    "1.5h", "-5", "+5", "1h30", "30m1h", "1h1h", "5 m",
                           "5min", "5w", "1:30", "90S",  "0",  "0s", "0h0m", "5s ",   "1hh",  "ten"}) {
    const std::string message = refusal(text);
    EXPECT_NE(message.find("--max-time"), std::string::npos) << message;
    EXPECT_NE(message.find("1h30m"), std::string::npos) << message;  // an example of the right form
  }
}

TEST(Duration, refuses_overflow_of_the_number_the_product_and_the_sum) {
  for (const char* text :
       {"99999999999999999999", "9223372036854775807", "9223372036854775807d", "36501d", "36500d1s", "3153600001"}) {
    EXPECT_NE(refusal(text).find("100 years"), std::string::npos);
  }
  EXPECT_EQ(parse_duration("36500d", "t"), 3'153'600'000);
}

TEST(Duration, is_written_with_as_many_parts_as_it_needs) {
  EXPECT_EQ(format_duration(0), "0:00");
  EXPECT_EQ(format_duration(7.4), "0:07");
  EXPECT_EQ(format_duration(59.6), "1:00");
  EXPECT_EQ(format_duration(754), "12:34");
  EXPECT_EQ(format_duration(3'723), "1:02:03");
  EXPECT_EQ(format_duration(86'399.4), "23:59:59");
  EXPECT_EQ(format_duration(2 * 86'400 + 3 * 3'600 + 245), "2d 3:04:05");
}

TEST(Duration, that_is_no_time_is_not_available) {
  for (const double seconds : {-1.0, std::nan(""), std::numeric_limits<double>::infinity(), 1e300}) {
    EXPECT_EQ(format_duration(seconds), "n/a");
  }
}

}  // namespace
}  // namespace polaron
