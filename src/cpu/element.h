// The element types of activations on the CPU, fp32 and bf16. Kernels are templates on the element type T and compute
// in fp32: they read through `load` and write through `store`, which cost nothing for fp32 and vectorise for both.
#pragma once

#include <stdexcept>
#include <string>

#include "backend/bf16.h"
#include "backend/tensor.h"

namespace polaron::cpu {

inline float load(const float* from) { return *from; }
inline void store(float* to, float value) { *to = value; }
inline float load(const bf16* from) { return to_float(*from); }
inline void store(bf16* to, float value) { *to = to_bf16(value); }

// The data of a tensor as T; null where the tensor is absent.
template <class T>
T* elements(const Tensor& tensor);
template <>
inline float* elements<float>(const Tensor& tensor) {
  return tensor ? tensor.f32() : nullptr;
}
template <>
inline bf16* elements<bf16>(const Tensor& tensor) {
  return tensor ? tensor.bf16() : nullptr;
}

// Row `row` of a matrix that may be absent (null then).
template <class T>
T* row_of(T* data, const Tensor& tensor, std::int64_t row) {
  return data == nullptr ? nullptr : data + row * tensor.stride;
}

// Calls body(T{}) with the C++ type of `dtype`. Throws std::logic_error for types that the op cannot compute with.
template <class Body>
void with_element_type(DType dtype, const char* op, Body&& body) {
  if (dtype == DType::f32) {
    body(float{});
  } else if (dtype == DType::bf16) {
    body(bf16{});
  } else {
    throw std::logic_error(std::string(op) + ": the CPU backend has no " + name_of(dtype) + " version of this op");
  }
}

}  // namespace polaron::cpu
