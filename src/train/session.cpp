#include "train/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "data/shard.h"
#include "data/splits.h"
#include "train/huggingface.h"
#include "train/memory_fit.h"
#include "train/processes.h"
#include "train/report.h"

namespace polaron {

std::optional<Vocabulary> find_vocabulary(const DataConfig& data) {
  if (!data.vocabulary.empty()) return Vocabulary::load(data.vocabulary);
  const std::vector<std::string> files = expand_pattern(data.train);
  return files.empty() ? std::nullopt : Vocabulary::find_beside(files.front());
}

void resolve_vocabulary(Config& config, const std::optional<Vocabulary>& vocabulary) {
  if (config.model.vocabulary == 0) {
    if (!vocabulary) {
      throw Error(Exit::usage,
                  fmt::format("model.vocabulary is not given, and there is no vocabulary.json beside {}: set "
                              "model.vocabulary to the number of token ids.",
                              config.data.train));
    }
    config.model.vocabulary = vocabulary->size();
    if (config.model.head_vocabulary > 0 && config.model.head_vocabulary < config.model.vocabulary) {
      throw Error(Exit::usage, fmt::format("model.head_vocabulary is {}, less than the {} tokens of the data's "
                                           "vocabulary \"{}\": raise it, or leave it out.",
                                           config.model.head_vocabulary, vocabulary->size(), vocabulary->name()));
    }
  }
  if (vocabulary && vocabulary->size() > config.model.vocabulary) {
    throw Error(Exit::usage,
                fmt::format("the data's vocabulary \"{}\" has {} tokens, but model.vocabulary is {}: raise it to {} "
                            "or more (0 takes it from the data).",
                            vocabulary->name(), vocabulary->size(), config.model.vocabulary, vocabulary->size()));
  }
}

namespace {

Config resolved(Config config, const std::optional<Vocabulary>& vocabulary) {
  resolve_vocabulary(config, vocabulary);
  return config;
}

void check_precision(const Config& config, const Assignment& assignment, Device& device) {
  const std::string reason = device.info().slow_bf16;
  if (reason.empty() || config.allow_slow_bf16) return;
  const bool newton_schulz =
      std::any_of(assignment.classes.begin(), assignment.classes.end(), [](const MatrixClass& matrices) {
        return matrices.settings.newton_schulz_precision == NewtonSchulzPrecision::bf16;
      });
  if (!computed_in_bf16(config) && !newton_schulz) return;
  throw Error(Exit::usage, fmt::format("{} \"bf16\": products of bf16 would be slower than fp32's here: {}. Use "
                                       "\"fp32\", or set allow_slow_bf16 to true to compute so all the same.",
                                       computed_in_bf16(config) ? "precision" : "newton_schulz_precision", reason));
}

LoaderOptions loader_options(const Config& config, const Communicator& communicator, std::int32_t separator) {
  LoaderOptions options;
  options.pattern = config.data.train;
  options.sequence_length = config.training.sequence_length;
  options.global_batch = config.training.batch;
  options.micro_batch = config.training.micro_batch;
  options.rank = communicator.rank();
  options.processes = communicator.size();
  options.shuffle = config.data.shuffle;
  options.seed = config.seed;
  options.vocabulary_size = config.model.vocabulary;
  options.document_mask = config.model.document_mask;
  options.separator_token = separator;
  return options;
}

ValidationOptions validation_options(const Config& config, const Communicator& communicator, std::int32_t separator) {
  ValidationOptions options;
  options.pattern = config.data.validation;
  options.sequence_length = config.training.sequence_length;
  options.micro_batch = config.training.micro_batch;
  options.tokens = config.validation.tokens;
  options.rank = communicator.rank();
  options.processes = communicator.size();
  options.vocabulary_size = config.model.vocabulary;
  options.document_mask = config.model.document_mask;
  options.separator_token = separator;
  return options;
}

// What may change between the run that made the weights and the one that starts from them: the tensors keep their
// meaning, and only the values that the model computes differ.
bool may_change(const std::string& key, const TransformerConfig& model) {
  if (key == "context_length") return model.positions == Positions::rotary;
  return key == "norm_eps" || key == "rotary_base" || key == "attention_scale" || key == "attention_window" ||
         key == "logit_softcap" || key == "logit_softcap_form" || key == "rotary_frequencies";
}

void check_architecture(const CheckpointReader& source, const TransformerConfig& model) {
  std::string refused;
  std::string changed;
  for (const auto& [key, text] : architecture_differences(source.model(), model)) {
    std::string& list = may_change(key, model) ? changed : refused;
    list += (list.empty() ? "" : ", ") + text;
  }
  if (!refused.empty()) {
    throw Error(Exit::data, fmt::format("init_from: {} holds a model of another architecture than the config's: {}.",
                                        source.folder().string(), refused));
  }
  if (!changed.empty()) {
    log::warn(fmt::format("init_from: {} was made with other settings than the config's: {}.", source.folder().string(),
                          changed));
  }
}

}  // namespace

Session::Session(Config given, bool initialize, Communicator& communicator_)
    : Session(given, initialize, communicator_,
              make_backend(given.device, threads_for(given, communicator_), communicator_.local_rank())) {}

Session::Session(Config given, bool initialize, Communicator& communicator_, ChosenBackend backend_)
    : vocabulary(find_vocabulary(given.data)),
      config(resolved(std::move(given), vocabulary)),
      chosen(std::move(backend_)),
      backend(*chosen.backend),
      between_devices(make_device_communicator(communicator_, backend.device(),
                                               chosen.collectives ? &*chosen.collectives : nullptr)),
      communicator(between_devices ? *between_devices : communicator_),
      table(config.model) {
  settle_precision(config, backend);
  Assignment assignment = assign_optimizers(config.optimizer, config.model, table, compute_type(config));
  check_precision(config, assignment, backend.device());
  if (const std::string idle = idle_groups_note(assignment); !idle.empty()) log::warn(idle);
  if (communicator.size() > 1) {
    check_same_start(config, communicator);
    check_processes(config, assignment, communicator.size());
    config.training.micro_batch = micro_batch_of(config.training, communicator.size());
  }
  const Ownership ownership(assignment, table, communicator.size(), config.parallel.exchange);
  const MemoryFit fit(config, table, assignment, ownership, communicator, backend);
  if (config.training.micro_batch == kAutoMicroBatch) {
    config.training.micro_batch = fit.choose_micro_batch();
    micro_batch_note = fit.note(config.training.micro_batch);
  }
  memory = plan_memory(config, table, assignment, ownership, communicator.rank(), backend);
  traffic = plan_traffic(ownership, computed_in_bf16(config));
  flops = flops_per_token(config.model, table, config.training.sequence_length);
  // The data is opened before anything large is allocated: a wrong path should not cost time.
  if (!config.data.validation.empty()) {
    check_splits(config.data.train, config.data.validation, vocabulary ? &*vocabulary : nullptr);
    validation.emplace(validation_options(config, communicator, separator()));
    if (const std::string note = validation->shortened_note("validation.tokens"); !note.empty()) log::warn(note);
  }
  fit.check(memory);
  stream = backend.device().make_stream();
  const auto bytes = static_cast<std::size_t>(table.stored_elements()) * sizeof(float);
  weights = DeviceBuffer(backend.device(), bytes);
  gradients = DeviceBuffer(backend.device(), bytes);
  if (computed_in_bf16(config)) working = DeviceBuffer(backend.device(), bytes / 2);
  if (initialize) {
    if (config.init_from.empty()) {
      std::vector<float> host(static_cast<std::size_t>(table.stored_elements()));
      initialize_weights(table, config.seed, host.data());
      backend.device().upload(*stream, weights.data(), host.data(), bytes);
      stream->synchronize();
    } else {
      const CheckpointReader source(config.init_from);
      check_same_checkpoint(&source, "init_from", communicator);
      check_architecture(source, config.model);
      source.load_weights(backend, *stream, weights_view());
    }
    round_weights();
  }
  optimizer.emplace(std::move(assignment), table, backend, communicator, config.parallel.exchange, config.seed,
                    buffers(), config.quirks.shared_columns);
  const ActivationShape shape = activation_shape(config);
  model.emplace(config.model, table, shape, backend, buffers());
  uploader.emplace(backend.device(), config.model, shape.rows());
}

// Before the memory that transfers may still have in hand.
Session::~Session() { between_devices.reset(); }

void Session::round_weights() {
  if (!computed_in_bf16(config)) return;
  backend.elementwise().round(*stream, weights.as<float>(), working.as<bf16>(), table.stored_elements());
}

std::unique_ptr<Loader> Session::open_loader(std::int64_t position) const {
  return std::make_unique<Loader>(loader_options(config, communicator, separator()), LoaderPosition{position});
}

std::vector<std::int32_t> Session::sample_prompt() const {
  if (!vocabulary) {
    throw Error(Exit::usage, fmt::format("sample.every is {}, but there is no vocabulary.json beside {} to make text "
                                         "with: give data.vocabulary, or leave sample.every out.",
                                         config.sample.every, config.data.train));
  }
  std::vector<std::int32_t> ids;
  try {
    if (!config.sample.prompt.empty()) ids = vocabulary->encode(config.sample.prompt);
  } catch (const Error&) {
    throw Error(Exit::usage, fmt::format("sample.prompt: polaron cannot run the tokenizer \"{}\" of the data; leave "
                                         "the prompt empty.",
                                         vocabulary->name()));
  }
  if (ids.empty() && separator() >= 0) ids.push_back(separator());
  if (ids.empty()) {
    throw Error(Exit::usage, fmt::format("sample.prompt is empty, and the data's vocabulary \"{}\" has no separator to "
                                         "start from: give a prompt, or leave sample.every out.",
                                         vocabulary->name()));
  }
  return ids;
}

}  // namespace polaron
