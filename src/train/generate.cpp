#include "train/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/philox.h"

namespace polaron {

std::int32_t sample_token(std::span<const float> logits, double temperature, std::int64_t top_k, double uniform) {
  const auto likeliest = std::max_element(logits.begin(), logits.end());
  if (temperature <= 0) return static_cast<std::int32_t>(likeliest - logits.begin());
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  if (top_k > 0 && top_k < static_cast<std::int64_t>(order.size())) {
    const auto larger = [&](std::int32_t a, std::int32_t b) {
      const float x = logits[static_cast<std::size_t>(a)];
      const float y = logits[static_cast<std::size_t>(b)];
      return x > y || (x == y && a < b);
    };
    std::nth_element(order.begin(), order.begin() + top_k, order.end(), larger);
    order.resize(static_cast<std::size_t>(top_k));
    std::sort(order.begin(), order.end());  // so that the draw does not depend on nth_element's order
  }
  std::vector<double> weights;
  weights.reserve(order.size());
  for (const std::int32_t id : order) {
    weights.push_back(std::exp((static_cast<double>(logits[static_cast<std::size_t>(id)]) - *likeliest) / temperature));
  }
  double remaining = uniform * std::accumulate(weights.begin(), weights.end(), 0.0);
  for (std::size_t i = 0; i < order.size(); ++i) {
    remaining -= weights[i];
    if (remaining < 0) return order[i];
  }
  return order.back();
}

std::vector<std::int32_t> generate(Transformer& model, Stream& stream, BatchUploader& uploader, std::int64_t context,
                                   std::span<const std::int32_t> prompt, const SamplingOptions& options,
                                   const std::function<bool(std::int32_t)>& on_token) {
  std::vector<std::int32_t> ids(prompt.begin(), prompt.end());
  std::vector<std::int32_t> generated;
  std::vector<float> logits(static_cast<std::size_t>(model.config().vocabulary));
  const PhiloxKey key = make_key(options.seed, RandomPurpose::sampling, 0, 0);
  for (std::int64_t i = 0; i < options.tokens; ++i) {
    const auto length = std::min<std::int64_t>(context, static_cast<std::int64_t>(ids.size()));
    const DeviceBatch batch = uploader.upload_prompt(stream, std::span(ids).last(static_cast<std::size_t>(length)));
    model.logits_of_row(stream, batch, length - 1, logits.data());
    const double uniform = static_cast<double>(philox(key, static_cast<std::uint64_t>(i)).word[0]) / 4294967296.0;
    const std::int32_t id = sample_token(logits, options.temperature, options.top_k, uniform);
    ids.push_back(id);
    generated.push_back(id);
    if (on_token && !on_token(id)) break;
  }
  return generated;
}

}  // namespace polaron
