#include "optim/ownership.h"

#include <algorithm>
#include <numeric>

namespace polaron {
namespace {

constexpr std::int64_t kUnit = 64;  // parts begin at multiples of it, so that they stay aligned

// Multiplications of a step, leading terms, with a share for the memory that momentum and update touch.
double cost_of(const MatrixClass& c) {
  const auto m = static_cast<double>(c.rows), n = static_cast<double>(c.cols), r = static_cast<double>(c.rank);
  const double steps = static_cast<double>(c.settings.newton_schulz_steps);
  const double moved = 100.0 * m * n;
  if (c.rank == 0) return moved + steps * (4 * m * m * n + 2 * m * m * m);
  return moved + 4 * m * n * r + 8 * m * r * r + steps * (4 * r * r * n + 2 * r * r * r);
}

struct Load {
  std::size_t class_index, item;
  double cost;
};

// Largest first, each to the process with the least so far (Graham's LPT rule): within a third of the best balance.
std::vector<std::vector<int>> balance(const Assignment& assignment, int processes) {
  std::vector<Load> loads;
  std::vector<std::vector<int>> owners;
  for (std::size_t c = 0; c < assignment.classes.size(); ++c) {
    owners.emplace_back(assignment.classes[c].items.size(), 0);
    const double cost = cost_of(assignment.classes[c]);
    for (std::size_t i = 0; i < owners[c].size(); ++i) loads.push_back({c, i, cost});
  }
  std::stable_sort(loads.begin(), loads.end(), [](const Load& a, const Load& b) { return a.cost > b.cost; });
  std::vector<double> sums(static_cast<std::size_t>(processes), 0.0);
  for (const Load& load : loads) {
    const auto least = std::min_element(sums.begin(), sums.end());
    *least += load.cost;
    owners[load.class_index][load.item] = static_cast<int>(least - sums.begin());
  }
  return owners;
}

}  // namespace

Ownership::Ownership(const Assignment& assignment, const ParameterTable& table, int processes, Exchange exchange)
    : processes_(processes) {
  const std::vector<std::vector<int>> owners = balance(assignment, processes);
  for (std::size_t c = 0; c < assignment.classes.size(); ++c) {
    const MatrixClass& matrix_class = assignment.classes[c];
    Class& plan = classes_.emplace_back();
    if (matrix_class.rank > 0 && processes > 1) plan.exchange = exchange;
    plan.order.resize(matrix_class.items.size());
    std::iota(plan.order.begin(), plan.order.end(), std::size_t{0});
    const auto owner = [&](std::size_t item) { return plan.exchange == Exchange::sketch ? 0 : owners[c][item]; };
    std::stable_sort(plan.order.begin(), plan.order.end(),
                     [&](std::size_t a, std::size_t b) { return owner(a) < owner(b); });
    for (int p = 0; p <= processes; ++p) {
      const auto at = std::find_if(plan.order.begin(), plan.order.end(), [&](std::size_t i) { return owner(i) >= p; });
      plan.begins.push_back(static_cast<std::size_t>(at - plan.order.begin()));
    }
    const auto count = static_cast<std::int64_t>(plan.order.size());
    const std::int64_t factors = count * (matrix_class.rows + matrix_class.cols) * matrix_class.rank;
    if (plan.exchange == Exchange::factors) factor_elements_ += factors;
    if (plan.exchange == Exchange::sketch) sketch_elements_ += factors;
    for (const std::size_t i : plan.order) {
      const MatrixItem& item = matrix_class.items[i];
      const Parameter& p = table[item.parameter];
      const OwnedRange range{p.offset + p.blocks[item.block].row * p.stored_cols,
                             item.rows * p.stored_cols,
                             owner(i),
                             p.layer,
                             true,
                             is_rounded(p.role)};
      (plan.exchange == Exchange::sketch ? local_ : reduced_).push_back(range);
      if (plan.exchange == Exchange::parameters) gathered_.push_back(range);
    }
  }

  std::int64_t all = 0;
  for (const ElementwiseItem& item : assignment.elementwise) all += table[item.parameter].stored_elements();
  std::int64_t before = 0;
  for (const ElementwiseItem& item : assignment.elementwise) {
    const Parameter& p = table[item.parameter];
    const std::int64_t elements = p.stored_elements();
    std::vector<Part>& parts = elementwise_.emplace_back();
    for (int r = 0; r < processes; ++r) {
      const auto border = [&](int process) {
        const std::int64_t share = std::clamp<std::int64_t>(all * process / processes - before, 0, elements);
        return share == elements ? share : share / kUnit * kUnit;
      };
      const std::int64_t first = border(r), last = border(r + 1);
      if (first == last) continue;
      parts.push_back({r, first, last - first});
      reduced_.push_back({p.offset + first, last - first, r, p.layer, false, is_rounded(p.role)});
      gathered_.push_back(reduced_.back());
    }
    before += elements;
  }
}

}  // namespace polaron
