#include "optim/ownership.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "stepper.h"
#include "support/tiny_model.h"

namespace polaron {
namespace {

struct Owned {
  explicit Owned(OptimizerKind kind)
      : model(test::tiny_llama()), table(model), assignment(assign_optimizers(config_of(kind), model, table)) {}
  static OptimizerConfig config_of(OptimizerKind kind) {
    OptimizerConfig config;
    config.matrices = test::settings_of(kind);
    return config;
  }
  Ownership among(int processes, Exchange exchange = Exchange::parameters) const {
    return {assignment, table, processes, exchange};
  }
  TransformerConfig model;
  ParameterTable table;
  Assignment assignment;
};

// How many ranges cover each stored element of a logical parameter.
std::vector<int> covered(const Owned& owned, const std::vector<OwnedRange>& ranges) {
  std::vector<int> count(static_cast<std::size_t>(owned.table.stored_elements()), 0);
  for (const OwnedRange& range : ranges) {
    for (std::int64_t i = 0; i < range.elements; ++i) ++count[static_cast<std::size_t>(range.offset + i)];
  }
  return count;
}

TEST(Ownership, every_gradient_has_one_owner_or_stays_local) {
  const Owned owned(OptimizerKind::low_rank_muon);
  for (const Exchange exchange : {Exchange::parameters, Exchange::factors, Exchange::sketch}) {
    for (const int processes : {1, 2, 3, 5}) {
      const Ownership ownership = owned.among(processes, exchange);
      std::vector<OwnedRange> all = ownership.reduced();
      all.insert(all.end(), ownership.local().begin(), ownership.local().end());
      const std::vector<int> count = covered(owned, all);
      for (const Parameter& p : owned.table.all()) {
        for (const MatrixBlock& block : p.blocks) {
          const std::int64_t first = p.offset + block.row * p.stored_cols;
          for (std::int64_t i = 0; i < block.rows * p.stored_cols; ++i) {
            ASSERT_EQ(count[static_cast<std::size_t>(first + i)], 1) << p.name;
          }
        }
      }
      EXPECT_EQ(ownership.local().empty(), exchange != Exchange::sketch || processes == 1);
      for (const OwnedRange& range : ownership.reduced()) {
        EXPECT_GE(range.owner, 0);
        EXPECT_LT(range.owner, processes);
        EXPECT_EQ(range.offset % 64, 0) << "transfers and kernels want aligned pieces";
      }
    }
  }
}

TEST(Ownership, elementwise_parameters_are_cut_into_equal_shares) {
  const Owned owned(OptimizerKind::adamw);
  for (const int processes : {1, 2, 3, 7}) {
    const Ownership ownership = owned.among(processes);
    std::vector<std::int64_t> shares(static_cast<std::size_t>(processes), 0);
    for (std::size_t i = 0; i < owned.assignment.elementwise.size(); ++i) {
      std::int64_t next = 0;
      for (const Ownership::Part& part : ownership.elementwise(i)) {
        EXPECT_EQ(part.first, next) << "parts follow one another";
        next += part.elements;
        shares[static_cast<std::size_t>(part.owner)] += part.elements;
      }
      EXPECT_EQ(next, owned.table[owned.assignment.elementwise[i].parameter].stored_elements());
    }
    EXPECT_LE(*std::max_element(shares.begin(), shares.end()) - *std::min_element(shares.begin(), shares.end()), 128);
  }
}

TEST(Ownership, matrices_are_balanced_by_what_their_step_costs) {
  const Owned owned(OptimizerKind::muon);
  const Ownership ownership = owned.among(4);
  std::vector<double> cost(4, 0.0);
  for (std::size_t c = 0; c < owned.assignment.classes.size(); ++c) {
    const MatrixClass& matrices = owned.assignment.classes[c];
    std::size_t stepped = 0;
    for (int rank = 0; rank < 4; ++rank) {
      const std::size_t count = ownership.matrices(c).count(rank);
      stepped += count;
      cost[static_cast<std::size_t>(rank)] +=
          static_cast<double>(count) * static_cast<double>(matrices.rows * matrices.rows * matrices.cols);
    }
    EXPECT_EQ(stepped, matrices.items.size()) << "each is stepped once";
  }
  const double mean = std::accumulate(cost.begin(), cost.end(), 0.0) / 4;
  EXPECT_LT(*std::max_element(cost.begin(), cost.end()), 4.0 / 3 * mean);
}

TEST(Ownership, full_orthogonalization_exchanges_parameters_whatever_is_asked) {
  const Owned owned(OptimizerKind::muon);
  for (const Exchange exchange : {Exchange::factors, Exchange::sketch}) {
    const Ownership ownership = owned.among(2, exchange);
    EXPECT_EQ(ownership.factor_elements() + ownership.sketch_elements(), 0);
    EXPECT_EQ(ownership.gathered().size(), ownership.reduced().size());
  }
}

TEST(Ownership, of_sketches_has_every_process_step_every_low_rank_matrix) {
  const Owned owned(OptimizerKind::low_rank_muon);
  const Ownership ownership = owned.among(3, Exchange::sketch);
  for (std::size_t c = 0; c < owned.assignment.classes.size(); ++c) {
    for (int rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(ownership.matrices(c).count(rank), owned.assignment.classes[c].items.size());
    }
  }
}

}  // namespace
}  // namespace polaron
