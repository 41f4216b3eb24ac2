#include "train/inference.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace polaron {
namespace {

ActivationShape shape_for(std::int64_t sequences, std::int64_t length) {
  ActivationShape shape;
  shape.sequences = sequences;
  shape.sequence_length = length;
  shape.backward = false;
  return shape;
}

// Of the config of the checkpoint's run; `missing` where it does not say. The rest of the config may be of a version
// that this one does not read.
template <class T>
T run_setting(const CheckpointReader& checkpoint, const char* pointer, const T& missing) {
  if (!checkpoint.resumable()) return missing;
  return nlohmann::json::parse(checkpoint.state().config).value(nlohmann::json::json_pointer(pointer), missing);
}

}  // namespace

InferenceModel::InferenceModel(const CheckpointReader& checkpoint, const std::string& device, int threads,
                               std::int64_t sequences, std::int64_t length)
    : chosen_(make_backend(device, threads)), table_(checkpoint.model()) {
  Backend& backend = *chosen_.backend;
  stream_ = backend.device().make_stream();
  weights_ = DeviceBuffer(backend.device(), static_cast<std::size_t>(table_.stored_elements()) * sizeof(float));
  checkpoint.load_weights(backend, *stream_, {checkpoint.model(), table_, weights_.as<float>()});
  transformer_.emplace(checkpoint.model(), table_, shape_for(sequences, length), backend,
                       FlatBuffers{weights_.as<float>(), nullptr, nullptr});
  uploader_.emplace(backend.device(), checkpoint.model(), sequences * length);
  uploader_->set_progress(trained_share(checkpoint));
}

double trained_share(const CheckpointReader& checkpoint) {
  const auto steps = run_setting(checkpoint, "/training/steps", std::int64_t{0});
  return steps > 0 ? std::min(1.0, static_cast<double>(checkpoint.state().step) / static_cast<double>(steps)) : 1.0;
}

std::int64_t trained_sequence_length(const CheckpointReader& checkpoint) {
  return run_setting(checkpoint, "/training/sequence_length", checkpoint.model().context_length);
}

std::optional<TrainedValidation> trained_validation(const CheckpointReader& checkpoint) {
  TrainedValidation result;
  result.pattern = run_setting(checkpoint, "/data/validation", result.pattern);
  result.tokens = run_setting(checkpoint, "/validation/tokens", result.tokens);
  if (result.pattern.empty()) return std::nullopt;
  return result;
}

}  // namespace polaron
