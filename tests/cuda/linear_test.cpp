// Linear layers against double precision. Where a result of bf16 is one sum, rounded, it is half a unit in the last
// place off; what passes through memory in between (the gradient of activated values, on CUDA) is rounded twice.
#include <array>
#include <cmath>
#include <stdexcept>

#include "cuda/families.h"
#include "emulation/cublaslt.h"
#include "emulation/runtime.h"
#include "family.h"
#include "ops/activation_reference.h"

namespace polaron::test {
namespace {

constexpr double kForward = 5e-6, kBackward = 1e-5;
constexpr double kRounded = 1.0 / 256.0;  // bf16
const Activation kActivations[] = {Activation::gelu_tanh, Activation::gelu_erf, Activation::relu2, Activation::swiglu};

struct Sizes {
  std::int64_t rows, in, out, padding;  // padding between the rows of all matrices
};
// Odd ones, and ones that the library's epilogues take; strided ones of both sorts; the last has several strips of
// rows.
const Sizes kSizes[] = {{1, 1, 1, 0},   {3, 5, 1, 0},    {5, 3, 33, 3},   {7, 171, 5, 1},
                        {33, 8, 40, 0}, {9, 24, 16, 8},  {64, 64, 64, 0}, {65, 32, 72, 16},
                        {2, 1, 300, 0}, {300, 16, 8, 0}, {133, 9, 11, 2}};

class LinearFamily : public Family {
 protected:
  template <class Body>
  void for_cases(Body&& body) const {
    for_types([&](DType type) {
      for (const Sizes& s : kSizes) {
        const testing::ScopedTrace trace(__FILE__, __LINE__,
                                         std::to_string(s.rows) + " rows, " + std::to_string(s.in) + " -> " +
                                             std::to_string(s.out) + ", padding " + std::to_string(s.padding));
        body(type, s);
      }
    });
  }
  LinearOps& ops() const { return machine.ops().linear(); }
  Stream& stream() const { return machine.stream(); }
};

// [rows, cols] of sum over k of a(i, k) b(k, j).
template <class A, class B>
Doubles product(std::int64_t rows, std::int64_t cols, std::int64_t depth, A&& a, B&& b) {
  Doubles result;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < depth; ++k) sum += static_cast<double>(a(i, k)) * static_cast<double>(b(k, j));
      result.push_back(sum);
    }
  }
  return result;
}
Doubles forward_product(const Matrix& x, const Matrix& weight) {
  return product(
      x.rows(), weight.rows(), x.cols(), [&](auto i, auto k) { return x.at(i, k); },
      [&](auto k, auto j) { return weight.at(j, k); });
}
Doubles input_gradient(const Matrix& d_out, const Matrix& weight) {
  return product(
      d_out.rows(), weight.cols(), d_out.cols(), [&](auto i, auto k) { return d_out.at(i, k); },
      [&](auto k, auto j) { return weight.at(k, j); });
}
Matrix random_of(DType type, std::int64_t rows, std::int64_t cols, std::uint64_t seed, double deviation = 1.0) {
  return rounded_to(type, Matrix::random(rows, cols, seed, deviation));
}
double deviation_for(std::int64_t depth) { return 1.0 / std::sqrt(static_cast<double>(depth)); }

TEST_P(LinearFamily, forward_is_x_times_transposed_weight_plus_bias) {
  for_cases([&](DType type, const Sizes& s) {
    const Matrix x = random_of(type, s.rows, s.in, 1), weight = random_of(type, s.out, s.in, 2);
    const Matrix bias = random_of(type, 1, s.out, 3);
    const Array input(machine, x, type, s.padding), weights(machine, weight, type, s.padding), biases(machine, bias);
    for (const bool biased : {false, true}) {
      const Array out(machine, Matrix(s.rows, s.out), type, s.padding);
      ops().forward(stream(), input, weights, biased ? biases.tensor() : Tensor{}, Activation::none, out, {});
      Doubles expected = forward_product(x, weight);
      for (std::size_t i = 0; biased && i < expected.size(); ++i) {
        expected[i] += static_cast<double>(bias.at(0, static_cast<std::int64_t>(i) % s.out));
      }
      expect_close(out.values(), expected, kForward, "out", s.out, 0.0, type);
    }
  });
}

