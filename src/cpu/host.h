// What Linux says about the machine, and about the share of it that this process may use (affinity mask, cgroup v1 and
// v2 limits of a container or a batch job).
#pragma once

#include <cstdint>
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

// At least 1: the cores in the affinity mask, not above the quota.
int usable_cores();

}  // namespace polaron::cpu
