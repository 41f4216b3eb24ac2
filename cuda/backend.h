// The CUDA backend as a whole.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace polaron::cuda {

// On device `index`. Throws Error(Exit::device) where that cannot be used.
std::unique_ptr<Backend> make_backend(int index);

}  // namespace polaron::cuda
