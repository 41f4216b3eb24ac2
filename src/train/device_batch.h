// Micro-batches on their way from the loader into device memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/backend.h"
#include "data/batch.h"
#include "model/transformer.h"

namespace polaron {

// Two sets of device buffers in turn, so that the next micro-batch can be queued while the device still reads the last
// one.
class BatchUploader {
 public:
  // For micro-batches of at most `rows` = sequences * length tokens.
  BatchUploader(Device& device, std::int64_t rows);

  // Queues the copy; takes the batch over, since the host memory must live until the copy has run. The result is valid
  // until the second call after this one. Waits only where the device is two micro-batches behind.
  DeviceBatch upload(Stream& stream, Batch batch);

  // One sequence without targets, for generation.
  DeviceBatch upload_prompt(Stream& stream, std::span<const std::int32_t> tokens);

  static std::int64_t bytes(std::int64_t rows) {
    return 2 * 3 * rows * static_cast<std::int64_t>(sizeof(std::int32_t));
  }

 private:
  struct Slot {
    DeviceBuffer tokens, targets, document_start;
    Batch host;
    std::unique_ptr<Event> copied;
    bool used = false;
  };

  Device& device_;
  Slot slots_[2];
  int next_ = 0;
};

}  // namespace polaron
