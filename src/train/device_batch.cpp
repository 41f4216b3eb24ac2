#include "train/device_batch.h"

#include <utility>

namespace polaron {

BatchUploader::BatchUploader(Device& device, std::int64_t rows) : device_(device) {
  const std::size_t bytes = static_cast<std::size_t>(rows) * sizeof(std::int32_t);
  for (Slot& slot : slots_) {
    slot.tokens = DeviceBuffer(device, bytes);
    slot.targets = DeviceBuffer(device, bytes);
    slot.document_start = DeviceBuffer(device, bytes);
    slot.copied = device.make_event();
  }
}

DeviceBatch BatchUploader::upload(Stream& stream, Batch batch) {
  Slot& slot = slots_[next_];
  next_ = 1 - next_;
  if (slot.used) slot.copied->synchronize();
  slot.used = true;
  slot.host = std::move(batch);
  const std::int64_t rows = slot.host.sequences * slot.host.length;
  const auto copy = [&](const DeviceBuffer& to, const std::vector<std::int32_t>& from) -> Tensor {
    if (from.empty()) return {};
    device_.upload(stream, to.data(), from.data(), from.size() * sizeof(std::int32_t));
    return {to.data(), DType::i32, rows, 1};
  };
  DeviceBatch result;
  result.sequences = slot.host.sequences;
  result.sequence_length = slot.host.length;
  result.tokens = copy(slot.tokens, slot.host.tokens);
  result.targets = copy(slot.targets, slot.host.targets);
  result.document_start = copy(slot.document_start, slot.host.document_start);
  slot.copied->record(stream);
  return result;
}

DeviceBatch BatchUploader::upload_prompt(Stream& stream, std::span<const std::int32_t> tokens) {
  Batch batch;
  batch.sequences = 1;
  batch.length = static_cast<std::int64_t>(tokens.size());
  batch.tokens.assign(tokens.begin(), tokens.end());
  batch.targets.assign(tokens.size(), -1);
  return upload(stream, std::move(batch));
}

}  // namespace polaron
