#!/usr/bin/env bash
# Trains the same small GPT-2 on the same tokens with AdamW, Muon and low-rank Muon, one learning rate each, and draws the
# curves of validation perplexity into one picture.
#   compare_optimizers.sh POLARON SHARDS OUT [--set KEY=VALUE]...
# POLARON: the program; SHARDS: a folder made by data/prepare_text.py (say with --train-bpe 4096); OUT: a new folder.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,5p' "$0"; exit 2; }
polaron=$1 shards=$(realpath -m -- "$2") out=$(realpath -m -- "$3")
case $polaron in */*) polaron=$(realpath -m -- "$polaron") ;; esac
shift 3
cd "$(dirname "$0")/.."
. scripts/dependencies.sh
plot_python=$(python_with matplotlib) || { echo "error: python3 with matplotlib is needed for the plot" >&2; exit 2; }
mkdir -p "$out"

run() { # name, then what differs
  local name=$1
  shift
  "$polaron" train configs/small-bpe.json --set "name=$name" --set "output=$out/$name" \
    --set "data.train=$shards/train_*.bin" --set "data.validation=$shards/validation_*.bin" "$@"
}
run adamw "$@" --set optimizer.matrices.type=adamw --set optimizer.matrices.lr=0.003
run muon "$@" --set optimizer.matrices.type=muon --set optimizer.matrices.lr=0.02
run low_rank_muon "$@" --set optimizer.matrices.type=low_rank_muon --set optimizer.matrices.lr=0.02 \
  --set optimizer.matrices.rank=1/4

"$plot_python" scripts/plot_run.py "$out/adamw" "$out/muon" "$out/low_rank_muon" --out "$out/curves.png" \
  --title "the same tokens, three optimizers"
python3 - "$out" <<'PYTHON'
import json, statistics, sys
print("| optimizer | final validation loss | perplexity | median ms a step |\n|---|---|---|---|")
for name in ("adamw", "muon", "low_rank_muon"):
    records = [json.loads(line) for line in open(f"{sys.argv[1]}/{name}/metrics.jsonl")]
    last = [r for r in records if r["kind"] == "validation"][-1]
    ms = statistics.median(r["ms"] for r in records if r["kind"] == "step")
    print(f"| {name} | {last['val_loss']:.4f} | {last['perplexity']:.2f} | {ms:.0f} |")
PYTHON
