// What the quirks of the authors' code (docs/paper.md) do to weights and state, exactly.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "backend/bf16.h"
#include "optim/stepper.h"
#include "support/tiny_model.h"

namespace polaron {
namespace {

using test::matrices_under;
using test::random_weights;
using test::settings_of;
using test::Stepper;

void round_to_bf16(float* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) values[i] = to_float(to_bf16(values[i]));
}

bool is_embedding(const ParameterTable& table, const std::string& state) {
  const std::string name = state.substr(state.find('.', state.find('.') + 1) + 1);  // "adamw.m.NAME"
  return table.has(name) && table[table.index(name)].role == Role::embedding;
}

// --- Q3

OptimizerConfig adamw_baseline(double lr, bool bf16_weights) {
  OptimizerSettings s = settings_of(OptimizerKind::adamw);
  s.lr = lr;
  s.beta1 = 0.8;
  s.beta2 = 0.95;
  s.eps = 1e-10;
  s.weight_decay = 0.01;
  s.bf16_weights = bf16_weights;
  return matrices_under(s);
}

TEST(Quirks, bf16_weights_of_matrices_are_rounded_after_every_update_and_nothing_else_is) {
  Stepper quirk(test::tiny_gpt2(), adamw_baseline(0.01, true));
  Stepper rounded(test::tiny_gpt2(), adamw_baseline(0.01, false));
  for (std::int64_t step = 0; step < 3; ++step) {
    const std::vector<float> gradients = random_weights(quirk.table(), static_cast<std::uint64_t>(70 + step));
    quirk.step(step, gradients);
    rounded.step(step, gradients);
    for (const Parameter& p : rounded.table().all()) {
      if (p.role == Role::matrix) round_to_bf16(rounded.weights_on_device() + p.offset, p.stored_elements());
    }
    EXPECT_EQ(quirk.weights(), rounded.weights()) << "step " << step;
  }
  EXPECT_EQ(quirk.state(), rounded.state());
}

// Neighbours of a bf16 number between 2^-6 and 2^-5 are 1.2e-4 away: an update below 6.1e-5 rounds back, decay too.
TEST(Quirks, bf16_weights_lose_updates_below_half_of_their_spacing) {
  Stepper quirk(test::tiny_gpt2(), adamw_baseline(5e-5, true)), plain(test::tiny_gpt2(), adamw_baseline(5e-5, false));
  std::vector<float> start = quirk.weights();
  round_to_bf16(start.data(), static_cast<std::int64_t>(start.size()));
  const std::vector<float> gradients = random_weights(quirk.table(), 70);
  for (Stepper* stepper : {&quirk, &plain}) {
    stepper->set_weights(start);
    for (std::int64_t step = 0; step < 20; ++step) stepper->step(step, gradients);
  }
  const std::vector<float> stuck = quirk.weights(), moved = plain.weights();
  std::int64_t large = 0, small = 0, small_moved = 0;
  test::for_each_element(quirk.table(), [&](const Parameter& p, const MatrixBlock&, auto, auto, std::size_t at) {
    if (p.role != Role::matrix) return;
    EXPECT_NEAR(std::abs(moved[at] - start[at]), 20 * 5e-5, 2e-5);  // AdamW's step under a constant gradient
    if (std::abs(start[at]) > 0x1p-6F) {
      EXPECT_EQ(stuck[at], start[at]);
      ++large;
    } else {
      small_moved += stuck[at] != start[at] ? 1 : 0;
      ++small;
    }
  });
  EXPECT_GT(large, 8 * small);
  EXPECT_GT(small_moved, small / 2);
}

// --- Q5

TEST(Quirks, vectors_without_a_rate_stay_where_they_were_and_others_do_not_notice) {
  OptimizerConfig config = matrices_under(settings_of(OptimizerKind::low_rank_muon));
  Stepper trained(test::tiny_gpt2(), config);
  config.vectors.lr = 0;
  Stepper quirk(test::tiny_gpt2(), config);
  const std::vector<float> start = quirk.weights();
  trained.run(3);
  quirk.run(3);
  const std::vector<float> with = trained.weights(), without = quirk.weights();
  test::for_each_element(quirk.table(), [&](const Parameter& p, const MatrixBlock&, auto, auto, std::size_t at) {
    if (p.role == Role::vector) {
      EXPECT_EQ(without[at], start[at]) << p.name;
      EXPECT_NE(with[at], start[at]) << p.name;
    } else {
      EXPECT_EQ(without[at], with[at]) << p.name;
    }
  });
}

// --- Q10

// From zero, so that the weights are the step: lr * scale * Q msgn(Q^T M), with exactly `rank` singular values.
TEST(Quirks, a_step_has_the_norm_of_its_rank_and_compensation_that_of_full_rank) {
  for (const std::int64_t rank : {8, 12}) {
    OptimizerSettings s = settings_of(OptimizerKind::low_rank_muon);
    s.orthogonalizer = Orthogonalizer::exact;
    s.rank = {rank, 1};
    Stepper plain(test::tiny_llama(), matrices_under(s));
    s.rank_lr_compensation = RankCompensation::sqrt;
    Stepper compensated(test::tiny_llama(), matrices_under(s));
    for (Stepper* stepper : {&plain, &compensated}) {
      stepper->set_weights(std::vector<float>(stepper->weights().size()));
      stepper->run(1);
    }
    for (const Parameter& p : plain.table().all()) {
      if (p.role != Role::matrix) continue;
      for (std::size_t b = 0; b < p.blocks.size(); ++b) {
        const auto rows = static_cast<double>(p.blocks[b].rows), cols = static_cast<double>(p.cols);
        const double shorter = std::min(rows, cols), length = 0.02 * std::sqrt(std::max(1.0, rows / cols));
        std::vector<float> expected = plain.block_of(plain.weights(), p.name, b);
        const double root = std::sqrt(static_cast<double>(rank));
        EXPECT_NEAR(test::norm_of(expected), length * root, 1e-5 * length * root) << p.name;
        for (float& w : expected) w *= static_cast<float>(std::sqrt(shorter) / root);
        EXPECT_LT(test::distance(compensated.block_of(compensated.weights(), p.name, b), expected),
                  1e-6 * length * std::sqrt(shorter))
            << p.name << " " << p.blocks[b].name << ", rank " << rank;
      }
    }
  }
}

// --- Q11

std::unique_ptr<Stepper> low_rank_stepper(bool shared_columns) {
  OptimizerSettings s = settings_of(OptimizerKind::low_rank_msgd);
  s.orthogonalizer = Orthogonalizer::exact;
  s.weight_decay = 0;
  return std::make_unique<Stepper>(test::tiny_gpt2(), matrices_under(s), 1, make_cpu_backend(1),
                                   make_single_process_communicator(), Exchange::parameters, shared_columns);
}

// The columns that one step's sketch takes of q, k, v and o of a block. A diagonal matrix tells them: Q holds the unit
// vectors of the chosen columns, and the step is a diagonal with 1 at those and 0 elsewhere.
std::vector<std::set<std::int64_t>> columns_taken(bool shared, std::int64_t step, const std::string& block) {
  const std::unique_ptr<Stepper> stepper = low_rank_stepper(shared);
  std::vector<float> gradients(stepper->weights().size());
  for (const Parameter& p : stepper->table().all()) {
    if (p.name.find(".attention.") == std::string::npos || p.role != Role::matrix) continue;
    for (const MatrixBlock& rows : p.blocks) {
      for (std::int64_t i = 0; i < 32; ++i) {
        gradients[static_cast<std::size_t>(p.offset + (rows.row + i) * p.stored_cols + i)] =
            1.0F + 0.1F * static_cast<float>(i);
      }
    }
  }
  stepper->set_weights(std::vector<float>(gradients.size()));
  stepper->step(step, gradients);
  std::vector<std::set<std::int64_t>> taken;
  const auto add = [&](const std::string& name, std::size_t index) {
    const std::vector<float> moved = stepper->block_of(stepper->weights(), block + name, index);
    std::set<std::int64_t>& columns = taken.emplace_back();
    for (std::int64_t i = 0; i < 32; ++i) {
      for (std::int64_t j = 0; j < 32; ++j) {
        const float value = moved[static_cast<std::size_t>(i * 32 + j)];
        if (i == j && value < -0.01F) columns.insert(j);
        EXPECT_NEAR(value, columns.count(j) != 0 && i == j ? -0.02 : 0.0, 1e-7) << name << " " << i << " " << j;
      }
    }
    EXPECT_EQ(columns.size(), 8U) << name;
  };
  for (const std::size_t index : {0, 1, 2}) add("attention.qkv.weight", index);
  add("attention.out.weight", 0);
  return taken;
}

TEST(Quirks, shared_columns_are_the_same_for_q_k_v_and_o_of_a_block_and_others_elsewhere) {
  std::set<std::set<std::int64_t>> own, shared;
  for (const std::string block : {"blocks.0.", "blocks.1."}) {
    for (const std::int64_t step : {0, 1}) {
      const auto alone = columns_taken(false, step, block), together = columns_taken(true, step, block);
      own.insert(alone.begin(), alone.end());
      shared.insert(together.front());
      for (const auto& columns : together) EXPECT_EQ(columns, alone.front()) << block << " at step " << step;
    }
  }
  EXPECT_EQ(own.size(), 16U);
  EXPECT_EQ(shared.size(), 4U);
}

TEST(Quirks, shared_columns_leave_the_steps_of_q_and_of_the_mlp_as_they_are) {
  const auto own = low_rank_stepper(false), shared = low_rank_stepper(true);
  own->run(2);
  shared->run(2);
  for (const Parameter& p : own->table().all()) {
    if (p.role != Role::matrix) continue;
    for (std::size_t b = 0; b < p.blocks.size(); ++b) {
      const bool same = p.name.find(".mlp.") != std::string::npos || p.blocks[b].name == "q";
      EXPECT_EQ(own->block_of(own->weights(), p.name, b) == shared->block_of(shared->weights(), p.name, b), same)
          << p.name << " " << p.blocks[b].name;
    }
  }
}

// --- Q18

// Of the embeddings alone, after the step has been taken with what they were.
TEST(Quirks, bf16_moments_are_rounded_between_two_steps) {
  OptimizerConfig config = matrices_under(settings_of(OptimizerKind::low_rank_muon));
  Stepper rounded(test::tiny_gpt2(), config);
  config.embeddings.bf16_moments = true;
  Stepper quirk(test::tiny_gpt2(), config);
  int moments = 0;
  for (std::int64_t step = 0; step < 3; ++step) {
    const std::vector<float> gradients = random_weights(quirk.table(), static_cast<std::uint64_t>(70 + step));
    quirk.step(step, gradients);
    rounded.step(step, gradients);
    EXPECT_EQ(quirk.weights(), rounded.weights()) << "step " << step;
    EXPECT_NE(quirk.state(), rounded.state()) << "step " << step;
    for (const StateTensor& state : rounded.optimizer().state()) {
      if (!is_embedding(rounded.table(), state.name)) continue;
      round_to_bf16(state.parts.front().data, state.elements());
      ++moments;
    }
    EXPECT_EQ(quirk.state(), rounded.state()) << "step " << step;
  }
  EXPECT_EQ(moments, 3 * 4);  // two of each of two tables
}

}  // namespace
}  // namespace polaron
