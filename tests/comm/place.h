// Where transfers of the tests take place: in the host's memory, or in that of a device which the host cannot see.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "hidden_device.h"
#include "processes.h"
#ifdef POLARON_TEST_EMULATED
#include "cuda/device.h"
#include "emulation/emulation.h"
#endif

namespace polaron::test {

enum class Place : std::uint8_t { host, staged, emulated };
inline std::string name_of(Place place) {
  return place == Place::host ? "host" : place == Place::staged ? "staged" : "emulated";
}
inline std::ostream& operator<<(std::ostream& out, Place place) { return out << name_of(place); }

// Those of this program: one that is linked with the emulated CUDA runtime has that in addition.
inline std::vector<Place> places() {
#ifdef POLARON_TEST_EMULATED
  return {Place::host, Place::staged, Place::emulated};
#else
  return {Place::host, Place::staged};
#endif
}

// Processes with memory of one kind. Collective.
class Setting {
 public:
  explicit Setting(Place place) {
    if (place == Place::host) return;
    if (place == Place::staged) {
      auto device = std::make_unique<HiddenDevice>("of process " + std::to_string(processes().rank()));
      hidden_ = device.get();
      device_ = std::move(device);
    }
#ifdef POLARON_TEST_EMULATED
    if (place == Place::emulated) {
      lazy_.emplace(cuda::emulation::Options{.lazy_streams = true});
      device_ = cuda::make_device(0);
    }
#endif
    own_ = make_device_communicator(processes(), *device_, nullptr);
  }

  Communicator& all() const { return own_ ? *own_ : processes(); }
  Device* device() const { return device_.get(); }  // null: the host
  // Where the bytes of device memory really are.
  void* reveal(void* device, std::size_t bytes) const {
    return hidden_ != nullptr ? hidden_->reveal(device, bytes) : device;
  }
  void queue(Stream& stream, std::function<void()> work) const {
    if (hidden_ != nullptr) return dynamic_cast<HiddenStream&>(stream).queue(std::move(work));
#ifdef POLARON_TEST_EMULATED
    cuda::emulation::enqueue(cuda::handle_of(stream), std::move(work));
#endif
  }

 private:
#ifdef POLARON_TEST_EMULATED
  std::optional<cuda::emulation::WithOptions> lazy_;
#endif
  std::unique_ptr<Device> device_;
  HiddenDevice* hidden_ = nullptr;
  std::unique_ptr<Communicator> own_;
};

// A stream whose work is done when somebody waits for it, as on a device.
class TestStream {
 public:
  explicit TestStream(const Setting& setting, std::function<void()> work = {}) : host_(std::move(work)) {
    if (setting.device() == nullptr) return;
    device_ = setting.device()->make_stream();
    if (host_.work) setting.queue(*device_, std::move(host_.work));
  }
  operator Stream&() { return device_ ? *device_ : host_; }  // NOLINT: stands for it

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
  std::unique_ptr<Stream> device_;
};

// Values that the test sees, and the memory that the communicator is given: the same on the host.
template <class T>
class Values {
 public:
  Values(const Setting& setting, std::size_t n, T value = T{})
      : host(n, value), setting_(&setting), device_(setting.device()) {
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
  T* revealed() { return static_cast<T*>(setting_->reveal(memory_.data(), host.size() * sizeof(T))); }
  const Setting* setting_;
  Device* device_;
  DeviceBuffer memory_;
};

}  // namespace polaron::test
