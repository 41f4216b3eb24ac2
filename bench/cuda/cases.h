// What bench_kernels measures: every op of the op table at the shapes at which a model's training step calls it, with
// the least arithmetic and the least traffic that the op needs. The same list gives docs/benchmarks/gpu-floors.md.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace polaron::bench {

// One micro-batch of one model. Sizes are those in storage: padded to multiples of 64 where the model pads them.
struct ModelShape {
  std::string name;
  std::int64_t batch = 0, sequence_length = 0, layers = 0, width = 0, heads = 0, kv_heads = 0, head_size = 0;
  std::int64_t hidden = 0;             // of the MLP
  std::int64_t vocabulary = 0;         // tokens that exist
  std::int64_t stored_vocabulary = 0;  // rows of the token table
  std::int64_t loss_rows = 0;          // rows of logits held at once
  NormKind norm = NormKind::layernorm;
  Activation activation = Activation::gelu_tanh;
  bool biases = true;
  bool rotary = false;  // otherwise learned positions
  DType dtype = DType::bf16;

  std::int64_t rows() const { return batch * sequence_length; }
  std::int64_t qkv_width() const { return (heads + 2 * kv_heads) * head_size; }
  std::int64_t q_width() const { return heads * head_size; }
  std::int64_t up_width() const { return activation == Activation::swiglu ? 2 * hidden : hidden; }
};

// gpt2-124m and llama-350m as in configs/; tiny-gpt2 and tiny-llama for trying the program out. Throws
// Error(Exit::usage) for any other name.
ModelShape model_shape(const std::string& name);

// Random device memory for one case, freed with it. Numbers are uniform in [-scale, scale); their pattern repeats after
// a megabyte.
class Memory {
 public:
  Memory(Backend& backend, Stream& stream) : backend_(backend), stream_(stream) {}
  Tensor random(DType type, std::int64_t rows, std::int64_t cols, float scale = 1.0F);
  Tensor zeros(DType type, std::int64_t rows, std::int64_t cols);
  Tensor integers(std::int64_t count, std::int64_t limit);  // i32 [count, 1], uniform in [0, limit)
  float* floats(std::int64_t count, float scale = 1.0F) { return random(DType::f32, 1, count, scale).f32(); }
  std::size_t bytes() const { return bytes_; }

 private:
  void* allocate(std::size_t bytes);
  void fill(void* to, std::size_t bytes, const void* pattern, std::size_t pattern_bytes);

  Backend& backend_;
  Stream& stream_;
  std::vector<DeviceBuffer> buffers_;
  std::size_t bytes_ = 0;
  std::uint32_t tensors_ = 0;
};

// What products multiply; sums are fp32. The rates of a device differ.
enum class Operands : std::uint8_t { bf16, tf32, fp32 };
inline const char* name_of(Operands operands) {
  return operands == Operands::bf16 ? "bf16" : operands == Operands::tf32 ? "tf32" : "fp32";
}
inline Operands operands_of(DType dtype) { return dtype == DType::bf16 ? Operands::bf16 : Operands::fp32; }

using Call = std::function<void(Backend&, Stream&)>;

struct Case {
  std::string op;
  std::string shape;                     // in words
  double flops = 0;                      // of matrix products, the least that the op needs
  Operands operands = Operands::bf16;    // of these products
  double bytes = 0;                      // every input read once, every output written once
  std::function<Call(Memory&)> prepare;  // makes operands; the call may be repeated
};

// Forward, backward, loss and elementwise optimizer.
std::vector<Case> model_cases(const ModelShape& model);
// The matrix optimizers, over all matrices of each shape; low rank at width / 8.
std::vector<Case> matrix_cases(const ModelShape& model);
std::vector<Case> all_cases(const ModelShape& model);

}  // namespace polaron::bench
