#include "train/gemm_rate.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/philox.h"

namespace polaron {

namespace {

// Uniform numbers in [-1, 1): some are drawn, and then doubled again and again by copies.
void fill_random(Backend& backend, Stream& stream, const Tensor& to, std::uint32_t tensor) {
  constexpr std::int64_t kDrawn = 65537;  // odd: rows of the matrix differ
  const std::int64_t drawn = std::min(kDrawn, to.elements());
  const std::size_t size = size_of(to.dtype);
  std::vector<std::byte> host(static_cast<std::size_t>(drawn) * size);
  const PhiloxKey key = make_key(1, RandomPurpose::test, 0, tensor);
  for (std::int64_t i = 0; i < drawn; ++i) {
    const float value = static_cast<float>(philox(key, static_cast<std::uint64_t>(i)).word[0] >> 8U) * 0x1p-23F - 1.0F;
    const bf16 rounded = to_bf16(value);
    const void* const from = to.dtype == DType::bf16 ? static_cast<const void*>(&rounded) : &value;
    std::memcpy(host.data() + static_cast<std::size_t>(i) * size, from, size);
  }
  auto* const data = static_cast<std::byte*>(to.data);
  backend.device().upload(stream, data, host.data(), host.size());
  for (std::int64_t filled = drawn; filled < to.elements(); filled *= 2) {
    const std::int64_t count = std::min(filled, to.elements() - filled);
    backend.device().copy(stream, data + static_cast<std::size_t>(filled) * size, data,
                          static_cast<std::size_t>(count) * size);
  }
  stream.synchronize();
}

}  // namespace

double measure_gemm_rate(Backend& backend, DType dtype) {
  using Clock = std::chrono::steady_clock;
  const auto stream = backend.device().make_stream();
  double best = 0;
  // Larger and larger, until a product takes long enough to be timed.
  for (std::int64_t n = 512; n <= 8192; n *= 2) {
    const auto elements = static_cast<std::size_t>(n * n);
    const std::uint64_t free = backend.device().info().memory_free;
    if (best > 0 && free > 0 && 4 * elements * size_of(dtype) > free) break;  // the run has filled the memory
    const DeviceBuffer a(backend.device(), elements * size_of(dtype));
    const DeviceBuffer b(backend.device(), elements * size_of(dtype));
    const DeviceBuffer c(backend.device(), elements * size_of(dtype));
    const auto matrix = [&](const DeviceBuffer& buffer) { return Tensor(buffer.data(), dtype, n, n); };
    // Products of zeros take less power, and a device that is held back by its power would seem faster than it is.
    fill_random(backend, *stream, matrix(a), 1);
    fill_random(backend, *stream, matrix(b), 2);
    double fastest = std::numeric_limits<double>::infinity();
    for (int repeat = 0; repeat < 5; ++repeat) {  // the first one warms up; other processes disturb some
      const auto start = Clock::now();
      backend.linear().forward(*stream, matrix(a), matrix(b), {}, Activation::none, matrix(c), {});
      stream->synchronize();
      fastest = std::min(fastest, std::chrono::duration<double>(Clock::now() - start).count());
    }
    best = std::max(best, 2.0 * static_cast<double>(n * n * n) / fastest);
    if (fastest > 0.005) break;
  }
  return best;
}

}  // namespace polaron