// The working copy of a bias is that of a weight: fp32 numbers, rounded to the activations' type at most once.
TEST_P(LinearFamily, a_bias_is_rounded_at_most_to_the_type_of_the_output) {
  const Matrix bias = Matrix::random(1, 64, 3);
  const Array biases(machine, bias);
  for_types([&](DType type) {
    const Array input(machine, Matrix(2, 8), type), weights(machine, random_of(type, 64, 8, 1), type);
    const Array out(machine, Matrix(2, 64), type);
    ops().forward(stream(), input, weights, biases, Activation::none, out, {});
    Doubles expected = bias.values();
    expected.insert(expected.end(), expected.begin(), expected.begin() + 64);
    expect_close(out.values(), expected, 0.0, "bias alone", 64, 0.0, type);
  });
}

TEST_P(LinearFamily, forward_applies_every_activation_and_keeps_the_pre_activation) {
  for (const Activation activation : kActivations) {
    const bool gated = activation == Activation::swiglu;
    for_cases([&](DType type, const Sizes& s) {
      const std::int64_t width = gated ? 2 * s.out : s.out;
      const Matrix x = random_of(type, s.rows, s.in, 1, deviation_for(s.in)), weight = random_of(type, width, s.in, 2);
      const Matrix bias = random_of(type, 1, width, 3);
      const Array input(machine, x, type, s.padding), weights(machine, weight, type, s.padding), biases(machine, bias);
      for (const bool biased : {true, false}) {
        const Array out(machine, Matrix(s.rows, width), type, s.padding);
        const Array activated(machine, Matrix(s.rows, s.out), type, s.padding);
        const Array again(machine, Matrix(s.rows, s.out), type, s.padding);
        ops().forward(stream(), input, weights, biased ? biases.tensor() : Tensor{}, activation, out, activated);
        Doubles pre = forward_product(x, weight);
        for (std::size_t i = 0; biased && i < pre.size(); ++i) {
          pre[i] += static_cast<double>(bias.at(0, static_cast<std::int64_t>(i) % width));
        }
        expect_close(out.values(), pre, kForward, "pre-activation", width, 0.0, type);
        // Of what is stored, or of what that was rounded from.
        const Doubles stored = out.values();
        Doubles expected;
        for (std::int64_t r = 0; r < s.rows; ++r) {
          for (std::int64_t c = 0; c < s.out; ++c) {
            const std::size_t at = static_cast<std::size_t>(r * width + c), up = at + static_cast<std::size_t>(s.out);
            expected.push_back(reference_activation(activation, stored[at], gated ? stored[up] : 0.0));
          }
        }
        const double rounding = type == DType::bf16 && activation == Activation::gelu_tanh ? kRounded : 0.0;
        expect_close(activated.values(), expected, kForward + rounding, name_of(activation), s.out, 1e-6, type);
        ops().activate(stream(), activation, out, again);
        expect_close(again.values(), expected, kForward, "activate alone", s.out, 1e-6, type);
      }
    });
  }
}

TEST_P(LinearFamily, backward_input_is_d_out_times_weight_overwritten_or_added) {
  for_cases([&](DType type, const Sizes& s) {
    const Matrix d_out = random_of(type, s.rows, s.out, 1), weight = random_of(type, s.out, s.in, 2);
    const Matrix before = random_of(type, s.rows, s.in, 3);
    const Array gradient(machine, d_out, type, s.padding), weights(machine, weight, type, s.padding);
    for (const bool accumulate : {false, true}) {
      const Array d_x(machine, before, type, s.padding);
      ops().backward_input(stream(), gradient, weights, d_x, accumulate);
      Doubles expected = input_gradient(d_out, weight);
      const Doubles start = before.values();
      for (std::size_t i = 0; accumulate && i < expected.size(); ++i) expected[i] += start[i];
      expect_close(d_x.values(), expected, kBackward, "d_x", s.in, 0.0, type);
    }
  });
}

