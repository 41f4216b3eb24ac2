// The CPU backend: fp32 on OpenMP threads, OpenBLAS and LAPACK. The reference for every other backend.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace polaron {

// threads = 0: one a core that this process may run on.
std::unique_ptr<Backend> make_cpu_backend(int threads);

}  // namespace polaron
