// The units that multiply blocks of bf16, as a test's parameter.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "cpu/amx_tiles.h"
#include "cpu/host.h"
#include "ops/amx_emulation.h"

namespace polaron::test {

enum class Unit { converting, emulated_amx, amx };

inline const cpu::BlockUnit& emulated_unit() {
  static const cpu::TileUnit<EmulatedTiles> unit("emulated AMX");
  return unit;
}

// Null where the machine has none.
inline const cpu::BlockUnit* find_unit(Unit unit) {
  if (unit == Unit::converting) return &cpu::converting_unit();
  return unit == Unit::amx ? cpu::amx_unit() : &emulated_unit();
}

// A test on each unit, skipped where there is none.
class OnUnits : public testing::TestWithParam<Unit> {
 protected:
  void SetUp() override {
    if (find_unit(GetParam()) == nullptr) GTEST_SKIP() << "no AMX here: " << cpu::amx_bf16().reason;
  }
  const cpu::BlockUnit& unit() const { return *find_unit(GetParam()); }
};

inline std::string name_of_unit(const testing::TestParamInfo<Unit>& info) {
  return info.param == Unit::converting ? "converting" : info.param == Unit::amx ? "amx" : "emulated_amx";
}
inline const auto kAllUnits = testing::Values(Unit::converting, Unit::emulated_amx, Unit::amx);

}  // namespace polaron::test
