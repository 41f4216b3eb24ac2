// What the tests of the op families run on: the CPU backend, the CUDA kernels under emulation (in several orders of the
// threads), and a CUDA device through libpolaron_cuda.so, which is skipped where there is none. Arrays live in the
// machine's memory; the host sees their values.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "emulation/emulation.h"
#include "ops/reference.h"

namespace polaron::test {

struct Place {
  enum Kind : std::uint8_t { cpu, emulated, device } kind;
  cuda::emulation::Order order;  // of emulated
  const char* name;
  friend std::ostream& operator<<(std::ostream& out, const Place& place) { return out << place.name; }
};
const std::vector<Place>& places();
inline std::string name_of_place(const testing::TestParamInfo<Place>& info) { return info.param.name; }

// The first CUDA device, or null and the reason where there is none. Throws where there was one before: what has broken
// it must not pass for a machine without.
std::unique_ptr<Backend> open_device(std::string& why_not);

// A machine with its ops and one stream.
class Machine {
 public:
  // Where the place is not to be had, nothing is there() and why_not says why.
  Machine(const Place& place, std::string& why_not);
  explicit Machine(const cuda::emulation::Options& options);  // emulated
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine();

  bool there() const { return backend_ != nullptr; }
  Backend& ops() const { return *backend_; }
  Device& device() const { return backend_->device(); }
  Stream& stream() const { return *stream_; }

 private:
  std::unique_ptr<cuda::emulation::WithOptions> options_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
};

// A matrix in a machine's memory. Memory between rows and behind the last one is a pattern that the destructor looks
// for.
class Array {
 public:
  Array(const Machine& machine, const Matrix& values, DType type = DType::f32, std::int64_t padding = 0);
  Array(const Machine& machine, const std::vector<std::int32_t>& values);  // [n, 1]
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array();

  const Tensor& tensor() const { return tensor_; }
  operator const Tensor&() const { return tensor_; }
  Doubles values() const;               // what is there now, dense
  std::vector<std::byte> bits() const;  // all of the memory

 private:
  void expect_guards() const;  // fails where an op wrote outside the matrix
  void fill(const Matrix& values);

  const Machine& machine_;
  DeviceBuffer memory_;
  Tensor tensor_;
};

// Runs `run` under emulation with several orders of threads and numbers of OS threads; fails the test unless all give
// the same bytes.
void expect_same_bits_in_all_orders(const std::function<std::vector<std::byte>(const Machine&)>& run);
std::vector<std::byte> joined(std::initializer_list<const Array*> arrays);

// The values rounded to a type: what an Array of that type holds.
Matrix rounded_to(DType type, Matrix values);
// Allowed error of a result of that type that fp32 arithmetic finds within `exact`: half a unit in the last place more
// for bf16.
double tolerance(DType type, double exact);

}  // namespace polaron::test
