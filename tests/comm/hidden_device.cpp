#include "hidden_device.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace polaron::test {
namespace {

constexpr std::uintptr_t kHidden = std::uintptr_t{1} << 62U;  // no address of x86-64 or AArch64 has this bit alone

HiddenStream& hidden(Stream& stream) { return dynamic_cast<HiddenStream&>(stream); }

class HiddenEvent final : public Event {
 public:
  void record(Stream& stream) override {
    stream_ = &hidden(stream);
    target_ = stream_->queued();
  }
  void make_wait(Stream& stream) override {
    if (stream_ == nullptr) return;
    hidden(stream).queue([other = stream_, target = target_] { other->run_to(target); });
  }
  bool finished() override {  // whoever asks lets time pass
    if (stream_ == nullptr || stream_->done() >= target_) return true;
    stream_->step();
    return false;
  }
  void synchronize() override {
    if (stream_ != nullptr) stream_->run_to(target_);
  }

 private:
  HiddenStream* stream_ = nullptr;
  std::uint64_t target_ = 0;
};

}  // namespace

void HiddenStream::queue(std::function<void()> work) {
  work_.push_back(std::move(work));
  ++queued_;
}

bool HiddenStream::step() {
  if (work_.empty()) return false;
  const std::function<void()> next = std::move(work_.front());
  work_.pop_front();
  next();
  ++done_;
  return true;
}

void HiddenStream::run_to(std::uint64_t target) {
  while (done_ < target && step()) {
  }
}

DeviceInfo HiddenDevice::info() const {
  DeviceInfo info;
  info.kind = kind_;
  info.name = "device of the tests";
  info.address = address_;
  return info;
}

void* HiddenDevice::allocate(std::size_t bytes) {
  void* const real = std::calloc(bytes, 1);
  if (real == nullptr) throw std::bad_alloc();
  const std::uintptr_t at = reinterpret_cast<std::uintptr_t>(real) ^ kHidden;
  allocated_[at] = bytes;
  return reinterpret_cast<void*>(at);
}

void HiddenDevice::release(void* data, std::size_t) noexcept {
  const auto at = reinterpret_cast<std::uintptr_t>(data);
  allocated_.erase(at);
  std::free(reinterpret_cast<void*>(at ^ kHidden));
}

std::byte* HiddenDevice::reveal(const void* device, std::size_t bytes) const {
  const auto at = reinterpret_cast<std::uintptr_t>(device);
  auto found = allocated_.upper_bound(at);
  if (found == allocated_.begin() || (--found, at + bytes > found->first + found->second)) {
    throw std::logic_error("no memory of the device");
  }
  return reinterpret_cast<std::byte*>(at ^ kHidden);
}

std::unique_ptr<Event> HiddenDevice::make_event() { return std::make_unique<HiddenEvent>(); }

void HiddenDevice::upload(Stream& stream, void* device, const void* host, std::size_t bytes) {
  std::byte* const to = reveal(device, bytes);
  hidden(stream).queue([=] { std::memcpy(to, host, bytes); });
}
void HiddenDevice::download(Stream& stream, void* host, const void* device, std::size_t bytes) {
  const std::byte* const from = reveal(device, bytes);
  hidden(stream).queue([=] { std::memcpy(host, from, bytes); });
}
void HiddenDevice::copy(Stream& stream, void* to, const void* from, std::size_t bytes) {
  hidden(stream).queue([t = reveal(to, bytes), f = reveal(from, bytes), bytes] { std::memcpy(t, f, bytes); });
}
void HiddenDevice::zero(Stream& stream, void* device, std::size_t bytes) {
  hidden(stream).queue([d = reveal(device, bytes), bytes] { std::memset(d, 0, bytes); });
}

}  // namespace polaron::test
