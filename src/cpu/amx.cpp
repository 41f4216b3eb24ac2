#include "cpu/amx_registers.h"
#include "cpu/gemm_unit.h"
#include "cpu/host.h"

namespace polaron::cpu {

const BlockUnit* amx_unit() {
#if defined(__x86_64__)
  if (amx_bf16().available) {
    static const TileUnit<AmxTiles> unit("AMX");
    return &unit;
  }
#endif
  return nullptr;
}

const BlockUnit& default_block_unit() {
  const BlockUnit* const amx = amx_unit();
  return amx != nullptr ? *amx : converting_unit();
}

}  // namespace polaron::cpu
