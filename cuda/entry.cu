#include "backend/cuda_entry.h"

#include "cuda/backend.h"

extern "C" __attribute__((visibility("default"))) const polaron::CudaEntry* polaron_cuda_entry_2() {
  static const polaron::CudaEntry entry = {POLARON_INTERFACE_HASH,
                                           [](int device) { return polaron::cuda::make_backend(device).release(); }};
  return &entry;
}
