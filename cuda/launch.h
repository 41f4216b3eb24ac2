// What every kernel file includes: how kernels are launched and where they get shared memory from. nvcc compiles these
// files for the device; a host compiler builds the same files with the emulation of tests/cuda, which runs them on the
// CPU.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "emulation/device_code.h"
#endif

#include "base/error.h"

namespace polaron::cuda {

// Throws Error(Exit::device) unless `error` is cudaSuccess. call: what was tried, for the message.
void check(cudaError_t error, const char* call);

struct Grid {
  dim3 blocks, threads;
  cudaStream_t stream = nullptr;
  std::size_t shared = 0;  // bytes of dynamic shared memory; above 48 KB after allow_shared<kernel>
};

// The kernel's name with its template arguments, out of the compiler's description of this function.
template <auto kernel>
std::string_view kernel_name() {
  std::string_view text = __PRETTY_FUNCTION__;
  text.remove_prefix(text.find("kernel = ") + std::string_view("kernel = ").size());
  return text.substr(0, text.find_first_of(";]"));
}

// Queues kernel<<<grid>>>(arguments...). A launch that the runtime refuses throws at once; what goes wrong while the
// kernel runs is reported by a later call.
template <auto kernel, class... Arguments>
void launch(const Grid& grid, const Arguments&... arguments) {
#if defined(__CUDACC__)
  kernel<<<grid.blocks, grid.threads, grid.shared, grid.stream>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) check(error, ("launch of " + std::string(kernel_name<kernel>())).c_str());
#else
  emulation::launch(std::string(kernel_name<kernel>()), reinterpret_cast<const void*>(kernel),
                    {grid.blocks, grid.threads, grid.shared}, grid.stream, [arguments...] { kernel(arguments...); });
#endif
}

// Lets a kernel use so many bytes of dynamic shared memory. Cheap; called before the launches that need it.
template <auto kernel>
void allow_shared(std::size_t bytes) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "cudaFuncSetAttribute(MaxDynamicSharedMemorySize)");
}

// The block's dynamic shared memory, aligned to 128 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) unsigned char polaron_dynamic_shared[];
  return reinterpret_cast<T*>(polaron_dynamic_shared);
#else
  return static_cast<T*>(emulation::dynamic_shared_memory());
#endif
}

// The one object of type Layout (a plain struct of the kernel's own) in the block's static shared memory; not
// initialised.
template <class Layout>
__device__ __forceinline__ Layout& static_shared() {
#if defined(__CUDACC__)
  __shared__ Layout storage;
  return storage;
#else
  static const char key{};
  return *static_cast<Layout*>(emulation::static_shared_memory(&key, sizeof(Layout)));
#endif
}

}  // namespace polaron::cuda
