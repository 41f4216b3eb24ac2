// A backend that counts: it hands every op on to another backend and keeps its time, its floating-point operations and
// the bytes that it must move at least. For `polaron bench step`.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "backend/backend.h"

namespace polaron {

struct OpProfile {
  std::int64_t calls = 0;
  double seconds = 0;
  double flops = 0;
  double bytes = 0;  // every operand read once, every result written once
};
using Profile = std::map<std::string, OpProfile>;  // by op

// `inner` and `profile` must outlive the result. Waits for the stream after each op, so that times are the ops' own.
std::unique_ptr<Backend> make_profiling_backend(Backend& inner, Profile& profile);

}  // namespace polaron
