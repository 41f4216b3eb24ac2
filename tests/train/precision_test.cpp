// What a run computes in, once its backend is known; tests/cuda has the part of CUDA devices.
#include <gtest/gtest.h>

#include "cpu/cpu_backend.h"
#include "support/errors.h"
#include "train/backend_factory.h"

namespace polaron::test {
namespace {

TEST(Precision, is_fp32_on_a_cpu_unless_told_otherwise) {
  const auto backend = make_cpu_backend(1);
  for (const auto& [given, settled] : {std::pair{"auto", "fp32"}, {"fp32", "fp32"}, {"bf16", "bf16"}}) {
    Config config;
    config.precision = given;
    settle_precision(config, *backend);
    EXPECT_EQ(config.precision, settled) << given;
  }
}

TEST(Precision, tf32_is_refused_on_a_cpu) {
  const auto backend = make_cpu_backend(1);
  Config config;
  config.precision = "tf32";
  expect_parts(error_of(Exit::usage, [&] { settle_precision(config, *backend); }), {"tf32", "fp32", "CUDA"});
}

}  // namespace
}  // namespace polaron::test
