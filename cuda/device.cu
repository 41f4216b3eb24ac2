#include "cuda/device.h"

#include <array>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <map>

namespace polaron::cuda {
namespace {

const char* remedy_for(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
      return "There is no NVIDIA driver, or it is older than this build's CUDA: install or update it, or use --device "
             "cpu.";
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
      return "Look at nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu.";
    case cudaErrorDevicesUnavailable:
      return "Another process holds the device (nvidia-smi shows which): end it, choose another device with "
             "CUDA_VISIBLE_DEVICES, "
             "or use --device cpu.";
    case cudaErrorMemoryAllocation:
      return "Use a smaller micro-batch, sequence length or model, or training.recompute.";
    case cudaErrorNoKernelImageForDevice:
      return "The CUDA backend was built for other architectures: build it again with -DCMAKE_CUDA_ARCHITECTURES.";
    default:
      return "A kernel queued before it may be the cause: CUDA_LAUNCH_BLOCKING=1 makes the failing call be the one "
             "that is "
             "named.";
  }
}

std::string in_gibibytes(std::size_t bytes) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%zu bytes (%.2f GiB)", bytes,
                static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0));
  return text.data();
}

class CudaStream final : public Stream {
 public:
  CudaStream() { check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  ~CudaStream() override { cudaStreamDestroy(handle_); }

  void synchronize() override { check(cudaStreamSynchronize(handle_), "cudaStreamSynchronize"); }
  cudaStream_t handle() const { return handle_; }

 private:
  cudaStream_t handle_ = nullptr;
};

class CudaEvent final : public Event {
 public:
  CudaEvent() { check(cudaEventCreateWithFlags(&handle_, cudaEventDisableTiming), "cudaEventCreateWithFlags"); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  ~CudaEvent() override { cudaEventDestroy(handle_); }

  void record(Stream& stream) override { check(cudaEventRecord(handle_, handle_of(stream)), "cudaEventRecord"); }
  void make_wait(Stream& stream) override {
    check(cudaStreamWaitEvent(handle_of(stream), handle_, 0), "cudaStreamWaitEvent");
  }
  bool finished() override {
    const cudaError_t state = cudaEventQuery(handle_);
    if (state == cudaErrorNotReady) {
      cudaGetLastError();  // forgets it: not ready is no error, but the next launch would find it
      return false;
    }
    check(state, "cudaEventQuery");
    return true;
  }
  void synchronize() override { check(cudaEventSynchronize(handle_), "cudaEventSynchronize"); }
  cudaEvent_t handle() const { return handle_; }

 private:
  cudaEvent_t handle_ = nullptr;
};

// Pinned host memory through which small copies pass: a copy from or to pageable memory would make the host wait for
// all that the stream has still to do. Pieces are used in turns.
class Staging {
 public:
  static constexpr std::size_t kPieceBytes = std::size_t{1} << 20U;

  struct Piece {
    void* pinned = nullptr;
    void* host = nullptr;  // of a download: where the bytes go in the end
    std::size_t bytes = 0;
    CudaEvent free;
    bool used = false;
  };

  Staging() {
    check(cudaHostAlloc(&memory_, kPieces * kPieceBytes, cudaHostAllocDefault), "cudaHostAlloc");
    for (std::size_t i = 0; i < kPieces; ++i) pieces_[i].pinned = static_cast<std::byte*>(memory_) + i * kPieceBytes;
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  // After a kernel has failed every call reports that again: it has been told, and this must not throw.
  ~Staging() {
    for (Piece& piece : pieces_) {
      if (piece.used) cudaEventSynchronize(piece.free.handle());
    }
    cudaFreeHost(memory_);
  }

  // Waits for the copy that used the piece last, many copies ago.
  Piece& next() {
    Piece& piece = pieces_[turn_++ % kPieces];
    if (piece.used) piece.free.synchronize();
    piece.used = true;
    return piece;
  }

 private:
  static constexpr std::size_t kPieces = 16;
  void* memory_ = nullptr;
  std::array<Piece, kPieces> pieces_;
  std::size_t turn_ = 0;
};

void CUDART_CB deliver(void* data) {
  const auto& piece = *static_cast<Staging::Piece*>(data);
  std::memcpy(piece.host, piece.pinned, piece.bytes);
}

// NVIDIA's data sheets: dense bf16 with fp32 accumulation. Devices that are not listed have no figure.
double datasheet_flops(const std::string& name) {
  struct Row {
    const char* part;
    double flops;
  };
  constexpr Row kRows[] = {{"H100 PCIe", 756e12}, {"H100 NVL", 835.5e12}, {"H100", 989.4e12},
                           {"H200", 989.4e12},    {"B200", 2250e12},      {"A100", 312e12}};
  for (const Row& row : kRows) {
    if (name.find(row.part) != std::string::npos) return row.flops;
  }
  return 0.0;
}

std::string pci_address(const cudaDeviceProp& p) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%04x:%02x:%02x", p.pciDomainID, p.pciBusID, p.pciDeviceID);
  return text.data();
}

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(const cudaDeviceProp& properties) : properties_(properties) {}

  int architecture() const { return 10 * properties_.major + properties_.minor; }
  std::size_t most_shared() const { return properties_.sharedMemPerBlockOptin; }

