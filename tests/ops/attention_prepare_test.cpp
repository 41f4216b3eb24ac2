// Rotary embedding and QK-norm against double precision, and their backward against finite differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "cpu/families.h"
#include "ops/attention_prepare_reference.h"
#include "ops/reference.h"

namespace polaron::test {
namespace {

class AttentionPrepare : public testing::Test {
 protected:
  std::unique_ptr<AttentionOps> ops_ = cpu::make_attention_ops();
  HostStream stream_;
};

TEST_F(AttentionPrepare, normalises_and_rotates_the_heads_asked_for_and_leaves_the_others_alone) {
  for (const DType type : kActivationTypes) {
    for (const std::int64_t head_size : {2, 8, 20, 64, 128}) {
      for (const PrepareKind& kind : kPrepareKinds) {
        const AttentionShape shape = attention_shape(2, 37, 4, 2, head_size);
        RotaryTables tables = rotary_tables(37, head_size);
        Matrix qkv = Matrix::random(74, shape.qkv_width(), 1, 1.5, 0.2, 3, type),
               rstd(74, std::max<std::int64_t>(1, normed_heads(shape, kind.norm)), 1);
        const Matrix before = qkv;
        Doubles expected_rstd;
        const Doubles expected =
            reference_prepare(shape, kind.norm, kind.rotate ? &tables : nullptr, qkv.values(), &expected_rstd);
        ops_->prepare(stream_, shape, kind.norm, kHeadEps, kind.rotate ? tables.rotary() : Rotary{}, qkv.tensor(),
                      kind.norm != HeadNorm::none ? rstd.tensor() : Tensor{});
        const std::string what = describe(shape) + ", " + name_of(type) + kind.name();
        expect_close(qkv, expected, 1e-6, what);
        if (kind.norm != HeadNorm::none) expect_close(rstd, expected_rstd, 1e-6, "rstd, " + what);
        if (kind.norm == HeadNorm::qkv) continue;
        for (std::int64_t c = shape.q_width() + shape.kv_width(); c < shape.qkv_width(); ++c) {
          ASSERT_EQ(qkv.at(73, c), before.at(73, c)) << what;
        }
      }
    }
  }
}

TEST_F(AttentionPrepare, backward_agrees_with_its_formula) {
  for (const DType type : kActivationTypes) {
    for (const std::int64_t head_size : {2, 10, 33, 64}) {
      for (const PrepareKind& kind : kPrepareKinds) {
        if (kind.rotate && head_size % 2 != 0) continue;
        const AttentionShape shape = attention_shape(2, 21, 3, 1, head_size);
        RotaryTables tables = rotary_tables(21, head_size);
        Matrix qkv = Matrix::random(42, shape.qkv_width(), 2, 1.0, 0.0, 2, type),
               rstd(42, std::max<std::int64_t>(1, normed_heads(shape, kind.norm)), 1);
        Matrix d_qkv = Matrix::random(42, shape.qkv_width(), 3, 1.0, 0.0, 4, type);
        const Rotary rotary = kind.rotate ? tables.rotary() : Rotary{};
        const Tensor factors = kind.norm != HeadNorm::none ? rstd.tensor() : Tensor{};
        ops_->prepare(stream_, shape, kind.norm, kHeadEps, rotary, qkv.tensor(), factors);
        const Doubles expected = reference_prepare_backward(shape, kind.norm, kind.rotate ? &tables : nullptr,
                                                            qkv.values(), rstd.values(), d_qkv.values());
        ops_->prepare_backward(stream_, shape, kind.norm, rotary, qkv.tensor(), factors, d_qkv.tensor());
        expect_close(d_qkv, expected, 2e-6, describe(shape) + ", " + name_of(type) + kind.name());
      }
    }
  }
}

TEST_F(AttentionPrepare, the_formula_of_backward_matches_finite_differences) {
  for (const PrepareKind& kind : kPrepareKinds) {
    const AttentionShape shape = attention_shape(2, 3, 2, 1, 10);
    const RotaryTables tables = rotary_tables(3, 10);
    const RotaryTables* const used = kind.rotate ? &tables : nullptr;
    const Doubles x = to_doubles(random_floats(6 * shape.qkv_width(), 2));
    const Doubles d = to_doubles(random_floats(6 * shape.qkv_width(), 3));
    Doubles rstd;
    const Doubles y = reference_prepare(shape, kind.norm, used, x, &rstd);
    const auto loss = [&](const Doubles& at) { return dot(reference_prepare(shape, kind.norm, used, at, nullptr), d); };
    // Tables of fp32 make turns that keep lengths within 1e-7 of them.
    expect_close(reference_prepare_backward(shape, kind.norm, used, y, rstd, d), central_differences(loss, x), 2e-7,
                 "formula" + kind.name(), shape.qkv_width());
  }
}

TEST_F(AttentionPrepare, without_norm_and_rotation_nothing_changes) {
  for (const DType type : kActivationTypes) {
    const AttentionShape shape = attention_shape(1, 5, 2, 1, 8);
    Matrix qkv = Matrix::random(5, shape.qkv_width(), 4, 1.0, 0.0, 0, type);
    const Matrix before = qkv;
    ops_->prepare(stream_, shape, HeadNorm::none, kHeadEps, {}, qkv.tensor(), {});
    ops_->prepare_backward(stream_, shape, HeadNorm::none, {}, qkv.tensor(), {}, qkv.tensor());
    EXPECT_TRUE(qkv.same_bits(before));
  }
}

TEST_F(AttentionPrepare, a_gradient_turned_forward_and_back_is_itself) {
  const AttentionShape shape = attention_shape(1, 300, 2, 2, 64);
  RotaryTables tables = rotary_tables(300, 64);
  for (const DType type : kActivationTypes) {
    Matrix x = Matrix::random(300, shape.qkv_width(), 5, 1.0, 0.0, 0, type);
    const Doubles before = x.values();
    ops_->prepare(stream_, shape, HeadNorm::none, kHeadEps, tables.rotary(), x.tensor(), {});
    // Rounding takes a turned pair from its place by no more than its length times the unit roundoff, and turning back
    // keeps lengths.
    double longest = 0.0;
    for (const double value : x.values()) longest = std::max(longest, std::sqrt(2.0) * std::abs(value));
    ops_->prepare_backward(stream_, shape, HeadNorm::none, tables.rotary(), x.tensor(), {}, x.tensor());
    expect_close(x, before, 1e-6, "turned forward and back", unit_roundoff(type) * longest);
  }
}

}  // namespace
}  // namespace polaron::test
