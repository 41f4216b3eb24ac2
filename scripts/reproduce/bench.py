"""Milliseconds of an optimizer step, by `polaron bench optimizer`, kept in OUT/bench.json, and against the model's
width in OUT/widths.json."""

import os
import sys
import time

from .base import Problem, format_duration, get, read_json, write_json
from .scaling import fit_heads, scaled_rank

REPEATS = 5
# What the times by width may take where nobody asked for them: of the grid's time, and in seconds at least.
WIDTHS_SHARE, WIDTHS_SECONDS = 0.02, 30.0


def method_name(method) -> str:
    """As the program calls it."""
    if method.optimizer == "adamw":
        return "adamw (matrices)"
    return f"{method.optimizer}, {method.sketch}" if method.rank else method.optimizer


class Bench:
    """bench.json: rank -> {"ms": {method: milliseconds}, "load", "nice"}; full-rank methods are with every rank."""

    def __init__(self, options):
        self.options, self.path = options, options.out / "bench.json"
        self.values = read_json(self.path) or {}

    def entry(self, method) -> dict:
        if method.rank:
            return self.values.get(str(method.rank), {})
        return next((entry for entry in self.values.values() if method_name(method) in entry["ms"]), {})

    def milliseconds(self, method):
        return self.entry(method).get("ms", {}).get(method_name(method))

    def load(self, method):
        return self.entry(method).get("load")

    def nice(self, method) -> int:
        return self.entry(method).get("nice", 0)

    def missing(self, grid) -> list:
        """The ranks for which nothing is measured yet; 0 stands for a grid without low rank."""
        ranks = sorted({method.rank for method in grid.methods if method.rank}) or [0]
        return [rank for rank in ranks if str(rank) not in self.values]

    def measure(self, grid, polaron) -> None:
        """What is not measured yet. That it cannot be measured is said, and no reason to stop."""
        for rank in self.missing(grid):
            method = next(method for method in grid.methods if method.rank == rank)
            configs = sorted((self.options.out / "configs").glob(f"{method.key}-lr*.json"))
            if not configs:
                continue
            load = os.getloadavg()[0]
            settings = {"threads": self.options.threads} if self.options.threads else {}
            try:
                measured = polaron.bench_optimizer(configs[0], settings, REPEATS)
            except Problem as problem:
                print(f"reproduce: the optimizers' times are left out: {problem}", file=sys.stderr)
                return
            self.values[str(rank)] = {"ms": measured, "load": load, "nice": self.options.nice,
                                      "width": get(grid.configs[method.key], "model.width")}
            write_json(self.path, self.values)


def trained(results: dict) -> float:
    """Seconds of all runs so far, as if one after the other."""
    return sum(result.seconds + result.validation_seconds for result in results.values())


def allowance(grid_seconds: float, options) -> float:
    """Seconds for the times by width where nobody asked for them; `grid_seconds`: of all runs, one after the other."""
    return max(WIDTHS_SHARE * grid_seconds / options.jobs, WIDTHS_SECONDS)


def missing_widths(options) -> list:
    """Those of --widths that are not measured yet, ascending."""
    return [width for width in options.widths if width not in (read_json(options.out / "widths.json") or {})]


def width_settings(config: dict, width: int) -> dict:
    """The model at another width: heads of the same size or smaller, MLP and rank in proportion."""
    model = config["model"]
    ratio = width / model["width"]
    heads, head_size = fit_heads(width, model["heads"], model["head_size"])
    found = {"model.width": width, "model.heads": heads, "model.kv_heads": heads, "model.head_size": head_size,
             "model.mlp_hidden": max(1, round(model["mlp_hidden"] * ratio))}
    rank = get(config, "optimizer.matrices.rank")
    if isinstance(rank, int):
        found["optimizer.matrices.rank"] = scaled_rank(rank, ratio)
    return found


class Widths:
    """widths.json: width -> {"ms": {method: milliseconds}, "load", "nice"}; of older versions, the first alone."""

    def __init__(self, options):
        self.options, self.path = options, options.out / "widths.json"
        self.values = {width: entry if isinstance(entry.get("ms"), dict) else {"ms": entry}
                       for width, entry in (read_json(self.path) or {}).items()}

    def by_method(self) -> dict:
        """method name -> {width: milliseconds}."""
        found = {}
        for width, entry in self.values.items():
            for name, value in entry["ms"].items():
                found.setdefault(name, {})[int(width)] = value
        return found

    def loads(self) -> list:
        """(load average, nice) of the measurements that noted them."""
        return [(entry["load"], entry["nice"]) for entry in self.values.values() if "load" in entry]

    def known(self, bench: Bench, grid) -> list:
        """(width, seconds) that measurements took, about, by their own numbers."""
        entries = [(int(width), entry) for width, entry in self.values.items()]
        entries += [(entry["width"], entry) for entry in bench.values.values() if "width" in entry]
        return [(width, sum(entry["ms"].values()) * (REPEATS + 1) / 1e3) for width, entry in entries]

    def measure(self, grid, runner, bench: Bench) -> None:
        """What is missing, the narrowest first; where nobody asked for it, as much as the allowance lets."""
        options = self.options
        method = next((method for method in grid.methods if method.rank), grid.methods[0])
        known = self.known(bench, grid)
        left = float("inf") if options.widths_asked else allowance(trained(runner.results), options)
        for word in (missing := missing_widths(options)):
            # Newton-Schulz takes width^3 operations; from a narrower model, that is at least as long as it takes.
            narrower = [each for each in known if each[0] < int(word)] or known
            from_width, seconds = max(narrower, default=(int(word), 0.0))
            expected = seconds * (int(word) / from_width) ** 3
            if expected > left:
                rest = ", ".join(missing[missing.index(word):])
                picture = "" if len(self.values) > 1 else ", and there is no picture of it"
                print(f"reproduce: the optimizers' time by width lacks {rest}{picture}: width {word} alone would take "
                      f"about {format_duration(expected)}, much beside the grid's "
                      f"{format_duration(trained(runner.results) / options.jobs)}. To measure all, give --resume "
                      f"--figures {','.join(options.figures)}", file=sys.stderr)
                return
            started, load = time.monotonic(), os.getloadavg()[0]
            self.values[word] = {"ms": self.ask(grid.configs[method.key], int(word), runner.polaron), "load": load,
                                 "nice": options.nice}
            write_json(self.path, self.values)
            took = time.monotonic() - started
            left -= took
            known.append((int(word), took))

    def ask(self, config: dict, width: int, polaron) -> dict:
        file = self.options.out / "widths.config.json"
        write_json(file, config)
        threads = {"threads": self.options.threads} if self.options.threads else {}
        try:
            return polaron.bench_optimizer(file, {**width_settings(config, width), **threads}, REPEATS)
        finally:
            file.unlink(missing_ok=True)
