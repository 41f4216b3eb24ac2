// Attention forward and backward against double precision, in fp32 and on every unit that multiplies bf16; the
// reference's own gradient against finite differences.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/attention.h"
#include "ops/attention_reference.h"
#include "ops/gemm_units.h"
#include "ops/reference.h"

namespace polaron::test {
namespace {

constexpr double kForward = 5e-6, kBackward = 1e-5;

// How much rounding P and dS to bf16 may change sums of terms that they are factors of. Each term is off by its
// unit_roundoff u at most. With 16 terms or fewer the sum of their errors cannot exceed 4 u times the root of the sum
// of their squares; with more, whose errors are as good as independent and of deviation u / sqrt(3) or less, that
// is 6.9 standard deviations.
Doubles of_rounded_weights(Doubles squares) {
  for (double& value : squares) value = 4.0 * unit_roundoff(DType::bf16) * std::sqrt(value);
  return squares;
}

// The unit that multiplies bf16, or none: then everything is multiplied in fp32.
using Products = std::optional<Unit>;

class Attention : public testing::TestWithParam<Products> {
 protected:
  void SetUp() override {
    if (GetParam() && find_unit(*GetParam()) == nullptr) GTEST_SKIP() << "no AMX here: " << cpu::amx_bf16().reason;
    ops_ = cpu::make_attention_ops(GetParam() ? find_unit(*GetParam()) : nullptr);
  }
  bool on_unit() const { return GetParam().has_value(); }
  // fp32 does not depend on the unit.
  std::vector<DType> types() const {
    return on_unit() ? std::vector{DType::bf16}
                     : std::vector<DType>(std::begin(kActivationTypes), std::end(kActivationTypes));
  }

  // Runs both directions on views of larger matrices, in every type, and compares everything.
  void check(const AttentionShape& shape, const std::vector<std::int32_t>& starts = {}, double deviation = 1.0,
             double leeway = 1.0) {
    for (const DType type : types()) check(type, shape, starts, deviation, leeway);
  }

  void check(DType type, const AttentionShape& shape, const std::vector<std::int32_t>& starts, double deviation,
             double leeway) {
    const std::int64_t rows = shape.batch * shape.sequence_length;
    Matrix qkv = Matrix::random(rows, shape.qkv_width(), 1, deviation, 0.0, 5, type);
    Matrix d_out = Matrix::random(rows, shape.q_width(), 2, 1.0, 0.0, 3, type);
    Matrix out(rows, shape.q_width(), 2, type), lse(shape.batch * shape.heads, shape.sequence_length);
    Matrix d_qkv(rows, shape.qkv_width(), 7, type);
    Column column(starts);
    const Tensor document_start = starts.empty() ? Tensor{} : column.tensor();
    ops_->forward(stream_, shape, qkv.tensor(), document_start, out.tensor(), lse.tensor());
    ops_->backward(stream_, shape, qkv.tensor(), document_start, out.tensor(), lse.tensor(), d_out.tensor(),
                   d_qkv.tensor());
    const AttentionReference expected = reference_attention(shape, qkv.values(), d_out.values(), starts, out.values());
    const std::string what = describe(shape) + ", " + name_of(type);
    const auto expect = [&](const Matrix& actual, const Doubles& values, const Doubles& squares, double tolerance,
                            const std::string& name) {
      const Doubles floors = on_unit() ? of_rounded_weights(squares) : Doubles(squares.size(), 0.0);
      expect_close(actual.values(), values, leeway * tolerance, name + what, actual.cols(), floors, type);
    };
    expect(out, expected.out, expected.out_squares, kForward, "out, ");
    expect_close(lse, expected.lse, leeway * kForward, "lse, " + what);
    expect(d_qkv, expected.d_qkv, expected.d_qkv_squares, kBackward, "d_qkv, ");
  }

