#!/usr/bin/env python3
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
import math
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

EXCHANGES = ("parameters", "factors", "sketch")
# Okabe and Ito's colours, which people with any colour vision tell apart.
COLORS = {"parameters": "#0072B2", "factors": "#D55E00", "sketch": "#009E73"}
MARKERS = {"parameters": "o", "factors": "s", "sketch": "^"}
OVERRIDES = ("schedule.type=constant", "schedule.warmup_steps=0", "training.gradient_clip=0", "sample.every=0",
          'data.validation=""', "validation.every=0", "checkpoint.every=0", "parallel.check_every=0")
LAST_LINES = 15


class Problem(Exception):
    """Something the user can act on; the message says what."""


@dataclass
class Measured:
    processes: int
    exchange: str  # of a single process: empty, for it exchanges nothing
    threads: int  # a process
    tokens_per_s: float  # median over the steps that count
    quartiles: tuple
    moved_a_step: int  # bytes, all processes together
    load: float  # average of the last minute, before the run
    device: str = field(default="", repr=False)


@dataclass
class Planned:
    processes: int
    exchange: str
    moved_a_step: int  # bytes, all processes together
    memory: int  # bytes of process 0


# Running polaron ------------------------------------------------------------------------------------------------------


def last_lines(text: str) -> str:
    lines = [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    return "\n".join("    " + line for line in lines[-LAST_LINES:]) or "    (it said nothing)"


def run_plan(polaron: str, config: str, overrides: list, processes: int, exchange: str, folder: Path) -> Planned:
    file = folder / "plan.json"
    command = [polaron, "plan", config, "--processes", str(processes), "--json", str(file)]
    for override in [*overrides, f"parallel.exchange={exchange}"]:
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise Problem(f"`{shlex.join(command)}` failed with exit code {done.returncode}:\n"
                      + last_lines(done.stdout + done.stderr))
    plan = json.loads(file.read_text(encoding="utf-8"))
    return Planned(processes, exchange, plan["traffic"][exchange]["total"], plan["memory"]["total"])


def read_lines(path: Path) -> list:
    """The JSON objects of a metrics.jsonl that may still grow."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                lines.append(json.loads(text))
            except ValueError:
                pass
    return [line for line in lines if isinstance(line, dict)]


def environment() -> dict:
    """Lets Open MPI start more processes than there are cores, and as root where that is who calls."""
    more = {"OMPI_MCA_rmaps_base_oversubscribe": "1"}
    if os.geteuid() == 0:
        more |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return os.environ | more


def stop(process: subprocess.Popen) -> None:
    """Ends a run and what it has started, politely at first: mpirun tells its processes."""
    for signal_number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, signal_number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def train(options, overrides: list, processes: int, exchange: str, folder: Path, on_step) -> Measured:
    """One run; on_step(number of steps done) is called while it goes on."""
    output = folder / "run"
    command = [options.polaron, "train", options.config]
    if processes > 1:
        command = [*shlex.split(options.mpirun), "-n", str(processes), *command]
    settings = [*overrides, f"training.steps={options.skip + options.steps}", f"output={json.dumps(str(output))}"]
    for setting in settings + ([f"parallel.exchange={exchange}"] if exchange else []):
        command += ["--set", setting]
    load = os.getloadavg()[0]
    with open(folder / "output.txt", "w+b") as said:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
                                       env=environment(), start_new_session=True)
        except OSError as error:
            raise Problem(f"cannot start '{command[0]}': {error.strerror}.") from error
        try:
            while process.poll() is None:
                on_step(sum(line.get("kind") == "step" for line in read_lines(output / "metrics.jsonl")))
                time.sleep(0.2)
        finally:
            stop(process)
        said.seek(0)
        text = said.read().decode(errors="replace")
    if process.returncode != 0:
        raise Problem(f"training on {name_of(processes, exchange)} failed with exit code {process.returncode}. "
                      f"Its last lines:\n{last_lines(text)}\nIt was: {shlex.join(command)}")
    return read_run(read_lines(output / "metrics.jsonl"), processes, exchange, options.skip, load)


def read_run(lines: list, processes: int, exchange: str, skip: int, load: float) -> Measured:
    rates = [line["tokens_per_s"] for line in lines
             if line.get("kind") == "step" and line["step"] > skip and line.get("tokens_per_s")]
    run = next((line for line in lines if line.get("kind") == "run"), {})
    end = next((line for line in reversed(lines) if line.get("kind") == "end"), None)
    if not rates or end is None:
        raise Problem(f"the run on {name_of(processes, exchange)} left no times of steps, or no end, in metrics.jsonl.")
    if run.get("processes") != processes:
        raise Problem(f"{name_of(processes, exchange)} were asked for and {run.get('processes')} ran: does mpirun "
                      "belong to the MPI that polaron was built with?")
    quartiles = statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else [rates[0]] * 3
    return Measured(processes, exchange, run.get("threads", 0), statistics.median(rates), (quartiles[0], quartiles[2]),
                    end.get("moved_a_step") or 0, load, run.get("device", ""))


# What comes of it -----------------------------------------------------------------------------------------------------


def name_of(processes: int, exchange: str) -> str:
    if processes == 1:
        return "one process"
    return f"{processes} processes, exchange of {'sketches' if exchange == 'sketch' else exchange}"


def format_bytes(count: float) -> str:
    """As polaron plan prints it, in powers of 1000."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def format_time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def table(measured: list, planned: list) -> str:
    """Markdown: a row for each pair of processes and exchange, whether it was run or only planned."""
    rows = [("processes", "exchange", "threads each", "tokens/s", "of one process", "moved a step", "planned",
             "memory, planned")]
    alone = next((run.tokens_per_s for run in measured if run.processes == 1), None)
    by_place = {(run.processes, run.exchange): run for run in measured}
    for plan in planned:
        run = by_place.get((plan.processes, plan.exchange if plan.processes > 1 else ""))
        rows.append((
            str(plan.processes), plan.exchange if plan.processes > 1 else "-",
            str(run.threads) if run else "-", format_rate(run.tokens_per_s) if run else "-",
            f"{run.tokens_per_s / alone:.2f} x" if run and alone else "-",
            format_bytes(run.moved_a_step / run.processes) if run else "-",
            format_bytes(plan.moved_a_step / plan.processes), format_bytes(plan.memory)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"

    return "\n".join([line(rows[0]), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows[1:])])


def report(title: str, measured: list, planned: list, options) -> str:
    run = measured[0]
    return (f"# {title}\n\n{table(measured, planned)}\n\n"
            f"{run.device or 'Unknown processor'}, {os.cpu_count()} cores. Tokens a second: median of {options.steps} "
            f"steps after {options.skip}, the same global batch for any number of processes. Moved a step: bytes "
            f"through one process. Memory: of process 0, what polaron allocates. Rows without tokens/s are only "
            f"planned; more processes than the model has matrices could not run.\n")


def draw(title: str, measured: list, planned: list, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    plt.rcParams.update({
        "font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
        "grid.linewidth": 0.7, "axes.axisbelow": True})
    figure, (speed_axes, bytes_axes) = plt.subplots(1, 2, figsize=(13, 5.8), dpi=130)
    exchanges = [exchange for exchange in EXCHANGES if any(plan.exchange == exchange for plan in planned)]
    alone = [run for run in measured if run.processes == 1]

    for exchange in exchanges:
        style = {"color": COLORS[exchange], "marker": MARKERS[exchange], "markersize": 8, "markeredgecolor": "white"}
        runs = [run for run in measured if run.exchange == exchange]
        speed_axes.plot([run.processes for run in alone + runs], [run.tokens_per_s for run in alone + runs],
                        linewidth=1.8, zorder=3, **style)
        for run in runs:
            speed_axes.plot([run.processes] * 2, run.quartiles, color=COLORS[exchange], linewidth=5,
                            alpha=0.35, zorder=2)
        plans = [plan for plan in planned if plan.exchange == exchange and plan.processes > 1]
        bytes_axes.plot([plan.processes for plan in plans], [plan.moved_a_step / plan.processes for plan in plans],
                        color=COLORS[exchange], linewidth=1.8, zorder=2)
        bytes_axes.plot([run.processes for run in runs], [run.moved_a_step / run.processes for run in runs],
                        linestyle="", zorder=3, **style)
    for run in alone:
        speed_axes.plot([1, 1], run.quartiles, color="#000000", linewidth=5, alpha=0.35, zorder=2)
        speed_axes.plot(1, run.tokens_per_s, color="#000000", marker="D", markersize=8, markeredgecolor="white",
                        zorder=4)

    speed_axes.set_title("Tokens a second, the batch shared by all")
    speed_axes.set_ylim(0, 1.12 * max(run.quartiles[1] for run in measured))
    speed_axes.yaxis.set_major_locator(MaxNLocator(7, steps=(1, 2, 2.5, 5, 10)))
    speed_axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_rate(value)))
    bytes_axes.set_title("Bytes through each process a step")
    heights = [plan.moved_a_step / plan.processes for plan in planned if plan.moved_a_step > 0]
    if heights and max(heights) > 10 * min(heights):
        bytes_axes.set_yscale("log")
        bytes_axes.set_ylim(min(heights) / 1.5, max(heights) * 1.5)
    else:
        bytes_axes.set_ylim(0, 1.12 * max(heights, default=1.0))
        bytes_axes.yaxis.set_major_locator(MaxNLocator(7, steps=(1, 2, 2.5, 5, 10)))
    bytes_axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
    ticks = {speed_axes: sorted({run.processes for run in measured}),
             bytes_axes: sorted({plan.processes for plan in planned if plan.processes > 1})}
    for axes, numbers in ticks.items():
        axes.set_xscale("log", base=2)
        axes.set_xlabel("processes")
        numbers = numbers or [1]
        axes.set_xlim(numbers[0] / 1.25, numbers[-1] * 1.25)
        axes.xaxis.set_major_locator(FixedLocator(apart(numbers, 1.2 if len(numbers) > 8 else 1.05)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())

    handles, labels = [], []
    if alone:
        handles.append(Line2D([], [], color="#000000", marker="D", linestyle="", markersize=8))
        labels.append("one process")
    for exchange in exchanges if any(run.processes > 1 for run in measured) or heights else []:
        handles.append(Line2D([], [], color=COLORS[exchange], marker=MARKERS[exchange], markersize=8, linewidth=1.8))
        labels.append("sketches" if exchange == "sketch" else exchange)
    handles += [Line2D([], [], color="#777777", linewidth=5, alpha=0.4), Line2D([], [], color="#777777", linewidth=1.8)]
    labels += ["half of the steps (left)", "planned (right; points: measured)"]
    figure.text(0.5, 0.955, title.replace("$", r"\$"), fontsize=15, fontweight="bold", ha="center")
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.945), ncol=len(labels), frameon=False,
                  fontsize=11, columnspacing=1.6, handlelength=2.2)
    figure.tight_layout(rect=(0, 0, 1, 0.88), w_pad=3.0)
    figure.savefig(out, format="png")
    plt.close(figure)


