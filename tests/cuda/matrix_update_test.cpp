// Momentum into the stack, and the steps out of it, on every machine against double precision.
#include <cstring>
#include <list>

#include "matrix_family.h"

namespace polaron::test {
namespace {

struct Shape {
  std::int64_t rows, cols, padding;
  std::int64_t elements() const { return rows * cols; }
  bool tall() const { return rows > cols; }
};
// Wide, tall, square, single rows and columns, around the tiles' edges; packs of four, and not for one reason each.
constexpr Shape kShapes[] = {{37, 53, 3},  {53, 37, 5},  {40, 40, 0}, {1, 5, 0},    {5, 1, 2},    {1, 1, 0},
                             {64, 128, 4}, {132, 68, 0}, {68, 72, 3}, {65, 131, 0}, {129, 66, 1}, {72, 67, 1}};

std::string text_of(const Shape& shape) { return std::to_string(shape.rows) + "x" + std::to_string(shape.cols); }

// Element (i, j) of parameter m in a stack of matrices with rows <= cols.
std::int64_t place_in_stack(const Shape& shape, std::int64_t m, std::int64_t i, std::int64_t j) {
  return m * shape.elements() + (shape.tall() ? j * shape.rows + i : i * shape.cols + j);
}

// Parameters or gradients in a machine's memory, with working copies where asked for.
struct Group {
  std::vector<Shape> shapes;
  std::vector<Matrix> before;
  std::list<Array> arrays, copies;
  std::vector<MatrixView> views;

  void add(const Machine& machine, const Shape& shape, std::uint64_t seed, bool working = false) {
    shapes.push_back(shape);
    before.push_back(Matrix::random(shape.rows, shape.cols, seed));
    arrays.emplace_back(machine, before.back(), DType::f32, shape.padding);
    const Tensor& tensor = arrays.back();
    views.push_back({tensor.f32(), tensor.rows, tensor.cols, tensor.stride});
    if (!working) return;
    copies.emplace_back(machine, Matrix::filled(shape.rows, shape.cols, 77.0F), DType::bf16, shape.padding);
    views.back().working = copies.back().tensor().bf16();
  }
  std::int64_t elements() const { return static_cast<std::int64_t>(shapes.size()) * shapes[0].elements(); }
};

class MatrixUpdates : public MatrixFamily {
 protected:
  // Steps the group along o, a stack, and compares with W = (1 - lr decay) W - lr scale O. `step` runs the op.
  template <class Step>
  void expect_step(Group& group, const std::vector<float>& scales, const Doubles& o, Step&& step) {
    const MatrixOps::UpdateRule rule{0.05F, 0.2F};
    step(rule);
    auto array = group.arrays.begin();
    auto copy = group.copies.begin();
    for (std::size_t m = 0; m < group.views.size(); ++m, ++array) {
      const Shape& shape = group.shapes[m];
      Doubles expected;
      for (std::int64_t i = 0; i < shape.rows; ++i) {
        for (std::int64_t j = 0; j < shape.cols; ++j) {
          const double direction =
              o[static_cast<std::size_t>(place_in_stack(shape, static_cast<std::int64_t>(m), i, j))];
          expected.push_back((1.0 - 0.05 * 0.2) * static_cast<double>(group.before[m].at(i, j)) -
                             0.05 * static_cast<double>(scales[m]) * direction);
        }
      }
      const Doubles actual = array->values();
      expect_close(actual, expected, 2e-6, text_of(shape), shape.cols);
      if (group.views[m].working == nullptr) continue;
      const Doubles working = (copy++)->values();
      for (std::size_t e = 0; e < actual.size(); ++e)
        ASSERT_EQ(working[e], static_cast<double>(to_float(to_bf16(static_cast<float>(actual[e]))))) << text_of(shape);
    }
  }

