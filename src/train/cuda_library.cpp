#include "train/cuda_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstring>
#include <filesystem>

#include "base/error.h"

#if !defined(POLARON_INTERFACE_HASH)
#define POLARON_INTERFACE_HASH ""  // a build without CUDA opens no library
#endif

namespace polaron {

CudaLibrary open_cuda_library(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    throw Error(Exit::device,
                fmt::format("This build of polaron has no CUDA backend: there is no {}. Build it with a CUDA toolkit "
                            "(-DPOLARON_CUDA=ON), or use --device cpu.",
                            path));
  }
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw Error(Exit::device,
                fmt::format("The CUDA backend cannot be loaded: {}. Install CUDA's libraries, or use --device cpu.",
                            dlerror()));
  }
  void* const symbol = dlsym(library, kCudaEntryName);
  const CudaEntry* const entry = symbol == nullptr ? nullptr : reinterpret_cast<CudaEntryFunction>(symbol)();
  if (entry == nullptr || std::strcmp(entry->interface_hash, POLARON_INTERFACE_HASH) != 0) {
    throw Error(Exit::device,
                fmt::format("{} belongs to another version of polaron than this program. Build both again, or use "
                            "--device cpu.",
                            path));
  }
  return CudaLibrary(entry);
}

std::string cuda_library_path() {
  std::error_code ignored;
  return (std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path() / "libpolaron_cuda.so").string();
}

}  // namespace polaron