  DeviceInfo info() const override {
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    DeviceInfo info;
    info.kind = "cuda";
    info.name = properties_.name;
    info.address = pci_address(properties_);
    info.memory_total = total;
    info.memory_free = free;
    info.datasheet_flops = datasheet_flops(properties_.name);
    return info;
  }

  void* allocate(std::size_t bytes) override {
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, bytes);
    if (error == cudaErrorMemoryAllocation) refuse(bytes);
    check(error, "cudaMalloc");
    check(cudaMemset(data, 0, bytes), "cudaMemset");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // our streams do not wait for the default stream
    return data;
  }
  void release(void* data, std::size_t) noexcept override { cudaFree(data); }

  void* allocate_host(std::size_t bytes) override {
    void* data = nullptr;
    check(cudaHostAlloc(&data, bytes, cudaHostAllocDefault), "cudaHostAlloc");
    pinned_[data] = bytes;
    return data;
  }
  void release_host(void* data) noexcept override {
    pinned_.erase(data);
    cudaFreeHost(data);
  }

  std::unique_ptr<Stream> make_stream() override { return std::make_unique<CudaStream>(); }
  std::unique_ptr<Event> make_event() override { return std::make_unique<CudaEvent>(); }

  void upload(Stream& stream, void* device, const void* host, std::size_t bytes) override {
    if (bytes == 0) return;
    if (bytes > Staging::kPieceBytes || is_pinned(host)) {
      return transfer(stream, device, host, bytes, cudaMemcpyHostToDevice);
    }
    Staging::Piece& piece = staging_.next();
    std::memcpy(piece.pinned, host, bytes);
    transfer(stream, device, piece.pinned, bytes, cudaMemcpyHostToDevice);
    piece.free.record(stream);
  }

  void download(Stream& stream, void* host, const void* device, std::size_t bytes) override {
    if (bytes == 0) return;
    if (bytes > Staging::kPieceBytes || is_pinned(host)) {
      return transfer(stream, host, device, bytes, cudaMemcpyDeviceToHost);
    }
    Staging::Piece& piece = staging_.next();
    piece.host = host;
    piece.bytes = bytes;
    transfer(stream, piece.pinned, device, bytes, cudaMemcpyDeviceToHost);
    check(cudaLaunchHostFunc(handle_of(stream), &deliver, &piece), "cudaLaunchHostFunc");
    piece.free.record(stream);
  }

  void copy(Stream& stream, void* to, const void* from, std::size_t bytes) override {
    if (bytes > 0) transfer(stream, to, from, bytes, cudaMemcpyDeviceToDevice);
  }
  void zero(Stream& stream, void* device, std::size_t bytes) override {
    if (bytes > 0) check(cudaMemsetAsync(device, 0, bytes, handle_of(stream)), "cudaMemsetAsync");
  }

 private:
  static void transfer(Stream& stream, void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    check(cudaMemcpyAsync(to, from, bytes, kind, handle_of(stream)), "cudaMemcpyAsync");
  }

  // Whether it lies in what allocate_host has given.
  bool is_pinned(const void* host) const {
    const auto after = pinned_.upper_bound(host);
    if (after == pinned_.begin()) return false;
    const auto& [begin, bytes] = *std::prev(after);
    return static_cast<const std::byte*>(host) < static_cast<const std::byte*>(begin) + bytes;
  }

  [[noreturn]] void refuse(std::size_t bytes) const {
    cudaGetLastError();  // forgets it
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    throw Error(Exit::device, "Not enough memory on " + std::string(properties_.name) + ": " + in_gibibytes(bytes) +
                                  " were asked for and " + in_gibibytes(free) + " of " + in_gibibytes(total) +
                                  " are free. " + remedy_for(cudaErrorMemoryAllocation));
  }

  cudaDeviceProp properties_;
  Staging staging_;
  std::map<const void*, std::size_t> pinned_;  // bytes that allocate_host has given, by address
};

}  // namespace

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error that has been reported must not be found again by the next call
  throw Error(Exit::device, std::string("CUDA: ") + call + " failed: " + cudaGetErrorString(error) + " (" +
                                cudaGetErrorName(error) + "). " + remedy_for(error));
}

std::size_t most_shared_of(const Device& device) { return static_cast<const CudaDevice&>(device).most_shared(); }

int architecture_of(const Device& device) { return static_cast<const CudaDevice&>(device).architecture(); }

cudaStream_t handle_of(Stream& stream) { return static_cast<CudaStream&>(stream).handle(); }

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}

std::unique_ptr<Device> make_device(int index) {
  const int count = device_count();
  if (index < 0 || index >= count) {
    throw Error(Exit::device, "CUDA device " + std::to_string(index) + " was asked for and there are " +
                                  std::to_string(count) + ". " + remedy_for(cudaErrorInvalidDevice));
  }
  check(cudaSetDevice(index), "cudaSetDevice");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  if (properties.major < 8) {
    throw Error(Exit::device, std::string(properties.name) + " has compute capability " +
                                  std::to_string(properties.major) + "." + std::to_string(properties.minor) +
                                  "; the CUDA backend needs 8.0 or later. Use --device cpu.");
  }
  return std::make_unique<CudaDevice>(properties);
}

}  // namespace polaron::cuda
