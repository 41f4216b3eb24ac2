#include <algorithm>
#include <cmath>

#include "cuda/sort.h"
#include "family.h"

namespace polaron::test {
namespace {

struct Shape {
  std::int64_t batch, length, width, vocabulary, padding;
  std::int64_t rows() const { return batch * length; }
};
// One token only, segments over many chunks, rows that are not aligned.
const Shape kShapes[] = {{1, 1, 1, 1, 0},    {2, 1, 7, 4, 3},    {1, 9, 33, 11, 1},    {3, 5, 64, 20, 0},
                         {2, 7, 776, 50, 8}, {4, 100, 24, 3, 8}, {5, 64, 8, 50257, 0}, {2, 300, 9, 1, 0}};

class EmbeddingFamily : public Family {
 protected:
  template <class Body>
  void for_cases(Body&& body) const {
    for_types([&](DType type) {
      for (const Shape& shape : kShapes) {
        const testing::ScopedTrace trace(__FILE__, __LINE__,
                                         std::to_string(shape.rows()) + " rows x " + std::to_string(shape.width));
        body(shape, type, random_integers(shape.rows(), static_cast<std::int32_t>(shape.vocabulary), 1));
      }
    });
  }
};

TEST_P(EmbeddingFamily, forward_adds_the_rows_of_token_and_position) {
  for_cases([&](const Shape& s, DType type, const std::vector<std::int32_t>& tokens) {
    const Matrix table = rounded_to(type, Matrix::random(s.vocabulary, s.width, 2));
    const Matrix positions = rounded_to(type, Matrix::random(s.length, s.width, 3));
    const Array ids(machine, tokens), tokens_table(machine, table, type, s.padding);
    const Array positions_table(machine, positions, type, s.padding);
    for (const bool with_positions : {true, false}) {
      const Array out(machine, Matrix(s.rows(), s.width), type, s.padding);
      machine.ops().embedding().forward(machine.stream(), ids, tokens_table,
                                        with_positions ? positions_table.tensor() : Tensor(), s.length, out);
      Doubles expected;
      for (std::int64_t n = 0; n < s.rows(); ++n) {
        for (std::int64_t c = 0; c < s.width; ++c) {
          expected.push_back(static_cast<double>(table.at(tokens[n], c)) +
                             (with_positions ? static_cast<double>(positions.at(n % s.length, c)) : 0.0));
        }
      }
      expect_close(out.values(), expected, with_positions ? tolerance(type, 1e-7) : 0.0, "out", s.width);
    }
  });
}

TEST_P(EmbeddingFamily, backward_adds_to_both_gradients) {
  for_cases([&](const Shape& s, DType type, const std::vector<std::int32_t>& tokens) {
    const Matrix d = rounded_to(type, Matrix::random(s.rows(), s.width, 4));
    const Matrix table_before = Matrix::random(s.vocabulary, s.width, 5);
    const Matrix positions_before = Matrix::random(s.length, s.width, 6);
    Doubles table = table_before.values(), positions = positions_before.values();
    for (std::int64_t n = 0; n < s.rows(); ++n) {
      for (std::int64_t c = 0; c < s.width; ++c) {
        table[tokens[n] * s.width + c] += static_cast<double>(d.at(n, c));
        positions[n % s.length * s.width + c] += static_cast<double>(d.at(n, c));
      }
    }
    const Array ids(machine, tokens), d_out(machine, d, type, s.padding);
    const Array table_grad(machine, table_before, DType::f32, s.padding), position_grad(machine, positions_before);
    machine.ops().embedding().backward(machine.stream(), ids, d_out, s.length, table_grad, position_grad);
    expect_close(table_grad.values(), table, 2e-6, "token_grad", s.width);
    expect_close(position_grad.values(), positions, 2e-6, "position_grad", s.width);
  });
}

TEST_P(EmbeddingFamily, rows_of_absent_tokens_keep_their_bits) {
  Matrix before(5, 8);
  for (const std::int64_t row : {0, 2, 4}) {
    for (std::int64_t c = 0; c < 8; ++c) before.at(row, c) = -0.0F;  // adding 0 would turn it into +0
  }
  const Array ids(machine, std::vector<std::int32_t>{3, 1, 3}), d_out(machine, Matrix::random(3, 8, 1)),
      grad(machine, before);
  machine.ops().embedding().backward(machine.stream(), ids, d_out, 3, grad, {});
  const Doubles after = grad.values();
  for (const std::int64_t row : {0, 2, 4}) {
    for (std::int64_t c = 0; c < 8; ++c) EXPECT_TRUE(after[row * 8 + c] == 0.0 && std::signbit(after[row * 8 + c]));
  }
}

INSTANTIATE_TEST_SUITE_P(Places, EmbeddingFamily, testing::ValuesIn(places()), name_of_place);

TEST(CudaEmbedding, gives_the_same_bits_for_every_order_of_threads) {
  for (const std::int64_t width : {40, 33}) {
    expect_same_bits_in_all_orders([&](const Machine& machine) {
      const Array ids(machine, random_integers(600, 7, 1)), d_out(machine, Matrix::random(600, width, 2), DType::bf16);
      const Array table(machine, Matrix(7, width)), positions(machine, Matrix(100, width));
      machine.ops().embedding().backward(machine.stream(), ids, d_out, 100, table, positions);
      return joined({&table, &positions});
    });
  }
}

TEST(CudaEmbedding, a_token_outside_the_table_gives_nan_and_no_access_outside) {
  const Machine machine{cuda::emulation::Options{}};
  const Array ids(machine, std::vector<std::int32_t>{-1, 1, 4, 4}), table(machine, Matrix::random(4, 8, 1));
  const Array out(machine, Matrix(4, 8)), grad(machine, Matrix(4, 8));
  machine.ops().embedding().forward(machine.stream(), ids, table, {}, 4, out);
  const Doubles values = out.values();
  for (std::int64_t c = 0; c < 8; ++c) {
    EXPECT_TRUE(std::isnan(values[c]) && std::isfinite(values[8 + c]) && std::isnan(values[16 + c]));
  }
  machine.ops().embedding().backward(machine.stream(), ids, out, 4, grad, {});
  for (const double value : grad.values()) EXPECT_TRUE(std::isfinite(value));
}

TEST(SortByKey, is_stable_for_any_count_and_limit) {
  const Machine machine{cuda::emulation::Options{.order = cuda::emulation::Order::random}};
  for (const std::int64_t count : {1, 31, 2048, 2049, 10000}) {  // the last needs two rounds of sort_scan
    for (const std::int32_t limit : {1, 255, 256, 50257, 128256}) {
      const std::vector<std::int32_t> keys = random_integers(count, limit, static_cast<std::uint64_t>(count + limit));
      const Array on_device(machine, keys);
      const DeviceBuffer memory(machine.device(),
                                static_cast<std::size_t>(2 * count + cuda::sort_scratch(count)) * sizeof(std::int32_t));
      auto* const order = memory.as<std::int32_t>();
      cuda::sort_by_key(machine.stream(), on_device.tensor().i32(), count, limit, order, order + count,
                        order + 2 * count);
      std::vector<std::int32_t> result(2 * count), expected(count);
      machine.device().download(machine.stream(), result.data(), order, result.size() * sizeof(std::int32_t));
      machine.stream().synchronize();
      for (std::int64_t i = 0; i < count; ++i) expected[i] = static_cast<std::int32_t>(i);
      std::stable_sort(expected.begin(), expected.end(), [&](int a, int b) { return keys[a] < keys[b]; });
      for (std::int64_t i = 0; i < count; ++i) {
        ASSERT_EQ(result[i], expected[i]) << count << " keys below " << limit << ", place " << i;
        ASSERT_EQ(result[count + i], keys[expected[i]]);
      }
    }
  }
}

}  // namespace
}  // namespace polaron::test
