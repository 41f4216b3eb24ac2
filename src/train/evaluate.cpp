#include "train/evaluate.h"

#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

namespace polaron {

std::optional<Evaluation> evaluate(Transformer& model, Backend& backend, Stream& stream, Communicator& communicator,
                                   BatchUploader& uploader, ValidationReader& reader,
                                   const std::function<bool(std::int64_t)>& interrupted) {
  const std::int64_t ask_every = communicator.size() == 1 ? 1 : 4;  // micro-batches: several wait for one another
  const auto start = std::chrono::steady_clock::now();
  DeviceScalar<double> loss_sum(backend.device());
  loss_sum.zero(stream);
  reader.rewind();
  // Every process makes the same number of micro-batches, so all ask together.
  for (std::int64_t i = 0; std::optional<Batch> batch = reader.next(); ++i) {
    if (i % ask_every == 0 && interrupted(i)) {
      stream.synchronize();  // what is queued still adds to loss_sum
      return std::nullopt;
    }
    if (batch->target_count == 0) continue;
    model.forward_loss(stream, uploader.upload(stream, *std::move(batch)), loss_sum.device());
  }
  communicator.sum(stream, loss_sum.device(), 1);
  Evaluation result;
  result.tokens = reader.tokens();
  result.loss = loss_sum.get(stream) / static_cast<double>(result.tokens);
  result.perplexity = std::exp(result.loss);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace polaron
