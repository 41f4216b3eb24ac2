#include "backend/device.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "cpu/families.h"

namespace polaron {
namespace {

constexpr std::size_t kHuge = std::size_t{2} << 20U;

class CpuDevice : public testing::Test {
 protected:
  CpuDevice() : before_(omp_get_max_threads()), device_(cpu::make_device(2)), stream_(device_->make_stream()) {}
  ~CpuDevice() override { omp_set_num_threads(before_); }

  int before_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
};

std::vector<unsigned char> pattern(std::size_t bytes) {
  std::vector<unsigned char> values(bytes);
  for (std::size_t i = 0; i < bytes; ++i) values[i] = static_cast<unsigned char>((i * 131 + i / 251 + 1) % 256);
  return values;
}

TEST_F(CpuDevice, memory_is_aligned_and_zero_even_where_it_was_used_before) {
  for (const std::size_t bytes :
       {std::size_t{1}, std::size_t{255}, std::size_t{4097}, kHuge - 1, kHuge, 2 * kHuge + 3}) {
    for (int round = 0; round < 3; ++round) {
      auto* const data = static_cast<unsigned char*>(device_->allocate(bytes));
      const auto address = reinterpret_cast<std::uintptr_t>(data);
      EXPECT_EQ(address % 256, 0U) << bytes;
      EXPECT_EQ(address % (bytes >= kHuge ? kHuge : 1), 0U) << bytes;
      std::size_t dirty = 0;
      for (std::size_t i = 0; i < bytes; ++i) dirty += data[i] != 0 ? 1 : 0;
      EXPECT_EQ(dirty, 0U) << bytes;
      std::memset(data, 0xAB, bytes);
      device_->release(data, bytes);
    }
  }
}

TEST_F(CpuDevice, more_than_there_is_is_refused_with_both_figures) {
  const std::size_t bytes = std::size_t{1} << 50U;
  try {
    DeviceBuffer buffer(*device_, bytes);
    FAIL() << "a pebibyte was allocated";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::device);
    const std::string message = error.what();
    EXPECT_NE(message.find(std::to_string(bytes) + " bytes"), std::string::npos) << message;
    EXPECT_NE(message.find("GiB) are free"), std::string::npos) << message;
  }
  EXPECT_THROW(device_->allocate(~std::size_t{0}), Error);
}

TEST_F(CpuDevice, memory_handed_out_but_not_yet_used_counts_as_taken) {
  const auto most = static_cast<std::size_t>(0.7 * static_cast<double>(device_->info().memory_free));
  if (most < kHuge) GTEST_SKIP() << "free memory is unknown here";
  DeviceBuffer first(*device_, most);
  EXPECT_LT(device_->info().memory_free, most);
  EXPECT_THROW(DeviceBuffer(*device_, most), Error);
  first = DeviceBuffer();
  EXPECT_NO_THROW(DeviceBuffer(*device_, most));
}

TEST_F(CpuDevice, uploads_copies_and_downloads_carry_every_byte) {
  const std::unique_ptr<Stream> other = device_->make_stream();
  const std::unique_ptr<Event> event = device_->make_event();
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{1000}, std::size_t{262144},
                                  std::size_t{1} << 20U, (std::size_t{3} << 20U) + 77}) {
    const std::vector<unsigned char> host = pattern(bytes);
    const DeviceBuffer from(*device_, bytes), to(*device_, bytes);
    std::vector<unsigned char> back(bytes);
    device_->upload(*stream_, from.data(), host.data(), bytes);
    event->record(*stream_);
    event->make_wait(*other);
    device_->copy(*other, to.data(), from.data(), bytes);
    device_->download(*other, back.data(), to.data(), bytes);
    other->synchronize();
    EXPECT_TRUE(back == host) << bytes;
  }
}

TEST_F(CpuDevice, zero_clears_the_bytes_asked_for_and_no_others) {
  const std::size_t bytes = (std::size_t{2} << 20U) + 5;
  const DeviceBuffer buffer(*device_, bytes + 2);
  auto* const data = buffer.as<unsigned char>();
  std::memset(data, 0xAB, bytes + 2);
  device_->zero(*stream_, data + 1, bytes);
  EXPECT_EQ(data[0], 0xAB);
  EXPECT_EQ(data[bytes + 1], 0xAB);
  std::size_t dirty = 0;
  for (std::size_t i = 1; i <= bytes; ++i) dirty += data[i] != 0 ? 1 : 0;
  EXPECT_EQ(dirty, 0U);
}

TEST_F(CpuDevice, a_moved_buffer_keeps_its_memory) {
  DeviceBuffer first(*device_, 1000);
  void* const data = first.data();
  DeviceBuffer second = std::move(first);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(first.data(), nullptr);  // NOLINT: a moved-from buffer is empty
  DeviceBuffer third(*device_, 10);
  third = std::move(second);
  EXPECT_EQ(third.data(), data);
  EXPECT_EQ(third.bytes(), 1000U);
}

TEST_F(CpuDevice, a_scalar_is_set_and_read_back) {
  DeviceScalar<double> scalar(*device_);
  EXPECT_EQ(scalar.get(*stream_), 0.0);
  scalar.set(*stream_, 2.5);
  EXPECT_EQ(scalar.get(*stream_), 2.5);
  scalar.zero(*stream_);
  EXPECT_EQ(scalar.get(*stream_), 0.0);
}

TEST_F(CpuDevice, info_describes_this_machine_and_guesses_nothing) {
  const DeviceInfo info = device_->info();
  EXPECT_EQ(info.kind, "cpu");
  EXPECT_NE(info.name, "");
  EXPECT_EQ(info.threads, 2);
  EXPECT_GT(info.memory_total, 0U);
  EXPECT_LE(info.memory_free, info.memory_total);
  EXPECT_EQ(info.datasheet_flops, 0.0);
}

TEST_F(CpuDevice, the_number_of_threads_is_the_one_asked_for) {
  for (const int threads : {1, 3}) {
    const std::unique_ptr<Device> device = cpu::make_device(threads);
    EXPECT_EQ(device->info().threads, threads);
    int running = 0;
#pragma omp parallel
    {
#pragma omp single
      running = omp_get_num_threads();
    }
    EXPECT_EQ(running, threads);
  }
  EXPECT_GE(cpu::make_device(0)->info().threads, 1);
  EXPECT_THROW(cpu::make_device(-1), Error);
}

}  // namespace
}  // namespace polaron
