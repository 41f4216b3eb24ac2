// The CUDA device on the fake runtime: memory, copies, order, and what it says when the runtime refuses.
#include "cuda/device.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "emulation/runtime.h"
#include "support/errors.h"

namespace polaron::cuda {
namespace {

using emulation::fail_next;
using emulation::fake_device;
using emulation::WithOptions;
using test::error_of;
using test::expect_parts;

class CudaDevice : public testing::Test {
 protected:
  WithOptions lazy_{{.lazy_streams = true}};
  std::unique_ptr<Device> device_ = make_device(0);
  std::unique_ptr<Stream> stream_ = device_->make_stream();
};

std::vector<unsigned char> pattern(std::size_t bytes) {
  std::vector<unsigned char> values(bytes);
  for (std::size_t i = 0; i < bytes; ++i) values[i] = static_cast<unsigned char>((i * 131 + i / 251 + 1) % 256);
  return values;
}

TEST_F(CudaDevice, memory_is_aligned_and_zero) {
  for (const std::size_t bytes : {1U, 255U, 4097U}) {
    const DeviceBuffer buffer(*device_, bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 256, 0U);
    const auto* const data = buffer.as<unsigned char>();
    for (std::size_t i = 0; i < bytes; ++i) ASSERT_EQ(data[i], 0);
  }
}

// Small copies pass through pinned memory: what the host does with its own afterwards does not matter. The last size
// goes another way, on which it does.
TEST_F(CudaDevice, uploads_copies_and_downloads_carry_every_byte_in_order) {
  const std::unique_ptr<Stream> other = device_->make_stream();
  const std::unique_ptr<Event> event = device_->make_event();
  constexpr std::size_t kLarge = (std::size_t{1} << 20U) + 77;
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{1000}, std::size_t{1} << 20U, kLarge}) {
    const std::vector<unsigned char> expected = pattern(bytes);
    std::vector<unsigned char> host = expected, back(bytes);
    const DeviceBuffer from(*device_, bytes), to(*device_, bytes);
    device_->upload(*stream_, from.data(), host.data(), bytes);
    if (bytes < kLarge) std::fill(host.begin(), host.end(), static_cast<unsigned char>(0));
    event->record(*stream_);
    event->make_wait(*other);
    device_->copy(*other, to.data(), from.data(), bytes);
    device_->download(*other, back.data(), to.data(), bytes);
    other->synchronize();
    EXPECT_TRUE(back == expected) << bytes;
  }
}

TEST_F(CudaDevice, many_small_copies_in_flight_use_the_pinned_memory_in_turns) {
  const DeviceBuffer memory(*device_, 400);
  std::vector<int> back(100, -1);
  for (int i = 0; i < 100; ++i) device_->upload(*stream_, memory.as<int>() + i, &i, sizeof(i));
  for (int i = 0; i < 100; ++i) device_->download(*stream_, &back[i], memory.as<int>() + i, sizeof(int));
  stream_->synchronize();
  for (int i = 0; i < 100; ++i) EXPECT_EQ(back[i], i);
}

TEST_F(CudaDevice, an_event_is_finished_when_the_work_before_it_is) {
  const std::unique_ptr<Event> event = device_->make_event();
  EXPECT_TRUE(event->finished());  // nothing recorded
  const DeviceBuffer memory(*device_, 4);
  float value = -1.0F;
  device_->download(*stream_, &value, memory.data(), 4);
  event->record(*stream_);
  EXPECT_FALSE(event->finished());
  EXPECT_EQ(value, -1.0F);
  event->synchronize();
  EXPECT_TRUE(event->finished());
  EXPECT_EQ(value, 0.0F);
}

TEST_F(CudaDevice, zero_clears_the_bytes_asked_for_and_no_others) {
  const DeviceBuffer buffer(*device_, 12);
  device_->upload(*stream_, buffer.data(), "abcdefghijk", 12);
  device_->zero(*stream_, buffer.as<char>() + 2, 3);
  stream_->synchronize();
  EXPECT_EQ(std::memcmp(buffer.data(), "ab\0\0\0fghijk", 12), 0);
}

