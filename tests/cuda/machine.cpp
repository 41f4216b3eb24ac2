#include "machine.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "cpu/cpu_backend.h"
#include "cuda/backend.h"
#include "library_file.h"
#include "train/cuda_library.h"

namespace polaron::test {
namespace {

using cuda::emulation::Order;

constexpr unsigned char kGuard = 0xA5;
constexpr std::int64_t kTail = 64;  // guarded elements behind the last row

}  // namespace

const std::vector<Place>& places() {
  static const std::vector<Place> all = {{Place::cpu, Order::forward, "cpu"},
                                         {Place::emulated, Order::forward, "emulated"},
                                         {Place::emulated, Order::reverse, "emulated_reverse"},
                                         {Place::emulated, Order::random, "emulated_random"},
                                         {Place::device, Order::forward, "device"}};
  return all;
}

std::unique_ptr<Backend> open_device(std::string& why_not) {
  static bool was_there = false;
  try {
    std::unique_ptr<Backend> backend = open_cuda_library(cuda_library_file()).make_backend(0);
    was_there = true;
    return backend;
  } catch (const Error& error) {
    if (was_there) throw;
    why_not = error.what();
    return nullptr;
  }
}

Machine::Machine(const Place& place, std::string& why_not) {
  switch (place.kind) {
    case Place::cpu:
      backend_ = make_cpu_backend(1);
      break;
    case Place::emulated:
      // Lazy: what is queued happens when something waits, and not before.
      options_ = std::make_unique<cuda::emulation::WithOptions>(
          cuda::emulation::Options{.order = place.order, .lazy_streams = true});
      backend_ = cuda::make_backend(0);
      break;
    case Place::device:
      backend_ = open_device(why_not);
      if (backend_ == nullptr) return;
      break;
  }
  stream_ = backend_->device().make_stream();
}

Machine::Machine(const cuda::emulation::Options& options)
    : options_(std::make_unique<cuda::emulation::WithOptions>(options)), backend_(cuda::make_backend(0)) {
  stream_ = backend_->device().make_stream();
}

Machine::~Machine() = default;

Array::Array(const Machine& machine, const Matrix& values, DType type, std::int64_t padding) : machine_(machine) {
  const std::int64_t stride = values.cols() + padding;
  memory_ = DeviceBuffer(machine.device(), static_cast<std::size_t>(values.rows() * stride + kTail) * size_of(type));
  tensor_ = Tensor(memory_.data(), type, values.rows(), values.cols(), stride);
  fill(values);
}

void Array::fill(const Matrix& values) {
  std::vector<std::byte> bytes(memory_.bytes(), std::byte{kGuard});
  for (std::int64_t r = 0; r < tensor_.rows; ++r) {
    for (std::int64_t c = 0; c < tensor_.cols; ++c) {
      const std::size_t at = static_cast<std::size_t>(r * tensor_.stride + c) * size_of(tensor_.dtype);
      const float value = values.at(r, c);
      const bf16 low = to_bf16(value);
      std::memcpy(bytes.data() + at, tensor_.dtype == DType::bf16 ? static_cast<const void*>(&low) : &value,
                  size_of(tensor_.dtype));
    }
  }
  machine_.device().upload(machine_.stream(), memory_.data(), bytes.data(), bytes.size());
  machine_.stream().synchronize();
}

Array::Array(const Machine& machine, const std::vector<std::int32_t>& values) : machine_(machine) {
  const std::size_t bytes = values.size() * sizeof(std::int32_t);
  memory_ = DeviceBuffer(machine.device(), bytes);
  tensor_ = Tensor(memory_.data(), DType::i32, static_cast<std::int64_t>(values.size()), 1);
  machine.device().upload(machine.stream(), memory_.data(), values.data(), bytes);
  machine.stream().synchronize();
}

Array::~Array() {
  if (tensor_.dtype == DType::i32) return;
  try {
    expect_guards();
  } catch (const Error& error) {
    ADD_FAILURE() << "an array cannot be read any more: " << error.what();
  }
}

void Array::expect_guards() const {
  const std::vector<std::byte> bytes = bits();
  const std::size_t size = size_of(tensor_.dtype);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const auto element = static_cast<std::int64_t>(i / size);
    const bool inside = element < tensor_.rows * tensor_.stride && element % tensor_.stride < tensor_.cols;
    if (!inside && bytes[i] != std::byte{kGuard}) {
      ADD_FAILURE() << "an op wrote outside a [" << tensor_.rows << ", " << tensor_.cols << "] matrix of stride "
                    << tensor_.stride << ", at element " << element;
      return;
    }
  }
}

std::vector<std::byte> Array::bits() const {
  std::vector<std::byte> bytes(memory_.bytes());
  machine_.device().download(machine_.stream(), bytes.data(), memory_.data(), bytes.size());
  machine_.stream().synchronize();
  return bytes;
}

Doubles Array::values() const {
  const std::vector<std::byte> bytes = bits();
  Doubles values;
  for (std::int64_t r = 0; r < tensor_.rows; ++r) {
    for (std::int64_t c = 0; c < tensor_.cols; ++c) {
      const std::byte* const at =
          bytes.data() + static_cast<std::size_t>(r * tensor_.stride + c) * size_of(tensor_.dtype);
      float value = 0.0F;
      if (tensor_.dtype == DType::bf16) {
        bf16 low{};
        std::memcpy(&low, at, sizeof(low));
        value = to_float(low);
      } else {
        std::memcpy(&value, at, sizeof(value));
      }
      values.push_back(static_cast<double>(value));
    }
  }
  return values;
}

std::vector<std::byte> joined(std::initializer_list<const Array*> arrays) {
  std::vector<std::byte> all;
  for (const Array* array : arrays) {
    const std::vector<std::byte> bits = array->bits();
    all.insert(all.end(), bits.begin(), bits.end());
  }
  return all;
}

void expect_same_bits_in_all_orders(const std::function<std::vector<std::byte>(const Machine&)>& run) {
  const std::vector<std::byte> expected = run(Machine(cuda::emulation::Options{}));
  const cuda::emulation::Options others[] = {{.order = Order::reverse},
                                             {.order = Order::random, .seed = 1},
                                             {.order = Order::random, .seed = 2},
                                             {.order = Order::reverse, .os_threads = 1},
                                             {.order = Order::random, .seed = 3, .os_threads = 3}};
  for (const auto& options : others) {
    EXPECT_TRUE(run(Machine(options)) == expected) << "order " << static_cast<int>(options.order) << ", seed "
                                                   << options.seed << ", " << options.os_threads << " OS threads";
  }
}

Matrix rounded_to(DType type, Matrix values) {
  if (type != DType::bf16) return values;
  for (std::int64_t r = 0; r < values.rows(); ++r) {
    for (std::int64_t c = 0; c < values.cols(); ++c) values.at(r, c) = to_float(to_bf16(values.at(r, c)));
  }
  return values;
}

double tolerance(DType type, double exact) { return type == DType::bf16 ? 1.0 / 256.0 + exact : exact; }

}  // namespace polaron::test
