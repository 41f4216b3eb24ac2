"""Milliseconds of an optimizer step, by `polaron bench optimizer`, kept in OUT/bench.json."""

import os
import sys

from .base import Problem, get, read_json, write_json

REPEATS = 5


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