def apart(numbers: list, factor: float) -> list:
    """Those of the ascending numbers that are at least so much larger than the one before: labels need room."""
    kept = []
    for number in numbers:
        if not kept or number >= factor * kept[-1]:
            kept.append(number)
    return kept


# The whole ------------------------------------------------------------------------------------------------------------


class Progress:
    """One line that is written over while runs go on; where the output is no terminal, a line for each run."""

    def __init__(self, runs: int, steps: int):
        self.runs, self.steps = runs, steps
        self.started, self.done, self.width = time.monotonic(), 0, 0
        self.terminal = sys.stderr.isatty()

    def left(self, steps_done: int) -> str:
        """Steps take about equally long in all runs: they are of as many tokens, on the same cores."""
        so_far = self.done * self.steps + steps_done
        if so_far == 0:
            return ""
        rest = (time.monotonic() - self.started) / so_far * (self.runs * self.steps - so_far)
        return f", about {format_time(rest)} left"

    def write(self, text: str, last: bool = False) -> None:
        if self.terminal:
            print("\r" + text.ljust(self.width), end="\n" if last else "", file=sys.stderr, flush=True)
            self.width = 0 if last else len(text)
        elif last:
            print(text, file=sys.stderr, flush=True)

    def step(self, name: str, steps_done: int) -> None:
        self.write(f"[{self.done + 1}/{self.runs}] {name}: step {steps_done} of {self.steps}{self.left(steps_done)}")

    def finish(self, name: str, run: Measured) -> None:
        self.done += 1
        left = self.left(0) if self.done < self.runs else ""
        moved = f", {format_bytes(run.moved_a_step / run.processes)} a step" if run.processes > 1 else ""
        rate = format_rate(run.tokens_per_s)
        self.write(f"[{self.done}/{self.runs}] {name}: {rate} tokens/s{moved}{left}", last=True)

    def abandon(self) -> None:
        if self.terminal and self.width > 0:
            print(file=sys.stderr)


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
    if shutil.which(options.polaron) is None:
        raise Problem(f"there is no program '{options.polaron}'. Build it (cmake --build --preset release) and give "
                      "its path, say build/release/polaron.")
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
    if "/" in options.polaron:
        options.polaron = os.path.abspath(options.polaron)
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


if __name__ == "__main__":
    sys.exit(main())
