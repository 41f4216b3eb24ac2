"""What the scripts that draw share: colours, numbers as labels, panels, and pictures that are written whole or not."""

import math
import os
import sys
import tempfile
import textwrap
from pathlib import Path

# Okabe and Ito's colours, which people with any colour vision tell apart, without the yellow that paper swallows.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")


class Problem(Exception):
    """Something the user can act on; the message says what."""


def number(line: dict, key: str) -> float:
    """The value of a key, NaN where it is missing, null or no number."""
    value = line.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def short(value: float) -> str:
    """A tick's label: 0.02, 24, 1.5k, 10M, 2B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def plain_text(text: str) -> str:
    """Keeps matplotlib from reading a name as mathematics ('$') or leaving it out of the legend ('_' in front)."""
    text = text.replace("$", r"\$")
    return " " + text if text.startswith("_") else text


def panels(kinds: list, title: str):
    """A figure with a panel for each kind of matrix, in at most four columns."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({
        "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
        "grid.linewidth": 0.7, "axes.axisbelow": True})
    columns = min(4, len(kinds)) if len(kinds) != 4 else 2
    rows = math.ceil(len(kinds) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(max(6.5, 4.3 * columns), 3.7 * rows + 0.7), dpi=130,
                                squeeze=False, sharey=True)
    for spare in axes.flat[len(kinds):]:
        spare.set_visible(False)
    # A letter of this size takes about 0.1 inches: a narrow figure takes several lines.
    wrapped = textwrap.fill(plain_text(title), max(20, int(figure.get_size_inches()[0] / 0.115)))
    figure.suptitle(wrapped, fontsize=13, fontweight="bold")
    return figure, list(axes.flat)


def use_log_scale(axes, low: float, high: float) -> None:
    """A logarithmic y axis with round numbers, as many as there is room for."""
    from matplotlib.ticker import LogLocator, NullLocator

    decades = math.log10(high / low)
    subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 1 else (1, 2, 5) if decades < 3.5 else (1,)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=50))
    axes.yaxis.set_minor_locator(NullLocator())


def need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise Problem("matplotlib is missing. Debian, Ubuntu: sudo apt install python3-matplotlib (for "
                      f"/usr/bin/python3); elsewhere: {sys.executable} -m pip install matplotlib.") from error


def save(figure, out: Path) -> None:
    """Writes beside the picture and renames, so that a failure leaves the former one."""
    kind = out.suffix[1:].lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise Problem(f"cannot write pictures of type '.{kind}' ('{out}'). Name the file .png, .svg or .pdf.")
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{out.name}.", suffix=f".{kind}", dir=out.parent)
        os.close(handle)
        figure.savefig(temporary, format=kind)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's files are private
        os.replace(temporary, out)
    except OSError as error:
        raise Problem(f"cannot write '{out}': {error.strerror or error}.") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
