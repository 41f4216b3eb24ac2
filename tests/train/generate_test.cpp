#include "train/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "support/tiny_model.h"

namespace polaron {
namespace {

using test::TinyModel;

constexpr double kAlmostOne = 1.0 - std::numeric_limits<double>::epsilon() / 2.0;

// --- one token
// --------------------------------------------------------------------------------------------------------

TEST(SampleToken, at_temperature_0_is_the_likeliest_whatever_the_draw) {
  const std::vector<float> logits = {0.5F, -2.0F, 3.0F, 2.9F};
  for (const double uniform : {0.0, 0.5, kAlmostOne}) {
    for (const std::int64_t top_k : {0, 1, 3, 10}) EXPECT_EQ(sample_token(logits, 0.0, top_k, uniform), 2);
  }
}

TEST(SampleToken, of_equally_likely_ones_at_temperature_0_is_the_first) {
  EXPECT_EQ(sample_token(std::vector<float>{1.0F, 4.0F, 4.0F, 4.0F}, 0.0, 0, 0.9), 1);
}

TEST(SampleToken, cuts_the_unit_interval_by_probability) {
  // Probabilities 1/2, 1/3, 1/6.
  const std::vector<float> logits = {std::log(3.0F), std::log(2.0F), 0.0F};
  const std::map<double, int> expected = {{0.0, 0},  {0.49, 0}, {0.51, 1},      {0.82, 1},
                                          {0.84, 2}, {0.99, 2}, {kAlmostOne, 2}};
  for (const auto& [uniform, token] : expected) EXPECT_EQ(sample_token(logits, 1.0, 0, uniform), token) << uniform;
}

TEST(SampleToken, temperature_flattens_and_sharpens) {
  const std::vector<float> logits = {0.0F, std::log(4.0F)};  // 1/5 and 4/5; squared 1/17; root 1/3
  EXPECT_EQ(sample_token(logits, 1.0, 0, 0.19), 0);
  EXPECT_EQ(sample_token(logits, 1.0, 0, 0.21), 1);
  EXPECT_EQ(sample_token(logits, 0.5, 0, 0.05), 0);
  EXPECT_EQ(sample_token(logits, 0.5, 0, 0.07), 1);
  EXPECT_EQ(sample_token(logits, 2.0, 0, 0.33), 0);
  EXPECT_EQ(sample_token(logits, 2.0, 0, 0.34), 1);
}

TEST(SampleToken, chooses_among_the_top_k_only) {
  const std::vector<float> logits = {1.0F, 5.0F, 2.0F, 4.0F, 3.0F};
  std::set<std::int32_t> chosen;
  for (int i = 0; i <= 1000; ++i) chosen.insert(sample_token(logits, 100.0, 3, std::min(i / 1000.0, kAlmostOne)));
  EXPECT_EQ(chosen, (std::set<std::int32_t>{1, 3, 4}));
  EXPECT_EQ(sample_token(logits, 100.0, 1, kAlmostOne), 1);
}

TEST(SampleToken, breaks_ties_at_the_top_k_by_the_smaller_id) {
  std::set<std::int32_t> chosen;
  for (int i = 0; i < 100; ++i) {
    chosen.insert(sample_token(std::vector<float>{1.0F, 1.0F, 1.0F, 1.0F, 2.0F}, 1.0, 3, i / 100.0));
  }
  EXPECT_EQ(chosen, (std::set<std::int32_t>{0, 1, 4}));
}

TEST(SampleToken, never_chooses_what_has_no_probability) {
  const std::vector<float> logits = {-1e30F, 0.0F, -1e30F, 0.0F, -1e30F};
  for (const double uniform : {0.0, 0.25, 0.5, 0.75, kAlmostOne}) {
    const std::int32_t token = sample_token(logits, 1.0, 0, uniform);
    EXPECT_TRUE(token == 1 || token == 3) << token << " at " << uniform;
  }
}

TEST(SampleToken, large_logits_do_not_overflow) {
  EXPECT_EQ(sample_token(std::vector<float>{3e38F, 2e38F}, 1.0, 0, 0.99), 0);
  EXPECT_EQ(sample_token(std::vector<float>{100.0F, 0.0F}, 1e-3, 0, 0.99), 0);
}

// --- texts
// ------------------------------------------------------------------------------------------------------------

struct Sampling {
  explicit Sampling(const TransformerConfig& config, std::int64_t context_ = 12)
      : context(context_), model(config, shape(context_)), uploader(model.backend().device(), config, context_) {
    model.set_weights(test::random_weights(model.table(), 3));
  }
  static ActivationShape shape(std::int64_t length) {
    ActivationShape s = test::shape_for(1, length);
    s.backward = false;
    return s;
  }
  std::vector<std::int32_t> run(const std::vector<std::int32_t>& prompt, const SamplingOptions& options,
                                const std::function<bool(std::int32_t)>& on_token = {}) {
    return generate(model.transformer(), model.stream(), uploader, context, prompt, options, on_token);
  }

