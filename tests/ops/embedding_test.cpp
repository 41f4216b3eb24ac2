#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <stdexcept>

#include "cpu/families.h"
#include "ops/reference.h"

namespace polaron::test {
namespace {

struct Shape {
  std::int64_t batch, length, width, vocabulary;
  DType type = DType::f32;
  std::int64_t rows() const { return batch * length; }
};

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (const DType type : kActivationTypes) {
    for (Shape shape : {Shape{1, 1, 1, 1},
                        {1, 1, 5, 3},
                        {2, 1, 7, 4},
                        {1, 9, 33, 11},
                        {3, 5, 64, 20},
                        {2, 7, 771, 50},
                        {4, 32, 200, 300}}) {
      shape.type = type;
      all.push_back(shape);
    }
  }
  return all;
}

Doubles forward_reference(const std::vector<std::int32_t>& tokens, const Doubles& table, const Doubles& positions,
                          const Shape& shape) {
  Doubles out;
  for (std::int64_t n = 0; n < shape.rows(); ++n) {
    for (std::int64_t c = 0; c < shape.width; ++c) {
      const double position = positions.empty() ? 0.0 : positions[(n % shape.length) * shape.width + c];
      out.push_back(table[tokens[n] * shape.width + c] + position);
    }
  }
  return out;
}

class Embedding : public testing::TestWithParam<Shape> {
 protected:
  Shape shape = GetParam();
  Column tokens{random_integers(shape.rows(), static_cast<std::int32_t>(shape.vocabulary), 1)};
  Matrix table = Matrix::random(shape.vocabulary, shape.width, 2, 1.0, 0.0, 3, shape.type);
  Matrix positions = Matrix::random(shape.length, shape.width, 3, 1.0, 0.0, 1, shape.type);
  Matrix d_out = Matrix::random(shape.rows(), shape.width, 4, 1.0, 0.0, 5, shape.type);
  HostStream stream;
  std::unique_ptr<EmbeddingOps> ops = cpu::make_embedding_ops();
};

TEST_P(Embedding, forward_adds_the_rows_of_token_and_position) {
  Matrix out(shape.rows(), shape.width, 2, shape.type);
  ops->forward(stream, tokens.tensor(), table.tensor(), positions.tensor(), shape.length, out.tensor());
  expect_close(out, forward_reference(tokens.values(), table.values(), positions.values(), shape), 1e-7, "out");
}

TEST_P(Embedding, forward_without_positions_copies_rows) {
  Matrix out(shape.rows(), shape.width, 0, shape.type);
  ops->forward(stream, tokens.tensor(), table.tensor(), {}, shape.length, out.tensor());
  EXPECT_EQ(out.values(), forward_reference(tokens.values(), table.values(), {}, shape));
}

TEST_P(Embedding, backward_adds_to_both_gradients) {
  Matrix table_grad = Matrix::random(shape.vocabulary, shape.width, 5, 1.0, 0.0, 3);
  Matrix position_grad = Matrix::random(shape.length, shape.width, 6);
  Doubles expected_table = table_grad.values(), expected_positions = position_grad.values();
  const Doubles d = d_out.values();
  for (std::int64_t n = 0; n < shape.rows(); ++n) {
    for (std::int64_t c = 0; c < shape.width; ++c) {
      expected_table[tokens.values()[n] * shape.width + c] += d[n * shape.width + c];
      expected_positions[(n % shape.length) * shape.width + c] += d[n * shape.width + c];
    }
  }
  ops->backward(stream, tokens.tensor(), d_out.tensor(), shape.length, table_grad.tensor(), position_grad.tensor());
  expect_close(table_grad, expected_table, 1e-6, "token_grad");
  expect_close(position_grad, expected_positions, 1e-6, "position_grad");
}

TEST_P(Embedding, backward_is_the_derivative_of_forward) {
  Matrix table_grad(shape.vocabulary, shape.width), position_grad(shape.length, shape.width);
  ops->backward(stream, tokens.tensor(), d_out.tensor(), shape.length, table_grad.tensor(), position_grad.tensor());
  const auto of_table = [&](const Doubles& t) {
    return dot(d_out.values(), forward_reference(tokens.values(), t, positions.values(), shape));
  };
  const auto of_positions = [&](const Doubles& p) {
    return dot(d_out.values(), forward_reference(tokens.values(), table.values(), p, shape));
  };
  expect_derivative(table_grad, of_table, table.values(), 1e-5, "token_grad", 1e-7);
  expect_derivative(position_grad, of_positions, positions.values(), 1e-5, "position_grad", 1e-7);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Embedding, testing::ValuesIn(shapes()));

TEST(EmbeddingBackward, rows_of_absent_tokens_keep_their_bits) {
  Column tokens({3, 1, 3});
  Matrix d_out = Matrix::random(3, 8, 1);
  Matrix table_grad = Matrix::filled(5, 8, 0.0F);
  for (const std::int64_t row : {0, 2, 4}) {
    for (std::int64_t c = 0; c < 8; ++c) table_grad.at(row, c) = -0.0F;  // adding 0 would turn it into +0
  }
  const Matrix before = table_grad;
  HostStream stream;
  cpu::make_embedding_ops()->backward(stream, tokens.tensor(), d_out.tensor(), 3, table_grad.tensor(), {});
  for (const std::int64_t row : {0, 2, 4}) {
    for (std::int64_t c = 0; c < 8; ++c) EXPECT_TRUE(std::signbit(table_grad.at(row, c))) << row;
  }
  EXPECT_EQ(table_grad.at(3, 0), d_out.at(0, 0) + d_out.at(2, 0));
}

TEST(EmbeddingBackward, gives_the_same_bits_for_any_number_of_threads) {
  constexpr std::int64_t kRows = 256, kWidth = 197, kVocabulary = 20;
  Column tokens(random_integers(kRows, kVocabulary, 7));
  const auto gradient = [&](DType type, int threads) {
    const Threads scope(threads);
    Matrix d_out = Matrix::random(kRows, kWidth, 8, 1.0, 0.0, 0, type);
    Matrix table_grad(kVocabulary, kWidth), position_grad(64, kWidth);
    HostStream stream;
    cpu::make_embedding_ops()->backward(stream, tokens.tensor(), d_out.tensor(), 64, table_grad.tensor(),
                                        position_grad.tensor());
    return std::pair(table_grad, position_grad);
  };
  for (const DType type : kActivationTypes) {
    const auto [table, positions] = gradient(type, 1);
    for (const int threads : {1, 2, 3, 16}) {
      const auto [table_again, positions_again] = gradient(type, threads);
      EXPECT_TRUE(table.same_bits(table_again)) << threads;
      EXPECT_TRUE(positions.same_bits(positions_again)) << threads;
    }
  }
}

TEST(EmbeddingOps, tokens_outside_the_table_and_other_types_are_refused) {
  Matrix table(4, 2), out(1, 2);
  HostStream stream;
  const auto ops = cpu::make_embedding_ops();
  for (const std::int32_t token : {-1, 4}) {
    Column tokens({token});
    EXPECT_THROW(ops->forward(stream, tokens.tensor(), table.tensor(), {}, 1, out.tensor()), std::logic_error);
    EXPECT_THROW(ops->backward(stream, tokens.tensor(), out.tensor(), 1, table.tensor(), {}), std::logic_error);
  }
  Column tokens({0});
  Tensor wrong = out.tensor();
  for (const DType type : {DType::i32, DType::bf16}) {  // unknown, and another one than the table has
    wrong.dtype = type;
    EXPECT_THROW(ops->forward(stream, tokens.tensor(), table.tensor(), {}, 1, wrong), std::logic_error);
  }
}

}  // namespace
}  // namespace polaron::test
