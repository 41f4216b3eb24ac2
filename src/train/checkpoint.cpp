#include "train/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "io/atomic.h"
#include "io/checksum.h"
#include "io/file.h"
#include "io/json_file.h"
#include "io/safetensors.h"
#include "train/huggingface.h"

namespace polaron {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kFormatVersion = 1;
constexpr const char* kTuningFile = "tuning.bin";

// The logical matrix of an exported tensor, packed as the file has it.
std::vector<float> download_tensor(Backend& backend, Stream& stream, const ModelWeights& model,
                                   const ExportedTensor& t) {
  const Parameter& p = model.table[t.parameter];
  const std::int64_t stride = p.stored_cols;
  std::vector<float> stored(static_cast<std::size_t>(t.rows * stride));
  backend.device().download(stream, stored.data(), model.device + p.offset + t.first_row * stride,
                            stored.size() * sizeof(float));
  stream.synchronize();
  if (stride == t.cols && !t.transposed) return stored;
  std::vector<float> packed(static_cast<std::size_t>(t.rows * t.cols));
  for (std::int64_t i = 0; i < t.rows; ++i) {
    for (std::int64_t j = 0; j < t.cols; ++j) {
      packed[static_cast<std::size_t>(t.transposed ? j * t.rows + i : i * t.cols + j)] =
          stored[static_cast<std::size_t>(i * stride + j)];
    }
  }
  return packed;
}

void upload_tensor(Backend& backend, Stream& stream, const ModelWeights& model, const ExportedTensor& t,
                   const std::vector<float>& packed) {
  const Parameter& p = model.table[t.parameter];
  const std::int64_t stride = p.stored_cols;
  float* const device = model.device + p.offset + t.first_row * stride;
  std::vector<float> stored;
  const std::vector<float>* source = &packed;
  if (stride != t.cols || t.transposed) {
    stored.resize(static_cast<std::size_t>(t.rows * stride));
    for (std::int64_t i = 0; i < t.rows; ++i) {
      for (std::int64_t j = 0; j < t.cols; ++j) {
        stored[static_cast<std::size_t>(i * stride + j)] =
            packed[static_cast<std::size_t>(t.transposed ? j * t.rows + i : i * t.cols + j)];
      }
    }
    source = &stored;
  }
  backend.device().upload(stream, device, source->data(), source->size() * sizeof(float));
  stream.synchronize();
}

FileDigest write_model(const fs::path& file, Backend& backend, Stream& stream, const ModelWeights& model) {
  const std::vector<ExportedTensor> tensors = exported_tensors(model.config, model.table);
  std::vector<TensorInfo> infos;
  for (const ExportedTensor& t : tensors) infos.push_back({t.name, "F32", t.shape(), 0, 0});
  SafetensorsWriter writer(file, std::move(infos), {{"format", "pt"}});
  for (const TensorInfo& info : writer.tensors()) {
    const auto t =
        std::find_if(tensors.begin(), tensors.end(), [&](const ExportedTensor& e) { return e.name == info.name; });
    const std::vector<float> values = download_tensor(backend, stream, model, *t);
    if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
      throw Error(Exit::numerical,
                  fmt::format("the weights {} are not finite: no checkpoint is made of them. Lower the "
                              "learning rate.",
                              info.name));
    }
    writer.write(info.name, std::as_bytes(std::span(values)));
  }
  return writer.finish();
}

// The whole tensor on process 0, from the processes that own its parts; nothing on the others.
std::vector<float> collect(Backend& backend, Stream& stream, Communicator& communicator, const StateTensor& s) {
  const bool root = communicator.rank() == 0;
  std::vector<float> values(static_cast<std::size_t>(root ? s.elements() : 0));
  std::vector<float> sent;
  for (const StateTensor::Part& part : s.parts) {
    const auto bytes = static_cast<std::size_t>(part.elements) * sizeof(float);
    if (part.owner == communicator.rank()) {
      if (!root) sent.resize(static_cast<std::size_t>(part.elements));
      float* const to = root ? values.data() + part.first : sent.data();
      backend.device().download(stream, to, part.data, bytes);
      stream.synchronize();
      if (!root) communicator.send_to_root(to, static_cast<std::int64_t>(bytes));
    } else if (root) {
      communicator.receive_at_root(values.data() + part.first, static_cast<std::int64_t>(bytes), part.owner);
    }
  }
  return values;
}

