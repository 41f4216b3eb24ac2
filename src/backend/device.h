// What a backend gives besides arithmetic: memory, copies, ordering. On the CPU every call has finished when it
// returns; on a GPU calls on one stream run in order and the host goes on. Code above the backend is written for the
// second and costs nothing on the first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>

namespace polaron {

// A queue of work on the device.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual void synchronize() = 0;  // the host waits until everything queued so far has finished
};

// A point in a stream that other streams, or the host, can wait for.
class Event {
 public:
  virtual ~Event() = default;
  virtual void record(Stream& stream) = 0;
  virtual void make_wait(Stream& stream) = 0;  // work queued on `stream` from now on waits for the recorded point
  virtual bool finished() = 0;                 // whether the recorded point has been reached; does not wait
  virtual void synchronize() = 0;              // the host waits
};

struct DeviceInfo {
  std::string kind;                // "cpu" or "cuda"
  std::string name;                // what the vendor calls it
  std::string address;             // tells the devices of a machine apart (a GPU's PCI address); empty for the CPU
  int threads = 1;                 // CPU threads in use (1 for a GPU)
  std::uint64_t memory_total = 0;  // bytes; 0 where unknown
  std::uint64_t memory_free = 0;
  std::string slow_bf16;       // why products of bf16 have no hardware here; empty: they have
  double datasheet_flops = 0;  // dense peak at the training precision in FLOP/s; 0 where unknown, never a guess
};

// Frees through the device that allocated; the device must outlive it.
class Device;
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Device& device,
               std::size_t bytes);  // zeroed; throws Error(Exit::device) when there is not enough memory
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual DeviceInfo info() const = 0;

  // Zeroed memory aligned to 256 bytes at least. Throws Error(Exit::device) that says what was asked and what is free.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* data, std::size_t bytes) noexcept = 0;

  virtual std::unique_ptr<Stream> make_stream() = 0;
  virtual std::unique_ptr<Event> make_event() = 0;

  // Host memory that copies reach by themselves (pinned, on a GPU): an upload or download of it waits for nothing but
  // its turn on the stream, whatever its size. Not zeroed. Throws Error(Exit::device).
  virtual void* allocate_host(std::size_t bytes) { return ::operator new(bytes, kHostAlignment); }
  virtual void release_host(void* data) noexcept { ::operator delete(data, kHostAlignment); }

  // All ordered on `stream`. Host memory handed to an upload or download stays valid until the stream is synchronized.
  virtual void upload(Stream& stream, void* device, const void* host, std::size_t bytes) = 0;
  virtual void download(Stream& stream, void* host, const void* device, std::size_t bytes) = 0;
  virtual void copy(Stream& stream, void* to, const void* from, std::size_t bytes) = 0;
  virtual void zero(Stream& stream, void* device, std::size_t bytes) = 0;

 private:
  static constexpr std::align_val_t kHostAlignment{256};
};

inline DeviceBuffer::DeviceBuffer(Device& device, std::size_t bytes)
    : device_(&device), data_(bytes == 0 ? nullptr : device.allocate(bytes)), bytes_(bytes) {}
inline DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : device_(other.device_), data_(other.data_), bytes_(other.bytes_) {
  other.data_ = nullptr;
  other.bytes_ = 0;
}
inline DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  if (this != &other) {
    if (data_ != nullptr) device_->release(data_, bytes_);
    device_ = other.device_;
    data_ = other.data_;
    bytes_ = other.bytes_;
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
  return *this;
}
inline DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) device_->release(data_, bytes_);
}

// One value in device memory that kernels read and write without the host in between: the loss, the clip factor, the
// flag that gates an update. Reading it back is the only place where the host waits.
template <class T>
class DeviceScalar {
 public:
  explicit DeviceScalar(Device& device) : device_(&device), memory_(device, sizeof(T)) {}
  T* device() const { return memory_.as<T>(); }
  void set(Stream& stream, const T& value) {  // waits for the stream: for set-up and tests, not for a step
    device_->upload(stream, memory_.data(), &value, sizeof(T));
    stream.synchronize();
  }
  void zero(Stream& stream) { device_->zero(stream, memory_.data(), sizeof(T)); }
  T get(Stream& stream) const {  // waits for the stream
    T value{};
    device_->download(stream, &value, memory_.data(), sizeof(T));
    stream.synchronize();
    return value;
  }

 private:
  Device* device_;
  DeviceBuffer memory_;
};

}  // namespace polaron
