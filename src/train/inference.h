// A checkpoint's model, loaded for evaluation or sampling: weights and the activations of a forward pass, no gradients.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "model/transformer.h"
#include "train/backend_factory.h"
#include "train/checkpoint.h"
#include "train/device_batch.h"

namespace polaron {

class InferenceModel {
 public:
  // For batches of at most `sequences` of `length` tokens.
  InferenceModel(const CheckpointReader& checkpoint, const std::string& device, int threads, std::int64_t sequences,
                 std::int64_t length);

  Transformer& transformer() { return *transformer_; }
  Backend& backend() { return *chosen_.backend; }
  Stream& stream() { return *stream_; }
  BatchUploader& uploader() { return *uploader_; }

 private:
  ChosenBackend chosen_;
  ParameterTable table_;
  std::unique_ptr<Stream> stream_;
  DeviceBuffer weights_;
  std::optional<Transformer> transformer_;
  std::optional<BatchUploader> uploader_;
};

// How much of its run a checkpoint has behind it, in [0, 1]; 1 where it does not say.
double trained_share(const CheckpointReader& checkpoint);

// The sequence length that the checkpoint's run trained with; the context length where it does not say.
std::int64_t trained_sequence_length(const CheckpointReader& checkpoint);

// What the checkpoint's run measured itself on, data.validation (relative to the current directory) and
// validation.tokens (0: all) of its config.
struct TrainedValidation {
  std::string pattern;
  std::int64_t tokens = 0;
};
// Nothing where the checkpoint has no run's config, or the run no validation.
std::optional<TrainedValidation> trained_validation(const CheckpointReader& checkpoint);

}  // namespace polaron
