// Where libpolaron_cuda.so is: where it was built, unless the environment says otherwise, as it must where program and
// library were built on another machine.
#pragma once

#include <cstdlib>
#include <string>

namespace polaron::test {

inline std::string cuda_library_file() {
  const char* const other = std::getenv("POLARON_CUDA_LIBRARY");
  return other != nullptr ? other : POLARON_CUDA_LIBRARY;
}

}  // namespace polaron::test
