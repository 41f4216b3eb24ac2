#include "cpu/host.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace polaron::cpu {
namespace {

namespace fs = std::filesystem;
constexpr std::uint64_t kGiB = std::uint64_t{1} << 30U;

// A made-up /proc and /sys/fs/cgroup.
class Host : public testing::Test {
 protected:
  Host() : root_(fs::path(testing::TempDir()) / ("polaron_host_" + std::to_string(getpid()))) {
    fs::create_directories(root_);
    write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\n");
  }
  ~Host() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  HostPaths paths() const { return {(root_ / "proc").string(), (root_ / "cgroup").string()}; }

 private:
  fs::path root_;
};

TEST_F(Host, name_is_the_model_name) {
  write("proc/cpuinfo", "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some Processor 9000\nflags\t: fpu\n");
  EXPECT_EQ(processor_name(paths()), "Some Processor 9000");
}

TEST_F(Host, without_a_model_name_the_part_number_names_the_processor) {
  write("proc/cpuinfo", "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n");
  EXPECT_NE(processor_name(paths()).find("(implementer 0x41, part 0xd0c)"), std::string::npos);
}

TEST_F(Host, name_is_never_empty) { EXPECT_NE(processor_name(paths()), ""); }

TEST_F(Host, memory_is_the_machines_where_no_cgroup_limits_it) {
  write("proc/self/cgroup", "4:memory:/a/b\n0::/a\n");
  write("cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
  write("cgroup/a/memory.max", "max\n");
  EXPECT_EQ(host_memory(paths()).total, 16 * kGiB);
  EXPECT_EQ(host_memory(paths()).available, 8 * kGiB);
}

TEST_F(Host, memory_is_limited_by_a_cgroup_of_version_2) {
  write("proc/self/cgroup", "0::/job/step\n");
  write("cgroup/job/step/memory.max", "max\n");
  write("cgroup/job/memory.max", std::to_string(4 * kGiB) + "\n");  // a parent's limit holds as well
  write("cgroup/job/memory.current", std::to_string(3 * kGiB) + "\n");
  write("cgroup/job/memory.stat", "anon 1\ninactive_file " + std::to_string(kGiB) + "\n");
  EXPECT_EQ(host_memory(paths()).total, 4 * kGiB);
  EXPECT_EQ(host_memory(paths()).available, 2 * kGiB);  // file cache that can be dropped is available
}

TEST_F(Host, each_of_several_limits_holds) {
  write("proc/self/cgroup", "0::/job/step\n");
  write("cgroup/job/step/memory.max", std::to_string(4 * kGiB) + "\n");
  write("cgroup/job/step/memory.current", std::to_string(kGiB) + "\n");
  write("cgroup/job/memory.current", std::to_string(7 * kGiB / 2) + "\n");  // the other steps' too
  for (const std::uint64_t limit : {4 * kGiB, 5 * kGiB}) {
    write("cgroup/job/memory.max", std::to_string(limit) + "\n");
    EXPECT_EQ(host_memory(paths()).total, 4 * kGiB);
    EXPECT_EQ(host_memory(paths()).available, limit - 7 * kGiB / 2);
  }
}

TEST_F(Host, memory_is_limited_by_a_cgroup_of_version_1) {
  write("proc/self/cgroup", "5:cpu,cpuacct:/job\n4:memory:/job\n");
  write("cgroup/memory/job/memory.limit_in_bytes", std::to_string(kGiB) + "\n");
  write("cgroup/memory/job/memory.usage_in_bytes", std::to_string(kGiB / 4) + "\n");
  EXPECT_EQ(host_memory(paths()).total, kGiB);
  EXPECT_EQ(host_memory(paths()).available, kGiB / 4 * 3);
}

TEST_F(Host, memory_of_a_container_is_limited_at_the_root_of_its_cgroup_mount) {
  write("proc/self/cgroup", "0::/\n");
  write("cgroup/memory.max", std::to_string(kGiB) + "\n");
  write("cgroup/memory.current", std::to_string(2 * kGiB) + "\n");  // the limit was lowered: nothing is left
  EXPECT_EQ(host_memory(paths()).available, 0U);
}

TEST_F(Host, memory_that_cannot_be_read_is_unknown) {
  write("proc/meminfo", "");
  EXPECT_EQ(host_memory(paths()).total, 0U);
}

TEST_F(Host, quota_is_rounded_up_and_the_least_of_all_groups) {
  write("proc/self/cgroup", "0::/job/step\n");
  EXPECT_EQ(processor_quota(paths()), 0);
  write("cgroup/job/step/cpu.max", "max 100000\n");
  EXPECT_EQ(processor_quota(paths()), 0);
  write("cgroup/job/cpu.max", "150000 100000\n");
  EXPECT_EQ(processor_quota(paths()), 2);
  write("cgroup/job/step/cpu.max", "50000 100000\n");
  EXPECT_EQ(processor_quota(paths()), 1);
}

TEST_F(Host, quota_of_version_1_is_read) {
  write("proc/self/cgroup", "5:cpu,cpuacct:/job\n");
  write("cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  write("cgroup/cpu/job/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(processor_quota(paths()), 0);
  write("cgroup/cpu/job/cpu.cfs_quota_us", "400000\n");
  EXPECT_EQ(processor_quota(paths()), 4);
}

TEST_F(Host, resident_memory_is_read) {
  write("proc/self/status", "Name:\tx\nRssAnon:\t    2048 kB\nRssFile:\t 1 kB\n");
  EXPECT_EQ(resident_anonymous_memory(paths()), std::uint64_t{2048} * 1024);
}

TEST(Affinity, a_narrower_mask_means_fewer_cores) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  EXPECT_GE(cores_in_affinity_mask(), 1);
  EXPECT_LE(cores_in_affinity_mask(), CPU_COUNT(&before));
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int processor = 0; CPU_COUNT(&one) == 0; ++processor) {
    if (CPU_ISSET(processor, &before)) CPU_SET(processor, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(cores_in_affinity_mask(), 1);
  EXPECT_EQ(usable_cores(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof before, &before), 0);
}

// A processor and a kernel that have all that is needed.
AmxAnswers with_amx() {
  AmxAnswers answers;
  answers.x86_64 = true;
  answers.leaf1_ecx = 1U << 27U;
  answers.leaf7_edx = (1U << 22U) | (1U << 24U);
  answers.palette[0] = 1024U << 16U | 8192U;
  answers.palette[1] = 8U << 16U | 64U;
  answers.palette[2] = 16U;
  answers.xcr0 = 0x600e7;
  answers.permission = [] { return 0; };
  return answers;
}

TEST(Amx, is_available_when_processor_and_kernel_have_it) {
  const MatrixUnit unit = amx_bf16(with_amx());
  EXPECT_TRUE(unit.available);
  EXPECT_EQ(unit.reason, "");
}

TEST(Amx, says_what_is_missing) {
  const auto expect_refused = [](const auto& change, const std::string& reason) {
    AmxAnswers answers = with_amx();
    int asked = 0;
    answers.permission = [&asked] { return ++asked, 0; };
    change(answers);
    const MatrixUnit unit = amx_bf16(answers);
    EXPECT_FALSE(unit.available) << reason;
    EXPECT_NE(unit.reason.find(reason), std::string::npos) << unit.reason;
    EXPECT_EQ(asked, 0) << "the kernel is asked for what cannot be used";
  };
  expect_refused([](AmxAnswers& a) { a.x86_64 = false; }, "not built for x86-64");
  expect_refused([](AmxAnswers& a) { a.leaf7_edx = 0; }, "no AMX tiles");
  expect_refused([](AmxAnswers& a) { a.leaf7_edx = 1U << 22U; }, "no AMX tiles");
  expect_refused([](AmxAnswers& a) { a.leaf7_edx = 1U << 24U; }, "does not multiply bf16");
  expect_refused([](AmxAnswers& a) { a.palette[0] = 0; }, "smaller");
  expect_refused([](AmxAnswers& a) { a.palette[1] = 8U << 16U | 32U; }, "smaller");
  expect_refused([](AmxAnswers& a) { a.palette[1] = 4U << 16U | 64U; }, "smaller");
  expect_refused([](AmxAnswers& a) { a.palette[2] = 8U; }, "smaller");
  expect_refused([](AmxAnswers& a) { a.leaf1_ecx = 0; }, "operating system does not enable it");
  expect_refused([](AmxAnswers& a) { a.xcr0 = 0xe7; }, "operating system does not enable it");
  expect_refused([](AmxAnswers& a) { a.xcr0 = 0x200e7; }, "operating system does not enable it");
}

TEST(Amx, is_refused_with_the_kernels_reason_when_permission_is) {
  AmxAnswers answers = with_amx();
  answers.permission = [] { return EPERM; };
  EXPECT_NE(amx_bf16(answers).reason.find("Operation not permitted"), std::string::npos);
  answers.permission = nullptr;
  EXPECT_FALSE(amx_bf16(answers).available);
}

TEST(Amx, of_this_machine_is_either_there_or_explained) {
  const MatrixUnit& unit = amx_bf16();
  EXPECT_EQ(unit.available, unit.reason.empty());
  std::ifstream cpuinfo("/proc/cpuinfo");
  const std::string text{std::istreambuf_iterator<char>(cpuinfo), {}};
  if (text.find(" amx_bf16") == std::string::npos) {
    EXPECT_FALSE(unit.available);
  }
}

}  // namespace
}  // namespace polaron::cpu