FileDigest write_optimizer(const fs::path& file, Backend& backend, Stream& stream, Communicator& communicator,
                           std::span<const StateTensor> state) {
  std::vector<TensorInfo> infos;
  for (const StateTensor& s : state) infos.push_back({s.name, "F32", {s.rows, s.cols}, 0, 0});
  SafetensorsWriter writer(file, std::move(infos));
  // All have one dtype, so the file keeps their order, in which the other processes send.
  for (const StateTensor& s : state) {
    const std::vector<float> values = collect(backend, stream, communicator, s);
    writer.write(s.name, std::as_bytes(std::span(values)));
  }
  return writer.finish();
}

std::string trainer_json(const TrainerState& state) {
  const json j = {{"format_version", kFormatVersion},
                  {"polaron_version", POLARON_VERSION},
                  {"step", state.step},
                  {"tokens", state.tokens},
                  {"data_fingerprint", fmt::format("{:016x}", state.data_fingerprint)},
                  {"loss_history", state.loss_history},
                  {"config", json::parse(state.config)}};
  return j.dump(2) + "\n";
}

TrainerState read_trainer(const fs::path& file) {
  const json j = read_json_file(file);
  try {
    const int version = j.at("format_version").get<int>();
    if (version > kFormatVersion) {
      throw Error(
          Exit::data,
          fmt::format("{}: format version {} is newer than {}, the newest that polaron {} reads; use the polaron that "
                      "wrote it ({}).",
                      file.string(), version, kFormatVersion, POLARON_VERSION, j.value("polaron_version", "unknown")));
    }
    TrainerState state;
    j.at("step").get_to(state.step);
    j.at("tokens").get_to(state.tokens);
    state.data_fingerprint = std::stoull(j.at("data_fingerprint").get<std::string>(), nullptr, 16);
    j.at("loss_history").get_to(state.loss_history);
    state.config = j.at("config").dump(2);
    return state;
  } catch (const json::exception& problem) {
    throw Error(Exit::data, fmt::format("{}: not a trainer state: {}.", file.string(), problem.what()));
  } catch (const std::logic_error&) {  // std::stoull
    throw Error(Exit::data, fmt::format("{}: data_fingerprint is not a hexadecimal number.", file.string()));
  }
}

// Whether checkpoint_folder() makes such names. Others that begin like them are the user's: nothing is said of them.
bool is_step_name(const std::string& name) {
  constexpr std::string_view kPrefix = "step-";
  constexpr std::size_t kLeastDigits = 8;
  return name.starts_with(kPrefix) && name.size() >= kPrefix.size() + kLeastDigits &&
         name.find_first_not_of("0123456789", kPrefix.size()) == std::string::npos;
}

bool is_earlier(const fs::path& step, const fs::path& other) {
  const std::string x = step.filename().string();
  const std::string y = other.filename().string();
  return x.size() != y.size() ? x.size() < y.size() : x < y;  // numbers of more than eight digits are not padded
}

// The folders of steps in a folder of checkpoints, oldest first.
std::vector<fs::path> step_folders(const fs::path& folder) {
  std::vector<fs::path> steps;
  if (!fs::is_directory(folder)) return steps;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.is_directory() && !entry.is_symlink() && is_step_name(entry.path().filename())) {
      steps.push_back(entry.path());
    }
  }
  std::sort(steps.begin(), steps.end(), is_earlier);
  return steps;
}

// Where `latest` points; the newest step where it is not there, say because the program was killed between making the
// folder and pointing at it.
std::optional<fs::path> newest_in(const fs::path& folder) {
  if (fs::exists(folder / "latest")) return folder / "latest";
  const std::vector<fs::path> steps = step_folders(folder);
  return steps.empty() ? std::nullopt : std::optional(steps.back());
}

