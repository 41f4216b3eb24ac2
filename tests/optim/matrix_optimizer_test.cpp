// What matrix optimizers do to matrices: full and low rank, blocks, scales, sketches, momentum.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cpu/singular_values.h"
#include "optim/newton_schulz_tables.h"
#include "optim/stepper.h"
#include "support/tiny_model.h"

namespace polaron {
namespace {

using test::matrices_under;
using test::settings_of;
using test::Stepper;

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  return test::distance(a, b) / test::norm_of(b);
}

// Of the difference that steps made in a block.
std::vector<double> singular_values_moved(const Stepper& stepper, const std::vector<float>& before,
                                          const std::vector<float>& after, const std::string& name, std::size_t block) {
  std::vector<float> moved = stepper.block_of(after, name, block);
  const std::vector<float> start = stepper.block_of(before, name, block);
  for (std::size_t i = 0; i < moved.size(); ++i) moved[i] -= start[i];
  const Parameter& p = stepper.table()[stepper.table().index(name)];
  return singular_values(moved, p.blocks[block].rows, p.cols);
}

// One step of low-rank Muon by the ops themselves, with the rank that the optimizer never lets through: all of it.
void step_at_full_rank(Stepper& stepper, const OptimizerSettings& s, const std::vector<float>& gradients) {
  OptimizerSettings full = s;
  full.kind = OptimizerKind::muon;
  const Assignment assignment = assign_optimizers(matrices_under(full), test::tiny_llama(), stepper.table());
  MatrixOps& ops = stepper.backend().matrix();
  Stream& stream = stepper.stream();
  std::vector<float> gradient = gradients;
  for (const MatrixClass& c : assignment.classes) {
    for (const MatrixItem& item : c.items) {
      const Parameter& p = stepper.table()[item.parameter];
      const auto view = [&](float* flat) {
        return MatrixView{flat + p.offset + p.blocks[item.block].row * p.stored_cols, item.rows, item.cols,
                          p.stored_cols};
      };
      const StackShape shape{1, c.rows, c.cols};
      const auto elements = static_cast<std::size_t>(shape.elements());
      std::vector<float> momentum(elements), stack(elements), factor(elements);
      std::vector<float> basis(static_cast<std::size_t>(c.rows * c.rows));
      std::vector<float> scratch(static_cast<std::size_t>(ops.newton_schulz_scratch(shape, DType::f32)));
      const MatrixView g = view(gradient.data()), w = view(stepper.weights_on_device());
      float* const buffer = momentum.data();
      ops.momentum_to_stack(stream, {MomentumKind::ema, static_cast<float>(s.momentum), s.nesterov}, {},
                            std::span(&g, 1), std::span(&buffer, 1), stack.data());
      const PhiloxKey key = make_key(1, RandomPurpose::sketch, 0, static_cast<std::uint32_t>(item.parameter));
      ops.sketch(stream, shape, c.rows, s.sketch == SketchKind::columns ? Sketch::columns : Sketch::gaussian,
                 s.sketch == SketchKind::power ? static_cast<int>(s.power_iterations) : 0, std::span(&key, 1),
                 stack.data(), basis.data());
      ops.orthonormal_basis(stream, 1, c.rows, c.rows,
                            s.basis == BasisKind::cholesky_qr ? BasisMethod::cholesky_qr : BasisMethod::householder,
                            basis.data());
      ops.project(stream, shape, c.rows, basis.data(), stack.data(), factor.data());
      ops.newton_schulz(stream, shape, newton_schulz_spec(s.coefficients), factor.data(), scratch.data());
      ops.update_factors(stream, {static_cast<float>(s.lr), static_cast<float>(s.weight_decay)}, {}, c.rows,
                         basis.data(), factor.data(), std::span(&item.scale, 1), std::span(&w, 1));
    }
  }
}

TEST(MatrixOptimizer, low_rank_muon_at_full_rank_is_muon) {
  for (const test::NamedSettings& named : test::all_settings()) {
    if (named.settings.kind != OptimizerKind::low_rank_muon) continue;
    OptimizerSettings muon = named.settings;
    muon.kind = OptimizerKind::muon;
    Stepper full(test::tiny_llama(), matrices_under(muon)), low_rank(test::tiny_llama(), matrices_under(muon));
    const std::vector<float> before = full.weights();
    const std::vector<float> gradients = test::random_weights(full.table(), 50);
    full.step(0, gradients);
    step_at_full_rank(low_rank, named.settings, gradients);
    for (const Parameter& p : full.table().all()) {
      if (p.role != Role::matrix) continue;
      for (std::size_t b = 0; b < p.blocks.size(); ++b) {
        const std::vector<float> expected = full.block_of(full.weights(), p.name, b);
        const double moved = test::distance(expected, full.block_of(before, p.name, b));
        EXPECT_GT(moved, 0.01);
        EXPECT_LT(test::distance(low_rank.block_of(low_rank.weights(), p.name, b), expected), 5e-5 * moved)
            << named.name << ", " << p.name;
      }
    }
  }
}

TEST(MatrixOptimizer, a_rank_too_large_gives_the_bits_of_muon) {
  OptimizerSettings low_rank = settings_of(OptimizerKind::low_rank_muon);
  low_rank.rank = {32, 1};
  Stepper fallback(test::tiny_llama(), matrices_under(low_rank));
  Stepper muon(test::tiny_llama(), matrices_under(settings_of(OptimizerKind::muon)));
  fallback.run(3);
  muon.run(3);
  EXPECT_EQ(fallback.optimizer().assignment().full_rank.size(), 14U);
  EXPECT_EQ(fallback.weights(), muon.weights());
  EXPECT_EQ(fallback.state(), muon.state());
}

// What q's gradient is changes q's step, and no other's.
TEST(MatrixOptimizer, blocks_of_a_fused_matrix_are_independent) {
  for (const OptimizerKind kind : {OptimizerKind::muon, OptimizerKind::low_rank_muon}) {
    Stepper one(test::tiny_llama(), matrices_under(settings_of(kind)));
    Stepper other(test::tiny_llama(), matrices_under(settings_of(kind)));
    std::vector<float> gradients = test::random_weights(one.table(), 50);
    one.step(0, gradients);
    for (const auto& [name, block] :
         {std::pair{"blocks.0.attention.qkv.weight", 1}, {"blocks.1.mlp.gate_up.weight", 0}}) {
      const Parameter& p = one.table()[one.table().index(name)];
      const MatrixBlock& rows = p.blocks[static_cast<std::size_t>(block)];
      for (std::int64_t i = 0; i < rows.rows; ++i)
        gradients[static_cast<std::size_t>(p.offset + (rows.row + i) * p.stored_cols)] += 3.0F;
    }
    other.step(0, gradients);
    for (const Parameter& p : one.table().all()) {
      for (std::size_t b = 0; b < p.blocks.size(); ++b) {
        const bool changed = (p.name == "blocks.0.attention.qkv.weight" && b == 1) ||
                             (p.name == "blocks.1.mlp.gate_up.weight" && b == 0);
        EXPECT_EQ(one.block_of(one.weights(), p.name, b) != other.block_of(other.weights(), p.name, b), changed)
            << p.name << " " << p.blocks[b].name;
      }
    }
  }
}

// A full-rank step without decay moves by lr * scale * an orthogonal matrix, whatever the gradient's size.
TEST(MatrixOptimizer, an_exact_step_has_singular_values_of_rate_times_scale) {
  OptimizerSettings s = settings_of(OptimizerKind::msgd);
  s.orthogonalizer = Orthogonalizer::exact;
  s.weight_decay = 0.0;
  s.scale = ScaleKind::match_rms_adamw;
  for (const float size : {1e-6F, 1.0F, 1e6F}) {
    Stepper stepper(test::tiny_llama(), matrices_under(s));
    const std::vector<float> before = stepper.weights();
    std::vector<float> gradients = test::random_weights(stepper.table(), 50);
    for (float& g : gradients) g *= size;
    stepper.step(0, gradients);
    const std::vector<float> after = stepper.weights();
    const auto expect_moved_by = [&](const std::string& name, std::size_t block, double longer_side) {
      for (const double value : singular_values_moved(stepper, before, after, name, block)) {
        EXPECT_NEAR(value, 0.02 * 0.2 * std::sqrt(longer_side), 1e-6) << name << " at " << size;
      }
    };
    expect_moved_by("blocks.0.attention.out.weight", 0, 32.0);
    expect_moved_by("blocks.0.attention.qkv.weight", 1, 32.0);
    expect_moved_by("blocks.0.mlp.down.weight", 0, 85.0);
  }
}

TEST(MatrixOptimizer, a_low_rank_step_has_that_rank) {
  OptimizerSettings s = settings_of(OptimizerKind::low_rank_msgd);
  s.orthogonalizer = Orthogonalizer::exact;
  s.weight_decay = 0.0;
  s.scale = ScaleKind::none;
  s.rank = {8, 1};
  Stepper stepper(test::tiny_llama(), matrices_under(s));
  const std::vector<float> before = stepper.weights();
  stepper.run(1);
  const std::vector<float> after = stepper.weights();
  for (const char* name : {"blocks.0.attention.out.weight", "blocks.1.mlp.down.weight"}) {
    const std::vector<double> moved = singular_values_moved(stepper, before, after, name, 0);
    for (std::size_t i = 0; i < moved.size(); ++i) EXPECT_NEAR(moved[i], i < 8 ? 0.02 : 0.0, 1e-6) << name << " " << i;
  }
}

TEST(MatrixOptimizer, compensation_scales_the_step) {
  OptimizerSettings plain = settings_of(OptimizerKind::low_rank_muon);
  plain.weight_decay = 0.0;
  OptimizerSettings compensated = plain;
  compensated.rank_lr_compensation = RankCompensation::sqrt;
  Stepper one(test::tiny_llama(), matrices_under(plain)), other(test::tiny_llama(), matrices_under(compensated));
  const std::vector<float> before = one.weights();
  one.run(1);
  other.run(1);
  const char* name = "blocks.0.attention.out.weight";  // 32 x 32 at rank 8: twice as far
  const std::vector<float> start = one.block_of(before, name), once = one.block_of(one.weights(), name);
  std::vector<float> twice = start;
  for (std::size_t i = 0; i < twice.size(); ++i) twice[i] += 2.0F * (once[i] - start[i]);
  EXPECT_LT(test::distance(other.block_of(other.weights(), name), twice), 1e-5);
}

TEST(MatrixOptimizer, sketches_change_with_seed_step_and_matrix) {
  OptimizerSettings s = settings_of(OptimizerKind::low_rank_msgd);
  s.weight_decay = 0.0;
  const auto moved = [&](std::uint64_t seed, std::int64_t step, const char* name) {
    Stepper stepper(test::tiny_llama(), matrices_under(s), seed);
    std::vector<float> gradients = test::random_weights(stepper.table(), 50);
    // The same gradient for both matrices that are compared.
    const auto offset = [&](const char* of) { return stepper.table()[stepper.table().index(of)].offset; };
    std::copy_n(gradients.begin() + offset("blocks.0.attention.out.weight"), 32 * 32,
                gradients.begin() + offset("blocks.1.attention.out.weight"));
    const std::vector<float> before = stepper.block_of(stepper.weights(), name);
    stepper.step(step, gradients);
    std::vector<float> difference = stepper.block_of(stepper.weights(), name);
    for (std::size_t i = 0; i < difference.size(); ++i) difference[i] -= before[i];
    return difference;
  };
  const std::vector<float> first = moved(1, 0, "blocks.0.attention.out.weight");
  EXPECT_EQ(moved(1, 0, "blocks.0.attention.out.weight"), first);
  EXPECT_GT(relative_distance(moved(2, 0, "blocks.0.attention.out.weight"), first), 0.1);
  EXPECT_GT(relative_distance(moved(1, 1, "blocks.0.attention.out.weight"), first), 0.1);
  EXPECT_GT(relative_distance(moved(1, 0, "blocks.1.attention.out.weight"), first), 0.1);
}

// The share of the gradient's nuclear norm that a step sees: a sketch closer to the leading directions sees more.
TEST(MatrixOptimizer, power_iterations_lead_towards_the_leading_directions) {
  const auto seen = [](SketchKind sketch, std::int64_t iterations) {
    OptimizerSettings s = settings_of(OptimizerKind::low_rank_msgd);
    s.orthogonalizer = Orthogonalizer::exact;
    s.weight_decay = 0.0;
    s.rank = {4, 1};
    s.sketch = sketch;
    s.power_iterations = iterations;
    Stepper stepper(test::tiny_llama(), matrices_under(s));
    const std::vector<float> gradients = test::random_weights(stepper.table(), 50);
    const std::vector<float> before = stepper.weights();
    stepper.step(0, gradients);
    const std::vector<float> after = stepper.weights();
    double along = 0.0;
    for (const Parameter& p : stepper.table().all()) {
      if (p.role != Role::matrix) continue;
      for (std::int64_t i = p.offset; i < p.offset + p.stored_elements(); ++i) {
        const auto at = static_cast<std::size_t>(i);
        along +=
            (static_cast<double>(before[at]) - static_cast<double>(after[at])) * static_cast<double>(gradients[at]);
      }
    }
    return along;
  };
  const double gaussian = seen(SketchKind::gaussian, 1);
  const double once = seen(SketchKind::power, 1);
  const double twice = seen(SketchKind::power, 2);
  EXPECT_GT(once, 1.05 * gaussian);
  EXPECT_GT(twice, 1.02 * once);
  EXPECT_NE(seen(SketchKind::columns, 1), gaussian);
}

TEST(MatrixOptimizer, msgd_keeps_no_state_and_forgets_former_gradients) {
  for (const OptimizerKind kind : {OptimizerKind::msgd, OptimizerKind::low_rank_msgd}) {
    Stepper stepper(test::tiny_llama(), matrices_under(settings_of(kind)));
    for (const StateTensor& s : stepper.optimizer().state()) EXPECT_TRUE(s.name.starts_with("adamw.")) << s.name;
    const std::vector<float> start = stepper.weights();
    const std::vector<float> gradients = test::random_weights(stepper.table(), 50);
    stepper.step(5, gradients);
    const std::vector<float> direct = stepper.weights();
    stepper.run(2);
    stepper.set_weights(start);
    stepper.step(5, gradients);
    const char* name = "blocks.0.mlp.down.weight";
    EXPECT_EQ(stepper.block_of(stepper.weights(), name), stepper.block_of(direct, name));
  }
}

TEST(MatrixOptimizer, momentum_warms_up) {
  OptimizerSettings warmed = settings_of(OptimizerKind::muon);
  warmed.momentum_form = MomentumForm::heavy;
  warmed.nesterov = false;
  warmed.momentum_start = 0.5;
  warmed.momentum = 0.9;
  warmed.momentum_warmup_steps = 4;
  Stepper stepper(test::tiny_llama(), matrices_under(warmed));
  const std::vector<float> gradients(stepper.weights().size(), 1.0F);
  // b = mu(step) b + 1 for every element: 1, 0.6 + 1, 0.7 * 1.6 + 1, ...
  double expected = 0.0;
  for (std::int64_t step = 0; step < 6; ++step) {
    stepper.step(step, gradients);
    expected = expected * std::min(0.9, 0.5 + 0.1 * static_cast<double>(step)) + 1.0;
    EXPECT_EQ(stepper.optimizer().state().front().name, "momentum.blocks.0.attention.qkv.weight[q]");
    EXPECT_NEAR(stepper.state().front().front(), expected, 1e-6) << "step " << step;
  }
}

TEST(MatrixOptimizer, state_has_the_shape_of_the_matrix_without_padding) {
  Stepper stepper(test::tiny_llama(), matrices_under(settings_of(OptimizerKind::muon)));
  for (const StateTensor& s : stepper.optimizer().state()) {
    if (s.name == "momentum.blocks.0.mlp.down.weight") {
      EXPECT_EQ(s.rows, 32);
      EXPECT_EQ(s.cols, 85);
    }
    if (s.name == "momentum.blocks.1.mlp.gate_up.weight[up]") {
      EXPECT_EQ(s.rows, 85);
      EXPECT_EQ(s.cols, 32);
    }
  }
}

// Each of the two halves that benchmarks call steps its own parameters.
TEST(MatrixOptimizer, the_two_halves_of_a_step_make_the_whole) {
  const OptimizerConfig config = matrices_under(settings_of(OptimizerKind::low_rank_muon));
  Stepper whole(test::tiny_llama(), config), halves(test::tiny_llama(), config);
  whole.run(1);
  const std::vector<float> before = halves.weights();
  halves.set_gate(1.0F, false);
  halves.run(1);  // leaves the gradients there
  halves.optimizer().step_elementwise(halves.stream(), 0, 1.0, {});
  EXPECT_EQ(halves.block_of(halves.weights(), "blocks.0.mlp.down.weight"),
            halves.block_of(before, "blocks.0.mlp.down.weight"));
  halves.optimizer().step_matrices(halves.stream(), 0, 1.0, {});
  EXPECT_EQ(halves.weights(), whole.weights());
}

}  // namespace
}  // namespace polaron
