#!/usr/bin/env bash
# Everything that needs a real GPU, from a plain checkout, with neither network nor apt:
#
#   scripts/verify_gpu.sh [correctness|sanitize|kernels|train|torch]... [--budget SECONDS] [--out DIR]
#
#   correctness   the CUDA tests on the device, a process a suite; GPT-2 124M on real text against the CPU's losses, twice
#   sanitize      compute-sanitizer's memcheck and racecheck of our own kernels
#   kernels       every op against its arithmetic and traffic, and optimizer steps by width and rank
#   train         training steps of GPT-2 124M to 1558M and LLaMA 350M and 1B: tokens/s, MFU, memory against the plan
#   torch         the same work in PyTorch, where python3 can import torch
#
# Looks for what it needs, builds for the device that is there, and runs the phases in this order, all of them where none is
# named. Everything ends within 560 seconds or --budget: what the time does not suffice for is skipped or "not finished". Results
# go to DIR as they come: results.json, report.md, verify.log and a JSON file a benchmark. Exit code: 0 nothing failed, 1
# something did (report.md says what), 2 bad usage, 5 no device. POLARON_VERIFY_DRY=1 tries the phases out on the CPU, with tiny
# models, and measures nothing.
#
#   scripts/verify_gpu.sh pack DIR                 packages that the build needs, for a machine without a registry (uses apt)
#   scripts/verify_gpu.sh ... --packages DIR       unpacks them for the build, beside the system's own libraries
#   scripts/verify_gpu.sh report FILE...           one report of the results.json of several calls
#   scripts/verify_gpu.sh cpu-losses --program P   the CPU's losses that `correctness` compares with
#
# More: scripts/verify_gpu.sh --help, docs/benchmarks/gpu/README.md
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
command -v python3 >/dev/null || { echo "error: verify_gpu.sh needs python3" >&2; exit 2; }
PYTHONPATH="$scripts${PYTHONPATH:+:$PYTHONPATH}" exec python3 -m verify_gpu "$@"
