#include "backend/cuda_entry.h"

#include "cuda/backend.h"
#include "cuda/collectives.h"
#include "cuda/device.h"

extern "C" __attribute__((visibility("default"))) const polaron::CudaEntry* polaron_cuda_entry_2() {
  static const polaron::CudaEntry entry = {POLARON_INTERFACE_HASH,
                                           [](int device) { return polaron::cuda::make_backend(device).release(); },
                                           &polaron::cuda::device_count, polaron::cuda::nccl_collectives()};
  return &entry;
}
