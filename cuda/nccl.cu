#include "cuda/nccl.h"

#include <cstdlib>

#include "cuda/dynamic_library.h"
#if !defined(__CUDACC__)
#include "emulation/nccl.h"
#endif

namespace polaron::cuda {
namespace {

constexpr LibraryName kName{
    "NCCL",
    "Install NCCL 2.13 or later (Debian: libnccl2; its folder must be known to the loader: ldconfig, "
    "LD_LIBRARY_PATH)."};

Nccl functions_of(const DynamicLibrary& library) {
  // NCCL reads them when its first communicator is made.
  setenv("NCCL_ALGO", "Ring", 0);
  setenv("NCCL_PROTO", "Simple", 0);
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  Nccl nccl{};
  library.find(nccl.get_version, "ncclGetVersion");
  library.find(nccl.get_unique_id, "ncclGetUniqueId");
  library.find(nccl.get_error_string, "ncclGetErrorString");
  library.find(nccl.get_last_error, "ncclGetLastError");
  library.find(nccl.comm_init_rank, "ncclCommInitRank");
  library.find(nccl.comm_destroy, "ncclCommDestroy");
  library.find(nccl.comm_abort, "ncclCommAbort");
  library.find(nccl.comm_get_async_error, "ncclCommGetAsyncError");
  library.find(nccl.group_start, "ncclGroupStart");
  library.find(nccl.group_end, "ncclGroupEnd");
  library.find(nccl.reduce, "ncclReduce");
  library.find(nccl.broadcast, "ncclBroadcast");
  library.find(nccl.all_gather, "ncclAllGather");
  return nccl;
}

}  // namespace

Nccl open_nccl(const char* file) { return functions_of({kName, {file}}); }

Nccl open_nccl() {
#if defined(__CUDACC__)
  return functions_of({kName, library_files("libnccl.so.2")});
#else
  return functions_of({kName, &emulation::nccl_function});
#endif
}

}  // namespace polaron::cuda
