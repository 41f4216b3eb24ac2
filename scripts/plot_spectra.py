#!/usr/bin/env python3
"""Draws the spectra of gradients and momenta that a run wrote (config key diagnostics.spectra).

    python3 scripts/plot_spectra.py runs/mine --out spectra
    python3 scripts/plot_spectra.py runs/mine --of gradient --step 500 --matrices '*qkv*' --out qkv

RUN is a run directory or its spectra.jsonl; a run that still goes on can be drawn too. Written are

    OUT-decay.png  singular values by their index, divided by the largest, on a logarithmic scale: a panel for each kind
                   of matrix, a line for each layer, at --step (default: the last one)
    OUT-rank.png   the rank that holds 90 % of the nuclear norm (the sum of the singular values), as a share of all
                   ranks, over training: a panel for each kind of matrix, the layers' mean and their range

Needs matplotlib (Debian, Ubuntu: sudo apt install python3-matplotlib; elsewhere: pip install matplotlib).
Exit: 0 the pictures are written, 2 something is missing or wrong.
"""

import argparse
import fnmatch
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from plot_run import default_title, metrics_path, name_runs, read_run
from plotting import Problem, need_matplotlib, number, panels, plain_text, plural, save, short, use_log_scale

SHARE = 0.9  # of the nuclear norm
PANELS = 8  # at most, in a picture


@dataclass
class Spectrum:
    step: int
    matrix: str
    of: str  # "gradient" or "momentum"
    layer: int  # -1 for a matrix outside the blocks
    kind: str  # the matrix's name without its block
    values: list  # descending
    rank: float  # that holds SHARE of the nuclear norm, NaN where not known


def spectra_path(argument: str) -> Path:
    path = Path(argument)
    if path.is_dir():
        if not (path / "spectra.jsonl").is_file():
            raise Problem(f"'{argument}' holds no spectra.jsonl. Train with diagnostics.spectra in the config, or give "
                          "the directory of another run.")
        return path / "spectra.jsonl"
    if not path.is_file():
        raise Problem(f"'{argument}' does not exist. Give the directory of a run, or its spectra.jsonl.")
    return path


def split_name(matrix: str) -> tuple:
    """("attention.qkv.weight[q]", 3) of "blocks.3.attention.qkv.weight[q]"."""
    found = re.match(r"^blocks\.(\d+)\.(.+)$", matrix)
    return (found.group(2), int(found.group(1))) if found else (matrix, -1)


def rank_of_share(values: list, share: float = SHARE) -> float:
    """The smallest number of leading values whose sum is the share of all; NaN where all are 0."""
    total, part = math.fsum(values), 0.0
    if not values or not total > 0:
        return math.nan
    for index, value in enumerate(values):
        part += value
        if part >= share * total * (1 - 1e-12):
            return index + 1.0
    return float(len(values))


def read_spectra(path: Path) -> tuple:
    """(spectra, number of lines that are none). Of the same step and matrix the later line counts: a resume repeats."""
    found, bad = {}, 0
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise Problem(f"cannot read '{path}': {error.strerror}.") from error
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            spectrum = parse(json.loads(line))
        except (ValueError, RecursionError):
            spectrum = None
        if spectrum is None:
            bad += 1
        else:
            found[spectrum.step, spectrum.matrix, spectrum.of] = spectrum
    return [found[key] for key in sorted(found)], bad


def parse(line):
    """A line as a Spectrum, None where it is not one."""
    if not isinstance(line, dict) or not isinstance(line.get("matrix"), str) or not isinstance(line.get("of"), str):
        return None
    values, step = line.get("singular_values"), number(line, "step")
    if not isinstance(values, list) or not values or not math.isfinite(step):
        return None
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        return None
    if not all(math.isfinite(value) and value >= 0 for value in values):
        return None
    values = sorted(map(float, values), reverse=True)
    kind, layer = split_name(line["matrix"])
    rank = number(line, "rank_90")
    return Spectrum(int(step), line["matrix"], line["of"], layer, kind, values,
                    rank if math.isfinite(rank) else rank_of_share(values))


def choose(spectra: list, of: str, pattern: str) -> list:
    chosen = [spectrum for spectrum in spectra if spectrum.of == of and fnmatch.fnmatch(spectrum.matrix, pattern)]
    if not chosen:
        there = sorted({spectrum.of for spectrum in spectra})
        names = sorted({spectrum.kind for spectrum in spectra})
        raise Problem(f"there is no spectrum of the {of} of a matrix that matches '{pattern}'. There are spectra of "
                      f"{', '.join(there)}, of the matrices {', '.join(names[:12])}.")
    return chosen


def nearest_step(spectra: list, wanted) -> int:
    steps = sorted({spectrum.step for spectrum in spectra})
    return steps[-1] if wanted is None else min(steps, key=lambda step: (abs(step - wanted), step))


def kinds_of(spectra: list) -> list:
    by_layer = sorted(spectra, key=lambda spectrum: spectrum.layer)
    return list(dict.fromkeys(spectrum.kind for spectrum in by_layer))[:PANELS]


def color_of(layer: int, layers: list):
    import matplotlib.pyplot as plt

    return plt.get_cmap("viridis")(0.92 * layers.index(layer) / max(1, len(layers) - 1))