  std::int64_t context;
  TinyModel model;
  BatchUploader uploader;
};

SamplingOptions options_of(std::int64_t tokens, double temperature, std::uint64_t seed = 1) {
  SamplingOptions options;
  options.tokens = tokens;
  options.temperature = temperature;
  options.top_k = 0;
  options.seed = seed;
  return options;
}

TEST(Generate, gives_as_many_ids_as_asked_and_none_of_the_padding) {
  Sampling sampling(test::tiny_llama());
  const std::vector<std::int32_t> ids = sampling.run({5}, options_of(60, 50.0));
  EXPECT_EQ(ids.size(), 60U);
  for (const std::int32_t id : ids) EXPECT_TRUE(id >= 0 && id < 61) << id;  // stored: 64
  EXPECT_GT(std::set<std::int32_t>(ids.begin(), ids.end()).size(), 20U);
}

TEST(Generate, at_temperature_0_follows_the_likeliest_ids) {
  Sampling sampling(test::tiny_gpt2());
  const std::vector<std::int32_t> prompt = {1, 2, 3};
  const std::vector<std::int32_t> ids = sampling.run(prompt, options_of(5, 0.0));
  std::vector<std::int32_t> text = prompt;
  for (const std::int32_t id : ids) {
    const test::HostBatch batch{
        1, static_cast<std::int64_t>(text.size()), text, std::vector<std::int32_t>(text.size(), -1), {}};
    const std::vector<float> logits = sampling.model.logits(batch);
    EXPECT_EQ(id, std::max_element(logits.end() - 61, logits.end()) - (logits.end() - 61));
    text.push_back(id);
  }
}

TEST(Generate, repeats_itself_for_the_same_seed_only) {
  Sampling sampling(test::tiny_llama());
  const std::vector<std::int32_t> first = sampling.run({5, 6}, options_of(20, 2.0, 1));
  EXPECT_EQ(sampling.run({5, 6}, options_of(20, 2.0, 1)), first);
  EXPECT_NE(sampling.run({5, 6}, options_of(20, 2.0, 2)), first);
}

TEST(Generate, goes_on_when_the_context_is_full_and_forgets_the_oldest) {
  Sampling sampling(test::tiny_gpt2(), 8);
  std::vector<std::int32_t> prompt(30, 7);
  for (std::size_t i = 22; i < 30; ++i) prompt[i] = static_cast<std::int32_t>(i);
  const std::vector<std::int32_t> ids = sampling.run(prompt, options_of(12, 0.0));
  EXPECT_EQ(ids.size(), 12U);
  EXPECT_EQ(sampling.run({prompt.end() - 8, prompt.end()}, options_of(12, 0.0)), ids);
}

TEST(Generate, shows_each_id_as_it_comes_and_stops_when_told) {
  Sampling sampling(test::tiny_llama());
  const std::vector<std::int32_t> all = sampling.run({5}, options_of(10, 2.0));
  std::vector<std::int32_t> shown;
  const std::vector<std::int32_t> some = sampling.run({5}, options_of(10, 2.0), [&](std::int32_t id) {
    shown.push_back(id);
    return shown.size() < 4;
  });
  EXPECT_EQ(shown, std::vector<std::int32_t>(all.begin(), all.begin() + 4));
  EXPECT_EQ(some, shown);
}

TEST(Generate, of_no_tokens_is_nothing) {
  Sampling sampling(test::tiny_llama());
  EXPECT_TRUE(sampling.run({5}, options_of(0, 1.0)).empty());
}

}  // namespace
}  // namespace polaron
