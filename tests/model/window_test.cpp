// Attention windows that grow: the schedule at the steps, and the mask of the toy case, that docs/paper.md lists.
#include "model/window.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace polaron {
namespace {

TransformerConfig windows(std::int64_t block, std::int64_t final) {
  TransformerConfig config;
  config.window_block = block;
  config.window_final = final;
  return config;
}

TEST(Window, grows_at_the_steps_of_the_authors_schedule) {
  const TransformerConfig config = windows(128, 3456);
  const std::int64_t rises[] = {0,    76,   156,  240,  330,  426,  531,  645,  771,  914,  1080, 1282, 1548, 1987,
                                3974, 4413, 4679, 4881, 5047, 5190, 5316, 5430, 5535, 5631, 5721, 5805, 5885};
  std::int64_t window = 0;
  for (std::int64_t step = 0; step <= 5960; ++step) {
    if (window < 27 && step == rises[window]) ++window;
    ASSERT_EQ(window_blocks(config, static_cast<double>(step) / 5960.0), window) << "step " << step;
  }
  EXPECT_EQ(window, 27);
}

// Keys that each row of the toy sequence sees; '9' opens a document.
std::string seen(std::int64_t window) {
  const std::string tokens = "911111111111119111111111";
  std::vector<std::int32_t> start, first(tokens.size());
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    start.push_back(tokens[t] == '9' ? static_cast<std::int32_t>(t) : start.back());
  }
  block_window(start, 4, window, first);
  std::string text;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    if (t % 4 == 0 && t > 0) text += ' ';
    const auto count = static_cast<std::int64_t>(t) + 1 - first[t];
    text += count < 10 ? std::to_string(count) : std::string(1, static_cast<char>('a' + count - 10));
  }
  return text;
}

TEST(Window, of_blocks_shows_what_the_authors_mask_shows) {
  EXPECT_EQ(seen(0), "1234 1234 1234 1212 1234 1234");
  EXPECT_EQ(seen(1), "1234 1234 1234 1212 1234 1234");
  EXPECT_EQ(seen(2), "1234 5678 5678 5612 3456 5678");
  EXPECT_EQ(seen(3), "1234 5678 9abc 9a12 3456 789a");
  EXPECT_EQ(seen(27), "1234 5678 9abc de12 3456 789a");
}

// The rule of the authors' code, block by block: which earlier blocks are FULL (all of one document, the same) and
// which PARTIAL (they share a document), and how many of each a window keeps, the latest first.
std::vector<bool> kept_blocks(const std::vector<std::int32_t>& doc, std::int64_t block, std::int64_t window,
                              std::int64_t i) {
  const auto low = [&](std::int64_t j) { return doc[static_cast<std::size_t>(j * block)]; };
  const auto high = [&](std::int64_t j) { return doc[static_cast<std::size_t>((j + 1) * block - 1)]; };
  std::vector<std::int64_t> full, partial;
  for (std::int64_t j = 0; j <= i; ++j) {
    if (j < i && low(i) == high(j) && high(i) == low(j)) {
      full.push_back(j);
    } else if (low(i) <= high(j) && high(i) >= low(j)) {
      partial.push_back(j);
    }
  }
  const auto fulls = static_cast<std::int64_t>(full.size()), partials = static_cast<std::int64_t>(partial.size());
  std::vector<bool> kept(static_cast<std::size_t>(i + 1));
  for (std::int64_t n = 0; n < std::min(partials, std::max<std::int64_t>(window - fulls, 1)); ++n) {
    kept[static_cast<std::size_t>(partial[static_cast<std::size_t>(partials - 1 - n)])] = true;
  }
  for (std::int64_t n = 0; n < std::min(fulls, std::max<std::int64_t>(window - 1, 0)); ++n) {
    kept[static_cast<std::size_t>(full[static_cast<std::size_t>(fulls - 1 - n)])] = true;
  }
  return kept;
}

TEST(Window, of_blocks_follows_the_authors_rule_for_any_documents) {
  constexpr std::int64_t kBlock = 4, kBlocks = 9;
  std::uint64_t state = 1;
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<std::int32_t> doc, start, first(kBlock * kBlocks);
    for (std::int64_t t = 0; t < kBlock * kBlocks; ++t) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      const bool opens = t == 0 || (state >> 33U) % static_cast<std::uint64_t>(3 + trial % 17) == 0;
      doc.push_back(t == 0 ? 0 : doc.back() + (opens ? 1 : 0));
      start.push_back(opens ? static_cast<std::int32_t>(t) : start.back());
    }
    for (const std::int64_t window : {0, 1, 2, 3, 4, 6, 20}) {
      block_window(start, kBlock, window, first);
      for (std::int64_t t = 0; t < kBlock * kBlocks; ++t) {
        const std::vector<bool> kept = kept_blocks(doc, kBlock, window, t / kBlock);
        for (std::int64_t s = 0; s <= t; ++s) {
          const bool wanted = kept[static_cast<std::size_t>(s / kBlock)] &&
                              doc[static_cast<std::size_t>(s)] == doc[static_cast<std::size_t>(t)];
          ASSERT_EQ(s >= first[static_cast<std::size_t>(t)], wanted)
              << "trial " << trial << ", window " << window << ", row " << t << ", key " << s;
        }
      }
    }
  }
}

}  // namespace
}  // namespace polaron
