// Rotary embedding and QK-norm against double precision, and their backward against finite differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "cpu/families.h"
#include "ops/attention_reference.h"
#include "ops/reference.h"

namespace polaron::test {
namespace {

constexpr float kEps = 1e-5F;

struct Tables {
  Matrix cos, sin;
  Rotary rotary() { return {cos.tensor(), sin.tensor()}; }
};
Tables rotary_tables(std::int64_t length, std::int64_t head_size) {
  const std::int64_t half = head_size / 2;
  Tables tables{Matrix(length, half, 1), Matrix(length, half, 1)};
  for (std::int64_t t = 0; t < length; ++t) {
    for (std::int64_t j = 0; j < half; ++j) {
      const double angle =
          static_cast<double>(t) * std::pow(100.0, -static_cast<double>(j) / static_cast<double>(half));
      tables.cos.at(t, j) = static_cast<float>(std::cos(angle));
      tables.sin.at(t, j) = static_cast<float>(std::sin(angle));
    }
  }
  return tables;
}

// How many heads of a packed row a norm concerns; they come first.
std::int64_t normed_heads(const AttentionShape& s, HeadNorm norm) {
  return norm == HeadNorm::none ? 0 : norm == HeadNorm::qk ? s.heads + s.kv_heads : s.heads + 2 * s.kv_heads;
}

// prepare, from the formulas in model_ops.h.
Doubles reference_prepare(const AttentionShape& s, HeadNorm norm, const Tables* tables, Doubles qkv, Doubles* rstd) {
  const std::int64_t heads = s.heads + 2 * s.kv_heads, half = s.head_size / 2;
  for (std::int64_t row = 0; row < s.batch * s.sequence_length; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      double* x = qkv.data() + row * s.qkv_width() + head * s.head_size;
      if (head < normed_heads(s, norm)) {
        double squares = 0.0;
        for (std::int64_t j = 0; j < s.head_size; ++j) squares += x[j] * x[j];
        const double factor = 1.0 / std::sqrt(squares / static_cast<double>(s.head_size) + static_cast<double>(kEps));
        for (std::int64_t j = 0; j < s.head_size; ++j) x[j] *= factor;
        if (rstd != nullptr) rstd->push_back(factor);
      }
      if (tables == nullptr || head >= s.heads + s.kv_heads) continue;
      for (std::int64_t j = 0; j < half; ++j) {
        const std::int64_t t = row % s.sequence_length;
        const double c = static_cast<double>(tables->cos.at(t, j)), n = static_cast<double>(tables->sin.at(t, j));
        const double low = x[j], high = x[j + half];
        x[j] = low * c - high * n;
        x[j + half] = high * c + low * n;
      }
    }
  }
  return qkv;
}

// prepare_backward from prepare's result y and the factors rstd [N, normed heads] that it divided by. Turning is
// orthogonal, so its inverse is its transpose; of x_hat = rstd x it takes dx = rstd (g - x_hat mean(g x_hat)), in which
// mean(g x_hat) = mean(dy y).
Doubles reference_prepare_backward(const AttentionShape& s, HeadNorm norm, const Tables* tables, const Doubles& y,
                                   const Doubles& rstd, Doubles d) {
  const std::int64_t heads = s.heads + 2 * s.kv_heads, normed = normed_heads(s, norm), half = s.head_size / 2,
                     size = s.head_size;
  for (std::int64_t row = 0; row < s.batch * s.sequence_length; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      double* g = d.data() + row * s.qkv_width() + head * size;
      const double* of_head = y.data() + row * s.qkv_width() + head * size;
      if (head < normed) {
        double mean = 0.0;
        for (std::int64_t j = 0; j < size; ++j) mean += g[j] * of_head[j] / static_cast<double>(size);
        for (std::int64_t j = 0; j < size; ++j) g[j] = rstd[row * normed + head] * (g[j] - of_head[j] * mean);
      }
      for (std::int64_t j = 0; tables != nullptr && head < s.heads + s.kv_heads && j < half; ++j) {
        const std::int64_t t = row % s.sequence_length;
        const double c = static_cast<double>(tables->cos.at(t, j)), n = static_cast<double>(tables->sin.at(t, j));
        const double low = g[j], high = g[j + half];
        g[j] = low * c + high * n;
        g[j + half] = high * c - low * n;
      }
    }
  }
  return d;
}

