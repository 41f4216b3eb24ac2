// A libpolaron_cuda.so of some other version: the entry is there, the interfaces behind it are others.
#include "backend/cuda_entry.h"

extern "C" const polaron::CudaEntry* polaron_cuda_entry_2() {
  static const polaron::CudaEntry entry = {"another", nullptr};
  return &entry;
}