TEST_F(CudaDevice, more_than_there_is_is_refused_with_what_was_asked_and_what_is_free) {
  const std::string message = error_of(Exit::device, [&] { DeviceBuffer(*device_, std::size_t{5} << 30U); });
  expect_parts(message, {"emulated device", "5368709120 bytes (5.00 GiB)", "4.00 GiB) are free", "micro-batch"});
}

TEST_F(CudaDevice, errors_name_the_call_and_are_not_reported_twice) {
  fail_next("cudaMemsetAsync", cudaErrorInvalidValue);
  const DeviceBuffer buffer(*device_, 4);
  expect_parts(error_of(Exit::device, [&] { device_->zero(*stream_, buffer.data(), 4); }),
               {"cudaMemsetAsync", "cudaErrorInvalidValue", "CUDA_LAUNCH_BLOCKING"});
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  for (const char* call : {"cudaStreamSynchronize", "cudaEventRecord", "cudaMemcpyAsync"}) {
    fail_next(call, cudaErrorInvalidValue);
    expect_parts(error_of(Exit::device,
                          [&] {
                            const std::unique_ptr<Event> event = device_->make_event();
                            device_->copy(*stream_, buffer.data(), buffer.data(), 4);
                            event->record(*stream_);
                            stream_->synchronize();
                          }),
                 {call});
  }
}

TEST_F(CudaDevice, a_fault_is_told_by_the_call_that_meets_it_and_clearing_up_afterwards_does_not_throw) {
  const std::string message = error_of(Exit::device, [&] {
    std::optional<emulation::BrokenDevice> broken;  // until everything is cleared up
    const std::unique_ptr<Device> device = make_device(0);
    const std::unique_ptr<Stream> stream = device->make_stream();
    const DeviceBuffer buffer(*device, 4);
    device->upload(*stream, buffer.data(), "abc", 4);  // through pinned memory that is waited for in the end
    broken.emplace(cudaErrorIllegalAddress);
    stream->synchronize();
  });
  expect_parts(message, {"cudaStreamSynchronize", "cudaErrorIllegalAddress"});
}

TEST_F(CudaDevice, info_describes_the_device_and_guesses_nothing) {
  const DeviceInfo info = device_->info();
  EXPECT_EQ(info.kind, "cuda");
  EXPECT_EQ(info.name, "emulated device");
  EXPECT_EQ(info.memory_total, std::uint64_t{4} << 30U);
  EXPECT_EQ(info.datasheet_flops, 0.0);
}

TEST(MakeCudaDevice, says_why_there_is_none) {
  const auto make = [] { make_device(0); };
  fail_next("cudaGetDeviceCount", cudaErrorInsufficientDriver);
  expect_parts(error_of(Exit::device, make), {"cudaGetDeviceCount", "driver", "--device cpu"});
  fail_next("cudaSetDevice", cudaErrorDevicesUnavailable);
  expect_parts(error_of(Exit::device, make), {"Another process"});
  const auto before = fake_device();
  fake_device().count = 0;
  expect_parts(error_of(Exit::device, make), {"cudaErrorNoDevice", "nvidia-smi"});
  fake_device() = before;
  fake_device().major = 7;
  expect_parts(error_of(Exit::device, make), {"compute capability 7.0", "8.0"});
  fake_device() = before;
  expect_parts(error_of(Exit::device, [] { make_device(1); }), {"device 1", "there are 1"});
}

TEST(MakeCudaDevice, leaves_no_memory_behind) {
  const std::size_t device_before = emulation::device_bytes(), pinned_before = emulation::pinned_bytes();
  {
    const std::unique_ptr<Device> device = make_device(0);
    const std::unique_ptr<Stream> stream = device->make_stream();
    const DeviceBuffer buffer(*device, 1000);
    device->zero(*stream, buffer.data(), 1000);
    EXPECT_GT(emulation::device_bytes(), device_before);
  }
  EXPECT_EQ(emulation::device_bytes(), device_before);
  EXPECT_EQ(emulation::pinned_bytes(), pinned_before);
}

__global__ void device_nothing() {}

TEST(Launch, a_refused_call_names_itself) {
  fail_next("cudaFuncSetAttribute", cudaErrorInvalidValue);
  expect_parts(error_of(Exit::device, [] { allow_shared<device_nothing>(100); }), {"cudaFuncSetAttribute"});
}

}  // namespace
}  // namespace polaron::cuda
