#include <omp.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/element.h"
#include "cpu/families.h"

namespace polaron::cpu {
namespace {

constexpr std::int64_t kParallelElements = 1 << 14;  // below, starting threads costs more than it saves
constexpr std::int64_t kLine = 16;                   // floats in a cache line

// Exceptions cannot leave a parallel loop, so ids are looked at first: N integers against N rows of work.
void check_tokens(const std::int32_t* tokens, std::int64_t count, std::int64_t vocabulary) {
  for (std::int64_t n = 0; n < count; ++n) {
    if (tokens[n] < 0 || tokens[n] >= vocabulary) {
      throw std::logic_error("embedding: token id " + std::to_string(tokens[n]) + " in row " + std::to_string(n) +
                             " is outside a table of " + std::to_string(vocabulary) + " rows");
    }
  }
}

template <class T>
void add_row(float* to, const T* from, std::int64_t count) {
#pragma omp simd
  for (std::int64_t c = 0; c < count; ++c) to[c] += load(from + c);
}

class CpuEmbedding final : public EmbeddingOps {
 public:
  void forward(Stream&, const Tensor& tokens, const Tensor& token_table, const Tensor& position_table,
               std::int64_t sequence_length, const Tensor& out) override {
    check_tokens(tokens.i32(), out.rows, token_table.rows);
    with_element_type(out.dtype, "embedding forward", [&](auto type) {
      look_up<decltype(type)>(tokens.i32(), token_table, position_table, sequence_length, out);
    });
  }

  void backward(Stream&, const Tensor& tokens, const Tensor& d_out, std::int64_t sequence_length,
                const Tensor& token_grad, const Tensor& position_grad) override {
    check_tokens(tokens.i32(), d_out.rows, token_grad.rows);
    with_element_type(d_out.dtype, "embedding backward", [&](auto type) {
      scatter<decltype(type)>(tokens.i32(), d_out, sequence_length, token_grad, position_grad);
    });
  }

 private:
  template <class T>
  static void look_up(const std::int32_t* tokens, const Tensor& token_table, const Tensor& position_table,
                      std::int64_t sequence_length, const Tensor& out) {
    T* const result = elements<T>(out);
    T* const table = elements<T>(token_table);
    T* const positions = elements<T>(position_table);
    const std::int64_t width = out.cols;
#pragma omp parallel for schedule(static) if (out.elements() >= kParallelElements)
    for (std::int64_t n = 0; n < out.rows; ++n) {
      T* const row = row_of(result, out, n);
      const T* const token = row_of(table, token_table, tokens[n]);
      const T* const position = row_of(positions, position_table, n % sequence_length);
      if (position == nullptr) {
        std::copy_n(token, width, row);
      } else {
#pragma omp simd
        for (std::int64_t c = 0; c < width; ++c) store(row + c, load(token + c) + load(position + c));
      }
    }
  }

  // Each thread owns a range of columns and walks all rows, so every sum runs in row order whatever the number of
  // threads, and rows of tokens that do not occur are never touched. Ranges begin at cache lines.
  template <class T>
  static void scatter(const std::int32_t* tokens, const Tensor& d_out, std::int64_t sequence_length,
                      const Tensor& token_grad, const Tensor& position_grad) {
    const T* const gradient = elements<T>(d_out);
    float* const table = token_grad.f32();
    float* const positions = elements<float>(position_grad);
    const std::int64_t lines = (d_out.cols + kLine - 1) / kLine;
#pragma omp parallel if (d_out.elements() >= kParallelElements)
    {
      const std::int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
      const std::int64_t first = std::min(lines * thread / threads * kLine, d_out.cols);
      const std::int64_t count = std::min(lines * (thread + 1) / threads * kLine, d_out.cols) - first;
      for (std::int64_t n = 0; n < (count > 0 ? d_out.rows : 0); ++n) {
        const T* const row = gradient + n * d_out.stride + first;
        add_row(row_of(table, token_grad, tokens[n]) + first, row, count);
        if (positions != nullptr) add_row(row_of(positions, position_grad, n % sequence_length) + first, row, count);
      }
    }
  }
};

}  // namespace

std::unique_ptr<EmbeddingOps> make_embedding_ops() { return std::make_unique<CpuEmbedding>(); }

}  // namespace polaron::cpu
