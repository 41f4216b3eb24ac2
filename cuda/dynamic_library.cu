#include "cuda/dynamic_library.h"

#include <dlfcn.h>

#include "base/error.h"

namespace polaron::cuda {

std::vector<std::string> library_files(const std::string& file) {
#if defined(POLARON_CUDA_LIBRARY_DIR)
  return {file, POLARON_CUDA_LIBRARY_DIR "/" + file};
#else
  return {file};
#endif
}

DynamicLibrary::DynamicLibrary(const LibraryName& name, const std::vector<std::string>& files) : name_(name) {
  std::string why_not;
  for (const std::string& file : files) {
    library_ = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library_ != nullptr) return;
    why_not += (why_not.empty() ? "" : "; ") + std::string(dlerror());
  }
  throw Error(Exit::device, std::string(name_.name) + " cannot be loaded: " + why_not + ". " + name_.remedy);
}

DynamicLibrary::DynamicLibrary(const LibraryName& name, void* (*find_symbol)(const char*))
    : name_(name), find_symbol_(find_symbol) {}

void* DynamicLibrary::address_of(const char* symbol) const {
  void* const address = find_symbol_ != nullptr ? find_symbol_(symbol) : dlsym(library_, symbol);
  if (address == nullptr) {
    throw Error(Exit::device,
                std::string(name_.name) + " lacks the function " + symbol + ": it is too old. " + name_.remedy);
  }
  return address;
}

}  // namespace polaron::cuda
