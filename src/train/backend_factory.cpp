#include "train/backend_factory.h"

#include <fmt/format.h>

#include "base/error.h"
#include "cpu/cpu_backend.h"

namespace polaron {

ChosenBackend make_backend(const std::string& device, int threads) {
  if (device == "cuda") {
    throw Error(Exit::device, "this build of polaron has no CUDA backend; use --device cpu.");
  }
  ChosenBackend chosen;
  chosen.backend = make_cpu_backend(threads);
  const DeviceInfo info = chosen.backend->device().info();
  chosen.why = fmt::format("cpu: {}, {} thread{}{}", info.name, info.threads, info.threads == 1 ? "" : "s",
                           device == "auto" ? " (this build has no CUDA backend)" : "");
  return chosen;
}

}  // namespace polaron
