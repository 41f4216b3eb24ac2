#!/usr/bin/env python3
"""What `polaron plan` predicts for several configs and numbers of processes, as one markdown table: memory of a process
by class, and bytes through each process in a step for each exchange of updates. Trains and allocates nothing.

    python3 scripts/plan_table.py build/release/polaron configs/gpt2-*.json --processes 1,8,64 --set precision=bf16 \\
        --set allow_slow_bf16=true
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CLASSES = ("weights", "gradients", "optimizer_state", "optimizer_scratch", "activations", "batches")
EXCHANGES = ("parameters", "factors", "sketch")


class Problem(Exception):
    """Something the user can act on; the message says what."""


def plan(polaron, config, processes, settings):
    """The plan of a config as `polaron plan --json` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        command = [polaron, "plan", config, "--processes", str(processes), "--json", str(out)]
        for setting in settings:
            command += ["--set", setting]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stderr.strip() or done.stdout.strip()
        if done.returncode == 2 and said.startswith(f"error: {processes} processes"):
            return {"config": Path(config).stem, "processes": processes, "refused": said.removeprefix("error: ")}
        if done.returncode != 0:
            raise Problem(f"{config} on {processes}: {said}")
        return json.loads(out.read_text())


def size(count):
    """Bytes for people: three digits, powers of 1000."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000.0
    return ""


def row(found):
    """The table's cells for one plan."""
    if "refused" in found:
        return [found["config"], str(found["processes"]), "refused (below)"] + [""] * 10
    memory, processes = found["memory"], found["processes"]
    held = [size(memory.get(name, 0)) for name in CLASSES]
    moved = ["-" if processes == 1 else size(found["traffic"][name]["total"] / processes) for name in EXCHANGES]
    return [found["config"], str(processes), f"{found['parameters'] / 1e6:,.0f} M", *held, size(memory["total"]), *moved]


def table(rows):
    """A markdown table with its columns aligned."""
    head = ["config", "processes", "parameters", "weights", "gradients", "state", "scratch", "activations", "batches",
            "memory", "parameters moved", "factors moved", "sketches moved"]
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in [head, *rows]]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("polaron", help="the program")
    parser.add_argument("configs", nargs="+", help="config files")
    parser.add_argument("--processes", default="1,8,64", help="numbers of processes (1,8,64)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over every config")
    options = parser.parse_args(arguments)
    try:
        counts = [int(count) for count in options.processes.split(",")]
        plans = [plan(options.polaron, config, count, options.set) for config in options.configs for count in counts]
        print(table([row(found) for found in plans]))
        for found in plans:
            if "refused" in found:
                print(f"\n{found['config']}: {found['refused']}")
    except ValueError:
        print(f"error: --processes {options.processes}: numbers with commas between", file=sys.stderr)
        return 2
    except (Problem, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
