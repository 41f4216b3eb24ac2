// scripts/verify_gpu.sh with the program itself, on the CPU.
#include "support.h"

namespace polaron::test {
namespace {
using nlohmann::json;

TEST(VerifyGpu, a_dry_run_goes_through_comparison_optimizers_and_steps_on_the_cpu) {
  const Workspace folder;
  ProcessOptions options;
  options.launcher = {"/usr/bin/env", "POLARON_VERIFY_DRY=1", "OMP_NUM_THREADS=1"};
  const std::string script = POLARON_SOURCE_DIR "/scripts/verify_gpu.sh";
  for (const std::string& word :
       Arguments{script, "correctness", "sanitize", "kernels", "train", "--out", "out", "--program"}) {
    options.launcher.push_back(word);  // the program's path comes behind the last one
  }
  const Outcome outcome = folder.run({}, options);
  expect_ended(outcome, 0);
  const json results = json::parse(folder.read("out/results.json"));
  std::map<std::string, std::string> status;
  for (const json& result : results["results"]) status[result["step"]] = result["status"];
  EXPECT_EQ(status["losses of the CPU"], "passed");
  EXPECT_EQ(status["GPT-2 124M in fp32 against the CPU"], "passed");
  EXPECT_EQ(status["two runs are identical"], "passed");
  EXPECT_EQ(status["compute-sanitizer"], "skipped");
  EXPECT_EQ(status["optimizer step, 1 layers of 64, rank 1/8"], "measured");
  EXPECT_EQ(status["training step, gpt2-124m, low-rank Muon, micro-batch 2"], "measured");
  const std::string report = folder.read("out/report.md");
  EXPECT_TRUE(contains(report, "A dry run on the CPU") && contains(report, "## Losses")) << report;
}

}  // namespace
}  // namespace polaron::test
