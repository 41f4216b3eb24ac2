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
  if (!checkpoint.resumable()) return 1.0;
  const auto config = nlohmann::json::parse(checkpoint.state().config);
  const std::int64_t steps = config.value(nlohmann::json::json_pointer("/training/steps"), std::int64_t{0});
  return steps > 0 ? std::min(1.0, static_cast<double>(checkpoint.state().step) / static_cast<double>(steps)) : 1.0;
}

std::int64_t trained_sequence_length(const CheckpointReader& checkpoint) {
  if (!checkpoint.resumable()) return checkpoint.model().context_length;
  const auto config = nlohmann::json::parse(checkpoint.state().config);
  return config.value(nlohmann::json::json_pointer("/training/sequence_length"), checkpoint.model().context_length);
}

}  // namespace polaron
