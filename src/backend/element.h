// From the type that a tensor says it holds to the type that a kernel is compiled for.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "backend/bf16.h"
#include "backend/tensor.h"

namespace polaron {

// The data of a tensor as T; null where the tensor is absent. Throws std::logic_error where it holds another type.
template <class T>
T* elements(const Tensor& tensor) {
  if (!tensor) return nullptr;
  if constexpr (std::is_same_v<T, bf16>) {
    return tensor.bf16();
  } else if constexpr (std::is_same_v<T, float>) {
    return tensor.f32();
  } else {
    static_assert(std::is_same_v<T, std::int32_t>);
    return tensor.i32();
  }
}

// Calls body(T{}) with the type of `dtype`, fp32 or bf16. Throws std::logic_error for types that ops do not compute
// with.
template <class Body>
void with_element_type(DType dtype, const char* op, Body&& body) {
  if (dtype == DType::f32) {
    body(float{});
  } else if (dtype == DType::bf16) {
    body(bf16{});
  } else {
    throw std::logic_error(std::string(op) + ": there is no " + name_of(dtype) + " version of this op");
  }
}

}  // namespace polaron
