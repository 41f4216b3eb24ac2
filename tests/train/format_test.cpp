#include "train/format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

namespace polaron {
namespace {

constexpr std::int64_t lowest = std::numeric_limits<std::int64_t>::min();

TEST(Format, groups_digits_by_three) {
  EXPECT_EQ(format_grouped(0), "0");
  EXPECT_EQ(format_grouped(999), "999");
  EXPECT_EQ(format_grouped(1'000), "1,000");
  EXPECT_EQ(format_grouped(12'345), "12,345");
  EXPECT_EQ(format_grouped(1'234'567), "1,234,567");
  EXPECT_EQ(format_grouped(-999), "-999");
  EXPECT_EQ(format_grouped(-123'456), "-123,456");
  EXPECT_EQ(format_grouped(lowest), "-9,223,372,036,854,775,808");
}

TEST(Format, counts_take_the_unit_that_the_rounded_number_needs) {
  EXPECT_EQ(format_count(9'999), "9,999");
  EXPECT_EQ(format_count(12'345), "12.3K");
  EXPECT_EQ(format_count(999'949), "999.9K");
  EXPECT_EQ(format_count(999'950), "1.0M");  // never "1000.0K"
  EXPECT_EQ(format_count(124'439'808), "124.4M");
  EXPECT_EQ(format_count(1'557'611'200), "1.6B");
  EXPECT_EQ(format_count(2'000'000'000'000), "2.0T");
}

TEST(Format, bytes_are_powers_of_a_thousand) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1'000), "1.0 kB");
  EXPECT_EQ(format_bytes(1'234'567'890), "1.2 GB");
  EXPECT_EQ(format_bytes(999'960'000), "1.0 GB");
}

TEST(Format, an_unknown_rate_is_not_available) {
  EXPECT_EQ(format_flops(320.14e9), "320.1 GFLOP/s");
  EXPECT_EQ(format_flops(989.4e12), "989.4 TFLOP/s");
  EXPECT_EQ(format_flops(0), "n/a");
  EXPECT_EQ(format_flops(std::nan("")), "n/a");
  EXPECT_EQ(format_percent(0.4123), "41.2%");
  EXPECT_EQ(format_percent({}), "n/a");
  EXPECT_EQ(format_percent(std::nan("")), "n/a");
}

TEST(Format, times_change_their_unit_where_the_rounding_does) {
  EXPECT_EQ(format_milliseconds(3.214), "3.21 ms");
  EXPECT_EQ(format_milliseconds(9.996), "10 ms");
  EXPECT_EQ(format_milliseconds(212.4), "212 ms");
  EXPECT_EQ(format_milliseconds(999.6), "1.00 s");
  EXPECT_EQ(format_milliseconds(12'340), "12.34 s");
  EXPECT_EQ(format_milliseconds(99'996), "100 s");
  EXPECT_EQ(format_milliseconds(3'723'000), "1:02:03");
}

TEST(Format, perplexity_of_any_size_is_short) {
  EXPECT_EQ(format_perplexity(24.891), "24.89");
  EXPECT_EQ(format_perplexity(999.996), "1,000");
  EXPECT_EQ(format_perplexity(50'257.2), "50,257");
  EXPECT_EQ(format_perplexity(1.24e8), "1.2e+08");
  EXPECT_EQ(format_perplexity(std::exp(1000.0)), "inf");
  EXPECT_EQ(format_perplexity(std::nan("")), "nan");
}

TEST(Format, printable_text_commands_no_terminal) {
  EXPECT_EQ(printable("caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x99\x82\n\tx"),
            "caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x99\x82\n\tx");
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(printable("\x1b[31m"), bad + "[31m");
  EXPECT_EQ(printable("a\rb\x07\x7f"), "a" + bad + "b" + bad + bad);
  EXPECT_EQ(printable("\xC2\x9B"), bad);  // C1: CSI in one code point
  EXPECT_EQ(printable(std::string("\0", 1)), bad);
  EXPECT_EQ(printable("\xC3"), bad);                                // cut short
  EXPECT_EQ(printable("\xC0\xAF"), bad + bad);                      // overlong
  EXPECT_EQ(printable("\xED\xA0\x80"), bad + bad + bad);            // surrogate
  EXPECT_EQ(printable("\xF4\x90\x80\x80"), bad + bad + bad + bad);  // beyond U+10FFFF
  EXPECT_EQ(printable("\xE2\x82"
                      "A"),
            bad + bad + "A");
}

TEST(Format, text_that_grows_is_shown_in_whole_characters) {
  const std::string text = "a\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80";  // 1, 2, 3 and 4 bytes
  const std::size_t expected[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10};
  for (std::size_t n = 0; n <= text.size(); ++n) {
    EXPECT_EQ(complete_characters(std::string_view(text).substr(0, n)), expected[n]) << n;
  }
  // What never becomes a character is not kept back for ever.
  EXPECT_EQ(complete_characters("\xF0"
                                "abc"),
            4U);
  EXPECT_EQ(complete_characters("\x80\x80\x80\x80\x80"), 5U);
}

TEST(Table, aligns_numbers_right_and_text_left) {
  const Table table{"optimizer",
                    {"role", "tensors", "lr"},
                    {{"matrices", "48", "2.00e-02"}, {"vectors", "1,098", "n/a"}, {}, {"total", "1,146", ""}}};
  EXPECT_EQ(format_table(table),
            "optimizer\n"
            "role      tensors        lr\n"
            "--------  -------  --------\n"
            "matrices       48  2.00e-02\n"
            "vectors     1,098       n/a\n"
            "--------  -------  --------\n"
            "total       1,146\n");
}

TEST(Table, needs_neither_title_nor_headers_nor_full_rows) {
  EXPECT_EQ(format_table({"", {}, {{"preset", "gpt2"}, {"layers"}, {"caf\xC3\xA9", "x"}}}),
            "preset  gpt2\nlayers\ncaf\xC3\xA9    x\n");
  EXPECT_EQ(format_table({}), "");
}

TEST(Table, fits_a_narrow_terminal_by_cutting_text_never_numbers) {
  const Table table{"", {"name", "bytes"}, {{"transformer.h.0.mlp.c_fc.weight", "9,437,184"}}};
  EXPECT_EQ(format_table(table, 24), "name               bytes\n-------------  ---------\ntransforme...  9,437,184\n");
  EXPECT_EQ(format_table(table, 1), "name          bytes\n--------  ---------\ntrans...  9,437,184\n");
  EXPECT_EQ(format_table(table, 42), format_table(table));
}

TEST(Wrap, breaks_at_spaces_and_inside_words_only_where_it_must) {
  EXPECT_EQ(wrap("the quick brown fox", "| ", 12), "| the quick\n| brown fox\n");
  EXPECT_EQ(wrap("abcdefghij", "", 4), "abcd\nefgh\nij\n");
  EXPECT_EQ(wrap("a\n\nb", "> ", 0), "> a\n> \n> b\n");
  EXPECT_EQ(wrap("", "> ", 10), "> \n");
  EXPECT_EQ(wrap("\xC3\xA9\xC3\xA9\xC3\xA9", "", 2), "\xC3\xA9\xC3\xA9\n\xC3\xA9\n");
  EXPECT_EQ(wrap("ab", "long prefix", 3), "long prefixa\nlong prefixb\n");  // ends, too
}

}  // namespace
}  // namespace polaron
