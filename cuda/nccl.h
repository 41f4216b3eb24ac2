// NCCL, opened at run time: the backend loads on machines without it, and one process never needs it. CUDA's toolkit
// brings neither its library nor its header, so the few declarations that are used stand here; the tests compare them
// with the library's own header where there is one. The tests on the host link a stand-in for the same functions.
#pragma once

#include <cstddef>
#include <string>

#include "cuda/launch.h"

namespace polaron::cuda {

// The interface of NCCL 2 (the numbers have not changed since 2.0), by the names of nccl.h without their prefix.
struct Nccl {
  enum class Result : int { success = 0, in_progress = 7 };  // all others are errors
  enum class Type : int { uint8 = 1, float32 = 7, float64 = 8 };
  enum class Reduction : int { sum = 0 };
  struct UniqueId {
    char internal[128];
  };
  struct CommOpaque;
  using Comm = CommOpaque*;

  Result (*get_version)(int* version);
  Result (*get_unique_id)(UniqueId* id);
  const char* (*get_error_string)(Result result);
  const char* (*get_last_error)(Comm comm);  // of this process, whatever the communicator; since 2.13
  Result (*comm_init_rank)(Comm* comm, int processes, UniqueId id, int rank);
  Result (*comm_destroy)(Comm comm);
  Result (*comm_abort)(Comm comm);
  Result (*comm_get_async_error)(Comm comm, Result* error);
  Result (*group_start)();
  Result (*group_end)();
  Result (*reduce)(const void* send, void* receive, std::size_t count, Type type, Reduction reduction, int root,
                   Comm comm, cudaStream_t stream);
  Result (*broadcast)(const void* send, void* receive, std::size_t count, Type type, int root, Comm comm,
                      cudaStream_t stream);
  Result (*all_gather)(const void* send, void* receive, std::size_t send_count, Type type, Comm comm,
                       cudaStream_t stream);
};

// Opens the library (libnccl.so.2, where the loader finds it or beside the toolkit that this was built with); it stays
// open. Throws Error(Exit::device) with the loader's reason.
//
// Settings that the user has not made are made first: NCCL_ALGO=Ring, NCCL_PROTO=Simple and NCCL_NVLS_ENABLE=0. NCCL
// chooses them by measuring and by size otherwise; with one algorithm and no sums in the switch the order of additions
// depends on the machines alone, and a run can be repeated bit by bit.
Nccl open_nccl();

// The same from a file, or a name that the loader knows.
Nccl open_nccl(const char* file);

}  // namespace polaron::cuda