TEST_P(LinearFamily, backward_input_activation_multiplies_by_the_derivative_also_in_place) {
  for (const Activation activation :
       {Activation::none, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu2, Activation::swiglu}) {
    const bool gated = activation == Activation::swiglu;
    for_cases([&](DType type, const Sizes& s) {
      const std::int64_t width = gated ? 2 * s.in : s.in;
      const Matrix d_out = random_of(type, s.rows, s.out, 1), weight = random_of(type, s.out, s.in, 2);
      const Matrix pre = random_of(type, s.rows, width, 3);
      const Doubles d_activated = input_gradient(d_out, weight);
      Doubles expected(static_cast<std::size_t>(s.rows * width));
      for (std::int64_t r = 0; r < s.rows; ++r) {
        for (std::int64_t c = 0; c < s.in; ++c) {
          const double d = d_activated[static_cast<std::size_t>(r * s.in + c)], x = static_cast<double>(pre.at(r, c));
          const double up = gated ? static_cast<double>(pre.at(r, s.in + c)) : 0.0;
          const auto at = static_cast<std::size_t>(r * width + c);
          expected[at] = d * reference_derivative(activation, x, up);
          if (gated) expected[at + static_cast<std::size_t>(s.in)] = d * reference_activation(activation, x, 1.0);
        }
      }
      const Array gradient(machine, d_out, type, s.padding), weights(machine, weight, type, s.padding);
      const Array before(machine, pre, type, s.padding), d_pre(machine, Matrix(s.rows, width), type, s.padding);
      const Array scratch(machine, Matrix(s.rows, s.in), type, s.padding);
      const double allowed = kBackward + (type == DType::bf16 ? kRounded : 0.0);
      ops().backward_input_activation(stream(), gradient, weights, activation, before, d_pre, scratch);
      expect_close(d_pre.values(), expected, allowed, name_of(activation), width, 0.0, type);
      if (activation == Activation::none) return;
      EXPECT_EQ(before.values(), pre.values());
      ops().backward_input_activation(stream(), gradient, weights, activation, before, before,
                                      gated ? scratch.tensor() : Tensor{});
      expect_close(before.values(), expected, allowed, std::string("in place, ") + name_of(activation), width, 0.0,
                   type);
    });
  }
}

TEST_P(LinearFamily, backward_weight_sums_over_rows_in_fp32_overwritten_or_added) {
  for_cases([&](DType type, const Sizes& s) {
    const Matrix d_out = random_of(type, s.rows, s.out, 1), x = random_of(type, s.rows, s.in, 2);
    const Matrix weight_before = Matrix::random(s.out, s.in, 3), bias_before = Matrix::random(1, s.out, 4);
    const Array gradient(machine, d_out, type, s.padding), input(machine, x, type, s.padding);
    for (const bool accumulate : {false, true}) {
      const Array weight_grad(machine, weight_before, DType::f32, s.padding), bias_grad(machine, bias_before);
      const Array without(machine, weight_before, DType::f32, s.padding);
      ops().backward_weight(stream(), gradient, input, weight_grad, bias_grad, accumulate);
      ops().backward_weight(stream(), gradient, input, without, {}, accumulate);
      const auto left = [&](auto o, auto r) { return d_out.at(r, o); };
      Doubles weights = product(s.out, s.in, s.rows, left, [&](auto r, auto i) { return x.at(r, i); });
      Doubles biases = product(s.out, 1, s.rows, left, [](auto, auto) { return 1.0F; });
      const Doubles weights_were = weight_before.values(), biases_were = bias_before.values();
      for (std::size_t i = 0; accumulate && i < weights.size(); ++i) weights[i] += weights_were[i];
      for (std::size_t i = 0; accumulate && i < biases.size(); ++i) biases[i] += biases_were[i];
      expect_close(weight_grad.values(), weights, kBackward, "weight gradient", s.in);
      expect_close(bias_grad.values(), biases, kBackward, "bias gradient", s.out);
      EXPECT_EQ(weight_grad.bits(), without.bits());
    }
  });
}