def draw_decay(spectra: list, step: int, title: str, out: Path) -> None:
    """A line a layer, from the largest singular value down; zeros end a line."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    spectra = [spectrum for spectrum in spectra if spectrum.step == step]
    kinds = kinds_of(spectra)
    layers = sorted({spectrum.layer for spectrum in spectra})
    figure, axes = panels(kinds, title)
    lowest = 1.0
    for panel, kind in zip(axes, kinds):
        for spectrum in sorted((each for each in spectra if each.kind == kind), key=lambda each: each.layer):
            largest = spectrum.values[0]
            shares = [value / largest for value in spectrum.values if value > 0] if largest > 0 else []
            if not shares:
                continue
            lowest = min(lowest, max(shares[-1], 1e-8))
            panel.plot(range(1, len(shares) + 1), shares, color=color_of(spectrum.layer, layers), linewidth=1.4)
        panel.set_title(plain_text(kind))
        panel.set_xlabel("index of the singular value")
    use_log_scale(axes[0], lowest / 1.5, 1.5)
    for panel in axes[::max(1, min(4, len(kinds)) if len(kinds) != 4 else 2)]:
        panel.set_ylabel("share of the largest")
    scale = (ScalarMappable(Normalize(layers[0], layers[-1]), truncated_viridis()), layers) if len(layers) > 1 else None
    finish(figure, out, scale)


def truncated_viridis():
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    colors = plt.get_cmap("viridis")
    return ListedColormap([colors(0.92 * i / 255) for i in range(256)])


def draw_rank(spectra: list, title: str, out: Path) -> None:
    """Mean over the layers and their range, against the step."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    kinds = kinds_of(spectra)
    figure, axes = panels(kinds, title)
    for panel, kind in zip(axes, kinds):
        by_step = {}
        for spectrum in spectra:
            if spectrum.kind == kind and math.isfinite(spectrum.rank):
                by_step.setdefault(spectrum.step, []).append(spectrum.rank / len(spectrum.values))
        steps = sorted(by_step)
        means = [sum(by_step[step]) / len(by_step[step]) for step in steps]
        panel.fill_between(steps, [min(by_step[step]) for step in steps], [max(by_step[step]) for step in steps],
                           color="#0072B2", alpha=0.2, linewidth=0)
        panel.plot(steps, means, color="#0072B2", linewidth=1.8, marker="o" if len(steps) < 30 else None, markersize=4)
        panel.set_title(plain_text(kind))
        panel.set_xlabel("step")
        panel.set_ylim(0, 1)
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    finish(figure, out, None)


def finish(figure, out: Path, scale) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    width = figure.get_size_inches()[0]
    figure.tight_layout(rect=(0, 0, 1 - 0.85 / width if scale else 1, 0.97))
    if scale:
        place = figure.add_axes((1 - 0.75 / width, 0.2, 0.1 / width, 0.6))  # the label takes the rest
        bar = figure.colorbar(scale[0], cax=place)
        bar.locator = MaxNLocator(min(8, len(scale[1])), integer=True)
        bar.update_ticks()
        bar.set_label("layer")
    save(figure, out)
    plt.close(figure)


def title_of(path: Path) -> str:
    """The run's name and what it trained, where its metrics.jsonl is there."""
    try:
        metrics = metrics_path(str(path.parent))
        run = read_run(metrics)
    except Problem:
        return path.resolve().parent.name
    name_runs([run], [metrics])
    return default_title([run])


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run directory, or a spectra.jsonl")
    parser.add_argument("--out", metavar="OUT", type=Path, default=Path("spectra"),
                        help="name of the pictures without -decay.png and -rank.png (default spectra)")
    parser.add_argument("--step", type=int, default=None, help="of the decay (default: the last; the nearest there is)")
    parser.add_argument("--of", choices=("momentum", "gradient"), default=None,
                        help="whose spectra (default: the momentum's where they are there)")
    parser.add_argument("--matrices", metavar="GLOB", default="*", help="which matrices, by name (default all)")
    parser.add_argument("--title", default=None, help="above the panels (default: what the run trained)")
    options = parser.parse_args(arguments)
    try:
        path = spectra_path(options.run)
        spectra, bad = read_spectra(path)
        if bad:
            print(f"plot_spectra: '{path}': skipped {plural(bad, 'line')} without a spectrum", file=sys.stderr)
        if not spectra:
            raise Problem(f"'{path}' holds no spectrum yet.")
        of = options.of or ("momentum" if any(spectrum.of == "momentum" for spectrum in spectra) else "gradient")
        spectra = choose(spectra, of, options.matrices)
        if not options.out.absolute().parent.is_dir():
            raise Problem(f"there is no folder '{options.out.parent}' for the pictures.")
        need_matplotlib()
        title = title_of(path) if options.title is None else options.title
        step = nearest_step(spectra, options.step)
        decay, rank = (options.out.with_name(f"{options.out.name}-{what}.png") for what in ("decay", "rank"))
        draw_decay(spectra, step, f"{title}: singular values of the {of}, step {step:,}", decay)
        draw_rank(spectra, f"{title}: rank that holds 90 % of the {of}'s nuclear norm", rank)
    except Problem as problem:
        print(f"plot_spectra: {problem}", file=sys.stderr)
        return 2
    print(f"wrote {decay} and {rank}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
