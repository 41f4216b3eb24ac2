#include "train/backend_factory.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "cpu/cpu_backend.h"
#include "train/cuda_library.h"

namespace polaron {
namespace {

std::string first_sentence(const std::string& text) { return text.substr(0, text.find(". ")); }

// Throws Error(Exit::device) that says why there is none.
ChosenBackend make_cuda_backend(int local_rank) {
  const CudaLibrary library = open_cuda_library(cuda_library_path());
  ChosenBackend chosen;
  // One process a GPU. Where the launcher gives every process a GPU of its own (CUDA_VISIBLE_DEVICES), that is number 0
  // for each. Processes in excess share one, which make_device_communicator sees and says.
  chosen.backend = library.make_backend(local_rank % std::max(1, library.device_count()));
  chosen.collectives = library.collectives();
  const DeviceInfo info = chosen.backend->device().info();
  chosen.why = fmt::format("cuda: {}, {:.1f} GiB", info.name,
                           static_cast<double>(info.memory_total) / (1024.0 * 1024.0 * 1024.0));
  return chosen;
}

}  // namespace

void settle_precision(Config& config, Backend& backend) {
  if (config.precision == "auto") config.precision = backend.device().info().kind == "cuda" ? "bf16" : "fp32";
  if (!backend.set_tf32(config.precision != "fp32") && config.precision == "tf32") {
    throw Error(Exit::usage,
                fmt::format("precision \"tf32\": {} has no products of it. Use \"fp32\", or a CUDA device.",
                            backend.device().info().name));
  }
}

ChosenBackend make_backend(const std::string& device, int threads, int local_rank) {
  if (device == "cuda") return make_cuda_backend(local_rank);
  std::string instead;
  if (device == "auto") {
    try {
      return make_cuda_backend(local_rank);
    } catch (const Error& error) {
      const bool built = std::filesystem::exists(cuda_library_path());
      instead = built ? fmt::format(" ({})", first_sentence(error.what())) : " (this build has no CUDA backend)";
    }
  }
  ChosenBackend chosen;
  chosen.backend = make_cpu_backend(threads);
  const DeviceInfo info = chosen.backend->device().info();
  chosen.why = fmt::format("cpu: {}, {} thread{}{}", info.name, info.threads, info.threads == 1 ? "" : "s", instead);
  return chosen;
}

}  // namespace polaron
