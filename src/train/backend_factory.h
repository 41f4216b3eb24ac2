// The one place that names backends.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"

namespace polaron {

struct ChosenBackend {
  std::unique_ptr<Backend> backend;
  std::string why;  // one line for the start-up message: which device, and why not another
};

// device: auto | cpu | cuda. threads: of the CPU, 0 = one a core. Error(Exit::device) where the device asked for is not
// to be had.
ChosenBackend make_backend(const std::string& device, int threads);

}  // namespace polaron
