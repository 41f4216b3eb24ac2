#include <cblas.h>
#include <fmt/format.h>
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "cpu/blas.h"
#include "cpu/families.h"
#include "cpu/host.h"

namespace polaron::cpu {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kHugePage = std::size_t{2} << 20U;
constexpr std::size_t kMostEver = std::size_t{1} << 56U;  // beyond any address space; keeps sizes from wrapping round
constexpr std::size_t kParallelBytes = std::size_t{1} << 20U;  // below, starting threads costs more than it saves
constexpr std::size_t kBlock = std::size_t{256} << 10U;        // what a thread copies or clears at a time

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }
double gibibytes(std::uint64_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0); }

// Memory of whole huge pages, mapped and not yet backed: the kernel zeroes each page at first touch, on the memory of
// the processor that touches it. Null when the kernel refuses.
void* map_huge(std::size_t bytes) {
  const std::size_t size = round_up(bytes, kHugePage);
  void* mapped = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* const start = static_cast<std::byte*>(mapped);
  const std::size_t before =
      round_up(reinterpret_cast<std::uintptr_t>(start), kHugePage) - reinterpret_cast<std::uintptr_t>(start);
  if (before > 0) munmap(start, before);
  if (before < kHugePage) munmap(start + before + size, kHugePage - before);
  madvise(start + before, size, MADV_HUGEPAGE);  // only a hint: failure leaves small pages
  return start + before;
}

void* small_zeroed(std::size_t bytes) {
  const std::size_t size = round_up(std::max<std::size_t>(bytes, 1), kAlignment);
  void* data = std::aligned_alloc(kAlignment, size);
  if (data != nullptr) std::memset(data, 0, size);
  return data;
}

// Calls body(offset, bytes) for blocks that cover [0, bytes), on all threads where it pays.
template <class Body>
void in_blocks(std::size_t bytes, Body&& body) {
  const auto blocks = static_cast<std::int64_t>((bytes + kBlock - 1) / kBlock);
#pragma omp parallel for schedule(static) if (bytes >= kParallelBytes)
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::size_t offset = static_cast<std::size_t>(block) * kBlock;
    body(offset, std::min(kBlock, bytes - offset));
  }
}

class CpuStream final : public Stream {
 public:
  void synchronize() override {}
};

class CpuEvent final : public Event {
 public:
  void record(Stream&) override {}
  void make_wait(Stream&) override {}
  bool finished() override { return true; }
  void synchronize() override {}
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads) : threads_(threads) {
    omp_set_dynamic(0);  // as many as asked: the partition of some sums depends on the number
    omp_set_num_threads(threads_);
    select_blas_kernels();  // before the first use of OpenBLAS
    openblas_set_num_threads(threads_);
  }

  DeviceInfo info() const override {
    const HostMemory memory = host_memory();
    DeviceInfo info;
    info.kind = "cpu";
    info.name = processor_name();
    info.threads = threads_;
    info.slow_bf16 = amx_bf16().reason;
    info.memory_total = memory.total;
    info.memory_free = memory.available - std::min(memory.available, promised());
    return info;
  }

  void* allocate(std::size_t bytes) override {
    if (bytes < kHugePage) {
      if (void* data = small_zeroed(bytes); data != nullptr) return data;
      refuse(bytes, host_memory().available);
    }
    // Linux maps more than there is and kills the process when it uses it: refuse here, where a message can say why.
    const HostMemory memory = host_memory();
    const std::uint64_t free = memory.available - std::min(memory.available, promised());
    if (bytes > (memory.total > 0 ? free : kMostEver)) refuse(bytes, free);
    void* data = map_huge(bytes);
    if (data == nullptr) refuse(bytes, free);
    mapped_ += round_up(bytes, kHugePage);
    return data;
  }

  void release(void* data, std::size_t bytes) noexcept override {
    if (data == nullptr) return;
    if (bytes < kHugePage) {
      std::free(data);
    } else {
      munmap(data, round_up(bytes, kHugePage));
      mapped_ -= round_up(bytes, kHugePage);
    }
  }

  std::unique_ptr<Stream> make_stream() override { return std::make_unique<CpuStream>(); }
  std::unique_ptr<Event> make_event() override { return std::make_unique<CpuEvent>(); }

  void upload(Stream& stream, void* device, const void* host, std::size_t bytes) override {
    copy(stream, device, host, bytes);
  }
  void download(Stream& stream, void* host, const void* device, std::size_t bytes) override {
    copy(stream, host, device, bytes);
  }
  void copy(Stream&, void* to, const void* from, std::size_t bytes) override {
    in_blocks(bytes, [&](std::size_t offset, std::size_t count) {
      std::memcpy(static_cast<std::byte*>(to) + offset, static_cast<const std::byte*>(from) + offset, count);
    });
  }
  void zero(Stream&, void* device, std::size_t bytes) override {
    in_blocks(bytes, [&](std::size_t offset, std::size_t count) {
      std::memset(static_cast<std::byte*>(device) + offset, 0, count);
    });
  }

 private:
  // Bytes handed out that no page backs yet: the kernel still counts them as available. (Other anonymous memory of the
  // process is counted as if it were ours, so this errs towards allowing.)
  std::uint64_t promised() const {
    const std::uint64_t mapped = mapped_, resident = resident_anonymous_memory();
    return mapped - std::min(mapped, resident);
  }

  [[noreturn]] static void refuse(std::size_t bytes, std::uint64_t free) {
    throw Error(
        Exit::device,
        fmt::format("Not enough memory: {} bytes ({:.2f} GiB) were asked for and about {} bytes ({:.2f} GiB) are "
                    "free. Use a smaller micro-batch, sequence length or model, or a machine with more memory.",
                    bytes, gibibytes(bytes), free, gibibytes(free)));
  }

  int threads_;
  std::atomic<std::uint64_t> mapped_{0};
};

}  // namespace

std::unique_ptr<Device> make_device(int threads) {
  if (threads < 0) throw Error(Exit::usage, fmt::format("The number of threads must be 0 or more, not {}.", threads));
  return std::make_unique<CpuDevice>(threads == 0 ? usable_cores() : threads);
}

}  // namespace polaron::cpu
