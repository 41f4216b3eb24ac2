#include "floors.h"

#include <fmt/format.h>

namespace polaron::bench {

std::string floors_markdown(const std::vector<ModelShape>& models, const Limits& limits) {
  std::string text = fmt::format(
      "# The floor of every op\n\nWhat each op needs at least: the floating-point operations of its matrix products, "
      "and every input read once and every\noutput written once. `floor` is the larger of the two times at {:g} "
      "TFLOP/s of bf16, {:g} of TF32, {:g} of fp32\nand {:g} TB/s (an H200's datasheet); `bench_kernels` measures "
      "against the rates that it finds on the device\ninstead. One micro-batch; optimizer ops over all matrices of a "
      "shape. These are counts, not measurements.\n\nWritten by `bench_kernels --floors > "
      "docs/benchmarks/gpu-floors.md` (built with "
      "`-DPOLARON_BENCHMARKS=ON`), from the list that the\nprogram measures.\n",
      limits.rate(Operands::bf16) * 1e-12, limits.rate(Operands::tf32) * 1e-12, limits.rate(Operands::fp32) * 1e-12,
      limits.copy_bytes_per_s * 1e-12);
  for (const ModelShape& model : models) {
    text += fmt::format("\n## {}: {} x {} tokens, {}\n\n", model.name, model.batch, model.sequence_length,
                        name_of(model.dtype));
    text += "| op | shape | GFLOP | of | MB | FLOP/B | bound by | floor, us |\n|---|---|---:|---|---:|---:|---|---:|\n";
    for (const Case& one : all_cases(model)) {
      const bool arithmetic = one.flops / limits.rate(one.operands) > one.bytes / limits.copy_bytes_per_s;
      text += fmt::format("| {} | {} | {:.2f} | {} | {:.1f} | {:.0f} | {} | {:.1f} |\n", one.op, one.shape,
                          one.flops * 1e-9, one.flops > 0 ? name_of(one.operands) : "", one.bytes * 1e-6,
                          one.flops / one.bytes, arithmetic ? "arithmetic" : "memory", 1e3 * floor_ms(one, limits));
    }
  }
  return text;
}

}  // namespace polaron::bench
