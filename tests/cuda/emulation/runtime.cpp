#include "emulation/runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "emulation/emulation.h"

// The runtime's own types are opaque; these are ours.
struct CUstream_st {
  std::deque<std::function<void()>> work;
  std::uint64_t queued = 0, done = 0;

  void step() {
    const std::function<void()> next = std::move(work.front());
    work.pop_front();
    ++done;  // also where it throws
    next();
  }
  void run_to(std::uint64_t target) {
    while (done < target) step();
  }
};
struct CUevent_st {
  CUstream_st* stream = nullptr;  // null: never recorded
  std::uint64_t target = 0;       // how much of the stream's work the recorded point comes after
  std::shared_ptr<double> time;   // the clock when the point was reached; null where the event keeps none
};

namespace polaron::cuda::emulation {
namespace {

constexpr std::size_t kUsualShared = 48 << 10U;

struct Runtime {
  FakeDevice device;
  std::map<std::string, cudaError_t> failures;
  cudaError_t broken = cudaSuccess;  // what every call fails with
  std::map<void*, std::size_t> device_memory, pinned_memory;
  std::map<const void*, std::size_t> shared_limits;
  std::vector<std::unique_ptr<CUstream_st>> streams;
  std::vector<std::unique_ptr<CUstream_st>> destroyed;  // idle; events that were recorded on them still ask them
  CUstream_st default_stream;
  double clock = 0.0;  // milliseconds
  cudaError_t last = cudaSuccess;
};

Runtime& runtime() {
  static Runtime instance;
  return instance;
}

std::size_t total(const std::map<void*, std::size_t>& memory) {
  std::size_t sum = 0;
  for (const auto& [data, bytes] : memory) sum += bytes;
  return sum;
}

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) runtime().last = error;
  return error;
}

// What a call has been told to return; success otherwise.
cudaError_t begin(const char* function) {
  Runtime& r = runtime();
  if (r.broken != cudaSuccess) return result(r.broken);
  const auto found = r.failures.find(function);
  if (found == r.failures.end()) return cudaSuccess;
  const cudaError_t error = found->second;
  r.failures.erase(found);
  return result(error);
}

CUstream_st& stream_of(cudaStream_t stream) { return stream == nullptr ? runtime().default_stream : *stream; }

void drain() {
  Runtime& r = runtime();
  r.default_stream.run_to(r.default_stream.queued);
  for (const auto& stream : r.streams) stream->run_to(stream->queued);
}

cudaError_t allocate(void** data, std::size_t bytes, std::map<void*, std::size_t>& memory) {
  *data = nullptr;
  if (posix_memalign(data, 256, std::max<std::size_t>(bytes, 1)) != 0) return result(cudaErrorMemoryAllocation);
  std::memset(*data, 0xFF, bytes);
  memory[*data] = bytes;
  return cudaSuccess;
}

cudaError_t release(void* data, std::map<void*, std::size_t>& memory) {
  if (data == nullptr) return cudaSuccess;
  drain();
  if (memory.erase(data) == 0) return result(cudaErrorInvalidValue);
  std::free(data);
  return cudaSuccess;
}

}  // namespace

FakeDevice& fake_device() { return runtime().device; }
void fail_next(const std::string& function, cudaError_t error) { runtime().failures[function] = error; }
BrokenDevice::BrokenDevice(cudaError_t error) { runtime().broken = error; }
BrokenDevice::~BrokenDevice() { runtime().broken = runtime().last = cudaSuccess; }
void advance_clock(float milliseconds) { runtime().clock += static_cast<double>(milliseconds); }
std::size_t device_bytes() { return total(runtime().device_memory); }
std::size_t pinned_bytes() { return total(runtime().pinned_memory); }

std::size_t dynamic_shared_limit(const void* kernel) {
  const auto found = runtime().shared_limits.find(kernel);
  return found == runtime().shared_limits.end() ? kUsualShared : found->second;
}

std::size_t whole_shared_limit(const void* kernel) {
  return runtime().shared_limits.contains(kernel) ? fake_device().shared : kUsualShared;
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
  CUstream_st& s = stream_of(stream);
  s.work.push_back(std::move(work));
  ++s.queued;
  if (!options().lazy_streams) s.run_to(s.queued);
}

}  // namespace polaron::cuda::emulation

