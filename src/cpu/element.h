// The element types of activations on the CPU, fp32 and bf16. Kernels are templates on the element type T and compute
// in fp32: they read through `load` and write through `store`, which cost nothing for fp32 and vectorise for both.
#pragma once

#include <cstdint>

#include "backend/bf16.h"
#include "backend/element.h"
#include "backend/tensor.h"

namespace polaron::cpu {

inline float load(const float* from) { return *from; }
inline void store(float* to, float value) { *to = value; }
inline float load(const bf16* from) { return to_float(*from); }
inline void store(bf16* to, float value) { *to = to_bf16(value); }

// Row `row` of a matrix that may be absent (null then).
template <class T>
T* row_of(T* data, const Tensor& tensor, std::int64_t row) {
  return data == nullptr ? nullptr : data + row * tensor.stride;
}

}  // namespace polaron::cpu
