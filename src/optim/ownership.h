// Who steps what when several processes train together: parameters under AdamW or SGD are cut into equal ranges of
// elements, matrices are owned whole and balanced by what their step costs. Optimizer state lies with the owner and
// nowhere else.
#pragma once

#include <cstdint>
#include <vector>

#include "config/config.h"
#include "model/parameters.h"
#include "optim/assignment.h"

namespace polaron {

// Consecutive elements of the flat buffers of weights and gradients.
struct OwnedRange {
  std::int64_t offset = 0;
  std::int64_t elements = 0;
  int owner = 0;
  int layer = -1;        // as in Parameter
  bool matrix = false;   // under a matrix optimizer
  bool rounded = false;  // has a working copy where the model computes in bf16
};

class Ownership {
 public:
  // Processes beyond the number of matrices own none.
  Ownership(const Assignment& assignment, const ParameterTable& table, int processes, Exchange exchange);

  // How a class of matrices is stepped. Full orthogonalization has no factors and no sketch: its classes exchange
  // parameters whatever the config says.
  struct Class {
    Exchange exchange = Exchange::parameters;
    std::vector<std::size_t> order;   // items, those of one owner one after the other
    std::vector<std::size_t> begins;  // of owner p: order[begins[p]] to order[begins[p + 1] - 1]; sketch: all of each
    // The items that process `rank` steps, as a range of `order`.
    std::size_t first(int rank) const {
      return exchange == Exchange::sketch ? 0 : begins[static_cast<std::size_t>(rank)];
    }
    std::size_t count(int rank) const {
      return (exchange == Exchange::sketch ? order.size() : begins[static_cast<std::size_t>(rank) + 1]) - first(rank);
    }
  };
  const Class& matrices(std::size_t class_index) const { return classes_[class_index]; }

  // The part of an elementwise parameter that one process owns; parts of other processes follow and precede it.
  struct Part {
    int owner = 0;
    std::int64_t first = 0;  // element of the parameter
    std::int64_t elements = 0;
  };
  const std::vector<Part>& elementwise(std::size_t item) const { return elementwise_[item]; }

  int processes() const { return processes_; }
  // Gradients that are summed on their owners: all but those whose sketches are summed instead.
  const std::vector<OwnedRange>& reduced() const { return reduced_; }
  // Gradients of matrices whose sketches are summed in their place; owner -1.
  const std::vector<OwnedRange>& local() const { return local_; }
  // Parameters that their owners give to the others after a step: all but those whose factors or sketches travel.
  const std::vector<OwnedRange>& gathered() const { return gathered_; }
  // Numbers a step in factors of low-rank updates, and in sketches and projections that are summed.
  std::int64_t factor_elements() const { return factor_elements_; }
  std::int64_t sketch_elements() const { return sketch_elements_; }

 private:
  int processes_;
  std::vector<Class> classes_;
  std::vector<std::vector<Part>> elementwise_;
  std::vector<OwnedRange> reduced_, local_, gathered_;
  std::int64_t factor_elements_ = 0, sketch_elements_ = 0;
};

}  // namespace polaron
