// The one place that names backends.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "backend/collectives.h"
#include "config/config.h"

namespace polaron {

struct ChosenBackend {
  std::unique_ptr<Backend> backend;
  std::string why;  // one line for the start-up message: which device, and why not another
  std::optional<CollectivesLibrary> collectives = std::nullopt;  // of the backend, where it has some
};

// Turns precision "auto" into what suits the backend, bf16 on a CUDA device and fp32 on a CPU, and tells the backend
// whether it may multiply in TF32. Error(Exit::usage) for "tf32" where there are no such products.
void settle_precision(Config& config, Backend& backend);

// device: auto | cpu | cuda. threads: of the CPU, 0 = one a core. Error(Exit::device) where the device asked for is not
// to be had. local_rank: number of this process among those of this machine, which take its GPUs in turns.
ChosenBackend make_backend(const std::string& device, int threads, int local_rank = 0);

}  // namespace polaron
