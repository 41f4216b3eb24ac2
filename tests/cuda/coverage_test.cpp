// Every kernel of cuda/ is launched by the emulated tests: checked at the end of a run of the whole program (the test
// `cuda_kernels_covered` of ctest), not of single tests.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <regex>
#include <set>
#include <string>

#include "emulation/emulation.h"

namespace polaron::test {
namespace {

std::set<std::string> kernels_in_the_sources() {
  std::set<std::string> names;
  const std::regex definition(R"(__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\()");
  for (const auto& file : std::filesystem::directory_iterator(POLARON_SOURCE_DIR "/cuda")) {
    if (file.path().extension() != ".cu") continue;
    std::ifstream in(file.path());
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    for (std::sregex_iterator found(text.begin(), text.end(), definition), end; found != end; ++found) {
      names.insert((*found)[1]);
    }
  }
  return names;
}

class KernelCoverage : public testing::Environment {
 public:
  void TearDown() override {
    if (std::getenv("POLARON_KERNEL_COVERAGE") == nullptr) return;
    const std::set<std::string> known = kernels_in_the_sources(), launched = cuda::emulation::launched_kernels();
    EXPECT_FALSE(known.empty());
    for (const std::string& kernel : known) {
      int instances = 0;
      for (const std::string& name : launched)
        instances += std::regex_search(name, std::regex("\\b" + kernel + "\\b")) ? 1 : 0;
      std::cout << "kernel " << kernel << ": " << instances << " instances launched\n";
      EXPECT_GT(instances, 0) << kernel << " is launched by no test";
    }
  }
};

const auto* const registered = testing::AddGlobalTestEnvironment(new KernelCoverage);

}  // namespace
}  // namespace polaron::test
