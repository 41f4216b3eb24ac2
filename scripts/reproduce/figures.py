"""Pictures of a grid: perplexity against tokens, seconds and learning rate, optimizer time against width."""

import math
import statistics
import sys
from dataclasses import dataclass

import plotting
from plotting import COLORS, LINES, MARKERS, short, use_log_scale

from .base import Problem, get
from .bench import Widths, method_name
from .report import quiet
from .runs import mean_load

BUSY = "; measured beside other work: no speed figure"
SKIPPED = 0.08  # of a run: the first fall of the loss would press everything else flat


@dataclass
class Curve:
    label: str
    xs: list
    ys: list
    low: list  # of the seeds
    high: list
    diverged: bool = False


def style_of(number: int) -> dict:
    return {"color": COLORS[number % len(COLORS)], "linestyle": LINES[number // len(COLORS) % len(LINES)],
            "marker": MARKERS[number % len(MARKERS)], "markersize": 6, "markeredgecolor": "white", "linewidth": 1.8}


def chosen(grid, method, results: dict) -> list:
    """The results that stand for a method: its full runs; as long as its rate is open, the best of them so far."""
    runs = grid.final(method, results) or [run for run in grid.sweep(method, results) if run.full]
    found = [results[run.name] for run in runs if run.name in results and results[run.name].validations]
    if not grid.final(method, results) and found:
        found = [min(found, key=lambda result: result.val_loss)]
    return [result for result in found if result.ended]


def curve(label: str, found: list, position: int) -> Curve:
    """Mean over the seeds at the validations that all of them had. `position`: 0 tokens, 1 seconds."""
    length = min(len(result.validations) for result in found)
    columns = [[result.validations[i] for result in found] for i in range(length)]
    ys = [[point[2] for point in points] for points in columns]
    return Curve(label, [statistics.mean(point[position] for point in points) for points in columns],
                 [statistics.mean(y) if all(map(math.isfinite, y)) else math.nan for y in ys],
                 [min(y) for y in ys], [max(y) for y in ys], any(result.state == "diverged" for result in found))


def settings(plt) -> None:
    plt.rcParams.update({
        "font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
        "grid.linewidth": 0.7, "axes.axisbelow": True})


def new_figure(title: str):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings(plt)
    figure, axes = plt.subplots(figsize=(11, 6), dpi=130)
    axes.set_title(title.replace("$", r"\$"))
    return figure, axes


def finish(figure, axes, path, labels: int) -> None:
    import matplotlib.pyplot as plt

    if labels:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=10, handlelength=2.6)
    figure.tight_layout()
    try:
        plotting.save(figure, path)
    except plotting.Problem as problem:
        raise Problem(str(problem), 3) from problem
    finally:
        plt.close(figure)


