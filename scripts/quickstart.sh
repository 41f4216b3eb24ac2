#!/usr/bin/env bash
# From a fresh clone to a small GPT-2 that has learned from real text, on any Debian or Ubuntu machine, in a few minutes:
#   1. installs the packages that the build and the plot need and that are missing (apt; sudo where you are not root)
#   2. builds polaron for this machine's processor
#   3. makes byte-level training shards of the Python standard library's sources, which every machine has
#   4. trains for about two minutes with low-rank Muon (configs/quickstart.json)
#   5. lets the model write a little, and draws the curves
# Nothing but packages is downloaded. Everything is written below build/, data/quickstart/ and runs/.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/dependencies.sh

say() { printf '\n== %s\n' "$*"; }

say "1/5 packages"
# shellcheck disable=SC2086
need_packages $build_packages python3-matplotlib
plot_python=$(python_with matplotlib) || { echo "error: python3 with matplotlib is needed for the plot" >&2; exit 2; }

say "2/5 building polaron"
cmake --preset quickstart -Wno-dev >/dev/null
cmake --build --preset quickstart
polaron=build/quickstart/polaron
"$polaron" --version

say "3/5 training text: the sources of Python's standard library, as bytes"
if [ -e data/quickstart/vocabulary.json ]; then
  echo "data/quickstart is there already"
else
  library=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')
  # Modules and packages themselves: no tests, no installed extras, no character tables.
  mapfile -t sources < <(find "$library" -maxdepth 2 -name '*.py' -not -path '*-packages/*' -not -path '*/test/*' \
    -not -path '*/encodings/*' -not -name '_pydecimal.py' | LC_ALL=C sort)
  python3 data/prepare_text.py "${sources[@]}" --tokenizer bytes --validation-fraction 0.03 --output data/quickstart
fi

say "4/5 training"
run=runs/quickstart
for ((n = 2; ; ++n)); do
  [ -e "$run" ] || break
  run=runs/quickstart-$n
done
"$polaron" train configs/quickstart.json --set "output=$run"

say "5/5 what it learned"
"$polaron" generate "$run" --prompt $'def read_' --tokens 240 --temperature 0.7 --seed 1
"$plot_python" scripts/plot_run.py "$run" --out "$run/curves.png" --title "quickstart"
echo
echo "checkpoint: $run/checkpoints/latest   (transformers loads it as it is)"
echo "plot:       $run/curves.png"
echo "next:       $polaron generate $run --prompt 'import ' ; docs/config.md ; README.md, \"Your own text\""
python3 - "$run/metrics.jsonl" <<'PYTHON'
import json, sys
values = [r["perplexity"] for r in map(json.loads, open(sys.argv[1])) if r["kind"] == "validation"]
print(f"quickstart: validation perplexity {values[0]:.2f} -> {values[-1]:.2f}")
PYTHON
