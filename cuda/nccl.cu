#include "cuda/nccl.h"

#include <dlfcn.h>

#include <cstdlib>
#include <type_traits>

#include "base/error.h"
#if !defined(__CUDACC__)
#include "emulation/nccl.h"
#endif

namespace polaron::cuda {
namespace {

constexpr const char* kRemedy =
    " Install NCCL 2.13 or later (Debian: libnccl2; its folder must be known to the loader: ldconfig, "
    "LD_LIBRARY_PATH).";

// Gives find(function, name) every function of the table.
template <class Find>
Nccl table(Find&& find) {
  Nccl nccl{};
  find(nccl.get_version, "ncclGetVersion");
  find(nccl.get_unique_id, "ncclGetUniqueId");
  find(nccl.get_error_string, "ncclGetErrorString");
  find(nccl.get_last_error, "ncclGetLastError");
  find(nccl.comm_init_rank, "ncclCommInitRank");
  find(nccl.comm_destroy, "ncclCommDestroy");
  find(nccl.comm_abort, "ncclCommAbort");
  find(nccl.comm_get_async_error, "ncclCommGetAsyncError");
  find(nccl.group_start, "ncclGroupStart");
  find(nccl.group_end, "ncclGroupEnd");
  find(nccl.reduce, "ncclReduce");
  find(nccl.broadcast, "ncclBroadcast");
  find(nccl.all_gather, "ncclAllGather");
  return nccl;
}

// find(name): the function, null where there is none.
template <class Find>
Nccl functions(Find&& find) {
  // NCCL reads them when its first communicator is made.
  setenv("NCCL_ALGO", "Ring", 0);
  setenv("NCCL_PROTO", "Simple", 0);
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  return table([&](auto& function, const char* name) {
    void* const symbol = find(name);
    if (symbol == nullptr) {
      throw Error(Exit::device, std::string("NCCL lacks the function ") + name + ": it is too old." + kRemedy);
    }
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  });
}

void* open_library(const char* file, std::string& why_not) {
  void* const library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) why_not += std::string(why_not.empty() ? "" : "; ") + dlerror();
  return library;
}

Nccl functions_of(void* library, const std::string& why_not) {
  if (library == nullptr) throw Error(Exit::device, "NCCL cannot be loaded: " + why_not + "." + kRemedy);
  return functions([library](const char* name) { return dlsym(library, name); });
}

}  // namespace

Nccl open_nccl(const char* file) {
  std::string why_not;
  void* const library = open_library(file, why_not);
  return functions_of(library, why_not);
}

Nccl open_nccl() {
#if defined(__CUDACC__)
  std::string why_not;
  void* library = open_library("libnccl.so.2", why_not);
#if defined(POLARON_CUDA_LIBRARY_DIR)
  if (library == nullptr) library = open_library(POLARON_CUDA_LIBRARY_DIR "/libnccl.so.2", why_not);
#endif
  return functions_of(library, why_not);
#else
  return functions(&emulation::nccl_function);
#endif
}

}  // namespace polaron::cuda