using namespace polaron::cuda::emulation;  // NOLINT: the functions below are CUDA's, outside any namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  if (const cudaError_t error = begin("cudaGetDeviceCount"); error != cudaSuccess) return error;
  if (fake_device().count == 0) return result(cudaErrorNoDevice);
  *count = fake_device().count;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (const cudaError_t error = begin("cudaSetDevice"); error != cudaSuccess) return error;
  return device < fake_device().count ? cudaSuccess : result(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  if (const cudaError_t error = begin("cudaGetDeviceProperties"); error != cudaSuccess) return error;
  *properties = cudaDeviceProp{};
  std::strncpy(properties->name, fake_device().name.c_str(), sizeof(properties->name) - 1);
  properties->major = fake_device().major;
  properties->minor = fake_device().minor;
  properties->totalGlobalMem = fake_device().memory;
  properties->multiProcessorCount = 4;
  properties->sharedMemPerBlockOptin = fake_device().shared;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  if (const cudaError_t error = begin("cudaMemGetInfo"); error != cudaSuccess) return error;
  *total = fake_device().memory;
  *free = fake_device().memory - std::min(fake_device().memory, device_bytes());
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  if (const cudaError_t error = begin("cudaMalloc"); error != cudaSuccess) return error;
  if (bytes > fake_device().memory - std::min(fake_device().memory, device_bytes())) {
    return result(cudaErrorMemoryAllocation);
  }
  return allocate(data, bytes, runtime().device_memory);
}
cudaError_t cudaFree(void* data) { return release(data, runtime().device_memory); }
cudaError_t cudaHostAlloc(void** data, std::size_t bytes, unsigned) {
  if (const cudaError_t error = begin("cudaHostAlloc"); error != cudaSuccess) return error;
  return allocate(data, bytes, runtime().pinned_memory);
}
cudaError_t cudaFreeHost(void* data) { return release(data, runtime().pinned_memory); }

cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t stream) {
  if (const cudaError_t error = begin("cudaMemsetAsync"); error != cudaSuccess) return error;
  enqueue(stream, [=] { std::memset(data, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemset(void* data, int value, std::size_t bytes) {
  if (const cudaError_t error = begin("cudaMemset"); error != cudaSuccess) return error;
  enqueue(nullptr, [=] { std::memset(data, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (const cudaError_t error = begin("cudaMemcpyAsync"); error != cudaSuccess) return error;
  enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  if (const cudaError_t error = begin("cudaLaunchHostFunc"); error != cudaSuccess) return error;
  enqueue(stream, [=] { function(data); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (const cudaError_t error = begin("cudaStreamCreateWithFlags"); error != cudaSuccess) return error;
  runtime().streams.push_back(std::make_unique<CUstream_st>());
  *stream = runtime().streams.back().get();
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  stream->run_to(stream->queued);
  std::vector<std::unique_ptr<CUstream_st>>& known = runtime().streams;
  const auto found = std::find_if(known.begin(), known.end(), [&](const auto& each) { return each.get() == stream; });
  if (found == known.end()) return result(cudaErrorInvalidResourceHandle);
  runtime().destroyed.push_back(std::move(*found));
  known.erase(found);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t error = begin("cudaStreamSynchronize"); error != cudaSuccess) return error;
  stream_of(stream).run_to(stream_of(stream).queued);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t error = begin("cudaDeviceSynchronize"); error != cudaSuccess) return error;
  drain();
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (const cudaError_t error = begin("cudaStreamWaitEvent"); error != cudaSuccess) return error;
  if (event->stream == nullptr) return cudaSuccess;
  enqueue(stream, [other = event->stream, target = event->target] { other->run_to(target); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (const cudaError_t error = begin("cudaEventCreateWithFlags"); error != cudaSuccess) return error;
  *event = new CUevent_st;
  if ((flags & cudaEventDisableTiming) == 0) (*event)->time = std::make_shared<double>(0.0);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const cudaError_t error = begin("cudaEventRecord"); error != cudaSuccess) return error;
  if (event->time) enqueue(stream, [time = event->time] { *time = runtime().clock; });
  event->stream = &stream_of(stream);
  event->target = stream_of(stream).queued;
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
  if (const cudaError_t error = begin("cudaEventElapsedTime"); error != cudaSuccess) return error;
  for (const CUevent_st* event : {start, stop}) {
    if (!event->time || event->stream == nullptr) return result(cudaErrorInvalidResourceHandle);
    if (event->stream->done < event->target) return result(cudaErrorNotReady);
  }
  *milliseconds = static_cast<float>(*stop->time - *start->time);
  return cudaSuccess;
}
// A stream that is asked moves on a little, as time would make it.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (const cudaError_t error = begin("cudaEventQuery"); error != cudaSuccess) return error;
  if (event->stream == nullptr || event->stream->done >= event->target) return cudaSuccess;
  event->stream->step();
  return result(cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t error = begin("cudaEventSynchronize"); error != cudaSuccess) return error;
  if (event->stream != nullptr) event->stream->run_to(event->target);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (const cudaError_t error = begin("cudaFuncSetAttribute"); error != cudaSuccess) return error;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return result(cudaErrorInvalidValue);
  if (value < 0 || static_cast<std::size_t>(value) > fake_device().shared) return result(cudaErrorInvalidValue);
  runtime().shared_limits[kernel] = std::max(kUsualShared, static_cast<std::size_t>(value));
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  if (const cudaError_t error = begin("cudaGetLastError"); error != cudaSuccess) {
    runtime().last = cudaSuccess;
    return error;
  }
  return std::exchange(runtime().last, cudaSuccess);
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    default:
      return "an error of the emulated runtime";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

}  // extern "C"
