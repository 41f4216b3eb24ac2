// The fixture of the op families' tests: one machine, skipped where it is not to be had.
#pragma once

#include "machine.h"

namespace polaron::test {

class Family : public testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    if (!machine.there()) GTEST_SKIP() << why_not;
  }
  // Calls body(type) for every type of activations.
  template <class Body>
  void for_types(Body&& body) const {
    for (const DType type : kActivationTypes) {
      const testing::ScopedTrace trace(__FILE__, __LINE__, polaron::name_of(type));
      body(type);
    }
  }

  std::string why_not;
  Machine machine{GetParam(), why_not};
};

}  // namespace polaron::test
