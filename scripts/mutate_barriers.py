#!/usr/bin/env python3
"""Removes each __syncthreads and __syncwarp of cuda/ in turn and runs the emulated tests, plain first, then with ThreadSanitizer.

A barrier whose removal no test notices is either redundant or not tested: the list at the end names it. Works on a copy of the
source tree in a build folder of its own. Usage: scripts/mutate_barriers.py [--build DIR] [--only TEXT]
"""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILTERS = {  # what can notice a barrier of a file; everything for headers
    "norm.cu": "*Norm*",
    "loss.cu": "*Loss*",
    "attention_forward.cu": "*Attention*",
    "attention_backward.cu": "*Attention*",
    "attention_prepare.cu": "*AttentionPrepare*",
    "attention_plain.cu": "*Attention*",
    "attention_tile.h": "*Attention*",
    "sort.cu": "SortByKey*:*Embedding*",
    "cholesky.cu": "Cholesky*:*Basis*",
    "decomposition.cu": "*Basis*",
    "momentum_update.cu": "*MatrixUpdates*",
    "linear.cu": "*Linear*",
    "mma.h": "Mma*:*Attention*",
    "reduce.h": "*Norm*:*Loss*:*Elementwise*:*Basis*:*NewtonSchulz*",
}


TIMEOUT_S = 1200  # of one program; the slowest, all tests under ThreadSanitizer, takes about a third of it


def barriers(tree):
    for path in sorted((tree / "cuda").iterdir()):
        if path.suffix not in (".cu", ".h"):
            continue
        for number, line in enumerate(path.read_text().splitlines()):
            if re.search(r"__sync(threads|warp)\(", line):
                yield path, number


def run(build, program, tests):
    """Whether the tests of the mutated program fail, with the first line that says how."""
    made = subprocess.run(["ninja", "-C", str(build), program], capture_output=True, text=True)
    if made.returncode != 0:
        sys.exit(made.stdout)
    environment = dict(os.environ, OMP_NUM_THREADS="1", TSAN_OPTIONS="halt_on_error=1")
    # TSan needs no orders, and the CPU's tests say nothing about kernels.
    select = f"{tests}-*/cpu:*/device" + (":*/emulated_*:Cuda*" if program.endswith("tsan") else "")
    command = [str(build / "tests" / "cuda" / program), "--gtest_brief=1", f"--gtest_filter={select}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, errors="replace",
                              timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return True, f"no end within {TIMEOUT_S} s"
    said = [line for line in (done.stdout + done.stderr).splitlines() if re.search("data race|kernel |FAILED", line)]
    return done.returncode != 0, said[0][:120] if said else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "mutation")
    parser.add_argument("--only", default="", help="only barriers of files whose name contains this")
    arguments = parser.parse_args()
    tree, build = arguments.build / "source", arguments.build / "build"
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True).stdout
    for name in listed.decode().split("\0")[:-1]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    subprocess.run(["cmake", "-S", str(tree), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-Wno-dev",
                    "-DCMAKE_CXX_COMPILER_LAUNCHER=" + ("ccache" if shutil.which("ccache") else ""), "-DPOLARON_CUDA=ON",
                    "-DPOLARON_CUDA_FLAVOURS=ON"],
                   check=True, stdout=subprocess.DEVNULL)
    survivors = []
    for path, number in barriers(tree):
        if arguments.only not in path.name:
            continue
        text = path.read_text()
        lines = text.splitlines(keepends=True)
        lines[number] = re.sub(r"__sync(threads|warp)\([^)]*\);", ";", lines[number])
        path.write_text("".join(lines))
        tests = FILTERS.get(path.name, "*")
        where = f"{path.name}:{number + 1}"
        caught, how = False, ""
        for program in ("test_cuda", "test_cuda_tsan"):
            caught, how = run(build, program, tests)
            if caught:
                print(f"{where}: caught by {program} ({how})", flush=True)
                break
        if not caught:
            print(f"{where}: NOT CAUGHT", flush=True)
            survivors.append(where)
        path.write_text(text)
    print(f"{len(survivors)} not caught" + (": " + ", ".join(survivors) if survivors else ""))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
