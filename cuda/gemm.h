// Products of matrices by cuBLASLt, which is opened when the first Gemm is made. Matrices are row-major; sums are fp32.
//
// Every call has a plan: descriptors and an algorithm, kept under everything that the choice may depend on. Only
// algorithms that sum in a fixed order are taken, so that a plan gives the same bits each time. Which algorithm a shape
// gets may depend on timing (set_timing); plans() and set_plans() carry the choices to other processes and other runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/tensor.h"
#include "cuda/device.h"

namespace polaron::cuda {

// A matrix in device memory, f32 or bf16; rows `stride` elements apart, matrices of a batch `batch_stride` (0: the same
// one each time). transposed: the product uses the transpose of what is stored.
struct GemmMatrix {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t stride = 0;
  std::int64_t batch_stride = 0;
  bool transposed = false;

  GemmMatrix() = default;
  GemmMatrix(const void* data_, DType dtype_, std::int64_t stride_, std::int64_t batch_stride_ = 0,
             bool transposed_ = false)
      : data(data_), dtype(dtype_), stride(stride_), batch_stride(batch_stride_), transposed(transposed_) {}
  explicit GemmMatrix(const Tensor& tensor, bool transposed_ = false)
      : GemmMatrix(tensor.data, tensor.dtype, tensor.stride, 0, transposed_) {}
};

// What happens to y = alpha op(a) op(b) + beta c before it is stored. bias [n] has c's type. GELU is the tanh form.
// aux [m, n] has c's type, and a stride that is a multiple of 8.
enum class GemmEpilogue : std::uint8_t {
  none,
  bias,           // y + bias
  gelu_aux,       // aux = y; c = gelu(y)
  gelu_aux_bias,  // aux = y + bias; c = gelu(y + bias)
  dgelu,          // c = y * gelu'(aux); aux is read
};

// c [m, n] = epilogue(alpha op(a) [m, k] op(b) [k, n] + beta c), `batch` times. Types of (a, b, c): all f32, or bf16,
// bf16 and bf16 or f32. beta 0 does not read c. c overlaps neither a nor b; aux is not c.
struct GemmCall {
  std::int64_t m = 0, n = 0, k = 0, batch = 1;
  GemmMatrix a, b;
  void* c = nullptr;
  DType c_dtype = DType::f32;
  std::int64_t c_stride = 0, c_batch_stride = 0;
  const void* addend = nullptr;  // what beta multiplies instead of c: laid out as c is, apart from it; may be a or b

  float alpha = 1.0F, beta = 0.0F;
  bool tf32 = false;  // f32 operands may be rounded to TF32 where set_tf32 allows it
  GemmEpilogue epilogue = GemmEpilogue::none;
  const void* bias = nullptr;
  void* aux = nullptr;
  std::int64_t aux_stride = 0;
};

// Serves one stream at a time (there is one workspace). Copying descriptors and choosing algorithms happens at the
// first call of a kind; later calls only queue the product.
class Gemm {
 public:
  // All that calls keep on the device; allocated by the first one.
  static constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20U;

  // Throws Error(Exit::device) where cuBLASLt cannot be opened.
  explicit Gemm(Device& device);
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;
  ~Gemm();

  // Queues the product. Throws std::logic_error for a call that is not as described above, and Error(Exit::device) that
  // names call, shape and status where the library refuses. No work for an empty result.
  void operator()(Stream& stream, const GemmCall& call);

  // The same, but false, and nothing is queued, where the library has no algorithm that runs for such calls (their
  // epilogue on these strides and addresses, say). The answer is remembered.
  bool attempt(Stream& stream, const GemmCall& call);

  // Whether calls of a new kind time the algorithms that the library offers (the host waits for the device; results are
  // not touched) or take the library's first choice. Initially on.
  void set_timing(bool on);

  // Whether calls that say so (GemmCall::tf32) use the tensor cores' products of TF32, 10 bits after the point.
  // Initially off: products of f32 are exact ones of fp32.
  void set_tf32(bool on);

  // The algorithms chosen so far, for set_plans of a Gemm on a device of the same model and with the same version of
  // the library.
  std::vector<std::byte> plans() const;
  // Takes the choices over; calls of other kinds are planned as before. Returns false, and changes nothing, where they
  // come from another device, another version of the library, or a polaron that stores them in another format. Throws
  // Error(Exit::data) for bytes that plans() did not write.
  bool set_plans(std::span<const std::byte> plans);

  std::size_t kinds() const;  // how many kinds of calls have a plan

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace polaron::cuda
