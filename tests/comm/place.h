// Where transfers of the tests take place: in the host's memory, or in that of a device which the host cannot see.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "hidden_device.h"
#include "processes.h"

namespace polaron::test {

enum class Place : std::uint8_t { host, staged };
inline std::ostream& operator<<(std::ostream& out, Place place) {
  return out << (place == Place::host ? "host" : "staged");
}

// Processes with memory of one kind. Collective.
class Setting {
 public:
  explicit Setting(Place place) {
    if (place == Place::host) return;
    device_ = std::make_unique<HiddenDevice>("of process " + std::to_string(processes().rank()));
    own_ = make_device_communicator(processes(), *device_, nullptr);
  }

  Communicator& all() const { return own_ ? *own_ : processes(); }
  HiddenDevice* device() const { return device_.get(); }

 private:
  std::unique_ptr<HiddenDevice> device_;  // null: the host
  std::unique_ptr<Communicator> own_;
};

// A stream whose work is done when somebody waits for it, as on a device.
class TestStream {
 public:
  explicit TestStream(const Setting& setting, std::function<void()> work = {})
      : host_(std::move(work)), hidden_(setting.device() != nullptr) {
    if (hidden_ && host_.work) device_.queue(std::move(host_.work));
  }
  operator Stream&() { return hidden_ ? static_cast<Stream&>(device_) : host_; }  // NOLINT: stands for it

 private:
  struct OnHost final : Stream {
    explicit OnHost(std::function<void()> w) : work(std::move(w)) {}
    void synchronize() override {
      if (work) work();
      work = nullptr;
    }
    std::function<void()> work;
  };
  OnHost host_;
  HiddenStream device_;
  bool hidden_;
};

// Values that the test sees, and the memory that the communicator is given: the same on the host.
template <class T>
class Values {
 public:
  Values(const Setting& setting, std::size_t n, T value = T{}) : host(n, value), device_(setting.device()) {
    if (device_ != nullptr) memory_ = DeviceBuffer(*device_, (n + 1) * sizeof(T));
  }

  T* data() { return device_ != nullptr ? memory_.template as<T>() : host.data(); }
  void send() {
    if (device_ != nullptr) std::copy(host.begin(), host.end(), revealed());
  }
  // What has arrived after communicator.finish(stream).
  void fetch(Stream& stream) {
    stream.synchronize();
    look();
  }
  void look() {
    if (device_ != nullptr) std::copy(revealed(), revealed() + host.size(), host.begin());
  }

  std::vector<T> host;

 private:
  T* revealed() { return reinterpret_cast<T*>(device_->reveal(memory_.data(), host.size() * sizeof(T))); }
  HiddenDevice* device_;
  DeviceBuffer memory_;
};

}  // namespace polaron::test
