#include "cpu/host.h"

#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <vector>

namespace polaron::cpu {
namespace {

constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();

// The value behind "key:" or "key " at the start of a line, without leading blanks; empty when there is none.
std::string value_of(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    const std::size_t end_of_key = line.find_first_not_of(" \t", key.size());
    if (end_of_key == std::string::npos) continue;
    if (line[end_of_key] != ':' && end_of_key == key.size()) continue;  // a longer key
    const std::size_t start = line.find_first_not_of(" \t", end_of_key + (line[end_of_key] == ':' ? 1 : 0));
    return start == std::string::npos ? std::string() : line.substr(start);
  }
  return {};
}

// The leading number of a text; nothing when it does not start with a digit ("max", an empty file).
std::optional<std::uint64_t> number(const std::string& text) {
  if (text.empty() || text[0] < '0' || text[0] > '9') return std::nullopt;
  std::istringstream stream(text);
  std::uint64_t value = 0;
  stream >> value;
  return stream.fail() ? std::optional(kNoLimit) : std::optional(value);  // too long for 64 bits
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::uint64_t kibibytes(const std::string& path, const std::string& key) {
  return number(value_of(path, key)).value_or(0) * 1024;
}

// This process's folders in a cgroup hierarchy, from its own up to the root: a limit of any of them holds. controller
// "" is the unified hierarchy of version 2.
std::vector<std::string> cgroup_folders(const HostPaths& paths, const std::string& controller) {
  std::ifstream file(paths.proc + "/self/cgroup");
  std::string group;
  for (std::string line; std::getline(file, line);) {  // "hierarchy:controller,controller:/path"
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string controllers = line.substr(first + 1, second - first - 1);
    controllers.insert(0, 1, ',').push_back(',');
    if (controllers == ",," ? controller.empty() : controllers.find("," + controller + ",") != std::string::npos) {
      group = line.substr(second + 1);
    }
  }
  const std::string root = paths.cgroup + (controller.empty() ? "" : "/" + controller);
  std::vector<std::string> folders;
  while (group.size() > 1 && group[0] == '/') {
    folders.push_back(root + group);
    group.resize(group.rfind('/'));
  }
  folders.push_back(root);  // in a container the process's own group is usually mounted here
  return folders;
}

struct CgroupFiles {
  const char *controller, *limit, *usage, *reclaimable;
};
constexpr CgroupFiles kMemoryFiles[] = {
    {"", "memory.max", "memory.current", "inactive_file"},
    {"memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"},
};

}  // namespace

std::string processor_name(const HostPaths& paths) {
  const std::string cpuinfo = paths.proc + "/cpuinfo";
  if (std::string name = value_of(cpuinfo, "model name"); !name.empty()) return name;
  utsname system{};
  std::string name = uname(&system) == 0 ? std::string(system.machine) + " processor" : "processor";
  const std::string implementer = value_of(cpuinfo, "CPU implementer");
  const std::string part = value_of(cpuinfo, "CPU part");
  if (!implementer.empty() && !part.empty()) name += " (implementer " + implementer + ", part " + part + ")";
  return name;
}

HostMemory host_memory(const HostPaths& paths) {
  const std::string meminfo = paths.proc + "/meminfo";
  const std::uint64_t machine = kibibytes(meminfo, "MemTotal");
  HostMemory memory{machine, kibibytes(meminfo, "MemAvailable")};
  for (const CgroupFiles& files : kMemoryFiles) {
    for (const std::string& folder : cgroup_folders(paths, files.controller)) {
      const std::optional<std::uint64_t> limit = number(first_line(folder + "/" + files.limit));
      if (!limit || *limit >= machine) continue;
      const std::uint64_t usage = number(first_line(folder + "/" + files.usage)).value_or(0);
      const std::uint64_t cache = number(value_of(folder + "/memory.stat", files.reclaimable)).value_or(0);
      const std::uint64_t held = usage - std::min(usage, cache);
      memory.total = std::min(memory.total, *limit);
      memory.available = std::min(memory.available, *limit - std::min(*limit, held));
    }
  }
  return memory;
}

std::uint64_t resident_anonymous_memory(const HostPaths& paths) {
  return kibibytes(paths.proc + "/self/status", "RssAnon");
}

int processor_quota(const HostPaths& paths) {
  double quota = 0.0;  // in processors, 0: none
  const auto take = [&quota](double processors) {
    if (processors > 0.0 && (quota == 0.0 || processors < quota)) quota = processors;
  };
  for (const std::string& folder : cgroup_folders(paths, "")) {  // "150000 100000" or "max 100000"
    std::istringstream line(first_line(folder + "/cpu.max"));
    double allowed = 0.0, period = 0.0;
    if (line >> allowed >> period && period > 0.0) take(allowed / period);
  }
  for (const std::string& folder : cgroup_folders(paths, "cpu")) {  // -1: no limit
    const auto allowed = number(first_line(folder + "/cpu.cfs_quota_us"));
    const auto period = number(first_line(folder + "/cpu.cfs_period_us"));
    if (allowed && period && *period > 0) take(static_cast<double>(*allowed) / static_cast<double>(*period));
  }
  return static_cast<int>(std::ceil(std::min(quota, 1e6)));
}

int cores_in_affinity_mask() {
  for (int limit = 1024; limit <= 1 << 20; limit *= 2) {  // the kernel refuses a mask smaller than its own
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> mask(CPU_ALLOC(limit), [](cpu_set_t* m) { CPU_FREE(m); });
    const std::size_t bytes = CPU_ALLOC_SIZE(limit);
    if (mask == nullptr) return 1;
    CPU_ZERO_S(bytes, mask.get());
    if (sched_getaffinity(0, bytes, mask.get()) != 0) continue;
    std::set<std::string> cores;
    for (int processor = 0; processor < limit; ++processor) {
      if (!CPU_ISSET_S(processor, bytes, mask.get())) continue;
      const std::string name = "cpu" + std::to_string(processor);
      const std::string siblings = first_line("/sys/devices/system/cpu/" + name + "/topology/thread_siblings_list");
      cores.insert(siblings.empty() ? name : siblings);
    }
    return std::max(1, static_cast<int>(cores.size()));
  }
  return 1;
}

int usable_cores() {
  const int cores = cores_in_affinity_mask();
  const int quota = processor_quota();
  return quota > 0 ? std::min(cores, quota) : cores;
}

}  // namespace polaron::cpu
