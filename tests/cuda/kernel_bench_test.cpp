// The cases of bench_kernels run: on the CPU, on the emulated backend, and on a device where there is one.
#include <fstream>
#include <iterator>
#include <set>

#include "../bench/cuda/floors.h"
#include "family.h"

namespace polaron::test {
namespace {

class KernelBench : public Family {};

TEST_P(KernelBench, times_every_case_of_a_small_model) {
  for (const char* name : {"tiny-gpt2", "tiny-llama"}) {
    for (const DType type : {DType::f32, DType::bf16}) {
      bench::ModelShape model = bench::model_shape(name);
      model.dtype = type;
      for (const bench::Case& one : bench::all_cases(model)) {
        SCOPED_TRACE(std::string(name) + ": " + one.op + " " + one.shape);
        EXPECT_GT(bench::time_case(machine.ops(), machine.stream(), one, bench::least_effort()), 0.0);
      }
    }
  }
}

TEST_P(KernelBench, finds_the_limits) {
  const bench::Limits limits =
      bench::measure_limits(machine.ops(), machine.stream(), DType::bf16, bench::least_effort());
  for (const double rate : limits.gemm_flops) EXPECT_GT(rate, 0.0);
  EXPECT_GT(limits.copy_bytes_per_s, 0.0);
}

INSTANTIATE_TEST_SUITE_P(Places, KernelBench, testing::Values(places()[0], places()[1], places()[4]), name_of_place);

TEST(KernelBenchCases, the_models_are_those_of_the_configs) {
  const bench::ModelShape gpt2 = bench::model_shape("gpt2-124m"), llama = bench::model_shape("llama-350m");
  EXPECT_EQ(gpt2.width, 768);
  EXPECT_EQ(gpt2.hidden, 3072);
  EXPECT_EQ(llama.width, 1024);
  EXPECT_EQ(llama.up_width(), 2 * 2752);
}

// Of GPT-2: 2 N a token forward, twice that backward; N with the head, for which a chunk of the rows stands.
TEST(KernelBenchCases, flops_of_all_products_add_up_to_six_n_a_token) {
  const bench::ModelShape m = bench::model_shape("gpt2-124m");
  double layers = 0, head = 0;
  for (const bench::Case& one : bench::model_cases(m)) {
    // Beside the layer's own input gradient stands the one with the activation.
    if (one.op == "linear backward input, mlp down") continue;
    if (one.op.starts_with("linear")) layers += one.flops;
    if (one.op.starts_with("head")) head += one.flops;
  }
  const double matrices = 12.0 * static_cast<double>(m.width * m.width), rows = static_cast<double>(m.rows());
  EXPECT_DOUBLE_EQ(layers, 6 * matrices * rows);
  EXPECT_DOUBLE_EQ(head, 6.0 * static_cast<double>(m.width * m.stored_vocabulary * m.loss_rows));
}

TEST(KernelBenchCases, the_table_of_floors_is_what_the_cases_say) {
  std::ifstream file(POLARON_SOURCE_DIR "/docs/benchmarks/gpu-floors.md");
  const std::string table{std::istreambuf_iterator<char>(file), {}};
  EXPECT_TRUE(table ==
              bench::floors_markdown({bench::model_shape("gpt2-124m"), bench::model_shape("llama-350m")}, bench::kH200))
      << "write it anew: bench_kernels --floors > docs/benchmarks/gpu-floors.md";
}

TEST(KernelBenchCases, every_case_moves_bytes_and_has_a_name_of_its_own) {
  for (const char* name : {"gpt2-124m", "llama-350m"}) {
    std::set<std::string> names;
    for (const bench::Case& one : bench::all_cases(bench::model_shape(name))) {
      EXPECT_GT(one.bytes, 0.0) << one.op;
      EXPECT_TRUE(names.insert(one.op).second) << one.op;
    }
  }
}

}  // namespace
}  // namespace polaron::test
