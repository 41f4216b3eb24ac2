// What Linux says about the machine, and about the share of it that this process may use (affinity mask, cgroup v1 and
// v2 limits of a container or a batch job).
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace polaron::cpu {

// The files read. Tests point them at a folder of their own.
struct HostPaths {
  std::string proc = "/proc";
  std::string cgroup = "/sys/fs/cgroup";
};

// "model name" of the first processor; on architectures without one the architecture with the implementer and part
// numbers, or the architecture alone.
std::string processor_name(const HostPaths& paths = {});

struct HostMemory {
  std::uint64_t total = 0;      // bytes that this process could ever use: the machine's, or its cgroup's limit if less
  std::uint64_t available = 0;  // of these, free or reclaimable now; both are 0 where unknown
};
HostMemory host_memory(const HostPaths& paths = {});

// Bytes of anonymous memory of this process that are backed by pages; 0 where unknown.
std::uint64_t resident_anonymous_memory(const HostPaths& paths = {});

// The cgroup's quota in processors, rounded up; 0: no limit. 1.5 processors are 2: a third thread would only wait.
int processor_quota(const HostPaths& paths = {});

// Cores in this process's affinity mask; the hardware threads of one core count once.
int cores_in_affinity_mask();

// Whether the CPU backend computes products of bf16 on the processor's matrix unit, and if not, why: a clause that
// reads on from "bf16 is slow here: ". Without it such products are computed in fp32, at fp32's speed.
struct MatrixUnit {
  bool available = false;
  std::string reason;  // empty when available
};

// Intel's AMX with bf16. Asks once in a process, and with it the kernel for permission to use the tile registers; holds
// for all threads.
const MatrixUnit& amx_bf16();

// What the processor and the kernel say (tests make answers up).
struct AmxAnswers {
  bool x86_64 = false;
  std::uint32_t leaf1_ecx = 0;      // CPUID 1
  std::uint32_t leaf7_edx = 0;      // CPUID 7.0; 0 where the processor has no such leaf
  std::uint32_t palette[3] = {};    // CPUID 1D.1, eax to ecx: the sizes of tiles
  std::uint64_t xcr0 = 0;           // XGETBV(0): what the kernel saves; asked only where leaf1_ecx allows it
  std::function<int()> permission;  // asks the kernel for tile data: 0, or errno
};
MatrixUnit amx_bf16(const AmxAnswers& answers);

// At least 1: the cores in the affinity mask, not above the quota.
int usable_cores();

}  // namespace polaron::cpu
