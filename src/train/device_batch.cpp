#include "train/device_batch.h"

#include <utility>

#include "model/window.h"

namespace polaron {

BatchUploader::BatchUploader(Device& device, const TransformerConfig& model, std::int64_t rows)
    : device_(device), model_(model) {
  const std::size_t bytes = static_cast<std::size_t>(rows) * sizeof(std::int32_t);
  for (Slot& slot : slots_) {
    slot.tokens = DeviceBuffer(device, bytes);
    slot.targets = DeviceBuffer(device, bytes);
    for (DeviceBuffer& buffer : slot.first_key) buffer = DeviceBuffer(device, bytes);
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
  if (model_.window_block == 0) {
    result.first_key[0] = copy(slot.first_key[0], slot.host.document_start);
  } else {
    const std::int64_t whole = window_blocks(model_, progress_);
    for (const std::size_t i : {0U, 1U}) {
      std::vector<std::int32_t>& first = slot.host_first_key[i];
      first.resize(static_cast<std::size_t>(rows));
      for (std::int64_t b = 0; b < slot.host.sequences; ++b) {
        const auto sequence = [&](auto& values) {
          return std::span(values).subspan(static_cast<std::size_t>(b * slot.host.length),
                                           static_cast<std::size_t>(slot.host.length));
        };
        std::span<const std::int32_t> starts;
        if (!slot.host.document_start.empty()) starts = sequence(slot.host.document_start);
        block_window(starts, model_.window_block, i == 0 ? whole : whole / 2, sequence(first));
      }
      result.first_key[i] = copy(slot.first_key[i], first);
    }
  }
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
