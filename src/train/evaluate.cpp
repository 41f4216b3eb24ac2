#include "train/evaluate.h"

#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

namespace polaron {

Evaluation evaluate(Transformer& model, Backend& backend, Stream& stream, Communicator& communicator,
                    BatchUploader& uploader, ValidationReader& reader) {
  const auto start = std::chrono::steady_clock::now();
  DeviceScalar<double> loss_sum(backend.device());
  loss_sum.zero(stream);
  reader.rewind();
  while (std::optional<Batch> batch = reader.next()) {
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
