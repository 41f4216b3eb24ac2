// Everything a training run holds, put together from its config: device, data, model, optimizer.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "comm/communicator.h"
#include "config/config.h"
#include "data/loader.h"
#include "data/validation.h"
#include "data/vocabulary.h"
#include "model/transformer.h"
#include "optim/optimizer.h"
#include "train/backend_factory.h"
#include "train/checkpoint.h"
#include "train/device_batch.h"
#include "train/plan.h"

namespace polaron {

// The vocabulary that config.data names, or that lies beside the training shards. Error(Exit::data) where a named one
// cannot be read.
std::optional<Vocabulary> find_vocabulary(const DataConfig& data);

// Fills config.model.vocabulary from the vocabulary where it is 0, and checks that the data's ids fit the model.
void resolve_vocabulary(Config& config, const std::optional<Vocabulary>& vocabulary);

class Session {
 public:
  // Opens the data, checks that the plan fits into memory, allocates, and draws the initial weights (or reads those of
  // config.init_from). `initialize` false leaves them zero: the caller loads a checkpoint. With several processes the
  // config's micro_batch is cut to the sequences of one; Error(Exit::usage) where they cannot share the batch or the
  // matrices, or were not given the same config and program. The communicator must outlive the session.
  Session(Config config, bool initialize, Communicator& communicator);
  // The same on a backend that is there already, whatever config.device says.
  Session(Config config, bool initialize, Communicator& communicator, ChosenBackend backend);
  ~Session();

  std::optional<Vocabulary> vocabulary;
  Config config;
  ChosenBackend chosen;
  Backend& backend;
  std::unique_ptr<Communicator> between_devices;  // null where the caller's communicator serves
  Communicator& communicator;                     // for everything; the caller's is for the host alone
  ParameterTable table;
  MemoryPlan memory;
  std::string micro_batch_note;  // a sentence where config.training.micro_batch was "auto"; empty: it was not
  TrafficPlan traffic;
  FlopsPerToken flops;
  std::unique_ptr<Stream> stream;
  DeviceBuffer weights;  // fp32 masters
  DeviceBuffer working;  // bf16 copy, where config.precision asks for it
  DeviceBuffer gradients;
  std::optional<Optimizer> optimizer;
  std::optional<Transformer> model;
  std::optional<BatchUploader> uploader;
  std::optional<ValidationReader> validation;

  // The training data from global batch `position` on. A loader reads ahead on a thread of its own.
  std::unique_ptr<Loader> open_loader(std::int64_t position) const;
  // Token ids of sample.prompt, or the separator where it is empty. Error(Exit::usage) where the data's vocabulary
  // makes no text or none for this prompt.
  std::vector<std::int32_t> sample_prompt() const;
  std::int32_t separator() const { return vocabulary ? vocabulary->separator_token() : -1; }
  // After the weights were set from outside: the working copy follows.
  void round_weights();
  FlatBuffers buffers() const { return {weights.as<float>(), gradients.as<float>(), working.as<bf16>()}; }
  ModelWeights weights_view() { return {config.model, table, weights.as<float>()}; }
};

}  // namespace polaron
