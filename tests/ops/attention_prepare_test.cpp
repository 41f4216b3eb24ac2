// Rotary embedding and QK-norm against double precision, and their backward against finite differences.
#include <gtest/gtest.h>

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

// prepare, from the formulas in model_ops.h; v is left alone.
Doubles reference_prepare(const AttentionShape& s, bool qk_norm, const Tables* tables, Doubles qkv, Doubles* rstd) {
  const std::int64_t heads = s.heads + s.kv_heads, half = s.head_size / 2;
  for (std::int64_t row = 0; row < s.batch * s.sequence_length; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      double* x = qkv.data() + row * s.qkv_width() + head * s.head_size;
      if (qk_norm) {
        double squares = 0.0;
        for (std::int64_t j = 0; j < s.head_size; ++j) squares += x[j] * x[j];
        const double factor = 1.0 / std::sqrt(squares / static_cast<double>(s.head_size) + static_cast<double>(kEps));
        for (std::int64_t j = 0; j < s.head_size; ++j) x[j] *= factor;
        if (rstd != nullptr) rstd->push_back(factor);
      }
      if (tables == nullptr) continue;
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

class AttentionPrepare : public testing::Test {
 protected:
  std::unique_ptr<AttentionOps> ops_ = cpu::make_attention_ops();
  HostStream stream_;
};

TEST_F(AttentionPrepare, normalises_and_rotates_q_and_k_and_leaves_v_alone) {
  for (const std::int64_t head_size : {2, 8, 20, 64, 128}) {
    for (const bool qk_norm : {false, true}) {
      for (const bool rotate : {false, true}) {
        const AttentionShape shape = attention_shape(2, 37, 4, 2, head_size);
        const Tables unused = rotary_tables(37, head_size);
        Tables tables = unused;
        Matrix qkv = Matrix::random(74, shape.qkv_width(), 1, 1.5, 0.2, 3), rstd(74, 6, 1);
        Doubles expected_rstd;
        const Doubles expected =
            reference_prepare(shape, qk_norm, rotate ? &tables : nullptr, qkv.values(), &expected_rstd);
        ops_->prepare(stream_, shape, qk_norm, kEps, rotate ? tables.rotary() : Rotary{}, qkv.tensor(),
                      qk_norm ? rstd.tensor() : Tensor{});
        const std::string what = describe(shape) + (qk_norm ? ", norm" : "") + (rotate ? ", rotary" : "");
        expect_close(qkv, expected, 1e-6, what);
        if (qk_norm) expect_close(rstd, expected_rstd, 1e-6, "rstd, " + what);
      }
    }
  }
}

TEST_F(AttentionPrepare, backward_matches_finite_differences) {
  for (const bool qk_norm : {false, true}) {
    for (const bool rotate : {false, true}) {
      const AttentionShape shape = attention_shape(2, 3, 2, 1, 10);
      Tables tables = rotary_tables(3, 10);
      Matrix qkv = Matrix::random(6, shape.qkv_width(), 2, 1.0, 0.0, 2), rstd(6, 3);
      const Doubles before = qkv.values();
      Matrix d_qkv = Matrix::random(6, shape.qkv_width(), 3, 1.0, 0.0, 4);
      const Doubles weights = d_qkv.values();
      const Rotary rotary = rotate ? tables.rotary() : Rotary{};
      ops_->prepare(stream_, shape, qk_norm, kEps, rotary, qkv.tensor(), qk_norm ? rstd.tensor() : Tensor{});
      ops_->prepare_backward(stream_, shape, qk_norm, rotary, qkv.tensor(), qk_norm ? rstd.tensor() : Tensor{},
                             d_qkv.tensor());
      const auto loss = [&](const Doubles& x) {
        return dot(reference_prepare(shape, qk_norm, rotate ? &tables : nullptr, x, nullptr), weights);
      };
      // The norm's eps makes mean(x_hat^2) slightly less than 1, which the formula takes into account as well.
      expect_close(d_qkv, central_differences(loss, before), 2e-6,
                   std::string(qk_norm ? "norm " : "") + (rotate ? "rotary" : ""));
    }
  }
}

TEST_F(AttentionPrepare, without_norm_and_rotation_nothing_changes) {
  const AttentionShape shape = attention_shape(1, 5, 2, 1, 8);
  Matrix qkv = Matrix::random(5, shape.qkv_width(), 4);
  const Matrix before = qkv;
  ops_->prepare(stream_, shape, false, kEps, {}, qkv.tensor(), {});
  ops_->prepare_backward(stream_, shape, false, {}, qkv.tensor(), {}, qkv.tensor());
  EXPECT_TRUE(qkv.same_bits(before));
}

TEST_F(AttentionPrepare, a_gradient_turned_forward_and_back_is_itself) {
  const AttentionShape shape = attention_shape(1, 300, 2, 2, 64);
  Tables tables = rotary_tables(300, 64);
  Matrix x = Matrix::random(300, shape.qkv_width(), 5);
  const Doubles before = x.values();
  ops_->prepare(stream_, shape, false, kEps, tables.rotary(), x.tensor(), {});
  ops_->prepare_backward(stream_, shape, false, tables.rotary(), x.tensor(), {}, x.tensor());
  expect_close(x, before, 1e-6, "turned forward and back");
}

}  // namespace
}  // namespace polaron::test
