#!/usr/bin/env python3
"""Draws what happened in one or several runs of polaron: loss, validation perplexity, learning rate, throughput.

    python3 scripts/plot_run.py runs/quickstart
    python3 scripts/plot_run.py runs/adamw runs/muon runs/low_rank_muon --x time --out comparison.png

Each RUN is a run directory or its metrics.jsonl; a run that still goes on can be drawn too. The legend names the
directories, with the last validation perplexity of each. The loss of single steps is drawn pale, with a running mean
above it; a cross marks where a run's loss stopped being finite. Time is the sum of the steps' times: validation,
samples and checkpoints are left out, so that runs compare by what training costs.

Needs matplotlib (Debian, Ubuntu: sudo apt install python3-matplotlib; elsewhere: pip install matplotlib).
Exit: 0 the picture is written, 2 something is missing or wrong; an existing picture is then left as it was.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

from plotting import (COLORS, LINES, MARKERS, Problem, need_matplotlib, number, plain_text, plural, save, short,
                      use_log_scale)


@dataclass
class Run:
    name: str
    info: dict = field(default_factory=dict)  # the last "run" line
    steps: list = field(default_factory=list)  # "step" lines by step
    validations: list = field(default_factory=list)
    bad_lines: int = 0


def metrics_path(argument: str) -> Path:
    path = Path(argument)
    if path.is_dir():
        path = path / "metrics.jsonl"
        if not path.is_file():
            raise Problem(f"'{argument}' holds no metrics.jsonl. Give the directory of a run (config key 'output').")
    if not path.is_file():
        raise Problem(f"'{argument}' does not exist. Give the directory of a run, or its metrics.jsonl.")
    return path


def read_run(path: Path) -> Run:
    """Reads what can be read: lines that are no JSON object are counted and skipped, later lines of a step count."""
    run = Run(name=path.stem)
    steps, validations = {}, {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    line = None
                if not isinstance(line, dict):
                    run.bad_lines += 1
                    continue
                kind, step = line.get("kind"), number(line, "step")
                if kind == "run":
                    run.info = line
                elif kind == "step" and math.isfinite(step):
                    steps[step] = line
                elif kind == "validation" and math.isfinite(step):
                    validations[step] = line
    except OSError as error:
        raise Problem(f"cannot read '{path}': {error.strerror}.") from error
    run.steps = [steps[step] for step in sorted(steps)]
    run.validations = [validations[step] for step in sorted(validations)]
    return run


def name_runs(runs: list, paths: list) -> None:
    """Names each run after its directory (or file), with as many directories above it as tell the runs apart."""
    places = [path.resolve().parent if path.name == "metrics.jsonl" else path.resolve() for path in paths]
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(set(places)):
            break
    for run, name in zip(runs, names):
        run.name = name


def positions(run: Run, axis: str):
    """Where the steps and the validations of a run stand on the x axis."""
    if axis == "steps":
        return [number(line, "step") for line in run.steps], [number(line, "step") for line in run.validations]
    if axis == "tokens":
        return [number(line, "tokens") for line in run.steps], [number(line, "tokens") for line in run.validations]
    at_steps, elapsed = [], 0.0
    for line in run.steps:
        ms = number(line, "ms")
        elapsed += ms / 1e3 if math.isfinite(ms) and ms > 0 else 0.0
        at_steps.append(elapsed)
    at_validations, next_step, elapsed = [], 0, 0.0
    for line in run.validations:
        while next_step < len(run.steps) and number(run.steps[next_step], "step") <= number(line, "step"):
            elapsed = at_steps[next_step]
            next_step += 1
        at_validations.append(elapsed)
    return at_steps, at_validations


def without_spikes(values: list) -> list:
    """The median of each value and its two neighbours on either side; NaN and infinity stay what they are."""
    result = []
    for i, value in enumerate(values):
        window = sorted(near for near in values[max(i - 2, 0):i + 3] if math.isfinite(near))
        result.append(window[len(window) // 2] if math.isfinite(value) else math.nan)
    return result


def running_mean(values: list, span: float) -> list:
    """Exponential mean over about `span` values to both sides, so that it does not lag; NaN counts for nothing."""
    decay = math.exp(-1.0 / max(span, 1e-9))

    def sums(sequence):
        total = weight = 0.0
        for value in sequence:
            if math.isfinite(value):
                total, weight = total + value, weight + 1.0
            yield total, weight
            total, weight = decay * total, decay * weight

    before, after = list(sums(values)), list(sums(reversed(values)))[::-1]
    return [(b[0] + a[0] - value) / (b[1] + a[1] - 1) if math.isfinite(value) else math.nan
            for value, b, a in zip(values, before, after)]


def throughput_by_interval(run: Run, xs: list, intervals: int = 40):
    """Tokens over time of about so many stretches of the run: the mean that slow steps count in as they should."""
    size = max(1, math.ceil(len(run.steps) / intervals))
    points = []
    for begin in range(0, len(run.steps), size):
        tokens = seconds = 0.0
        for line in run.steps[begin:begin + size]:
            rate, ms = number(line, "tokens_per_s"), number(line, "ms")
            if math.isfinite(rate) and math.isfinite(ms) and ms > 0:
                tokens += rate * ms / 1e3
                seconds += ms / 1e3
        stretch = xs[begin:begin + size]
        points.append((sum(stretch) / len(stretch), tokens / seconds if seconds > 0 else math.nan))
    return [x for x, _ in points], [y for _, y in points]


def last_finite(values: list):
    return next((value for value in reversed(values) if math.isfinite(value)), None)


def perplexity_text(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.2g}"


def rounded(value: float, digits: int) -> str:
    return short(float(f"{value:.{digits}g}"))


def time_unit(seconds: float):
    for size, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return size, name
    return 1.0, "seconds"


def draw(runs: list, axis: str, title: str, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    plt.rcParams.update({
        "font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
        "grid.linewidth": 0.7, "axes.axisbelow": True, "lines.solid_capstyle": "round"})
    figure, ((loss_axes, perplexity_axes), (rate_axes, speed_axes)) = plt.subplots(2, 2, sharex="all", dpi=130)

    unit, x_label = 1.0, axis
    if axis == "time":
        unit, unit_name = time_unit(max((positions(run, axis)[0] or [0.0])[-1] for run in runs))
        x_label = f"training time ({unit_name})"

    handles, labels = [], []
    losses, perplexities, speeds = [], [], []
    all_rates = [[number(line, "lr") for line in run.steps] for run in runs]
    for index, run in enumerate(runs):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        style = LINES[index // len(COLORS) % len(LINES)]
        xs, validation_xs = ([x / unit for x in places] for places in positions(run, axis))

        dot = "." if len(run.steps) < 3 else ""  # a line of one point would not be seen
        loss = [number(line, "loss") for line in run.steps]
        if len(loss) >= 30:
            loss_axes.plot(xs, loss, color=color, linewidth=0.6, alpha=0.3)
            loss_axes.plot(xs, running_mean(without_spikes(loss), len(loss) / 100), style, color=color, linewidth=1.8)
        else:
            loss_axes.plot(xs, loss, style, color=color, linewidth=1.8, marker=dot)
        losses.append(loss)
        diverged = bool(loss) and not math.isfinite(loss[-1])
        if diverged and last_finite(loss) is not None:
            at = max(i for i, value in enumerate(loss) if math.isfinite(value))
            loss_axes.plot(xs[at], loss[at], "x", color=color, markersize=11, markeredgewidth=2.5, zorder=5)

        perplexity = [number(line, "perplexity") for line in run.validations]
        perplexity = [value if math.isfinite(value) and value > 0 else math.nan for value in perplexity]
        every = max(1, len(perplexity) // 15)
        perplexity_axes.plot(validation_xs, perplexity, style, color=color, linewidth=1.8, marker=marker,
                             markersize=6, markevery=every, markeredgecolor="white", markeredgewidth=0.8)
        perplexities += [value for value in perplexity if math.isfinite(value)]

        rates = all_rates[index]
        # Equal schedules lie on each other: the earlier run's line is broader.
        same = 0 if axis == "time" else sum(equal_while_both_last(rates, later) for later in all_rates[index + 1:])
        rate_axes.plot(xs, rates, style, color=color, linewidth=min(1.8 + 2.2 * same, 8.0), marker=dot)

        speed_axes.plot(xs, [number(line, "tokens_per_s") for line in run.steps], color=color, linewidth=0.6, alpha=0.3)
        speed_xs, speed = throughput_by_interval(run, xs)
        speed_axes.plot(speed_xs, speed, style, color=color, linewidth=1.8, marker=dot)
        speeds += [value for value in speed if math.isfinite(value) and value > 0]

        handles.append(Line2D([], [], color=color, linestyle=style, linewidth=2.2, marker=marker, markersize=7,
                              markeredgecolor="white"))
        final = last_finite(perplexity)
        label = run.name if final is None else f"{run.name}: perplexity {perplexity_text(final)}"
        labels.append(plain_text(label + (" (loss not finite)" if diverged else "")))

    loss_axes.set_title("Training loss (nats a token)")
    limit_loss(loss_axes, losses)
    perplexity_axes.set_title("Validation perplexity")
    if not perplexities:
        perplexity_axes.text(0.5, 0.5, "no validation so far", transform=perplexity_axes.transAxes, ha="center",
                             color="#666666")
        perplexity_axes.set_yticks([])
    elif max(perplexities) > 1.5 * min(perplexities):
        use_log_scale(perplexity_axes, min(perplexities) / 1.15, max(perplexities) * 1.15)
    rate_axes.set_title("Learning rate")
    rate_ranges = [span for span in map(rate_range, all_rates) if span]
    if rate_ranges and max(high for _, high in rate_ranges) > 5 * min(high for _, high in rate_ranges):
        use_log_scale(rate_axes, min(low for low, _ in rate_ranges) / 2, max(high for _, high in rate_ranges) * 1.5)
    else:
        rate_axes.set_ylim(bottom=0)
    speed_axes.set_title("Throughput (tokens a second)")
    if speeds and max(speeds) > 20 * min(speeds):
        use_log_scale(speed_axes, min(speeds) / 2, max(speeds) * 2)
    else:
        speed_axes.set_ylim(0, 1.2 * max(speeds, default=1.0))

    for axes in (loss_axes, perplexity_axes, rate_axes, speed_axes):
        axes.set_xlabel(x_label)
        axes.tick_params(labelbottom=True)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=axis != "time", steps=(1, 2, 2.5, 5, 10)))
    lay_out(figure, handles, labels, title)
    save(figure, out)
    plt.close(figure)


def equal_while_both_last(one: list, other: list) -> bool:
    both = min(len(one), len(other))
    return one[:both] == other[:both]


def rate_range(rates: list):
    """The smallest learning rate after the largest one (at least a hundredth of it), and the largest."""
    finite = [rate if math.isfinite(rate) else 0.0 for rate in rates]
    peak = max(finite, default=0.0)
    if peak <= 0:
        return None
    return max(min(rate for rate in finite[finite.index(peak):]), peak / 100), peak


def limit_loss(axes, losses: list) -> None:
    """Leaves out spikes far above where the runs began: they would press everything else flat."""
    finite = [[value for value in loss if math.isfinite(value)] for loss in losses]
    finite = [values for values in finite if values]
    if not finite:
        return
    low = min(min(values) for values in finite)
    high = max(max(values[0], sorted(values)[int(0.99 * (len(values) - 1))]) for values in finite)
    high = min(high, 3 * max(values[0] for values in finite)) if low > 0 else high
    margin = 0.04 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)


def lay_out(figure, handles: list, labels: list, title: str) -> None:
    """Title and legend above the panels, in rows of their own; the picture grows with them. All in inches."""
    columns = min(len(labels), 4)
    while columns > 1 and columns * (max(map(len, labels)) + 7) > 135:
        columns -= 1
    title_height = 0.5 if title else 0.0
    header = 0.15 + title_height + 0.25 * math.ceil(len(labels) / columns)
    height = 7.6 + header
    figure.set_size_inches(13, height)
    if title:
        figure.text(0.5, 1 - 0.4 / height, plain_text(title), fontsize=15, fontweight="bold", ha="center")
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 1 - (0.08 + title_height) / height),
                  ncol=columns, frameon=False, fontsize=11.5, handlelength=2.6)
    figure.tight_layout(rect=(0, 0, 1, 1 - header / height), h_pad=2.0, w_pad=2.5)


def default_title(runs: list) -> str:
    if len(runs) != 1:
        return ""
    info = runs[0].info
    parts = [str(info["model"])] if info.get("model") else []
    if math.isfinite(number(info, "parameters")):
        parts.append(f"{rounded(number(info, 'parameters'), 3)} parameters")
    if info.get("optimizer"):
        parts.append(str(info["optimizer"]))
    return f"{runs[0].name}: {', '.join(parts)}" if parts else runs[0].name


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, or a metrics.jsonl")
    parser.add_argument("--x", choices=("tokens", "steps", "time"), default="tokens",
                        help="the x axis (default tokens)")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("plot.png"),
                        help="the picture, .png, .svg or .pdf (default plot.png)")
    parser.add_argument("--title", default=None, help="above the panels (default for a single run: what it trained)")
    options = parser.parse_args(arguments)
    try:
        paths = [metrics_path(argument) for argument in options.runs]
        runs = [read_run(path) for path in paths]
        name_runs(runs, paths)
        for run, path in zip(runs, paths):
            if run.bad_lines:
                print(f"plot_run: '{path}': skipped {plural(run.bad_lines, 'line')} without a JSON object",
                      file=sys.stderr)
            if not run.steps:
                print(f"plot_run: '{path}' has no steps yet", file=sys.stderr)
        runs = [run for run in runs if run.steps]
        if not runs:
            raise Problem("no step to draw in any of the runs.")
        need_matplotlib()
        draw(runs, options.x, default_title(runs) if options.title is None else options.title, options.out)
    except Problem as problem:
        print(f"plot_run: {problem}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
