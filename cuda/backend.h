// The CUDA backend as a whole.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace polaron::cuda {

// On device `index`. Throws Error(Exit::device) where that cannot be used. Families that are not written yet
// (missing_families) throw std::logic_error when they are asked for.
std::unique_ptr<Backend> make_backend(int index);

// What a model needs and this backend has not, as words for a message; empty when it has everything.
const char* missing_families();

}  // namespace polaron::cuda
