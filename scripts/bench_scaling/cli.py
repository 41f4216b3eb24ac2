"""Trains a few steps on 1, 2, 4 processes with each way of exchanging updates, and sets the speed and the bytes that
were moved beside what `polaron plan` predicts, also for numbers of processes that this machine does not have.

    python3 scripts/bench_scaling.py build/release/polaron configs/small-bpe.json --data 'data/text/train_*.bin'
    python3 scripts/bench_scaling.py build/release/polaron configs/gpt2-124m.json --data 'data/fineweb/train_*.bin' \\
        --processes 1,2 --set optimizer.matrices.type=low_rank_muon --set optimizer.matrices.rank=256

All runs share the config, the global batch and the tokens; they differ in their processes and parallel.exchange. Set
over the config are: a constant learning rate without warm-up, no clipping of gradients (the exchange of sketches
cannot have it), no validation and no samples; a --set of yours comes after that. Tokens a second are the median over
the steps after the first few, bytes those of all processes divided by their number. Run it on a machine that does
nothing else: the results name its load before each run.

Writes OUT.md (a table), OUT.json (all numbers) and OUT.png. Runs train in a temporary directory (TMPDIR says where)
which is removed; its checkpoint takes 8 to 16 bytes a parameter. Several processes need mpirun, the picture matplotlib.
Exit: 0 all is written, 2 something is missing or wrong; nothing is then written.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from reproduce.base import Problem
from reproduce.program import find_program

from .base import EXCHANGES, Planned, name_of
from .picture import draw
from .progress import Progress
from .report import report, table
from .runs import run_plan, train

OVERRIDES = ("schedule.type=constant", "schedule.warmup_steps=0", "training.gradient_clip=0", "sample.every=0",
             'data.validation=""', "validation.every=0", "checkpoint.every=0", "parallel.check_every=0")


def numbers(text: str) -> list:
    try:
        found = sorted({int(word) for word in text.split(",") if word.strip()})
    except ValueError:
        found = [0]
    if found and found[0] < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers of processes such as 1,2,4")
    return found


def at_least(least: int):
    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least {least}")
        return int(text)

    return parse


def check_tools(options) -> None:
    options.polaron = find_program(options.polaron)
    launcher = shlex.split(options.mpirun)
    if options.processes[-1] > 1 and (not launcher or shutil.which(launcher[0]) is None):
        raise Problem(f"there is no '{options.mpirun}' to start several processes. Debian, Ubuntu: sudo apt install "
                      "openmpi-bin libopenmpi-dev, then build polaron again; or give --processes 1.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise Problem("matplotlib is missing. Debian, Ubuntu: sudo apt install python3-matplotlib (for "
                      f"/usr/bin/python3); elsewhere: {sys.executable} -m pip install matplotlib.") from error
    if not options.out.parent.is_dir():
        raise Problem(f"there is no folder '{options.out.parent}' for the results.")


def measure(options, folder: Path):
    """All plans, then all runs."""
    overrides = [*OVERRIDES, *([f"data.train={json.dumps(options.data)}"] if options.data else []), *options.set]

    def plan(processes: int, exchange: str) -> Planned:
        return run_plan(options.polaron, options.config, overrides, processes, exchange, folder)

    exchanges = list(options.exchanges)
    usual = plan(2, "parameters").moved_a_step
    for exchange in [exchange for exchange in exchanges if exchange != "parameters"]:
        if plan(2, exchange).moved_a_step == usual:
            print(f"bench_scaling: without low-rank matrices the exchange of {exchange} is that of parameters: "
                  "left out", file=sys.stderr)
            exchanges.remove(exchange)
    exchanges = exchanges or ["parameters"]
    planned = [plan(processes, exchange) for processes in sorted({*options.processes, *options.planned})
               for exchange in (exchanges if processes > 1 else exchanges[:1])]

    places = [(processes, exchange) for processes in options.processes
              for exchange in (exchanges if processes > 1 else [""])]
    progress = Progress(len(places), options.skip + options.steps)
    measured = []
    try:
        for processes, exchange in places:
            name = name_of(processes, exchange)
            with tempfile.TemporaryDirectory(dir=folder) as place:
                measured.append(train(options, overrides, processes, exchange, Path(place),
                                      lambda steps, name=name: progress.step(name, steps)))
            progress.finish(name, measured[-1])
    except BaseException:
        progress.abandon()
        raise
    return measured, planned, overrides


def write_results(options, title: str, measured: list, planned: list, overrides: list, folder: Path) -> list:
    """Makes all three in the temporary folder first, so that a failure leaves what was there."""
    text = report(title, measured, planned, options)
    (folder / "results.md").write_text(text, encoding="utf-8")
    result = {"title": title, "config": options.config, "set": overrides, "steps": options.steps,
              "skipped": options.skip, "cores": os.cpu_count(), "measured": [asdict(run) for run in measured],
              "planned": [asdict(plan) for plan in planned]}
    (folder / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(title, measured, planned, folder / "results.png")
    print("\n" + table(measured, planned))
    written = []
    for suffix in (".md", ".json", ".png"):
        written.append(Path(f"{options.out}{suffix}"))
        try:
            shutil.copyfile(folder / f"results{suffix}", written[-1])
        except OSError as error:
            raise Problem(f"cannot write '{written[-1]}': {error.strerror or error}.") from error
    return written


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("polaron", help="the program")
    parser.add_argument("config", help="the config that all runs share")
    parser.add_argument("--data", metavar="GLOB", help="training shards (default: the config's data.train)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed to polaron")
    parser.add_argument("--processes", type=numbers, default=[1, 2, 4], metavar="N,...",
                        help="numbers of processes to run (default 1,2,4)")
    parser.add_argument("--planned", type=numbers, default=[8, 64, 512], metavar="N,...",
                        help="numbers of processes to plan only (default 8,64,512)")
    parser.add_argument("--exchanges", default=",".join(EXCHANGES), metavar="NAME,...",
                        help="values of parallel.exchange (default all three)")
    parser.add_argument("--steps", type=at_least(1), default=20, metavar="N", help="steps that count (default 20)")
    parser.add_argument("--skip", type=at_least(0), default=5, metavar="N", help="first steps that do not (default 5)")
    parser.add_argument("--mpirun", default="mpirun", metavar="COMMAND", help="how to start processes (default mpirun)")
    parser.add_argument("--out", type=Path, default=Path("scaling"), metavar="OUT",
                        help="name of the results without .md, .json and .png (default scaling)")
    parser.add_argument("--title", default=None, help="above the picture (default: the config's name)")
    options = parser.parse_args(arguments)
    options.exchanges = [word for word in options.exchanges.split(",") if word]
    unknown = [word for word in options.exchanges if word not in EXCHANGES]
    if unknown or not options.exchanges or not options.processes:
        parser.error(f"--exchanges takes {', '.join(EXCHANGES)}, --processes at least one number")
    title = options.title if options.title is not None else f"Scaling of {Path(options.config).stem}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the temporary directory goes then too
    try:
        check_tools(options)
        with tempfile.TemporaryDirectory(prefix="polaron-scaling-") as folder:
            measured, planned, overrides = measure(options, Path(folder))
            written = write_results(options, title, measured, planned, overrides, Path(folder))
    except Problem as problem:
        print(f"bench_scaling: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench_scaling: interrupted; nothing is written", file=sys.stderr)
        return 130
    by_place = {(plan.processes, plan.exchange): plan for plan in planned}
    for run in measured:
        plan = by_place.get((run.processes, run.exchange))
        if plan and plan.moved_a_step != run.moved_a_step:
            print(f"bench_scaling: {name_of(run.processes, run.exchange)}: {run.moved_a_step} bytes moved a step, "
                  f"planned were {plan.moved_a_step}", file=sys.stderr)
    print("wrote " + ", ".join(map(str, written)))
    return 0
