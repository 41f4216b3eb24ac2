// What processes tell one another of their memory.
#include "train/processes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpu/cpu_backend.h"
#include "io/checksum.h"
#include "support/forwarding_backend.h"

namespace polaron {
namespace {

class WatchedDevice : public test::ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;
  void download(Stream& stream, void* host, const void* device, std::size_t bytes) override {
    largest = std::max(largest, bytes);
    ForwardingDevice::download(stream, host, device, bytes);
  }
  std::size_t largest = 0;
};

TEST(ChecksumOnDevice, is_that_of_the_whole_and_takes_no_more_host_memory_than_a_piece) {
  const auto backend = make_cpu_backend(1);
  WatchedDevice device(backend->device());
  const auto stream = device.make_stream();
  std::vector<std::byte> bytes(1000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * i % 251);
  Checksum whole;
  whole.update(bytes);
  for (const std::size_t piece : {1000U, 999U, 64U, 1U}) {
    device.largest = 0;
    EXPECT_EQ(checksum_on_device(device, *stream, bytes.data(), bytes.size(), piece), whole.value()) << piece;
    EXPECT_EQ(device.largest, piece);
  }
  device.largest = 0;
  checksum_on_device(device, *stream, bytes.data(), bytes.size());
  EXPECT_EQ(device.largest, bytes.size());
}

}  // namespace
}  // namespace polaron