  std::unique_ptr<AttentionOps> ops_;
  HostStream stream_;
};

TEST_P(Attention, lengths_around_the_block_sizes_match_the_definition) {
  for (const std::int64_t length : {1, 2, 7, 31, 33, 64, 127, 129, 160, 300})
    check(attention_shape(2, length, 2, 2, 64));
}

TEST_P(Attention, head_sizes_of_any_kind_match_the_definition) {
  for (const std::int64_t head_size : {1, 8, 20, 40, 48, 64, 72, 128}) {
    check(attention_shape(1, 70, 3, 3, head_size));
    check(attention_shape(2, 7, 1, 1, head_size));
  }
}

TEST_P(Attention, grouped_queries_share_keys_and_their_gradients_sum) {
  check(attention_shape(2, 150, 4, 1, 20));
  check(attention_shape(1, 129, 8, 2, 16));
  check(attention_shape(3, 5, 6, 3, 8));
}

TEST_P(Attention, windows_hide_earlier_keys) {
  for (const std::int64_t window : {1, 5, 64, 100, 1000}) {
    check(attention_shape(1, 300, 2, 1, 20, window));
    check(attention_shape(2, 7, 1, 1, 8, window));
  }
}

TEST_P(Attention, documents_do_not_see_each_other) {
  const AttentionShape shape = attention_shape(2, 300, 2, 2, 20);
  check(shape, documents(shape, {1}));
  check(shape, documents(shape, {1, 3, 90, 1, 1, 140, 20}));
  check(shape, documents(shape, {129}));
  const AttentionShape windowed = attention_shape(2, 200, 4, 2, 8, 20);
  check(windowed, documents(windowed, {1, 50, 7, 90}));
}

TEST_P(Attention, any_first_key_a_row_is_honoured_not_only_those_of_documents) {
  const AttentionShape shape = attention_shape(2, 270, 2, 1, 16);
  std::vector<std::int32_t> starts = random_integers(2 * 270, 1 << 20, 3);
  for (std::int64_t row = 0; row < 2 * 270; ++row) starts[row] %= static_cast<std::int32_t>(row % 270 + 1);
  check(shape, starts);
}

TEST_P(Attention, large_scores_do_not_overflow) {
  // Scores of up to +-150: fp32 holds them within 1e-5, which the exponential turns into a relative error.
  check(attention_shape(1, 140, 2, 2, 64), {}, 6.0, 20.0);
}

TEST(AttentionReference, gradient_agrees_with_finite_differences) {
  const AttentionShape shape = attention_shape(1, 6, 2, 1, 3, 4);
  const std::vector<std::int32_t> starts = documents(shape, {1, 4, 1});
  const Doubles qkv = to_doubles(random_floats(6 * shape.qkv_width(), 4));
  const Doubles d_out = to_doubles(random_floats(6 * shape.q_width(), 5));
  const auto loss = [&](const Doubles& x) { return dot(reference_attention(shape, x, d_out, starts).out, d_out); };
  expect_close(reference_attention(shape, qkv, d_out, starts).d_qkv, central_differences(loss, qkv), 1e-8,
               "reference gradient", shape.qkv_width());
}

TEST_P(Attention, any_number_of_threads_gives_the_same_bits) {
  // Few key heads make backward choose its two-pass form for many threads.
  for (const auto& shape : {attention_shape(1, 300, 4, 1, 20), attention_shape(2, 200, 3, 3, 64, 90)}) {
    const std::int64_t rows = shape.batch * shape.sequence_length;
    Column starts(documents(shape, {1, 80, 33, 150}));
    const auto run = [&](DType type, int threads) {
      const Threads fixed(threads);
      Matrix qkv = Matrix::random(rows, shape.qkv_width(), 6, 1.0, 0.0, 0, type);
      Matrix d_out = Matrix::random(rows, shape.q_width(), 7, 1.0, 0.0, 0, type);
      Matrix out(rows, shape.q_width(), 0, type), lse(shape.batch * shape.heads, shape.sequence_length);
      Matrix d_qkv(rows, shape.qkv_width(), 0, type);
      ops_->forward(stream_, shape, qkv.tensor(), starts.tensor(), out.tensor(), lse.tensor());
      ops_->backward(stream_, shape, qkv.tensor(), starts.tensor(), out.tensor(), lse.tensor(), d_out.tensor(),
                     d_qkv.tensor());
      return std::tuple(out, lse, d_qkv);
    };
    for (const DType type : types()) {
      const auto [out, lse, d_qkv] = run(type, 1);
      for (const int threads : {1, 2, 3, 8}) {
        const auto [out2, lse2, d_qkv2] = run(type, threads);
        EXPECT_TRUE(out.same_bits(out2)) << threads;
        EXPECT_TRUE(lse.same_bits(lse2)) << threads;
        EXPECT_TRUE(d_qkv.same_bits(d_qkv2)) << threads;
      }
    }
  }
}

TEST_P(Attention, nan_reaches_the_rows_that_see_it_and_no_others) {
  const AttentionShape shape = attention_shape(1, 100, 1, 1, 16);
  const std::vector<std::int32_t> starts = documents(shape, {40, 20, 40});
  Column column(starts);
  for (const DType type : types()) {
    Matrix qkv = Matrix::random(100, shape.qkv_width(), 8, 1.0, 0.0, 0, type), out(100, 16, 0, type), lse(1, 100);
    qkv.at(45, shape.q_width()) = std::numeric_limits<float>::quiet_NaN();  // key 45, in the document [40, 60)
    ops_->forward(stream_, shape, qkv.tensor(), column.tensor(), out.tensor(), lse.tensor());
    for (std::int64_t t = 0; t < 100; ++t) EXPECT_EQ(std::isnan(out.at(t, 3)), t >= 45 && t < 60) << t;
  }
}

TEST_P(Attention, tensors_of_different_types_are_refused) {
  const AttentionShape shape = attention_shape(1, 4, 1, 1, 8);
  Matrix qkv = Matrix::random(4, 24, 1), half = Matrix::random(4, 8, 2, 1.0, 0.0, 0, DType::bf16), lse(1, 4);
  EXPECT_THROW(ops_->forward(stream_, shape, qkv.tensor(), {}, half.tensor(), lse.tensor()), std::logic_error);
  EXPECT_THROW(
      ops_->backward(stream_, shape, qkv.tensor(), {}, half.tensor(), lse.tensor(), half.tensor(), qkv.tensor()),
      std::logic_error);
}

TEST_P(Attention, a_smaller_call_after_a_larger_one_is_not_disturbed_by_its_leftovers) {
  check(attention_shape(2, 200, 4, 4, 64));
  check(attention_shape(1, 3, 1, 1, 8));
  check(attention_shape(1, 140, 2, 1, 20, 3));
}

TEST_P(Attention, only_bf16_is_multiplied_by_the_unit) {
  const AttentionShape shape = attention_shape(1, 70, 2, 1, 40);
  const auto run = [&](AttentionOps& ops, DType type) {
    Matrix qkv = Matrix::random(70, shape.qkv_width(), 6, 1.0, 0.0, 0, type);
    Matrix d_out = Matrix::random(70, shape.q_width(), 7, 1.0, 0.0, 0, type);
    Matrix out(70, shape.q_width(), 0, type), lse(2, 70), d_qkv(70, shape.qkv_width(), 0, type);
    ops.forward(stream_, shape, qkv.tensor(), {}, out.tensor(), lse.tensor());
    ops.backward(stream_, shape, qkv.tensor(), {}, out.tensor(), lse.tensor(), d_out.tensor(), d_qkv.tensor());
    return std::tuple(out, d_qkv);
  };
  const std::unique_ptr<AttentionOps> tiles = cpu::make_attention_ops(nullptr);
  for (const DType type : kActivationTypes) {
    const auto [out, d_qkv] = run(*ops_, type);
    const auto [out2, d_qkv2] = run(*tiles, type);
    const bool same = !on_unit() || type == DType::f32;  // the unit's weights are rounded
    EXPECT_EQ(out.same_bits(out2), same) << name_of(type);
    EXPECT_EQ(d_qkv.same_bits(d_qkv2), same) << name_of(type);
  }
}

INSTANTIATE_TEST_SUITE_P(On, Attention, testing::Values(Products{}, Unit::converting, Unit::emulated_amx, Unit::amx),
                         [](const testing::TestParamInfo<Products>& chosen) {
                           if (!chosen.param) return std::string("fp32");
                           return name_of_unit(testing::TestParamInfo<Unit>(*chosen.param, chosen.index));
                         });

}  // namespace
}  // namespace polaron::test
