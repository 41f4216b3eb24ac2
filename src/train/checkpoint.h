// Checkpoints: a folder that transformers loads as a model and polaron resumes to the bit (docs/formats.md,
// "Checkpoints").
//
//   model.safetensors, config.json   the model (train/huggingface.h)
//   optimizer.safetensors            optimizer state, under polaron's names
//   trainer.json                     step, data position, loss history, full run config, format version
//   vocabulary.json                  when the data had one
//   tuning.bin                       when the backend made choices (Backend::tuned)
//   checksums.json                   of every file; verified before anything is read
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "comm/communicator.h"
#include "config/transformer_config.h"
#include "model/parameters.h"
#include "optim/optimizer.h"

namespace polaron {

struct TrainerState {
  std::int64_t step = 0;               // updates done; also the number of global batches consumed
  std::int64_t tokens = 0;             // targets trained on
  std::uint64_t data_fingerprint = 0;  // Loader::fingerprint of the data that the position belongs to
  std::vector<double> loss_history;    // of the last steps, oldest first (loss-spike detection)
  std::string config;                  // effective run config, JSON text
  std::vector<std::byte> tuned;        // the backend's choices; empty where it makes none
};

struct ModelWeights {
  const TransformerConfig& config;
  const ParameterTable& table;
  float* device;  // flat, laid out by the table
};

// Writes a checkpoint folder that appears whole or not at all. Collective: process 0 writes, the others send what they
// own (so an Error on process 0 alone leaves them waiting, and has to end them). `vocabulary` is the text of
// vocabulary.json or empty; `separator` as in huggingface_config. Waits for the stream. Error(Exit::data) where it
// cannot be written, Error(Exit::numerical) where a weight is not finite: nothing is left behind then.
void write_checkpoint(const std::filesystem::path& folder, Backend& backend, Stream& stream, Communicator& communicator,
                      const ModelWeights& model, std::span<const StateTensor> optimizer, const TrainerState& state,
                      const std::string& vocabulary, std::int32_t separator);

// A checkpoint of polaron's or a model folder of transformers', verified and open.
class CheckpointReader {
 public:
  // Takes the newest checkpoint where `folder` is a run directory or its checkpoints folder. Error(Exit::data) for what
  // is missing, damaged or of a newer format version.
  explicit CheckpointReader(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const { return folder_; }
  const TransformerConfig& model() const { return model_; }
  bool resumable() const { return state_.has_value(); }          // has optimizer state and trainer.json
  const TrainerState& state() const;                             // Error where not resumable
  const std::string& vocabulary() const { return vocabulary_; }  // text of vocabulary.json; empty: none
  // Of checksums.json, which has one of every file; of config.json and the weights, which are read, where it has none.
  std::uint64_t checksum() const;

  // Fills the flat buffer; Error(Exit::data) naming the tensor where names or shapes do not fit the table.
  void load_weights(Backend& backend, Stream& stream, const ModelWeights& into) const;
  // Each process takes the parts that it owns; of a summed tensor, the whole (Optimizer::restart_sums follows).
  void load_optimizer(Backend& backend, Stream& stream, std::span<const StateTensor> into) const;

 private:
  std::filesystem::path folder_;
  TransformerConfig model_;
  std::optional<TrainerState> state_;
  std::string vocabulary_;
};

// <run>/checkpoints/step-00000100
std::filesystem::path checkpoint_folder(const std::filesystem::path& run, std::int64_t step);
// Points <run>/checkpoints/latest at the step's folder and removes all but `keep` (0: keeps all): first those of
// `left_behind` and of later steps, which the run has gone back from, then the oldest.
void finish_checkpoint(const std::filesystem::path& run, std::int64_t step, std::int64_t keep,
                       std::span<const std::filesystem::path> left_behind = {});
// The checkpoints of the run that are of later steps than `step`, in their order.
std::vector<std::filesystem::path> later_checkpoints(const std::filesystem::path& run, std::int64_t step);
// Whether the run directory has a checkpoint to resume from.
bool has_checkpoint(const std::filesystem::path& run);

}  // namespace polaron
