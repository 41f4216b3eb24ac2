#!/usr/bin/env bash
# Times a GPT-2 124M training step of llm.c's CPU trainer (train_gpt2): the baseline for `polaron bench step`.
#
#   bash scripts/bench_llmc.sh OUT 64=PATH/train_gpt2_t64 512=PATH/train_gpt2_t512
#
# Takes finished programs, T=PROGRAM each: train_gpt2 has B and T fixed in its main, so there is one a sequence length,
# with B=4. This script builds nothing; whoever measures says with which commit, compiler and flags they were built.
#
# What it does: writes into OUT what the program reads from its working directory (a checkpoint of the 124M shape with
# random weights, 500 MB, and random tokens; the time depends on neither), runs each program until it has reported the
# steps wanted, stops it, and prints one JSON line a program: the median over the steps after the first. OUT can be
# deleted.
#
# Environment: THREADS (default 2) and STEPS (timed steps; default 5 below T=256, 3 from there on). At 30 to 45 tokens a
# second T=512 takes about seven minutes. Run it on a machine that does nothing else ("load_average": 1 minute, before
# the program starts). Needs python3 (no packages).
set -euo pipefail

usage() { sed -n '2,/^set /p' "$0" | sed -e '/^set /d' -e 's/^# \{0,1\}//'; }
fail() { echo "bench_llmc: $*" >&2; exit 2; }

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
[ $# -ge 2 ] || { usage >&2; exit 2; }
out=$1
shift
threads=${THREADS:-2}
batch=4
tokens=102401 # enough for 50 batches of 4 x 512

programs=()
for pair in "$@"; do
  length=${pair%%=*}
  program=${pair#*=}
  [[ $pair == *=* && $length =~ ^[1-9][0-9]*$ && $length -le 1024 ]] || fail "$pair: not of the form T=PROGRAM"
  [ -x "$program" ] && [ ! -d "$program" ] || fail "$program: no such program"
  programs+=("$length=$(realpath "$program")")
done

mkdir -p "$out/dev/data/tinyshakespeare"
cd "$out"
python3 - "$tokens" <<'PYTHON'
import array, os, random, sys

tokens = int(sys.argv[1])
random.seed(1)
for name in ("train", "val"):  # shard: 256 int32 (magic, version, count), then uint16 tokens
    with open(f"dev/data/tinyshakespeare/tiny_shakespeare_{name}.bin", "wb") as file:
        array.array("i", [20240520, 1, tokens] + [0] * 253).tofile(file)
        array.array("H", [random.randrange(50257) for _ in range(tokens)]).tofile(file)

# checkpoint: 256 int32 (magic, version, positions, vocabulary, layers, heads, width, padded vocabulary), fp32 tensors
positions, vocabulary, padded, layers, heads, width = 1024, 50257, 50304, 12, 12, 768
noise = array.array("f", [random.gauss(0.0, 0.02) for _ in range(65537)])  # prime: rows of a matrix differ
shift = 0

def normal(file, count):
    global shift
    while count:
        part = noise[shift : shift + count]
        part.tofile(file)
        shift = (shift + len(part)) % len(noise)
        count -= len(part)

def constant(file, value, count):
    (array.array("f", [value]) * count).tofile(file)

size = 1024 + 4 * 124475904
if not (os.path.exists("gpt2_124M.bin") and os.path.getsize("gpt2_124M.bin") == size):
    with open("gpt2_124M.bin", "wb") as file:
        array.array("i", [20240326, 3, positions, vocabulary, layers, heads, width, padded] + [0] * 248).tofile(file)
        normal(file, padded * width)
        normal(file, positions * width)
        for outputs, inputs in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)):
            if outputs in (3 * width, 4 * width):  # a layer norm stands before q|k|v and before the MLP
                constant(file, 1.0, layers * width)
                constant(file, 0.0, layers * width)
            normal(file, layers * outputs * inputs)
            constant(file, 0.0, layers * outputs)
        constant(file, 1.0, width)
        constant(file, 0.0, width)
    if os.path.getsize("gpt2_124M.bin") != size:
        sys.exit("bench_llmc: the checkpoint came out with the wrong size")
PYTHON

child=
trap '[ -z "$child" ] || kill "$child" 2>/dev/null || true' EXIT
for pair in "${programs[@]}"; do
  length=${pair%%=*}
  steps=${STEPS:-$((length < 256 ? 5 : 3))}
  log="log_t$length.txt"
  load=$(cut -d ' ' -f 1 /proc/loadavg)
  OMP_NUM_THREADS=$threads stdbuf -oL "${pair#*=}" >"$log" 2>&1 &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    [ "$(grep -c '^step ' "$log" || true)" -le "$steps" ] || break # one step more than is timed
    sleep 0.2
  done
  kill "$child" 2>/dev/null || true
  wait "$child" 2>/dev/null || true
  child=
  python3 - "$log" "$length" "$batch" "$threads" "$steps" "$tokens" "$load" <<'PYTHON'
import json, re, statistics, sys

log, (length, batch, threads, steps, tokens), load = sys.argv[1], map(int, sys.argv[2:7]), float(sys.argv[7])
text = open(log, encoding="utf-8", errors="replace").read()
times = [float(ms) for ms in re.findall(r"^step \d+: .*\(took ([\d.]+) ms\)", text, re.MULTILINE)][1 : steps + 1]
batches = re.search(r"^train dataset num_batches: (\d+)", text, re.MULTILINE)
if len(times) < steps:
    sys.exit(f"bench_llmc: the program stopped before {steps + 1} steps; its last words:\n{text[-500:]}")
if not batches or int(batches[1]) != tokens // (batch * length):
    sys.exit(f"bench_llmc: this program was not built with B={batch} and T={length} (see {log})")
ms = statistics.median(times)
print(json.dumps({"what": "GPT-2 124M training step, llm.c train_gpt2", "T": length, "B": batch, "dtype": "fp32",
                  "threads": threads, "load_average": load, "ms": round(ms, 2),
                  "tokens_per_s": round(1e3 * batch * length / ms, 1), "ms_min": round(min(times), 2),
                  "ms_max": round(max(times), 2), "steps": len(times)}))
PYTHON
done
