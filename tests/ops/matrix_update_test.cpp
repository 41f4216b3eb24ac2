// Momentum into the stack, and the steps out of it, against double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "ops/matrix_reference.h"
#include "ops/reference.h"

namespace polaron::test {
namespace {

struct Shape {
  std::int64_t rows, cols;
};
// Wide, tall, square, single rows and columns, around the tiles' edges.
constexpr Shape kShapes[] = {{37, 53}, {53, 37}, {40, 40}, {1, 5}, {5, 1}, {1, 1}, {16, 64}, {65, 16}, {130, 66}};

MatrixView view(Matrix& matrix) {
  const Tensor tensor = matrix.tensor();
  return {tensor.f32(), tensor.rows, tensor.cols, tensor.stride};
}

// Element (i, j) of a parameter in its stack of contiguous matrices with rows <= cols.
double stacked(const std::vector<float>& stack, const Shape& shape, std::int64_t matrix, std::int64_t i,
               std::int64_t j) {
  const std::int64_t within = shape.rows > shape.cols ? j * shape.rows + i : i * shape.cols + j;
  return static_cast<double>(stack[static_cast<std::size_t>(matrix * shape.rows * shape.cols + within)]);
}

struct Group {
  std::vector<Matrix> matrices;
  std::vector<Matrix> copies;  // bf16
  std::vector<MatrixView> views;

  // working: views have working copies, which hold nothing of use at first.
  Group(const Shape& shape, std::int64_t count, std::uint64_t seed, std::int64_t padding, bool working = false) {
    for (std::int64_t i = 0; i < count; ++i) {
      matrices.push_back(
          Matrix::random(shape.rows, shape.cols, seed + static_cast<std::uint64_t>(i), 1.0, 0.0, padding));
    }
    for (Matrix& matrix : matrices) views.push_back(view(matrix));
    copies.assign(working ? static_cast<std::size_t>(count) : 0,
                  Matrix::filled(shape.rows, shape.cols, 77.0F, padding, DType::bf16));
    for (std::size_t i = 0; i < copies.size(); ++i) views[i].working = copies[i].tensor().bf16();
  }

