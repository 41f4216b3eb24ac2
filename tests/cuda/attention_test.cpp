#include <cmath>
#include <limits>
#include <string>

#include "family.h"
#include "ops/attention_prepare_reference.h"
#include "ops/attention_reference.h"
#include "support/errors.h"

namespace polaron::test {
namespace {

constexpr double kForward = 5e-6, kBackward = 1e-5;  // of fp32 arithmetic, as in the tests of the CPU's ops

std::vector<std::int32_t> any_first_keys(const AttentionShape& s) {
  std::vector<std::int32_t> keys = random_integers(s.batch * s.sequence_length, 1 << 20, 3);
  for (std::size_t row = 0; row < keys.size(); ++row) {
    keys[row] %= static_cast<std::int32_t>(static_cast<std::int64_t>(row) % s.sequence_length + 1);
  }
  return keys;
}

// |actual - expected| within the rounding of weights, of gradients of scores and of the result to bf16, and `exact`
// times (|expected| + rms) of fp32 arithmetic.
void expect_rounded(const Doubles& actual, const Doubles& expected, const Doubles& terms, double exact,
                    const std::string& name) {
  ASSERT_EQ(actual.size(), expected.size()) << name;
  const double u = unit_roundoff(DType::bf16),
               rms = std::sqrt(dot(expected, expected) / static_cast<double>(expected.size()));
  double worst = 0.0;
  std::size_t place = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double before = u * terms[i] + exact * (std::abs(expected[i]) + rms);
    const double allowed = u * std::abs(expected[i]) + (1.0 + u) * before;
    const double off = std::abs(actual[i] - expected[i]) / allowed;
    if (!(off <= worst)) worst = off, place = i;
    if (std::isnan(off)) break;
  }
  EXPECT_LE(worst, 1.0) << name << ": element " << place << " is " << actual[place] << ", expected " << expected[place];
}

class AttentionFamily : public Family {
 protected:
  AttentionOps& ops() const { return machine.ops().attention(); }