// As the model calls them: q|k|v side by side in one matrix, the chunks of the head one below the other.
TEST_P(LinearFamily, slices_of_a_packed_matrix_are_read_and_written_in_place) {
  for_types([&](DType type) {
    const Matrix packed = random_of(type, 6, 40, 1), weight = random_of(type, 16, 16, 2);
    const Array all(machine, packed, type), weights(machine, weight, type);
    const Tensor part = all.tensor().row_range(1, 4).column_range(8, 16);
    const Array out(machine, Matrix(6, 40), type);
    ops().forward(stream(), part, weights, {}, Activation::none, out.tensor().row_range(1, 4).column_range(8, 16), {});
    Matrix x(4, 16);
    for (std::int64_t r = 0; r < 4; ++r) {
      for (std::int64_t c = 0; c < 16; ++c) x.at(r, c) = packed.at(r + 1, c + 8);
    }
    const Doubles inner = forward_product(x, weight);
    Doubles expected(6 * 40, 0.0);
    for (std::size_t r = 0; r < 4; ++r) {
      for (std::size_t c = 0; c < 16; ++c) expected[(r + 1) * 40 + c + 8] = inner[r * 16 + c];
    }
    expect_close(out.values(), expected, kForward, "slice", 40, 0.0, type);
  });
}

TEST_P(LinearFamily, a_nan_reaches_every_result_it_belongs_to_and_no_other) {
  for_types([&](DType type) {
    Matrix x = random_of(type, 4, 8, 1);
    x.at(2, 5) = NAN;
    const Array input(machine, x, type), weights(machine, random_of(type, 16, 8, 2), type);
    const Array out(machine, Matrix(4, 16), type), activated(machine, Matrix(4, 16), type);
    ops().forward(stream(), input, weights, {}, Activation::gelu_tanh, out, activated);
    for (const Array* array : {&out, &activated}) {
      const Doubles values = array->values();
      for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(std::isnan(values[i]), i / 16 == 2) << i;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Places, LinearFamily, testing::ValuesIn(places()), name_of_place);

class CudaLinear : public testing::Test {
 protected:
  ~CudaLinear() override { cuda::emulation::fake_cublaslt() = {}; }
};

TEST_F(CudaLinear, gives_the_same_bits_for_every_order_of_threads) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const std::int64_t width : {40, 33}) {
      expect_same_bits_in_all_orders([&](const Machine& machine) {
        const Array x(machine, random_of(type, 200, width, 1), type),
            w(machine, random_of(type, width, width, 2), type);
        const Array bias(machine, Matrix::random(1, width, 3)), out(machine, Matrix(200, width), type);
        const Array activated(machine, Matrix(200, width), type), weight_grad(machine, Matrix(width, width));
        const Array bias_grad(machine, Matrix(1, width));
        LinearOps& ops = machine.ops().linear();
        ops.forward(machine.stream(), x, w, bias, Activation::relu2, out, activated);
        ops.backward_weight(machine.stream(), activated, x, weight_grad, bias_grad, false);
        ops.backward_input_activation(machine.stream(), activated, w, Activation::relu2, out, out, {});
        return joined({&out, &activated, &weight_grad, &bias_grad});
      });
    }
  }
}

// The library may lack the epilogues, and before sm_90 those of GELU are not asked for.
TEST_F(CudaLinear, gives_the_same_with_and_without_the_librarys_epilogues) {
  for (const DType type : {DType::f32, DType::bf16}) {
    const auto run = [&](bool epilogues, int major) {
      cuda::emulation::fake_cublaslt().epilogues = epilogues;
      cuda::emulation::fake_device().major = major;
      const Machine machine{cuda::emulation::Options{}};
      cuda::emulation::fake_device() = {};
      const Array x(machine, random_of(type, 9, 16, 1), type), w(machine, random_of(type, 24, 16, 2), type);
      const Array bias(machine, Matrix::random(1, 24, 3)), out(machine, Matrix(9, 24), type);
      const Array activated(machine, Matrix(9, 24), type), d_pre(machine, Matrix(9, 16), type);
      LinearOps& ops = machine.ops().linear();
      ops.forward(machine.stream(), x, w, bias, Activation::gelu_tanh, out, activated);
      ops.backward_input_activation(machine.stream(), out, w, Activation::gelu_tanh, x, d_pre, {});
      return std::array{out.values(), activated.values(), d_pre.values()};
    };
    const auto fused = run(true, 9);
    for (const auto& other : {run(false, 9), run(true, 8), run(false, 8)}) {
      for (std::size_t i = 0; i < fused.size(); ++i) {
        expect_close(other[i], fused[i], tolerance(type, 1e-6), "result " + std::to_string(i), 8, 0.0, type);
      }
    }
  }
}