  void expect_copies_are_the_rounded_matrices() const {
    for (std::size_t m = 0; m < matrices.size(); ++m) {
      const Matrix& master = matrices[m];
      for (std::int64_t i = 0; i < master.rows(); ++i) {
        for (std::int64_t j = 0; j < master.cols(); ++j) {
          ASSERT_EQ(copies[m].at(i, j), to_float(to_bf16(master.at(i, j))))
              << master.rows() << "x" << master.cols() << " at " << i << ", " << j;
        }
      }
    }
  }
};

std::vector<float*> pointers(std::vector<std::vector<float>>& buffers) {
  std::vector<float*> result;
  for (std::vector<float>& buffer : buffers) result.push_back(buffer.data());
  return result;
}

TEST(MatrixMomentum, every_rule_agrees_with_its_formula) {
  constexpr std::int64_t kCount = 3;
  constexpr float kClip = 0.25F;
  MatrixOpsHarness harness;
  for (const Shape& shape : kShapes) {
    for (const MomentumKind kind : {MomentumKind::none, MomentumKind::ema, MomentumKind::heavy}) {
      for (const bool nesterov : {false, true}) {
        const MomentumRule rule{kind, 0.9F, nesterov};
        Group gradients(shape, kCount, 10, 3);
        const std::int64_t elements = shape.rows * shape.cols;
        std::vector<std::vector<float>> momentum;
        for (std::uint64_t i = 0; i < kCount; ++i) momentum.push_back(random_floats(elements, 20 + i));
        const std::vector<std::vector<float>> before = momentum;
        std::vector<float> stack(static_cast<std::size_t>(kCount * elements));
        const std::vector<float*> buffers =
            kind == MomentumKind::none ? std::vector<float*>(kCount, nullptr) : pointers(momentum);
        harness.ops().momentum_to_stack(harness.stream(), rule, {&kClip, nullptr}, gradients.views, buffers,
                                        stack.data());
        const double mu = static_cast<double>(rule.mu);
        for (std::int64_t m = 0; m < kCount; ++m) {
          for (std::int64_t i = 0; i < shape.rows; ++i) {
            for (std::int64_t j = 0; j < shape.cols; ++j) {
              const auto at = static_cast<std::size_t>(i * shape.cols + j);
              const auto matrix = static_cast<std::size_t>(m);
              const double g = 0.25 * static_cast<double>(gradients.matrices[matrix].at(i, j));
              double b = static_cast<double>(before[matrix][at]);
              double u = g;
              if (kind == MomentumKind::ema) {
                b = b + (1.0 - mu) * (g - b);
                u = nesterov ? g + mu * (b - g) : b;
              } else if (kind == MomentumKind::heavy) {
                b = mu * b + g;
                u = nesterov ? g + mu * b : b;
              }
              ASSERT_NEAR(stacked(stack, shape, m, i, j), u, 2e-6) << shape.rows << "x" << shape.cols;
              ASSERT_NEAR(static_cast<double>(momentum[matrix][at]), b, 2e-6) << shape.rows << "x" << shape.cols;
            }
          }
        }
      }
    }
  }
}

TEST(MatrixMomentum, without_a_clip_factor_the_gradient_enters_as_it_is) {
  MatrixOpsHarness harness;
  Group gradients({4, 6}, 1, 1, 0);
  std::vector<float> stack(24);
  harness.ops().momentum_to_stack(harness.stream(), {MomentumKind::none, 0.0F, false}, {}, gradients.views, {},
                                  stack.data());
  for (std::int64_t i = 0; i < 24; ++i)
    EXPECT_EQ(stack[static_cast<std::size_t>(i)], gradients.matrices[0].at(i / 6, i % 6));
}

TEST(MatrixMomentum, a_closed_gate_leaves_everything_as_it_was) {
  MatrixOpsHarness harness;
  const std::int32_t closed = 0;
  const float clip = std::nanf("");
  const StepGate gate{&clip, &closed};
  for (const Shape& shape : {Shape{8, 12}, Shape{12, 8}}) {
    Group gradients(shape, 1, 1, 0), parameters(shape, 1, 2, 0, true);
    const Matrix parameter = parameters.matrices[0], copy = parameters.copies[0];
    std::vector<std::vector<float>> momentum = {random_floats(96, 3)};
    std::vector<float> stack = random_floats(96, 4);
    const std::vector<std::vector<float>> momentum_before = momentum;
    const std::vector<float> stack_before = stack;
    const std::vector<float> scales = {1.0F}, basis = random_floats(16, 5), factor = random_floats(24, 6);
    harness.ops().momentum_to_stack(harness.stream(), {}, gate, gradients.views, pointers(momentum), stack.data());
    harness.ops().update_dense(harness.stream(), {0.1F, 0.1F}, gate, stack.data(), scales, parameters.views);
    harness.ops().update_factors(harness.stream(), {0.1F, 0.1F}, gate, 2, basis.data(), factor.data(), scales,
                                 parameters.views);
    EXPECT_EQ(momentum, momentum_before);
    EXPECT_EQ(stack, stack_before);
    EXPECT_TRUE(parameters.matrices[0].same_bits(parameter));
    EXPECT_TRUE(parameters.copies[0].same_bits(copy));
  }
}

// A small step, so that decay and step both show; expected in double from the same O.
void expect_updated(const Group& parameters, const Group& before, const Shape& shape, const std::vector<Dense>& o,
                    const std::vector<float>& scales) {
  for (std::size_t m = 0; m < o.size(); ++m) {
    std::vector<double> expected;
    for (std::int64_t i = 0; i < shape.rows; ++i) {
      for (std::int64_t j = 0; j < shape.cols; ++j) {
        const double direction = shape.rows > shape.cols ? o[m](j, i) : o[m](i, j);
        expected.push_back((1.0 - 0.05 * 0.2) * static_cast<double>(before.matrices[m].at(i, j)) -
                           0.05 * static_cast<double>(scales[m]) * direction);
      }
    }
    expect_close(parameters.matrices[m], expected, 2e-6, std::to_string(shape.rows) + "x" + std::to_string(shape.cols));
  }
}

TEST(MatrixUpdate, a_dense_direction_decays_and_steps_every_parameter_and_its_working_copy) {
  constexpr std::int64_t kCount = 3;
  MatrixOpsHarness harness;
  const std::vector<float> scales = {1.0F, 0.5F, 2.0F};
  for (const Shape& shape : kShapes) {
    Group parameters(shape, kCount, 30, 5, true);
    const Group before = parameters;
    const std::int64_t rows = std::min(shape.rows, shape.cols), cols = std::max(shape.rows, shape.cols);
    std::vector<Dense> o;
    std::vector<float> stack;
    for (std::uint64_t m = 0; m < kCount; ++m) {
      o.push_back(rounded(gaussian(rows, cols, 40 + m)));
      const std::vector<float> values = floats(o.back());
      stack.insert(stack.end(), values.begin(), values.end());
    }
    harness.ops().update_dense(harness.stream(), {0.05F, 0.2F}, {}, stack.data(), scales, parameters.views);
    expect_updated(parameters, before, shape, o, scales);
    parameters.expect_copies_are_the_rounded_matrices();
  }
}

TEST(MatrixUpdate, factors_step_as_their_product_does_and_renew_the_working_copies) {
  constexpr std::int64_t kCount = 3;
  const std::vector<float> scales = {1.0F, 0.5F, 2.0F};
  for (const int threads : {2, 4}) {  // one matrix a thread, and one after the other
    const Threads guard(threads);
    MatrixOpsHarness harness;
    std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
    shapes.insert(shapes.end(), {{600, 1100}, {1100, 600}});
    for (const Shape& shape : shapes) {
      Group parameters(shape, kCount, 50, 5, true);
      const Group before = parameters;
      const std::int64_t rows = std::min(shape.rows, shape.cols), cols = std::max(shape.rows, shape.cols);
      const std::int64_t rank = std::min<std::int64_t>((rows + 3) / 4, 9);
      std::vector<Dense> o;
      std::vector<float> basis, factor;
      for (std::uint64_t m = 0; m < kCount; ++m) {
        const std::vector<float> q = random_floats(rows * rank, 60 + m), z = random_floats(rank * cols, 70 + m);
        o.push_back(product(dense(q, rows, rank), dense(z, rank, cols)));
        basis.insert(basis.end(), q.begin(), q.end());
        factor.insert(factor.end(), z.begin(), z.end());
      }
      harness.ops().update_factors(harness.stream(), {0.05F, 0.2F}, {}, rank, basis.data(), factor.data(), scales,
                                   parameters.views);
      expect_updated(parameters, before, shape, o, scales);
      parameters.expect_copies_are_the_rounded_matrices();
    }
  }
}

TEST(MatrixUpdate, a_group_may_mix_a_shape_with_its_transpose) {
  MatrixOpsHarness harness;
  const std::vector<float> scales = {1.0F, 0.5F};
  for (const Shape& shape : {Shape{37, 53}, Shape{200, 700}}) {
    const Shape flipped{shape.cols, shape.rows};
    const std::int64_t elements = shape.rows * shape.cols, rank = 3;
    const std::vector<float> basis = random_floats(2 * shape.rows * rank, 80);
    const std::vector<float> factor = random_floats(2 * rank * shape.cols, 81);
    // What the two matrices become in one group, and each in a group of its own.
    const auto stepped = [&](bool together) {
      Group wide(shape, 1, 82, 3), tall(flipped, 1, 83, 2, true);  // only one with a working copy
      std::vector<std::vector<float>> momentum = {random_floats(elements, 84), random_floats(elements, 85)};
      const std::vector<float*> buffers = pointers(momentum);
      std::vector<float> stack(static_cast<std::size_t>(2 * elements));
      const std::vector<MatrixView> views = {tall.views[0], wide.views[0]};
      const std::size_t size = together ? 2 : 1;
      for (std::size_t i = 0; i < 2; i += size) {
        const std::span<const MatrixView> group(views.data() + i, size);
        const auto at = static_cast<std::int64_t>(i);
        float* const part = stack.data() + at * elements;
        const std::span<const float> part_scales(scales.data() + i, size);
        harness.ops().momentum_to_stack(harness.stream(), {}, {}, group, std::span(buffers).subspan(i, size), part);
        harness.ops().update_dense(harness.stream(), {0.05F, 0.2F}, {}, part, part_scales, group);
        harness.ops().update_factors(harness.stream(), {0.05F, 0.2F}, {}, rank, basis.data() + at * shape.rows * rank,
                                     factor.data() + at * rank * shape.cols, part_scales, group);
      }
      tall.expect_copies_are_the_rounded_matrices();
      std::vector<double> all = wide.matrices[0].values();
      for (const double value : tall.matrices[0].values()) all.push_back(value);
      for (const auto& buffer : momentum) all.insert(all.end(), buffer.begin(), buffer.end());
      all.insert(all.end(), stack.begin(), stack.end());
      return all;
    };
    expect_close(stepped(true), stepped(false), 1e-6, "mixed", shape.cols);
  }
}

TEST(MatrixUpdate, matrices_of_different_shapes_in_one_group_are_refused) {
  MatrixOpsHarness harness;
  Group group({4, 6}, 1, 1, 0), other({4, 7}, 1, 2, 0);
  const std::vector<MatrixView> mixed = {group.views[0], other.views[0]};
  std::vector<float> stack(64);
  const std::vector<float> scales = {1.0F, 1.0F};
  EXPECT_THROW(harness.ops().update_dense(harness.stream(), {0.1F, 0.0F}, {}, stack.data(), scales, mixed),
               std::logic_error);
  EXPECT_THROW(
      harness.ops().momentum_to_stack(harness.stream(), {MomentumKind::none, 0.0F, false}, {}, mixed, {}, stack.data()),
      std::logic_error);
}

TEST(MatrixGroups, a_group_keeps_every_thread_busy_without_unbounded_memory) {
  const Threads guard(4);
  MatrixOpsHarness harness;
  EXPECT_EQ(harness.ops().preferred_group(768, 768), 4);
  EXPECT_EQ(harness.ops().preferred_group(64, 64) % 4, 0);
  EXPECT_GT(harness.ops().preferred_group(64, 64), 4);
  EXPECT_EQ(harness.ops().preferred_group(8192, 28672), 1);
}

}  // namespace
}  // namespace polaron::test