  // Both directions on matrices of wider rows.
  void check(DType type, const AttentionShape& shape, const std::vector<std::int32_t>& first_keys = {},
             double deviation = 1.0, double leeway = 1.0, std::int64_t padding = 8) const {
    const std::int64_t rows = shape.batch * shape.sequence_length;
    const Matrix qkv_values = rounded_to(type, Matrix::random(rows, shape.qkv_width(), 1, deviation));
    const Matrix d_out_values = rounded_to(type, Matrix::random(rows, shape.q_width(), 2));
    const Array qkv(machine, qkv_values, type, padding), d_out(machine, d_out_values, type, padding);
    const Array out(machine, Matrix(rows, shape.q_width()), type, padding);
    const Array lse(machine, Matrix(shape.batch * shape.heads, shape.sequence_length));
    const Array d_qkv(machine, Matrix(rows, shape.qkv_width()), type, padding);
    const Array keys(machine, first_keys.empty() ? std::vector<std::int32_t>(1) : first_keys);
    const Tensor first_key = first_keys.empty() ? Tensor{} : keys.tensor();
    ops().forward(machine.stream(), shape, qkv, first_key, out, lse);
    ops().backward(machine.stream(), shape, qkv, first_key, out, lse, d_out, d_qkv);
    const AttentionReference expected =
        reference_attention(shape, qkv.values(), d_out.values(), first_keys, out.values());
    const std::string what = describe(shape) + ", " + polaron::name_of(type);
    expect_close(lse.values(), expected.lse, leeway * kForward, "lse, " + what, shape.sequence_length);
    if (type == DType::bf16) {
      expect_rounded(out.values(), expected.out, expected.out_terms, leeway * kForward, "out, " + what);
      expect_rounded(d_qkv.values(), expected.d_qkv, expected.d_qkv_terms, leeway * kBackward, "d_qkv, " + what);
    } else {
      expect_close(out.values(), expected.out, leeway * kForward, "out, " + what, shape.q_width());
      expect_close(d_qkv.values(), expected.d_qkv, leeway * kBackward, "d_qkv, " + what, shape.qkv_width());
    }
  }
};

TEST_P(AttentionFamily, lengths_around_the_block_sizes_match_the_definition) {
  for_types([&](DType type) {
    for (const std::int64_t length : {1, 2, 31, 65, 127, 129, 161}) check(type, attention_shape(1, length, 1, 1, 64));
    for (const std::int64_t length : {3, 33, 130}) check(type, attention_shape(1, length, 1, 1, 128));
    check(type, attention_shape(3, 17, 2, 2, 64));
  });
}

TEST_P(AttentionFamily, head_sizes_of_any_kind_match_the_definition) {
  for_types([&](DType type) {
    for (const std::int64_t head_size : {1, 8, 20, 40, 72, 96, 136, 256}) {
      check(type, attention_shape(2, 37, 2, 1, head_size));
    }
  });
}

TEST_P(AttentionFamily, grouped_queries_share_keys_and_their_gradients_sum) {
  for_types([&](DType type) {
    check(type, attention_shape(1, 140, 4, 1, 64));
    check(type, attention_shape(2, 21, 6, 3, 128));
    check(type, attention_shape(1, 45, 8, 2, 16));
  });
}

TEST_P(AttentionFamily, windows_hide_earlier_keys) {
  for_types([&](DType type) {
    for (const std::int64_t window : {1, 5, 64, 1000}) check(type, attention_shape(1, 170, 2, 1, 64, window));
    check(type, attention_shape(1, 150, 1, 1, 128, 33));
    check(type, attention_shape(2, 70, 2, 1, 12, 9));
  });
}

TEST_P(AttentionFamily, first_keys_hide_what_is_before_them) {
  for_types([&](DType type) {
    for (const std::int64_t head_size : {64, 128, 20}) {
      const AttentionShape shape = attention_shape(2, 150, 2, 1, head_size);
      check(type, shape, documents(shape, {1, 3, 70, 1, 1, 140, 20}));
    }
    const AttentionShape windowed = attention_shape(1, 290, 2, 1, 8, 40);
    check(type, windowed, documents(windowed, {1, 50, 7, 129}));
    const AttentionShape any = attention_shape(2, 141, 1, 1, 64);
    check(type, any, any_first_keys(any));
  });
}

TEST_P(AttentionFamily, rows_that_are_not_aligned_take_another_path_to_the_same_result) {
  for_types([&](DType type) { check(type, attention_shape(1, 40, 2, 1, 64), {}, 1.0, 1.0, 3); });
}

TEST_P(AttentionFamily, large_scores_do_not_overflow) {
  // Scores of up to +-150: fp32 holds them within 1e-5, which the exponential turns into a relative error.
  for_types([&](DType type) { check(type, attention_shape(1, 70, 2, 2, 64), {}, 6.0, 20.0); });
}

TEST_P(AttentionFamily, nan_in_a_key_reaches_the_rows_that_see_it_and_no_others) {
  for_types([&](DType type) {
    for (const std::int64_t size : {64, 20}) {
      const AttentionShape shape = attention_shape(1, 100, 1, 1, size);
      Matrix values = Matrix::random(100, shape.qkv_width(), 8);
      values.at(45, shape.q_width()) = std::numeric_limits<float>::quiet_NaN();  // in the document [40, 60)
      const Array qkv(machine, values, type), first_key(machine, documents(shape, {40, 20, 40}));
      const Array out(machine, Matrix(100, size), type), lse(machine, Matrix(1, 100));
      ops().forward(machine.stream(), shape, qkv, first_key, out, lse);
      const Doubles results = out.values();
      for (std::int64_t t = 0; t < 100; ++t) {
        EXPECT_EQ(std::isnan(results[static_cast<std::size_t>(t * size + 3)]), t >= 45 && t < 60) << t;
      }
    }
  });
}

TEST_P(AttentionFamily, a_smaller_call_after_a_larger_one_is_not_disturbed_by_its_leftovers) {
  for_types([&](DType type) {
    const AttentionShape large = attention_shape(2, 100, 2, 2, 64), small = attention_shape(1, 20, 1, 1, 64);
    check(type, large, documents(large, {30}));
    check(type, small);
    check(type, small, documents(small, {3, 9}));
  });
}

struct PrepareCase {
  AttentionShape shape;
  DType type;
  PrepareKind kind;
  std::int64_t padding;
  std::string name() const { return describe(shape) + ", " + polaron::name_of(type) + kind.name(); }
};

class AttentionPrepareFamily : public AttentionFamily {
 protected:
  template <class Body>
  void for_cases(Body&& body) const {
    for_types([&](DType type) {
      for (const std::int64_t head_size : {2, 20, 33, 64, 128}) {
        for (const PrepareKind& kind : kPrepareKinds) {
          if (kind.rotate && head_size % 2 != 0) continue;
          for (const std::int64_t padding : {3, 8}) {
            body(PrepareCase{attention_shape(2, 11, 3, 2, head_size), type, kind, padding});
          }
        }
      }
    });
  }
};

TEST_P(AttentionPrepareFamily, the_heads_asked_for_are_normalised_and_rotated_and_their_gradients_come_back) {
  for_cases([&](const PrepareCase& c) {
    const AttentionShape& s = c.shape;
    const std::int64_t rows = s.batch * s.sequence_length, width = s.qkv_width(), normed = normed_heads(s, c.kind.norm);
    const RotaryTables tables = rotary_tables(s.sequence_length, s.head_size);
    const RotaryTables* const used = c.kind.rotate ? &tables : nullptr;
    const Array qkv(machine, Matrix::random(rows, width, 1, 1.5, 0.2), c.type, c.padding);
    const Array d_qkv(machine, Matrix::random(rows, width, 3), c.type, c.padding);
    const Array rstd(machine, Matrix(rows, std::max<std::int64_t>(1, normed)), DType::f32, 1);
    const Array cos(machine, tables.cos), sin(machine, tables.sin);
    const Rotary rotary = c.kind.rotate ? Rotary{cos, sin} : Rotary{};
    const Tensor factors = normed > 0 ? rstd.tensor() : Tensor{};

    Doubles expected_rstd;
    const Doubles before = qkv.values();
    const Doubles expected = reference_prepare(s, c.kind.norm, used, before, &expected_rstd);
    ops().prepare(machine.stream(), s, c.kind.norm, kHeadEps, rotary, qkv, factors);
    expect_close(qkv.values(), expected, 1e-6, "prepared, " + c.name(), width, 0.0, c.type);
    if (normed > 0) expect_close(rstd.values(), expected_rstd, 1e-6, "rstd, " + c.name(), normed);
    if (c.kind.norm != HeadNorm::qkv) {
      const Doubles after = qkv.values();
      for (std::int64_t i = s.q_width() + s.kv_width(); i < width; ++i) ASSERT_EQ(after[i], before[i]) << c.name();
    }

    const Doubles gradient = reference_prepare_backward(s, c.kind.norm, used, qkv.values(),
                                                        normed > 0 ? rstd.values() : Doubles{}, d_qkv.values());
    ops().prepare_backward(machine.stream(), s, c.kind.norm, rotary, qkv, factors, d_qkv);
    // In heads of two elements what is left of a gradient is the small difference of large numbers.
    expect_close(d_qkv.values(), gradient, 2e-6, "gradient, " + c.name(), width, s.head_size == 2 ? 1e-6 : 0.0, c.type);
  });
}

INSTANTIATE_TEST_SUITE_P(Places, AttentionFamily, testing::ValuesIn(places()), name_of_place);
INSTANTIATE_TEST_SUITE_P(Places, AttentionPrepareFamily, testing::ValuesIn(places()), name_of_place);

TEST(CudaAttention, gives_the_same_bits_for_every_order_of_threads) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const AttentionShape& shape : {attention_shape(1, 140, 2, 1, 64, 100), attention_shape(1, 70, 1, 1, 128)}) {
      expect_same_bits_in_all_orders([&](const Machine& machine) {
        const std::int64_t rows = shape.batch * shape.sequence_length;
        const Array qkv(machine, Matrix::random(rows, shape.qkv_width(), 1), type);
        const Array d_out(machine, Matrix::random(rows, shape.q_width(), 2), type);
        const Array out(machine, Matrix(rows, shape.q_width()), type);
        const Array lse(machine, Matrix(shape.batch * shape.heads, shape.sequence_length));
        const Array d_qkv(machine, Matrix(rows, shape.qkv_width()), type);
        const Array rstd(machine, Matrix(rows, shape.heads + 2 * shape.kv_heads));
        const Array first_key(machine, documents(shape, {50, 17}));
        const RotaryTables tables = rotary_tables(shape.sequence_length, shape.head_size);
        const Array cos(machine, tables.cos), sin(machine, tables.sin);
        AttentionOps& ops = machine.ops().attention();
        ops.prepare(machine.stream(), shape, HeadNorm::qkv, kHeadEps, {cos, sin}, qkv, rstd);
        ops.forward(machine.stream(), shape, qkv, first_key, out, lse);
        ops.backward(machine.stream(), shape, qkv, first_key, out, lse, d_out, d_qkv);
        ops.prepare_backward(machine.stream(), shape, HeadNorm::qkv, {cos, sin}, qkv, rstd, d_qkv);
        return joined({&qkv, &out, &lse, &rstd, &d_qkv});
      });
    }
  }
}