TEST_F(CudaLinear, asks_for_the_epilogue_of_gelu_only_where_it_is_fast) {
  for (const auto& [major, type] :
       {std::pair(8, DType::bf16), {9, DType::bf16}, {9, DType::f32}, {10, DType::bf16}, {12, DType::bf16}}) {
    cuda::emulation::fake_device().major = major;
    const Machine machine{cuda::emulation::Options{}};
    cuda::emulation::fake_device() = {};
    const Array x(machine, random_of(type, 8, 16, 1), type), w(machine, random_of(type, 24, 16, 2), type);
    const Array out(machine, Matrix(8, 24), type), activated(machine, Matrix(8, 24), type);
    machine.ops().linear().forward(machine.stream(), x, w, {}, Activation::gelu_tanh, out, activated);
    machine.stream().synchronize();
    const bool fast = type == DType::bf16 && major != 8 && major != 12;
    EXPECT_EQ(cuda::emulation::fake_cublaslt().last_epilogue,
              static_cast<unsigned>(fast ? CUBLASLT_EPILOGUE_GELU_AUX : CUBLASLT_EPILOGUE_DEFAULT))
        << major << ", " << name_of(type);
  }
}

TEST_F(CudaLinear, turns_a_pre_activation_into_its_gradient_in_chunks_of_any_size) {
  const Machine machine{cuda::emulation::Options{.lazy_streams = true}};
  cuda::Gemm gemm(machine.device());
  const Matrix d_out = random_of(DType::f32, 700, 8, 1), weight = random_of(DType::f32, 8, 16, 2);
  const Matrix values = random_of(DType::f32, 700, 16, 3);
  const Array gradient(machine, d_out), weights(machine, weight), whole(machine, Matrix(700, 16));
  const Array before(machine, values);
  const auto run = [&](std::int64_t chunk_bytes, const Array& pre, const Array& d_pre) {
    cuda::make_linear_ops(machine.device(), gemm, chunk_bytes)
        ->backward_input_activation(machine.stream(), gradient, weights, Activation::gelu_tanh, pre, d_pre, {});
  };
  run(1 << 20, before, whole);
  for (const std::int64_t rows : {1, 70, 256, 300, 699, 1000}) {
    const Array pre(machine, values);
    run(rows * 16 * 4, pre, pre);
    expect_close(pre.values(), whole.values(), 1e-6, std::to_string(rows) + " rows at a time", 16);
  }
}

TEST_F(CudaLinear, refuses_what_the_contract_does_not_have) {
  const Machine machine{cuda::emulation::Options{}};
  LinearOps& ops = machine.ops().linear();
  const Array x(machine, Matrix(2, 8), DType::bf16), w(machine, Matrix(8, 8), DType::bf16), out(machine, Matrix(2, 8));
  const Array pre(machine, Matrix(2, 16), DType::bf16);
  EXPECT_THROW(ops.forward(machine.stream(), x, w, {}, Activation::none, out, {}), std::logic_error);
  EXPECT_THROW(ops.backward_weight(machine.stream(), x, x, w, {}, false), std::logic_error);
  EXPECT_THROW(ops.backward_input_activation(machine.stream(), x, w, Activation::swiglu, pre, pre, {}),
               std::logic_error);
}

}  // namespace
}  // namespace polaron::test
