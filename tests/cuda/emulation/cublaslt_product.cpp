#include "emulation/cublaslt_product.h"

#include <bit>
#include <cmath>
#include <cstddef>
#include <vector>

#include "backend/bf16.h"
#include "emulation/cublaslt.h"
#include "emulation/runtime.h"

namespace polaron::cuda::emulation {
namespace {

void put(void* data, cudaDataType_t type, std::int64_t i, float value) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<bf16*>(data)[i] = to_bf16(value);
  }
}

// The sum of x[i] y[i] in `lanes` partial sums.
template <std::size_t lanes>
float dot(const float* x, const float* y, std::size_t n) {
  float partial[lanes] = {};
  const std::size_t whole = n / lanes * lanes;
  for (std::size_t i = 0; i < whole; i += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) partial[lane] += x[i + lane] * y[i + lane];
  }
  for (std::size_t i = whole; i < n; ++i) partial[i - whole] += x[i] * y[i];
  float total = 0.0F;
  for (const float value : partial) total += value;
  return total;
}

float dot(std::uint64_t algorithm, const float* x, const float* y, std::size_t n) {
  static std::size_t turn = 0;
  switch (algorithm) {
    case kFewLanes:
      return dot<8>(x, y, n);
    case kSplit:
      return dot<16>(x, y, n / 2) + dot<16>(x + n / 2, y + n / 2, n - n / 2);
    case kRacing: {
      const std::size_t first = turn++ % n;
      return dot<1>(x + first, y + first, n - first) + dot<1>(x, y, first);
    }
    default:
      return dot<16>(x, y, n);
  }
}

// The nearest number with 10 bits after the point. What the library's products do with ties and with the bits that are
// dropped is not documented; the error is at most this one's or twice that.
float as_tf32(float x) {
  if (!std::isfinite(x)) return x;
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return std::bit_cast<float>((bits + 0xfffU + ((bits >> 13U) & 1U)) & ~0x1fffU);
}

double gelu_argument(double x) { return 0.7978845608028654 * (x + 0.044715 * x * x * x); }
double gelu(double x) { return 0.5 * x * (1.0 + std::tanh(gelu_argument(x))); }
double gelu_derivative(double x) {
  const double t = std::tanh(gelu_argument(x));
  return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * x * x);
}

}  // namespace

float FakeOperand::at(std::int64_t batch, std::int64_t row, std::int64_t col) const {
  const std::int64_t i = batch * batch_stride + (transposed ? col + row * ld : row + col * ld);
  if (type == CUDA_R_32F && tf32) return as_tf32(static_cast<const float*>(data)[i]);
  if (type == CUDA_R_32F) return static_cast<const float*>(data)[i];
  return to_float(static_cast<const bf16*>(data)[i]);
}

void FakeProduct::operator()() const {
  const std::int64_t rows = c.rows, cols = c.cols, depth = a.transposed ? a.rows : a.cols;
  std::vector<float> left(static_cast<std::size_t>(rows * depth)), right(static_cast<std::size_t>(depth));
  for (int matrix = 0; matrix < batch; ++matrix) {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t k = 0; k < depth; ++k) left[static_cast<std::size_t>(i * depth + k)] = a.at(matrix, i, k);
    }
    for (std::int64_t j = 0; j < cols; ++j) {
      for (std::int64_t k = 0; k < depth; ++k) right[static_cast<std::size_t>(k)] = b.at(matrix, k, j);
      for (std::int64_t i = 0; i < rows; ++i) {
        float value = alpha * dot(algorithm, left.data() + i * depth, right.data(), right.size());
        if (beta != 0.0F) value += beta * c.at(matrix, i, j);
        put(d, c.type, matrix * d_batch_stride + i + j * d_ld, finished(value, i, j));
      }
    }
  }
  FakeCublasLt& fake = fake_cublaslt();
  fake.ran.push_back(static_cast<int>(algorithm));
  fake.last_epilogue = epilogue;
  advance_clock(fake.milliseconds[algorithm]);
}

float FakeProduct::finished(float value, std::int64_t i, std::int64_t j) const {
  if (has_bias(epilogue)) value += bias.at(0, i, 0);
  if (epilogue == CUBLASLT_EPILOGUE_DGELU) {
    return static_cast<float>(value * gelu_derivative(static_cast<double>(aux.at(0, i, j))));
  }
  if (!has_aux(epilogue)) return value;
  put(const_cast<void*>(aux.data), aux.type, i + j * aux.ld, value);
  return static_cast<float>(gelu(static_cast<double>(value)));
}

}  // namespace polaron::cuda::emulation
