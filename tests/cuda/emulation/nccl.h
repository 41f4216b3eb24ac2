// A stand-in for the functions of NCCL that cuda/nccl.h lists: all ranks live in this process, each with a stream of
// its own, and are driven one after the other by a test with lazy streams. A call is carried out when its stream comes
// to it: it then brings the other ranks' streams to the same call, as waiting for them would. What would wait for ever
// or is not the same call everywhere throws std::logic_error.
#pragma once

#include <atomic>
#include <map>
#include <string>
#include <vector>

#include "cuda/nccl.h"

namespace polaron::cuda::emulation {

struct FakeNccl {
  std::vector<std::string> calls;            // of all ranks, in their order: "0: reduce 5 of type 7 to 2"
  std::map<std::string, Nccl::Result> next;  // what the next call of a function ("ncclReduce") returns without doing it
  std::atomic<int> asynchronous = 0;         // the error that ncclCommGetAsyncError tells
  int open_groups = 0;
  int living = 0;  // communicators
};
FakeNccl& fake_nccl();

// The stand-in's function of that name; null where it has none.
void* nccl_function(const char* name);

}  // namespace polaron::cuda::emulation
