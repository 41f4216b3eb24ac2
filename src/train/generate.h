// Sampling from a model, one token after the other. Each token costs a forward pass over the whole context (there is no
// key-value cache yet): fine for looking at what a run has learned.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/transformer.h"
#include "train/device_batch.h"

namespace polaron {

struct SamplingOptions {
  std::int64_t tokens = 64;
  double temperature = 0.8;  // 0: always the likeliest token
  std::int64_t top_k = 40;   // choose among so many likeliest tokens; 0: all
  std::uint64_t seed = 0;
};

// Continues `prompt` (at least one id) by options.tokens ids and returns these; on_token, where given, sees each as it
// comes and ends the sampling by returning false. `context`: ids that the model was planned for; older ones fall out of
// sight.
std::vector<std::int32_t> generate(Transformer& model, Stream& stream, BatchUploader& uploader, std::int64_t context,
                                   std::span<const std::int32_t> prompt, const SamplingOptions& options,
                                   const std::function<bool(std::int32_t)>& on_token = {});

// Index drawn from softmax(logits / temperature) over the top_k largest; `uniform` in [0, 1).
std::int32_t sample_token(std::span<const float> logits, double temperature, std::int64_t top_k, double uniform);

}  // namespace polaron
