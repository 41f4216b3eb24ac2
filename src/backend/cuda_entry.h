// What libpolaron_cuda.so shows to the program that opens it: one C function, found by a name that changes when this
// file does, and behind it C++ objects of the interfaces in this folder. Both sides must have been compiled from the
// same headers, which their hash shows.
#pragma once

#include "backend/collectives.h"

namespace polaron {

class Backend;

struct CudaEntry {
  const char* interface_hash;                      // of the headers of src/backend; see cmake/cuda.cmake
  Backend* (*make_backend)(int device) = nullptr;  // the caller owns it; throws Error(Exit::device)
  int (*device_count)() = nullptr;                 // that this process may use; throws Error(Exit::device)
  CollectivesLibrary collectives = {};             // NCCL
};

inline constexpr const char* kCudaEntryName = "polaron_cuda_entry_2";
using CudaEntryFunction = const CudaEntry* (*)();

}  // namespace polaron
