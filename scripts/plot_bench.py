#!/usr/bin/env python3
"""Draws what `polaron bench orthogonalize` and `polaron bench regression` measured.

    polaron bench orthogonalize --size 1024 --json o1024.json
    polaron bench orthogonalize --size 2048 --json o2048.json
    python3 scripts/plot_bench.py o1024.json o2048.json --out orthogonalize
    polaron bench regression --json r.json
    python3 scripts/plot_bench.py r.json --out regression

FILEs of one kind are drawn together. Of orthogonalizations are written

    OUT-error.png  what each sketch leaves over (||X - Q Q^T X|| / ||X||) against rank, at the smallest size: a panel
                   for each spectrum
    OUT-time.png   milliseconds against size, at rank an eighth of the size, beside Newton-Schulz and SVD of the whole:
                   the median over the spectra
    OUT-rank.png   milliseconds against rank at the largest size, the same median; levels: Newton-Schulz and SVD of the
                   whole

and of regressions (one FILE)

    OUT.png        the gradient's nuclear norm at the end, as a share of the first one's, against the learning rate: a
                   panel for each tail index of the noise

Needs matplotlib (Debian, Ubuntu: sudo apt install python3-matplotlib; elsewhere: pip install matplotlib).
Exit: 0 the pictures are written, 2 something is missing or wrong.
"""

import argparse
import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from plotting import Problem, need_matplotlib, number, panels, save, short, use_log_scale

COLORS = {"columns": "#0072B2", "gaussian": "#E69F00", "power 1": "#009E73", "power 2": "#56B4E9", "exact": "#000000",
          "Newton-Schulz, full": "#D55E00", "SVD, full": "#999999", "gradient descent": "#999999", "MSGD": "#D55E00"}
LOW_RANK_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00")
RANK_FRACTION = 8  # of the time against size
LEAST_RESIDUAL = 1e-3  # below it, the root of a difference of rounded fp32 numbers: not drawn


@dataclass
class Bench:
    path: str
    kind: str  # "orthogonalize" or "regression"
    rows: int
    cols: int
    results: list
    settings: dict


FIELDS = {"orthogonalize": (("spectrum", "method"), ("rank", "ms", "residual")),
          "regression": (("method",), ("alpha", "rank", "lr", "last"))}


def read_bench(path: str) -> Bench:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Problem(f"cannot read '{path}': {error.strerror}.") from error
    except ValueError as error:
        raise Problem(f"'{path}' is no JSON: {error}.") from error
    results = data.get("results") if isinstance(data, dict) else None
    if not isinstance(results, list) or not results or not all(isinstance(each, dict) for each in results):
        raise Problem(f"'{path}' holds no results. Write such a file by polaron bench orthogonalize (or regression) "
                      "--json FILE.")
    kind = "regression" if "alpha" in results[0] else "orthogonalize"
    texts, numbers = FIELDS[kind]
    for place, each in enumerate(results):
        for key in texts + numbers:
            known = isinstance(each.get(key), str) if key in texts else math.isfinite(number(each, key))
            if not known:
                raise Problem(f"'{path}': result {place} of a bench {kind} has no '{key}'. Write the file again.")
    rows, cols = number(data, "rows"), number(data, "cols")
    if not (rows >= 1 and cols >= 1):
        raise Problem(f"'{path}' does not say rows and cols. Write the file again.")
    return Bench(path, kind, int(rows), int(cols), results, data)


def in_order(results: list, key: str) -> list:
    return list(dict.fromkeys(each[key] for each in results))


def check_low_rank(benches: list) -> None:
    for bench in benches:
        if all(each["rank"] >= bench.rows for each in bench.results):
            raise Problem(f"'{bench.path}' holds no result of a rank below {bench.rows}, its size. Leave it out, or "
                          "measure a larger --size.")


def draw_error(bench: Bench, out: Path) -> None:
    spectra = in_order(bench.results, "spectrum")
    figure, axes = panels(spectra, f"What low rank leaves over, {bench.rows} x {bench.cols}")
    for panel, spectrum in zip(axes, spectra):
        chosen = [each for each in bench.results if each["spectrum"] == spectrum and each["rank"] < bench.rows]
        for method in in_order(chosen, "method"):
            line = sorted((each["rank"], max(each["residual"], LEAST_RESIDUAL / 10)) for each in chosen
                          if each["method"] == method)
            panel.plot(*zip(*line), color=COLORS.get(method), marker="o", markersize=4, linewidth=1.6, label=method)
        panel.set_title(f"singular values {spectrum}")
        use_ranks(panel, sorted({each["rank"] for each in chosen}))
        panel.set_xlabel("rank")
    residuals = [each["residual"] for each in bench.results if each["rank"] < bench.rows]
    use_log_scale(axes[0], max(min(residuals) / 1.5, LEAST_RESIDUAL), 1.2)
    label_left(axes, "residual, share of the norm")
    axes[0].legend(frameon=False, fontsize=9)
    finish(figure, out)


def label_left(axes: list, text: str) -> None:
    """The panels share their y axis: a label for each row, and round numbers where it is logarithmic."""
    from matplotlib.ticker import FuncFormatter

    for panel in axes:
        if panel.get_subplotspec().is_first_col():
            panel.set_ylabel(text)
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def use_ranks(panel, ranks: list) -> None:
    from matplotlib.ticker import NullLocator

    panel.set_xscale("log", base=2)
    panel.set_xticks(ranks, [f"{rank:,}" for rank in ranks])
    panel.xaxis.set_minor_locator(NullLocator())


