// A device as far away as a GPU: its memory has addresses at which the host finds nothing, and its streams do their
// work when something waits for it, as late as they may. Whoever touches device memory from the host, forgets to wait
// or gives host memory away too early is found without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "backend/device.h"

namespace polaron::test {

class HiddenStream final : public Stream {
 public:
  void synchronize() override { run_to(queued_); }
  void queue(std::function<void()> work);
  bool step();  // does the next thing, if there is one
  void run_to(std::uint64_t target);
  std::uint64_t queued() const { return queued_; }
  std::uint64_t done() const { return done_; }

 private:
  std::deque<std::function<void()>> work_;
  std::uint64_t queued_ = 0, done_ = 0;
};

class HiddenDevice final : public Device {
 public:
  explicit HiddenDevice(std::string address, std::string kind = "hidden")
      : address_(std::move(address)), kind_(std::move(kind)) {}

  DeviceInfo info() const override;
  void* allocate(std::size_t bytes) override;
  void release(void* data, std::size_t bytes) noexcept override;
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<HiddenStream>(); }
  std::unique_ptr<Event> make_event() override;
  void upload(Stream& stream, void* device, const void* host, std::size_t bytes) override;
  void download(Stream& stream, void* host, const void* device, std::size_t bytes) override;
  void copy(Stream& stream, void* to, const void* from, std::size_t bytes) override;
  void zero(Stream& stream, void* device, std::size_t bytes) override;

  // Where the bytes really are. Throws std::logic_error where they are not all of one allocation.
  std::byte* reveal(const void* device, std::size_t bytes) const;

 private:
  std::string address_, kind_;
  std::map<std::uintptr_t, std::size_t> allocated_;  // hidden address: bytes
};

}  // namespace polaron::test
