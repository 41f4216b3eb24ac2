#include <cerrno>
#include <cstring>
#include <string>

#include "cpu/host.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace polaron::cpu {
namespace {

// Intel's manual: CPUID 1 ecx bit 27, CPUID 7.0 edx bits 22 and 24, XCR0 bits 17 and 18.
constexpr std::uint32_t kOsXsave = 1U << 27U, kAmxBf16 = 1U << 22U, kAmxTile = 1U << 24U;
constexpr std::uint64_t kTileState = std::uint64_t{3} << 17U;

AmxAnswers ask_machine() {
  AmxAnswers answers;
#if defined(__x86_64__)
  answers.x86_64 = true;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0) answers.leaf1_ecx = ecx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0) answers.leaf7_edx = edx;
  if (__get_cpuid_count(0x1d, 1, &eax, &ebx, &ecx, &edx) != 0) {
    answers.palette[0] = eax;
    answers.palette[1] = ebx;
    answers.palette[2] = ecx;
  }
  if ((answers.leaf1_ecx & kOsXsave) != 0) {
    std::uint32_t low = 0, high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    answers.xcr0 = static_cast<std::uint64_t>(high) << 32U | low;
  }
#endif
  answers.permission = [] {
#if defined(__linux__) && defined(__x86_64__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : errno;
#else
    return ENOSYS;
#endif
  };
  return answers;
}

}  // namespace

MatrixUnit amx_bf16(const AmxAnswers& answers) {
  if (!answers.x86_64) return {false, "this program is not built for x86-64, the only architecture with AMX"};
  if ((answers.leaf7_edx & kAmxTile) == 0)
    return {false, "the processor has no AMX tiles, or its hypervisor hides them"};
  if ((answers.leaf7_edx & kAmxBf16) == 0) return {false, "the processor's AMX does not multiply bf16"};
  // Palette 1: bytes in all | of a tile << 16, of a row | number of tiles << 16, rows.
  if ((answers.palette[0] >> 16U) < 1024 || (answers.palette[1] & 0xffffU) < 64 || (answers.palette[1] >> 16U) < 8 ||
      (answers.palette[2] & 0xffffU) < 16) {
    return {false, "the processor's AMX tiles are smaller than the eight of 16 x 64 bytes that are needed"};
  }
  if ((answers.leaf1_ecx & kOsXsave) == 0 || (answers.xcr0 & kTileState) != kTileState) {
    return {false, "the processor has AMX, but the operating system does not enable it (Linux does from 5.16 on)"};
  }
  const int error = answers.permission ? answers.permission() : ENOSYS;
  if (error != 0) {
    return {false, "the processor has AMX, but the kernel refuses its use to this process (arch_prctl: " +
                       std::string(std::strerror(error)) + ")"};
  }
  return {true, ""};
}

const MatrixUnit& amx_bf16() {
  static const MatrixUnit unit = amx_bf16(ask_machine());
  return unit;
}

}  // namespace polaron::cpu
