#include "train/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/philox.h"
#include "base/error.h"
#include "base/log.h"
#include "data/shard.h"
#include "train/huggingface.h"
#include "train/processes.h"

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

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
double in_gib(std::int64_t bytes) { return static_cast<double>(bytes) / kGiB; }

// What memory plans of one session depend on.
struct Planned {
  const Config& config;
  const ParameterTable& table;
  const Assignment& assignment;
  const Ownership& ownership;
  const Communicator& communicator;
  Backend& backend;

  std::int64_t fitting(Recompute recompute, std::int64_t bytes) const {
    Config changed = config;
    changed.training.recompute = recompute;
    return largest_micro_batch(std::move(changed), table, assignment, ownership, communicator.rank(), backend, bytes);
  }
};

std::string what_would_fit(const Planned& planned, std::int64_t bytes) {
  const Recompute recompute = planned.config.training.recompute;
  if (const std::int64_t count = planned.fitting(recompute, bytes); count > 0) {
    return fmt::format("training.micro_batch {} would fit", count);
  }
  if (const std::int64_t count = planned.fitting(Recompute::block, bytes); count > 0) {
    return fmt::format("training.micro_batch {} would fit with training.recompute \"block\"", count);
  }
  return "Not even training.micro_batch 1 with training.recompute \"block\" would fit: choose a smaller model or more "
         "processes";
}

void check_memory(const Planned& planned, const MemoryPlan& memory) {
  Device& device = planned.backend.device();
  const std::int64_t free = free_memory(device, 1);
  if (free <= 0 || memory.total() <= free) return;
  throw Error(
      Exit::device,
      fmt::format("the run needs {:.2f} GiB of memory on {} (activations {:.2f} GiB), and {:.2f} GiB are free. {}; "
                  "`polaron plan` shows what each part takes.",
                  in_gib(memory.total()), device.info().name, in_gib(memory.activations), in_gib(free),
                  what_would_fit(planned, free)));
}

// The same for all processes. 1 where nothing fits: the check that follows says so.
std::int64_t choose_micro_batch(const Planned& planned, Communicator& communicator) {
  const std::int64_t free = free_memory(planned.backend.device(), communicator.local_size());
  const Recompute recompute = planned.config.training.recompute;
  std::vector<double> all(static_cast<std::size_t>(communicator.size()));
  all[static_cast<std::size_t>(communicator.rank())] =
      static_cast<double>(planned.fitting(recompute, filled_by_auto(free)));
  communicator.sum_host(all);
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(*std::min_element(all.begin(), all.end())));
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
  Assignment assignment = assign_optimizers(config.optimizer, config.model, table);
  check_precision(config, assignment, backend.device());
  if (communicator.size() > 1) {
    check_same_start(config, communicator);
    check_processes(config, assignment, communicator.size());
    config.training.micro_batch = micro_batch_of(config.training, communicator.size());
  }
  const Ownership ownership(assignment, table, communicator.size(), config.parallel.exchange);
  const Planned planned{config, table, assignment, ownership, communicator, backend};
  if (config.training.micro_batch == kAutoMicroBatch) {
    config.training.micro_batch = choose_micro_batch(planned, communicator);
    micro_batch_note =
        fmt::format("training.micro_batch \"auto\": {}, the most that fit into {:.2f} GiB of free memory",
                    config.training.micro_batch, in_gib(free_memory(backend.device(), communicator.local_size())));
  }
  memory = plan_memory(config, table, assignment, ownership, communicator.rank(), backend);
  traffic = plan_traffic(ownership, computed_in_bf16(config));
  flops = flops_per_token(config.model, table, config.training.sequence_length);
  // The data is opened before anything large is allocated: a wrong path should not cost time.
  if (!config.data.validation.empty()) {
    validation.emplace(validation_options(config, communicator, separator()));
    if (validation->shortened()) {
      log::warn(fmt::format("validation.tokens is {}, but {} holds {}: using all of them.", config.validation.tokens,
                            config.data.validation, validation->available()));
    }
  }
  check_memory(planned, memory);
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

namespace {

// Uniform numbers in [-1, 1): some are drawn, and then doubled again and again by copies.
void fill_random(Backend& backend, Stream& stream, const Tensor& to, std::uint32_t tensor) {
  constexpr std::int64_t kDrawn = 65537;  // odd: rows of the matrix differ
  const std::int64_t drawn = std::min(kDrawn, to.elements());
  const std::size_t size = size_of(to.dtype);
  std::vector<std::byte> host(static_cast<std::size_t>(drawn) * size);
  const PhiloxKey key = make_key(1, RandomPurpose::test, 0, tensor);
  for (std::int64_t i = 0; i < drawn; ++i) {
    const float value = static_cast<float>(philox(key, static_cast<std::uint64_t>(i)).word[0] >> 8U) * 0x1p-23F - 1.0F;
    const bf16 rounded = to_bf16(value);
    const void* const from = to.dtype == DType::bf16 ? static_cast<const void*>(&rounded) : &value;
    std::memcpy(host.data() + static_cast<std::size_t>(i) * size, from, size);
  }
  auto* const data = static_cast<std::byte*>(to.data);
  backend.device().upload(stream, data, host.data(), host.size());
  for (std::int64_t filled = drawn; filled < to.elements(); filled *= 2) {
    const std::int64_t count = std::min(filled, to.elements() - filled);
    backend.device().copy(stream, data + static_cast<std::size_t>(filled) * size, data,
                          static_cast<std::size_t>(count) * size);
  }
  stream.synchronize();
}

}  // namespace

std::int64_t free_memory(Device& device, int processes_here) {
  const DeviceInfo info = device.info();
  const auto free = static_cast<std::int64_t>(info.memory_free);
  return info.kind == "cpu" ? free / processes_here : free;  // of GPUs each process has its own
}

double measure_gemm_rate(Backend& backend, DType dtype) {
  using Clock = std::chrono::steady_clock;
  const auto stream = backend.device().make_stream();
  double best = 0;
  // Larger and larger, until a product takes long enough to be timed.
  for (std::int64_t n = 512; n <= 8192; n *= 2) {
    const auto elements = static_cast<std::size_t>(n * n);
    const std::uint64_t free = backend.device().info().memory_free;
    if (best > 0 && free > 0 && 4 * elements * size_of(dtype) > free) break;  // the run has filled the memory
    const DeviceBuffer a(backend.device(), elements * size_of(dtype));
    const DeviceBuffer b(backend.device(), elements * size_of(dtype));
    const DeviceBuffer c(backend.device(), elements * size_of(dtype));
    const auto matrix = [&](const DeviceBuffer& buffer) { return Tensor(buffer.data(), dtype, n, n); };
    // Products of zeros take less power, and a device that is held back by its power would seem faster than it is.
    fill_random(backend, *stream, matrix(a), 1);
    fill_random(backend, *stream, matrix(b), 2);
    double fastest = std::numeric_limits<double>::infinity();
    for (int repeat = 0; repeat < 5; ++repeat) {  // the first one warms up; other processes disturb some
      const auto start = Clock::now();
      backend.linear().forward(*stream, matrix(a), matrix(b), {}, Activation::none, matrix(c), {});
      stream->synchronize();
      fastest = std::min(fastest, std::chrono::duration<double>(Clock::now() - start).count());
    }
    best = std::max(best, 2.0 * static_cast<double>(n * n * n) / fastest);
    if (fastest > 0.005) break;
  }
  return best;
}

}  // namespace polaron