def draw_curves(grid, results: dict, title: str, axis: str, path, calm: bool = True) -> None:
    """`calm`: the machine did nothing else, so that seconds are comparable."""
    from matplotlib.ticker import FuncFormatter

    curves = []
    for method in grid.methods:
        found = chosen(grid, method, results)
        if found:
            curves.append(curve(method.label, found, 0 if axis == "tokens" else 1))
    curves = [each for each in curves if any(math.isfinite(y) for y in each.ys)]
    if not curves:
        return
    figure, axes = new_figure(f"{title}: validation perplexity")
    shown = []
    end = max(each.xs[-1] for each in curves)
    for number, each in enumerate(curves):
        axes.plot(each.xs, each.ys, label=each.label + (" (diverged)" if each.diverged else ""),
                  markevery=max(1, len(each.xs) // 10), **style_of(number))
        if each.low != each.high:
            axes.fill_between(each.xs, each.low, each.high, color=COLORS[number % len(COLORS)], alpha=0.15, linewidth=0)
        shown += [y for x, y in zip(each.xs, each.ys) if math.isfinite(y) and x >= SKIPPED * end]
    if shown and min(shown) > 0:
        use_log_scale(axes, min(shown) / 1.05, max(shown) * 1.05)
    axes.set_xlim(SKIPPED * end / 2, end * 1.02)
    axes.set_xlabel("tokens" if axis == "tokens" else
                    "seconds of training steps, without validation" + ("" if calm else BUSY))
    for each in (axes.xaxis, axes.yaxis):
        each.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    finish(figure, axes, path, len(curves))


def draw_rates(grid, results: dict, title: str, path) -> None:
    """Of the search: where the best rate of each method lies, and how much a wrong one costs."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    lines = []
    for method in grid.methods:
        points = [(run.rate, results[run.name]) for run in grid.sweep(method, results)
                  if run.name in results and results[run.name].ended]
        if len(points) > 1:
            lines.append((method, points))
    good = [result.perplexity for _, points in lines for _, result in points if result.good]
    if not good:
        return
    figure, axes = new_figure(f"{title}: validation perplexity by learning rate")
    for number, (method, points) in enumerate(lines):
        kept = [(rate, result.perplexity) for rate, result in points if result.good]
        style = style_of(number)
        axes.plot([rate for rate, _ in kept], [value for _, value in kept], label=method.label, **style)
        gone = [rate for rate, result in points if not result.good]
        axes.plot(gone, [max(good) * 1.08] * len(gone), "x", color=style["color"], markersize=10, markeredgewidth=2.5,
                  clip_on=False)
    axes.set_xscale("log")
    ticks = sorted({rate for _, points in lines for rate, _ in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45 if len(ticks) > 8 else 0)
    axes.xaxis.set_minor_locator(NullLocator())
    use_log_scale(axes, min(good) / 1.05, max(good) * 1.1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_xlabel("learning rate of the matrices (crosses: diverged)")
    finish(figure, axes, path, len(lines))


def draw_widths(grid, by_method: dict, title: str, path, calm: bool = True) -> None:
    """`calm`: the machine did nothing else while they were measured."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    wanted = list(dict.fromkeys(method_name(method) for method in grid.methods))
    by_method = {name: points for name, points in by_method.items() if name in wanted and points}
    if not by_method:
        return
    rank = next((method for method in grid.methods if method.rank), None)
    figure, axes = new_figure(f"{title}: one optimizer step over all matrices")
    for number, (name, points) in enumerate(by_method.items()):
        widths = sorted(points)
        axes.plot(widths, [points[width] for width in widths], label=name, **style_of(number))
    ticks = sorted({width for points in by_method.values() for width in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    values = [value for points in by_method.values() for value in points.values() if value > 0]
    use_log_scale(axes, min(values) / 1.5, max(values) * 1.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_ylabel("ms")
    share = f", ranks {rank.rank}/{get(grid.configs[rank.key], 'model.width')} of it" if rank else ""
    axes.set_xlabel(f"width of the model{share}" + ("" if calm else BUSY))
    finish(figure, axes, path, len(by_method))


def draw(grid, runner, options, bench, title: str, final: bool = True) -> None:
    """What --figures names; without matplotlib it says so, once, and the tables are what there is."""
    if options.figures == ["none"]:
        return
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        if final:
            print("reproduce: no pictures, for matplotlib is missing. Debian, Ubuntu: sudo apt install "
                  f"python3-matplotlib (for /usr/bin/python3); elsewhere: {sys.executable} -m pip install matplotlib.",
                  file=sys.stderr)
        return
    results = runner.results
    loads = [mean_load(options.out, name) or (None, 0) for name, result in results.items() if result.ended]
    calm = all(quiet(*load, options) for load in loads)
    for axis in ("tokens", "seconds"):
        if axis in options.figures:
            draw_curves(grid, results, title, axis, options.out / f"perplexity-{axis}.png", calm)
    if "rates" in options.figures:
        draw_rates(grid, results, title, options.out / "learning-rates.png")
    if "width" in options.figures and final:
        try:
            widths = Widths(options)
            if not options.report:
                widths.measure(grid, runner, bench)
            if len(widths.values) > 1 or options.widths_asked:  # a single one is no picture
                calm = all(quiet(*load, options) for load in widths.loads())
                draw_widths(grid, widths.by_method(), title, options.out / "optimizer-width.png", calm)
        except Problem as problem:
            print(f"reproduce: the optimizers' time by width is left out: {problem}", file=sys.stderr)
