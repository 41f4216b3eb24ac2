"""The picture: tokens a second and bytes a step against the number of processes."""

from pathlib import Path

from .base import EXCHANGES, format_bytes, format_rate

# Okabe and Ito's colours, which people with any colour vision tell apart.
COLORS = {"parameters": "#0072B2", "factors": "#D55E00", "sketch": "#009E73"}
MARKERS = {"parameters": "o", "factors": "s", "sketch": "^"}


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