  // Compares a step of momentum with its formula.
  void expect_momentum(const MomentumRule& rule, const Group& gradients) {
    const float clip = 0.25F;
    const Values device_clip(machine, {clip});
    const std::size_t count = gradients.views.size();
    std::vector<std::vector<float>> before;
    std::list<Values> momentum;
    std::vector<float*> buffers;
    for (std::size_t m = 0; m < count; ++m) {
      before.push_back(random_floats(gradients.shapes[m].elements(), 20 + m));
      momentum.emplace_back(machine, before[m]);
      buffers.push_back(momentum.back().data());
    }
    const Values stack(machine, std::vector<float>(static_cast<std::size_t>(gradients.elements()), 9.0F));
    ops().momentum_to_stack(machine.stream(), rule, {device_clip.data(), nullptr}, gradients.views, buffers,
                            stack.data());
    Doubles u(static_cast<std::size_t>(gradients.elements()));
    const double mu = static_cast<double>(rule.mu);
    auto buffer = momentum.begin();
    for (std::size_t m = 0; m < count; ++m, ++buffer) {
      const Shape& shape = gradients.shapes[m];
      Doubles b = to_doubles(before[m]);
      for (std::int64_t i = 0; i < shape.rows; ++i) {
        for (std::int64_t j = 0; j < shape.cols; ++j) {
          const double g = static_cast<double>(clip) * static_cast<double>(gradients.before[m].at(i, j));
          double& next = b[static_cast<std::size_t>(i * shape.cols + j)];
          double& direction = u[static_cast<std::size_t>(place_in_stack(shape, static_cast<std::int64_t>(m), i, j))];
          direction = g;
          if (rule.kind == MomentumKind::ema) {
            next += (1.0 - mu) * (g - next);
            direction = rule.nesterov ? g + mu * (next - g) : next;
          } else if (rule.kind == MomentumKind::heavy) {
            next = mu * next + g;
            direction = rule.nesterov ? g + mu * next : next;
          }
        }
      }
      expect_close(to_doubles(buffer->values()), b, 2e-6, "momentum of " + text_of(shape), shape.cols);
    }
    expect_close(to_doubles(stack.values()), u, 2e-6, "stack of " + text_of(gradients.shapes[0]),
                 gradients.shapes[0].cols);
  }
};

TEST_P(MatrixUpdates, every_momentum_rule_agrees_with_its_formula) {
  for (const Shape& shape : kShapes) {
    Group gradients;
    for (std::uint64_t i = 0; i < 3; ++i) gradients.add(machine, shape, 10 + i);
    for (const MomentumKind kind : {MomentumKind::none, MomentumKind::ema, MomentumKind::heavy}) {
      for (const bool nesterov : {false, true}) expect_momentum({kind, 0.9F, nesterov}, gradients);
    }
  }
}

TEST_P(MatrixUpdates, without_a_clip_factor_the_gradient_enters_as_it_is) {
  Group gradients;
  gradients.add(machine, {4, 6, 0}, 1);
  const Values stack(machine, std::vector<float>(24));
  ops().momentum_to_stack(machine.stream(), {MomentumKind::none, 0.0F, false}, {}, gradients.views, {}, stack.data());
  EXPECT_EQ(to_doubles(stack.values()), gradients.before[0].values());
}

TEST_P(MatrixUpdates, a_dense_direction_decays_and_steps_every_parameter_and_its_working_copy) {
  const std::vector<float> scales = {1.0F, 0.5F, 2.0F};
  for (const Shape& shape : kShapes) {
    Group parameters;
    for (std::uint64_t m = 0; m < 3; ++m) parameters.add(machine, shape, 30 + m, true);
    const std::vector<float> o = random_floats(parameters.elements(), 40);
    const Values stack(machine, o);
    expect_step(parameters, scales, to_doubles(o), [&](const MatrixOps::UpdateRule& rule) {
      ops().update_dense(machine.stream(), rule, {}, stack.data(), scales, parameters.views);
    });
  }
}

TEST_P(MatrixUpdates, factors_step_as_their_product_does) {
  const std::vector<float> scales = {1.0F, 0.5F, 2.0F};
  for (const Shape& shape : kShapes) {
    Group parameters;
    for (std::uint64_t m = 0; m < 3; ++m) parameters.add(machine, shape, 50 + m, true);
    const std::int64_t rows = std::min(shape.rows, shape.cols), cols = std::max(shape.rows, shape.cols);
    const std::int64_t rank = std::min<std::int64_t>((rows + 3) / 4, 9);
    const std::vector<float> q = random_floats(3 * rows * rank, 60), z = random_floats(3 * rank * cols, 70);
    Doubles o;
    for (std::int64_t m = 0; m < 3; ++m) {
      const Dense direction = product(matrix_of(q, m, rows, rank), matrix_of(z, m, rank, cols));
      o.insert(o.end(), direction.data.begin(), direction.data.end());
    }
    const Values basis(machine, q), factor(machine, z);
    expect_step(parameters, scales, o, [&](const MatrixOps::UpdateRule& rule) {
      ops().update_factors(machine.stream(), rule, {}, rank, basis.data(), factor.data(), scales, parameters.views);
    });
  }
}

TEST_P(MatrixUpdates, a_group_may_mix_a_shape_with_its_transpose_and_be_large) {
  constexpr std::size_t kCount = 101;  // more than a launch takes
  const Shape wide{5, 12, 0}, tall{12, 5, 3};
  Group gradients, parameters;
  std::vector<float> scales;
  for (std::size_t m = 0; m < kCount; ++m) {
    gradients.add(machine, m % 3 == 1 ? tall : wide, m);
    parameters.add(machine, m % 3 == 1 ? tall : wide, 200 + m, m % 2 == 0);
    scales.push_back(0.5F + 0.01F * static_cast<float>(m));
  }
  expect_momentum({}, gradients);
  const std::vector<float> o = random_floats(parameters.elements(), 80);
  const Values stack(machine, o);
  expect_step(parameters, scales, to_doubles(o), [&](const MatrixOps::UpdateRule& rule) {
    ops().update_dense(machine.stream(), rule, {}, stack.data(), scales, parameters.views);
  });
}

TEST_P(MatrixUpdates, a_closed_gate_leaves_every_bit_as_it_was) {
  const Values clip(machine, {std::nanf("")});
  const Array apply(machine, std::vector<std::int32_t>{0});
  const StepGate gate{clip.data(), apply.tensor().i32()};
  const std::vector<float> scales = {1.0F};
  for (const Shape& shape : {Shape{8, 12, 4}, Shape{12, 8, 1}}) {
    Group gradients, parameters;
    gradients.add(machine, shape, 1);
    parameters.add(machine, shape, 2, true);
    std::vector<float> old = random_floats(96, 3);
    old[5] = -0.0F;
    const Values momentum(machine, old), stack(machine, old), zeros(machine, std::vector<float>(96, -0.0F));
    const Values basis(machine, random_floats(16, 5)), factor(machine, random_floats(24, 6));
    std::vector<MatrixView> negative_zeros = {{zeros.data(), shape.rows, shape.cols, shape.cols}};
    const auto bits = [&] {
      return joined(
          {&momentum.array(), &stack.array(), &zeros.array(), &parameters.arrays.front(), &parameters.copies.front()});
    };
    const std::vector<std::byte> before = bits();
    float* const buffer = momentum.data();
    ops().momentum_to_stack(machine.stream(), {}, gate, gradients.views, std::span(&buffer, 1), stack.data());
    for (const std::vector<MatrixView>& views : {parameters.views, negative_zeros}) {
      ops().update_dense(machine.stream(), {0.1F, 0.1F}, gate, stack.data(), scales, views);
      ops().update_factors(machine.stream(), {0.1F, 0.1F}, gate, 2, basis.data(), factor.data(), scales, views);
    }
    EXPECT_TRUE(bits() == before) << text_of(shape);
  }
}

TEST_P(MatrixUpdates, an_open_gate_lets_the_step_through) {
  const Array apply(machine, std::vector<std::int32_t>{1});
  Group parameters;
  parameters.add(machine, {8, 12, 0}, 2);
  const std::vector<float> o = random_floats(96, 3), scales = {1.5F};
  const Values stack(machine, o);
  expect_step(parameters, scales, to_doubles(o), [&](const MatrixOps::UpdateRule& rule) {
    ops().update_dense(machine.stream(), rule, {nullptr, apply.tensor().i32()}, stack.data(), scales, parameters.views);
  });
}

TEST_P(MatrixUpdates, matrices_of_different_shapes_in_one_group_are_refused) {
  Group group;
  group.add(machine, {4, 6, 0}, 1);
  group.add(machine, {4, 7, 0}, 2);
  const Values stack(machine, std::vector<float>(64));
  const std::vector<float> scales = {1.0F, 1.0F};
  EXPECT_THROW(ops().update_dense(machine.stream(), {0.1F, 0.0F}, {}, stack.data(), scales, group.views),
               std::logic_error);
  EXPECT_THROW(
      ops().momentum_to_stack(machine.stream(), {MomentumKind::none, 0.0F, false}, {}, group.views, {}, stack.data()),
      std::logic_error);
}

INSTANTIATE_TEST_SUITE_P(Places, MatrixUpdates, testing::ValuesIn(places()), name_of_place);

TEST(CudaMatrixUpdates, give_the_same_bits_for_every_order_of_threads) {
  expect_same_bits_in_all_orders([](const Machine& machine) {
    const Values gradient(machine, random_floats(70 * 90, 1)), momentum(machine, random_floats(70 * 90, 2));
    const Values stack(machine, random_floats(70 * 90, 3));
    const MatrixView views[] = {{gradient.data(), 90, 70, 70}};
    float* const buffer = momentum.data();
    const float scale = 0.3F;
    MatrixOps& ops = machine.ops().matrix();
    ops.momentum_to_stack(machine.stream(), {}, {}, views, std::span(&buffer, 1), stack.data());
    ops.update_dense(machine.stream(), {0.1F, 0.2F}, {}, stack.data(), std::span(&scale, 1), views);
    return joined({&gradient.array(), &momentum.array(), &stack.array()});
  });
}

}  // namespace
}  // namespace polaron::test
