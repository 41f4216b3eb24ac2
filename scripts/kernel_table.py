#!/usr/bin/env python3
"""Compiles cuda/*.cu and prints what each kernel takes: registers, shared memory, spills, tensor-core instructions.

A markdown table on standard output. Instructions are counted in the machine code (HMMA) where there is a cuobjdump, in PTX
(mma.sync) otherwise. Shared memory is the static part; what a launch asks for in addition stands in the launching code. Ends with 1
when a kernel spills, or when an attention kernel of bf16 has no tensor-core instruction. Needs neither GPU nor driver.
Usage: scripts/kernel_table.py [--arch 80 90] [--only TEXT] > docs/benchmarks/cuda-kernels.md
"""
import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# As cmake/cuda.cmake compiles them; the hash stands for that of the headers.
FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-lineinfo", f"-I{ROOT}", f"-I{ROOT}/src",
         '-DPOLARON_INTERFACE_HASH="none"']
ON_TENSOR_CORES = re.compile(r"attention_(forward|backward)\w*_bf16\b")  # kernels that must have such instructions


@dataclasses.dataclass
class Kernel:
    name: str = ""  # mangled
    registers: int = 0
    shared: int = 0
    spills: int = 0
    tensor: int = 0


def parse_resources(text):
    """ptxas -v -> {mangled name: Kernel}."""
    kernels, current = {}, None
    for line in text.splitlines():
        if entry := re.search(r"Compiling entry function '([^']+)'", line):
            current = kernels[entry[1]] = Kernel(entry[1])
        elif "Function properties for" in line:  # of a kernel or of a function that it calls
            continue
        elif current and (spill := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)):
            current.spills += int(spill[1]) + int(spill[2])
        elif current and (used := re.search(r"Used (\d+) registers", line)):
            current.registers = int(used[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                current.shared = int(shared[1])
    return kernels


def count_by_function(text, start, instruction):
    """Lines that match `instruction` after each line that `start` names a function in."""
    counts, name = {}, None
    for line in text.splitlines():
        if found := re.search(start, line):
            name = found[1]
            counts[name] = 0
        elif name and re.search(instruction, line):
            counts[name] += 1
    return counts


def count_ptx(text):
    return count_by_function(text, r"\.entry\s+(\w+)", r"\bmma\.sync\b")


def count_sass(text):
    return count_by_function(text, r"Function : (\w+)", r"\bH(G)?MMA\b")


def short_name(demangled):
    """void polaron::cuda::(anonymous namespace)::norm<float, 4>(Arguments) -> norm<float, 4>"""
    text = demangled.replace("(anonymous namespace)::", "").replace("polaron::cuda::", "").replace("polaron::", "")
    text = text.removeprefix("void ")
    depth = 0
    for i, letter in enumerate(text):  # up to the arguments: the first parenthesis outside of template arguments
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return text[:i]
    return text


def demangled(names):
    if shutil.which("c++filt") is None:
        return dict(zip(names, names))
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, (short_name(line) for line in done.stdout.splitlines())))


def compile_file(nvcc, cuobjdump, source, arch, folder):
    folder.mkdir()
    cubin = folder / "kernels.cubin"
    done = subprocess.run([nvcc, *FLAGS, f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v", "--keep", f"--keep-dir={folder}",
                           "-o", str(cubin), str(source)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    kernels = parse_resources(done.stdout + done.stderr)
    if cuobjdump:
        sass = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True)
        counts = count_sass(sass.stdout)
    else:
        counts = count_ptx("\n".join(path.read_text() for path in sorted(folder.glob("*.ptx"))))
    for name, kernel in kernels.items():
        kernel.tensor = counts.get(name, 0)
    return kernels


def complaints(name, arch, kernel):
    if kernel.spills > 0:
        yield f"{name} for sm_{arch} spills {kernel.spills} bytes"
    if ON_TENSOR_CORES.search(name) and kernel.tensor == 0:
        yield f"{name} for sm_{arch} has no tensor-core instruction"


def find_nvcc():
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if not found:
        sys.exit("kernel_table.py: there is no nvcc on PATH or in CUDA_HOME/bin")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["80", "90"], help="compute capabilities (80 90)")
    parser.add_argument("--only", default="", help="only files whose name contains this")
    arguments = parser.parse_args()
    nvcc, cuobjdump = find_nvcc(), shutil.which("cuobjdump")
    version = re.search(r"release [\d.]+, V([\d.]+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    counted = "HMMA in SASS" if cuobjdump else "mma.sync in PTX"
    print(f"# Kernels of the CUDA backend\n\nBy scripts/kernel_table.py, nvcc {version[1] if version else '?'}. Shared memory: the "
          f"static part, in bytes. Spills: bytes stored and loaded. Tensor: {counted}.\n")
    print("| kernel | arch | registers | shared | spills | tensor |\n|---|---|---:|---:|---:|---:|")
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "cuda").glob("*.cu")):
            if arguments.only not in source.name:
                continue
            rows = []
            for arch in arguments.arch:
                kernels = compile_file(nvcc, cuobjdump, source, arch, pathlib.Path(folder) / f"{source.stem}-{arch}")
                names = demangled(list(kernels))
                rows += [(names[kernel.name], arch, kernel) for kernel in kernels.values()]
            for name, arch, kernel in sorted(rows, key=lambda row: row[:2]):
                print(f"| `{name}` | sm_{arch} | {kernel.registers} | {kernel.shared} | {kernel.spills} | {kernel.tensor} |", flush=True)
                wrong += complaints(name, arch, kernel)
    for line in wrong:
        print(f"kernel_table.py: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
