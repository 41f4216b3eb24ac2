"""scripts/kernel_table.py: what it reads out of the compiler's output, and what it complains about."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import kernel_table  # noqa: E402

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3onev' for 'sm_90'
ptxas info    : Function properties for _Z3onev
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 448 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3twov' for 'sm_90'
ptxas info    : Function properties for _Z3twov
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 1024 bytes smem
"""
PTX = """.visible .entry _Z3onev(
)
{
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1};
	{ mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}; }
}
.visible .entry _Z3twov(
"""
SASS = """		Function : _Z3onev
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0020*/                   FADD R4, R8, R12 ;
		Function : _Z3twov
        /*0010*/                   HGMMA.64x8x16.F32 R4, gdesc[UR4] ;
"""


class KernelTable(unittest.TestCase):
    def test_registers_shared_memory_and_spills_of_each_kernel_are_read(self):
        kernels = kernel_table.parse_resources(PTXAS)
        self.assertEqual(kernels["_Z3onev"], kernel_table.Kernel("_Z3onev", 255, 0, 20, 0))
        self.assertEqual(kernels["_Z3twov"], kernel_table.Kernel("_Z3twov", 40, 1024, 0, 0))

    def test_tensor_core_instructions_are_counted_per_kernel(self):
        self.assertEqual(kernel_table.count_ptx(PTX), {"_Z3onev": 2, "_Z3twov": 0})
        self.assertEqual(kernel_table.count_sass(SASS), {"_Z3onev": 1, "_Z3twov": 1})

    def test_names_lose_namespaces_and_arguments(self):
        name = "void polaron::cuda::(anonymous namespace)::norm<polaron::bf16, 8>(polaron::cuda::Forward<float>)"
        self.assertEqual(kernel_table.short_name(name), "norm<bf16, 8>")

    def test_spills_and_attention_without_tensor_cores_are_complained_about(self):
        def wrong(name, **values):
            return len(list(kernel_table.complaints(name, "90", kernel_table.Kernel(**values))))

        self.assertEqual(wrong("norm<float>", spills=4), 1)
        self.assertEqual(wrong("norm<float>"), 0)
        self.assertEqual(wrong("attention_backward_keys_bf16<64>"), 1)
        self.assertEqual(wrong("attention_backward_keys_bf16<64>", tensor=8), 0)
        self.assertEqual(wrong("attention_forward_rows<bf16>"), 0)


if __name__ == "__main__":
    unittest.main()