struct Kind {
  HeadNorm norm;
  bool rotate;
  std::string name() const {
    const char* const of = norm == HeadNorm::none ? "" : norm == HeadNorm::qk ? ", norm of q, k" : ", norm of q, k, v";
    return std::string(of) + (rotate ? ", rotary" : "");
  }
};
constexpr Kind kKinds[] = {{HeadNorm::none, false}, {HeadNorm::none, true}, {HeadNorm::qk, false},
                           {HeadNorm::qk, true},    {HeadNorm::qkv, false}, {HeadNorm::qkv, true}};

class AttentionPrepare : public testing::Test {
 protected:
  std::unique_ptr<AttentionOps> ops_ = cpu::make_attention_ops();
  HostStream stream_;
};

TEST_F(AttentionPrepare, normalises_and_rotates_the_heads_asked_for_and_leaves_the_others_alone) {
  for (const DType type : kActivationTypes) {
    for (const std::int64_t head_size : {2, 8, 20, 64, 128}) {
      for (const Kind& kind : kKinds) {
        const AttentionShape shape = attention_shape(2, 37, 4, 2, head_size);
        Tables tables = rotary_tables(37, head_size);
        Matrix qkv = Matrix::random(74, shape.qkv_width(), 1, 1.5, 0.2, 3, type),
               rstd(74, std::max<std::int64_t>(1, normed_heads(shape, kind.norm)), 1);
        const Matrix before = qkv;
        Doubles expected_rstd;
        const Doubles expected =
            reference_prepare(shape, kind.norm, kind.rotate ? &tables : nullptr, qkv.values(), &expected_rstd);
        ops_->prepare(stream_, shape, kind.norm, kEps, kind.rotate ? tables.rotary() : Rotary{}, qkv.tensor(),
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
      for (const Kind& kind : kKinds) {
        if (kind.rotate && head_size % 2 != 0) continue;
        const AttentionShape shape = attention_shape(2, 21, 3, 1, head_size);
        Tables tables = rotary_tables(21, head_size);
        Matrix qkv = Matrix::random(42, shape.qkv_width(), 2, 1.0, 0.0, 2, type),
               rstd(42, std::max<std::int64_t>(1, normed_heads(shape, kind.norm)), 1);
        Matrix d_qkv = Matrix::random(42, shape.qkv_width(), 3, 1.0, 0.0, 4, type);
        const Rotary rotary = kind.rotate ? tables.rotary() : Rotary{};
        const Tensor factors = kind.norm != HeadNorm::none ? rstd.tensor() : Tensor{};
        ops_->prepare(stream_, shape, kind.norm, kEps, rotary, qkv.tensor(), factors);
        const Doubles expected = reference_prepare_backward(shape, kind.norm, kind.rotate ? &tables : nullptr,
                                                            qkv.values(), rstd.values(), d_qkv.values());
        ops_->prepare_backward(stream_, shape, kind.norm, rotary, qkv.tensor(), factors, d_qkv.tensor());
        expect_close(d_qkv, expected, 2e-6, describe(shape) + ", " + name_of(type) + kind.name());
      }
    }
  }
}

TEST_F(AttentionPrepare, the_formula_of_backward_matches_finite_differences) {
  for (const Kind& kind : kKinds) {
    const AttentionShape shape = attention_shape(2, 3, 2, 1, 10);
    const Tables tables = rotary_tables(3, 10);
    const Tables* const used = kind.rotate ? &tables : nullptr;
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
    ops_->prepare(stream_, shape, HeadNorm::none, kEps, {}, qkv.tensor(), {});
    ops_->prepare_backward(stream_, shape, HeadNorm::none, {}, qkv.tensor(), {}, qkv.tensor());
    EXPECT_TRUE(qkv.same_bits(before));
  }
}

TEST_F(AttentionPrepare, a_gradient_turned_forward_and_back_is_itself) {
  const AttentionShape shape = attention_shape(1, 300, 2, 2, 64);
  Tables tables = rotary_tables(300, 64);
  for (const DType type : kActivationTypes) {
    Matrix x = Matrix::random(300, shape.qkv_width(), 5, 1.0, 0.0, 0, type);
    const Doubles before = x.values();
    ops_->prepare(stream_, shape, HeadNorm::none, kEps, tables.rotary(), x.tensor(), {});
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
