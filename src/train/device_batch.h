// Micro-batches on their way from the loader into device memory.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "data/batch.h"
#include "model/transformer.h"

namespace polaron {

// Two sets of device buffers in turn, so that the next micro-batch can be queued while the device still reads the last
// one.
class BatchUploader {
 public:
  // For micro-batches of at most `rows` = sequences * length tokens of this model.
  BatchUploader(Device& device, const TransformerConfig& model, std::int64_t rows);

  // Queues the copy; takes the batch over, since the host memory must live until the copy has run. The result is valid
  // until the second call after this one. Waits only where the device is two micro-batches behind.
  DeviceBatch upload(Stream& stream, Batch batch);

  // One sequence without targets, for generation.
  DeviceBatch upload_prompt(Stream& stream, std::span<const std::int32_t> tokens);

  // How much of the run lies behind, in [0, 1]: what follows gets the attention windows of that moment. At first 1.
  void set_progress(double progress) { progress_ = progress; }

  static std::int64_t bytes(std::int64_t rows) {
    return 2 * 4 * rows * static_cast<std::int64_t>(sizeof(std::int32_t));
  }

 private:
  struct Slot {
    DeviceBuffer tokens, targets;
    std::array<DeviceBuffer, 2> first_key;
    Batch host;
    std::array<std::vector<std::int32_t>, 2> host_first_key;
    std::unique_ptr<Event> copied;
    bool used = false;
  };

  Device& device_;
  TransformerConfig model_;
  double progress_ = 1.0;
  Slot slots_[2];
  int next_ = 0;
};

}  // namespace polaron
