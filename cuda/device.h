// The CUDA device behind src/backend/device.h. One host thread at a time uses a device and what it made.
#pragma once

#include <memory>

#include "backend/device.h"
#include "cuda/launch.h"

namespace polaron::cuda {

// Devices that this process may use (CUDA_VISIBLE_DEVICES). Throws Error(Exit::device).
int device_count();

// Makes device `index` the calling thread's and takes it over. Throws Error(Exit::device) that says why it cannot be
// used: no driver, no device, an architecture before sm_80, in use by another process.
std::unique_ptr<Device> make_device(int index);

// 10 times the major plus the minor compute capability of a CUDA device: 90 for sm_90.
int architecture_of(const Device& device);

// Bytes of shared memory that a block of a CUDA device may have, static and dynamic together.
std::size_t most_shared_of(const Device& device);

// The runtime's handle of a stream that a CUDA device made.
cudaStream_t handle_of(Stream& stream);

// Device memory that an op needs while it runs, kept and grown between calls. The calls that share one come one after
// the other on one stream.
class Scratch {
 public:
  explicit Scratch(Device& device) : device_(&device) {}
  template <class T>
  T* room(std::int64_t count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (memory_.bytes() < bytes) {
      memory_ = DeviceBuffer();  // first, so that old and new need not fit together; waits for the work that uses it
      memory_ = DeviceBuffer(*device_, bytes);
    }
    return memory_.as<T>();
  }

 private:
  Device* device_;
  DeviceBuffer memory_;
};

}  // namespace polaron::cuda
