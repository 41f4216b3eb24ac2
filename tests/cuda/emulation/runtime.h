// What tests may ask of the fake CUDA runtime (runtime.cpp), which stands where libcudart would: device memory is host
// memory of exactly the size asked for, streams do their work when it is queued or, with Options::lazy_streams, when
// something waits.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>

namespace polaron::cuda::emulation {

// The device that the fake runtime describes.
struct FakeDevice {
  int count = 1;  // devices; 0: none
  int major = 9, minor = 0;
  std::size_t memory = std::size_t{4} << 30U;
  std::size_t shared = std::size_t{227} << 10U;  // of a block, at most: as on sm_90
  std::string name = "emulated device";
};
FakeDevice& fake_device();

// The next call of this function ("cudaMalloc", say) does nothing but return the error.
void fail_next(const std::string& function, cudaError_t error);

// While one exists, every call fails with the error, as after a kernel that has faulted.
class BrokenDevice {
 public:
  explicit BrokenDevice(cudaError_t error);
  BrokenDevice(const BrokenDevice&) = delete;
  BrokenDevice& operator=(const BrokenDevice&) = delete;
  ~BrokenDevice();
};

// Lets time pass on the device, as events that keep time see it.
void advance_clock(float milliseconds);

// Bytes of device and pinned memory that are allocated now.
std::size_t device_bytes();
std::size_t pinned_bytes();

}  // namespace polaron::cuda::emulation
