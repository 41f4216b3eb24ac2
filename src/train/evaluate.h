// Validation loss and perplexity.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "backend/backend.h"
#include "comm/communicator.h"
#include "data/validation.h"
#include "model/transformer.h"
#include "train/device_batch.h"

namespace polaron {

struct Evaluation {
  double loss = 0;        // mean negative log-likelihood a token, in nats, accumulated in double
  double perplexity = 0;  // exp(loss)
  std::int64_t tokens = 0;
  double seconds = 0;
};

// Runs the reader from its start over all its targets. Waits for the stream. Collective. `interrupted` is asked between
// micro-batches, with their number so far, of several processes every few and by all at the same ones, to whom it has
// to tell the same; true: nothing is returned.
std::optional<Evaluation> evaluate(
    Transformer& model, Backend& backend, Stream& stream, Communicator& communicator, BatchUploader& uploader,
    ValidationReader& reader,
    const std::function<bool(std::int64_t)>& interrupted = [](std::int64_t) { return false; });

}  // namespace polaron