std::string read_text(const fs::path& file) {
  const json j = read_json_file(file);  // checks that it is JSON
  return j.dump();
}

}  // namespace

void write_checkpoint(const fs::path& folder, Backend& backend, Stream& stream, Communicator& communicator,
                      const ModelWeights& model, std::span<const StateTensor> optimizer, const TrainerState& state,
                      const std::string& vocabulary, std::int32_t separator) {
  if (communicator.rank() != 0) {
    for (const StateTensor& s : optimizer) collect(backend, stream, communicator, s);
    return communicator.barrier();
  }
  std::error_code failure;
  fs::create_directories(folder.parent_path(), failure);
  if (failure) {
    throw Error(Exit::data, fmt::format("cannot create {}: {}. Choose another \"output\" or mend its permissions.",
                                        folder.parent_path().string(), failure.message()));
  }
  remove_stale_temporaries(folder.parent_path());
  AtomicDirectory directory(folder);
  Manifest digests;
  digests["model.safetensors"] = write_model(directory.path() / "model.safetensors", backend, stream, model);
  digests["optimizer.safetensors"] =
      write_optimizer(directory.path() / "optimizer.safetensors", backend, stream, communicator, optimizer);
  write_file_atomically(directory.path() / "config.json", huggingface_config(model.config, separator));
  write_file_atomically(directory.path() / "trainer.json", trainer_json(state));
  if (!vocabulary.empty()) write_file_atomically(directory.path() / "vocabulary.json", vocabulary);
  if (!state.tuned.empty()) {
    write_file_atomically(directory.path() / kTuningFile,
                          {reinterpret_cast<const char*>(state.tuned.data()), state.tuned.size()});
  }
  write_manifest(directory.path(), digests);
  directory.publish(IfPresent::replace);
  communicator.barrier();
}

CheckpointReader::CheckpointReader(const fs::path& folder) : folder_(folder) {
  if (!fs::exists(folder_)) throw Error(Exit::data, fmt::format("{} does not exist.", folder_.string()));
  // A run directory has a config.json, too: the run's.
  if (const auto newest = newest_in(folder_ / "checkpoints")) {
    folder_ = *newest;
  } else if (!fs::exists(folder_ / "config.json")) {
    folder_ = newest_in(folder_).value_or(folder_);
  }
  if (!fs::exists(folder_ / "config.json") ||
      (!fs::exists(folder_ / "model.safetensors") && !fs::exists(folder_ / "model.safetensors.index.json"))) {
    throw Error(Exit::data,
                fmt::format("{} is no checkpoint: it has no config.json with a model.safetensors beside it.",
                            folder_.string()));
  }
  if (has_manifest(folder_)) {
    verify_manifest(folder_);
  } else if (fs::exists(folder_ / "trainer.json")) {
    throw Error(Exit::data, fmt::format("{} has no checksums.json, without which its files cannot be verified. Use "
                                        "another copy of the folder or an earlier checkpoint.",
                                        folder_.string()));
  }
  model_ = read_huggingface_config(folder_ / "config.json");
  if (fs::exists(folder_ / "trainer.json")) state_ = read_trainer(folder_ / "trainer.json");
  if (state_ && fs::exists(folder_ / kTuningFile)) {
    const std::string text = read_text_file(folder_ / kTuningFile);
    const auto bytes = std::as_bytes(std::span(text));
    state_->tuned.assign(bytes.begin(), bytes.end());
  }
  if (fs::exists(folder_ / "vocabulary.json")) vocabulary_ = read_text(folder_ / "vocabulary.json");
}

const TrainerState& CheckpointReader::state() const {
  if (!state_) {
    throw Error(Exit::data, fmt::format("{} holds weights only and cannot be resumed; start a new run from it with "
                                        "--init-from.",
                                        folder_.string()));
  }
  return *state_;
}

std::uint64_t CheckpointReader::checksum() const {
  if (has_manifest(folder_)) return digest_file(folder_ / manifest_name).xxh3;
  std::vector<fs::path> files = {folder_ / "config.json"};
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  Checksum all;
  for (const fs::path& file : files) {
    const FileDigest digest = digest_file(file);
    all.update(std::as_bytes(std::span(&digest.xxh3, 1)));
  }
  return all.value();
}

