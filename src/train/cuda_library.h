// The CUDA backend, which lives in a library of its own so that the program starts without CUDA and its driver.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cuda_entry.h"

namespace polaron {

class CudaLibrary {
 public:
  explicit CudaLibrary(const CudaEntry* entry) : entry_(entry) {}

  // Devices that this process may use. Throws Error(Exit::device).
  int device_count() const { return entry_->device_count(); }
  const CollectivesLibrary& collectives() const { return entry_->collectives; }
  // Throws Error(Exit::device): no driver, no device, one that is too old.
  std::unique_ptr<Backend> make_backend(int device) const {
    return std::unique_ptr<Backend>(entry_->make_backend(device));
  }

 private:
  const CudaEntry* entry_;
};

// Opens the library; it stays open to the end of the process, since objects made by it may live as long. Throws
// Error(Exit::device) where there is none, it cannot be loaded, or it was built from other sources than this program.
CudaLibrary open_cuda_library(const std::string& path);

// Where the library stands: beside the program.
std::string cuda_library_path();

}  // namespace polaron