TEST(CudaAttention, what_it_cannot_do_is_refused) {
  const Machine machine{cuda::emulation::Options{}};
  AttentionOps& ops = machine.ops().attention();
  const Array qkv(machine, Matrix(2, 24)), half(machine, Matrix(2, 8), DType::bf16), lse(machine, Matrix(1, 2));
  AttentionShape shape = attention_shape(1, 2, 1, 1, 8);
  EXPECT_THROW(ops.forward(machine.stream(), shape, qkv, {}, half, lse), std::logic_error);
  EXPECT_THROW(ops.backward(machine.stream(), shape, qkv, {}, half, lse, half, qkv), std::logic_error);
  const Array out(machine, Matrix(2, 8));
  shape.scale = 0.0F;
  EXPECT_THROW(ops.forward(machine.stream(), shape, qkv, {}, out, lse), std::logic_error);
  const AttentionShape wide = attention_shape(1, 2, 1, 1, 1000);
  const Array wide_qkv(machine, Matrix(2, 3000)), wide_out(machine, Matrix(2, 1000));
  expect_parts(error_of(Exit::usage, [&] { ops.forward(machine.stream(), wide, wide_qkv, {}, wide_out, lse); }),
               {"heads of 1000 elements", "choose more heads"});
}

}  // namespace
}  // namespace polaron::test