def times(bench: Bench) -> dict:
    """Method -> {rank: milliseconds}. The median over the spectra: the work hardly depends on them, and any one time may
    have been disturbed by other work."""
    found = {}
    for each in bench.results:
        if each["method"] != "exact":  # that of the SVD
            found.setdefault(each["method"], {}).setdefault(each["rank"], []).append(each["ms"])
    return {method: {rank: statistics.median(values) for rank, values in ranks.items()}
            for method, ranks in found.items()}


def draw_time(benches: list, out: Path) -> None:
    benches = sorted(benches, key=lambda bench: bench.rows)
    spectra = max(len(in_order(bench.results, "spectrum")) for bench in benches)
    how = f", median over {spectra} spectra" if spectra > 1 else ""
    figure, (panel,) = panels([""], f"Time to orthogonalize, sketches at rank 1/{RANK_FRACTION}{how}")
    lines = {}
    for bench in benches:
        for method, ranks in times(bench).items():
            for rank in {bench.rows, bench.rows // RANK_FRACTION} & set(ranks):
                lines.setdefault(method, []).append((bench.rows, ranks[rank]))
    for method, line in lines.items():
        panel.plot(*zip(*line), color=COLORS.get(method), marker="o", markersize=4, linewidth=1.6, label=method)
    use_ranks(panel, [bench.rows for bench in benches])
    values = [ms for line in lines.values() for _, ms in line]
    use_log_scale(panel, min(values) / 1.5, max(values) * 1.5)
    panel.set_xlabel("rows = columns" if all(bench.rows == bench.cols for bench in benches) else "rows")
    label_left([panel], "milliseconds")
    panel.legend(frameon=False, fontsize=9)
    finish(figure, out)


def draw_time_by_rank(bench: Bench, out: Path) -> None:
    figure, (panel,) = panels([""], f"Time to orthogonalize a {bench.rows} x {bench.cols} matrix")
    lines = times(bench)
    below = sorted({rank for ranks in lines.values() for rank in ranks if rank < bench.rows})
    for method, ranks in lines.items():
        if set(ranks) == {bench.rows}:
            panel.axhline(ranks[bench.rows], color=COLORS.get(method), linewidth=1.6, linestyle="--", label=method)
        else:
            panel.plot(*zip(*sorted(ranks.items())), color=COLORS.get(method), marker="o", markersize=4, linewidth=1.6,
                       label=method)
    use_ranks(panel, below)
    values = [ms for ranks in lines.values() for ms in ranks.values()]
    use_log_scale(panel, min(values) / 1.5, max(values) * 1.5)
    panel.set_xlabel("rank")
    label_left([panel], "milliseconds")
    panel.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    finish(figure, out)


def draw_regression(bench: Bench, out: Path) -> None:
    alphas = in_order(bench.results, "alpha")
    settings = ", ".join(f"{name} {bench.settings[name]:g}" for name in ("noise", "steps", "seeds")
                         if math.isfinite(number(bench.settings, name)))
    title = f"min 1/2 |A X B - C|^2, {bench.rows} x {bench.cols}"
    figure, axes = panels(alphas, f"{title}, {settings}" if settings else title)
    methods = in_order(bench.results, "method")
    low_rank = [method for method in methods if method not in COLORS]
    for panel, alpha in zip(axes, alphas):
        for method in methods:
            line = sorted((each["lr"], min(each["last"], 10.0)) for each in bench.results
                          if each["alpha"] == alpha and each["method"] == method)
            color = COLORS.get(method) or LOW_RANK_COLORS[low_rank.index(method) % len(LOW_RANK_COLORS)]
            panel.plot(*zip(*line), color=color, linewidth=1.6, label=method)
            best = min(line, key=lambda point: point[1])
            panel.plot(*best, color=color, marker="o", markersize=5)
        panel.set_title(f"noise of tail index {alpha:g}")
        panel.set_xscale("log", base=2)
        panel.set_xlabel("learning rate")
    lasts = [each["last"] for each in bench.results]
    use_log_scale(axes[0], max(min(lasts) / 1.5, 1e-6), 1.5)
    label_left(axes[:len(alphas)], "gradient's nuclear norm at the end")
    axes[len(alphas) - 1].legend(frameon=False, fontsize=9, loc="lower left")
    finish(figure, out)


def finish(figure, out: Path) -> None:
    import matplotlib.pyplot as plt

    figure.tight_layout(rect=(0, 0, 1, 0.97))
    save(figure, out)
    plt.close(figure)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="FILE", nargs="+", help="what polaron bench ... --json wrote")
    parser.add_argument("--out", metavar="OUT", type=Path, default=Path("bench"),
                        help="name of the pictures without their endings (default bench)")
    options = parser.parse_args(arguments)
    try:
        benches = [read_bench(path) for path in options.files]
        kinds = {bench.kind for bench in benches}
        if len(kinds) > 1 or (kinds == {"regression"} and len(benches) > 1):
            raise Problem("give files of orthogonalizations, or one file of a regression.")
        if len({bench.rows for bench in benches}) < len(benches):
            raise Problem("two files are of the same size. Give one of each.")
        if kinds == {"orthogonalize"}:
            check_low_rank(benches)
        if not options.out.absolute().parent.is_dir():
            raise Problem(f"there is no folder '{options.out.parent}' for the pictures.")
        need_matplotlib()
        if kinds == {"regression"}:
            written = [options.out.with_name(f"{options.out.name}.png")]
            draw_regression(benches[0], written[0])
        else:
            written = [options.out.with_name(f"{options.out.name}-{what}.png") for what in ("error", "time", "rank")]
            draw_error(min(benches, key=lambda bench: bench.rows), written[0])
            draw_time(benches, written[1])
            draw_time_by_rank(max(benches, key=lambda bench: bench.rows), written[2])
    except Problem as problem:
        print(f"plot_bench: {problem}", file=sys.stderr)
        return 2
    print(f"wrote {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