void CheckpointReader::load_weights(Backend& backend, Stream& stream, const ModelWeights& into) const {
  const SafetensorsFolder files(folder_);
  // Named as in the file: a setting that `into` changes, say a window, may have put its own tensors under other names.
  for (const ExportedTensor& t : exported_tensors(model_, into.table)) {
    std::string name = t.name;
    // transformers saves the inner model of GPT-2 (GPT2Model) without its prefix.
    if (files.find(name) == nullptr && name.starts_with("transformer.")) name = name.substr(12);
    const TensorInfo* info = files.find(name);
    if (info == nullptr) {
      throw Error(Exit::data,
                  fmt::format("{} has no tensor {}: it is of another architecture.", folder_.string(), t.name));
    }
    if (info->shape != t.shape()) {
      throw Error(Exit::data, fmt::format("{}: tensor {} has shape [{}], the model wants [{}].", folder_.string(), name,
                                          fmt::join(info->shape, ", "), fmt::join(t.shape(), ", ")));
    }
    std::vector<float> values(static_cast<std::size_t>(t.rows * t.cols));
    files.read_f32(name, values.data(), values.size());
    upload_tensor(backend, stream, into, t, values);
  }
}

void CheckpointReader::load_optimizer(Backend& backend, Stream& stream, std::span<const StateTensor> into) const {
  const SafetensorsReader file(folder_ / "optimizer.safetensors");
  if (file.tensors().size() > into.size()) {
    log::warn(
        fmt::format("{} holds state that the config's optimizer does not use; it is dropped.", file.path().string()));
  }
  for (const StateTensor& s : into) {
    const TensorInfo* info = file.find(s.name);
    const std::vector<std::int64_t> wanted = {s.rows, s.cols};
    if (info == nullptr || info->shape != wanted) {
      throw Error(Exit::data,
                  fmt::format("{}: no optimizer state {} [{}]: the checkpoint is of another model or optimizer. "
                              "Resume with the config it was made with, or start a new run with --init-from.",
                              file.path().string(), s.name, fmt::join(wanted, ", ")));
    }
    std::vector<float> values;
    for (const StateTensor::Part& part : s.parts) {
      if (part.data == nullptr) continue;
      if (values.empty()) {
        values.resize(static_cast<std::size_t>(s.elements()));
        file.read_f32(s.name, values.data(), values.size());
      }
      backend.device().upload(stream, part.data, values.data() + part.first,
                              static_cast<std::size_t>(part.elements) * sizeof(float));
      stream.synchronize();
    }
  }
}

fs::path checkpoint_folder(const fs::path& run, std::int64_t step) {
  return run / "checkpoints" / fmt::format("step-{:08d}", step);
}

bool has_checkpoint(const fs::path& run) { return newest_in(run / "checkpoints").has_value(); }

std::vector<fs::path> later_checkpoints(const fs::path& run, std::int64_t step) {
  std::vector<fs::path> folders = step_folders(run / "checkpoints");
  folders.erase(folders.begin(),
                std::upper_bound(folders.begin(), folders.end(), checkpoint_folder(run, step), is_earlier));
  return folders;
}

void finish_checkpoint(const fs::path& run, std::int64_t step, std::int64_t keep,
                       std::span<const fs::path> left_behind) {
  const fs::path folder = run / "checkpoints";
  const fs::path newest = checkpoint_folder(run, step);
  point_symlink_atomically(folder / "latest", newest.filename());
  if (keep <= 0) return;
  std::vector<fs::path> steps = step_folders(folder);
  std::stable_partition(steps.begin(), steps.end(), [&](const fs::path& each) {
    return is_earlier(newest, each) ||
           (each != newest && std::find(left_behind.begin(), left_behind.end(), each) != left_behind.end());
  });
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < steps.size(); ++i) {
    std::error_code failure;
    fs::remove_all(steps[i], failure);
    if (failure)
      log::warn(fmt::format("cannot remove the old checkpoint {}: {}", steps[i].string(), failure.message()));
  }
}

}  // namespace polaron
