"""The grid: which runs there are, each with its config in full, and which of them can be started next."""

import copy
import glob
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from . import scaling
from .base import Problem, flatten, get, rate_text, read_json, write_json
from .tables import LOW_RANK, OPTIMIZERS, RATE_RATIO

# Of the base config's group `matrices`, what a group of another type takes over where its type uses the key too.
CARRIED = ("momentum", "momentum_form", "nesterov", "momentum_warmup_steps", "momentum_start", "orthogonalizer",
           "coefficients", "newton_schulz_steps", "newton_schulz_precision", "scale", "weight_decay", "basis")
ORTHOGONALIZING = ("muon", "low_rank_muon", "msgd", "low_rank_msgd")
# Which types use a key of the group; of keys that are not here, all types do, or the program says that there are none.
USED_BY = {
    **dict.fromkeys(("beta1", "beta2", "eps", "bf16_weights", "bf16_moments"), ("adamw",)),
    **dict.fromkeys(("momentum", "nesterov", "momentum_warmup_steps", "momentum_start"),
                    ("sgd", "muon", "low_rank_muon")),
    "momentum_form": ("muon", "low_rank_muon"),
    **dict.fromkeys(("orthogonalizer", "coefficients", "newton_schulz_steps", "newton_schulz_precision", "scale"),
                    ORTHOGONALIZING),
    **dict.fromkeys(("basis", "power_iterations", "rank_lr_compensation"), LOW_RANK),
}
MATRICES = "optimizer.matrices."
# Keys of the group that the grid itself gives, and what it takes them from.
GIVEN = {"type": "--optimizers", "lr": "--lrs", "rank": "--ranks", "sketch": "--sketches"}
# Settings that do not change what a run computes.
FREE = {"name", "output", "threads", "checkpoint.every", "checkpoint.keep"}


@dataclass(frozen=True)
class Method:
    """An arm at this grid's scale: `rank` in directions, `asked` as the command line had it."""

    optimizer: str
    rank: int = 0
    asked: str = ""
    sketch: str = ""

    @property
    def key(self) -> str:
        return f"{self.optimizer}-r{self.rank}-{self.sketch}" if self.rank else self.optimizer

    @property
    def label(self) -> str:
        if not self.rank:
            return OPTIMIZERS[self.optimizer]
        asked = f" = {self.asked}" if "/" in self.asked else f" (for {self.asked})"
        asked = "" if self.asked == str(self.rank) else asked
        return f"{OPTIMIZERS[self.optimizer]}, rank {self.rank}{asked}, {self.sketch}"


@dataclass
class Run:
    name: str
    method: Method
    rate: float
    seed: int
    full: bool  # of the table's length; else a shorter one that only chooses the learning rate
    config: dict = field(repr=False)
    steps: int = 0

    @property
    def label(self) -> str:
        return f"{self.method.label}, lr {rate_text(self.rate)}, " + (f"seed {self.seed}" if self.full else "sweep")


def find_methods(arms: list, base: dict, width: int) -> list:
    """The arms with their ranks for models of `width`, from those of the base config's width."""
    whole, methods = base["model"]["width"], []
    for arm in arms:
        if not arm.rank:
            methods.append(Method(arm.optimizer))
            continue
        numerator, slash, denominator = arm.rank.partition("/")
        asked = int(numerator)
        if slash:
            rank = max(1, width * asked // int(denominator))
        elif asked > whole:
            raise Problem(f"there is no rank {asked} in a model of width {whole}. A rank is a whole number from 1 to "
                          "the width, or a fraction of it such as 1/8.")
        else:
            rank = asked if width == whole else scaling.scaled_rank(asked, width / whole)
        methods.append(Method(arm.optimizer, min(rank, width), arm.rank, arm.sketch))
    unique = {}
    for method in methods:
        unique.setdefault(method.key, method)
    return list(unique.values())


def split_settings(settings: dict) -> tuple:
    """(those for all runs, key -> value of those of the matrices' optimizer, which are for the methods that use them).
    """
    own = {key[len(MATRICES):]: value for key, value in settings.items() if key.startswith(MATRICES)}
    for key in GIVEN.keys() & own.keys():
        print(f"reproduce: --set {MATRICES}{key} is left out: {GIVEN[key]} gives it.", file=sys.stderr)
        del own[key]
    return {key: value for key, value in settings.items() if not key.startswith(MATRICES)}, own


def uses(optimizer: str, key: str, sketch: str = "") -> bool:
    """`sketch`: of a low-rank type."""
    return optimizer in USED_BY.get(key, OPTIMIZERS) and (key != "power_iterations" or sketch == "power")


def check_own(own: dict, methods: list) -> None:
    """Refuses settings of the matrices' optimizer that no method uses."""
    for key in own:
        if not any(uses(method.optimizer, key, method.sketch) for method in methods):
            what = "low-rank types with the sketch power" if key == "power_iterations" else ", ".join(USED_BY[key])
            raise Problem(f"--set {MATRICES}{key}: no optimizer of this grid uses it; it is for {what}.")


def optimizer_settings(method: Method, base: dict, shared: dict, own=None) -> dict:
    """What to set for the method: `shared`, which is for all methods, and what its own optimizer of the matrices is:
    of `own` (see split_settings) what it uses, and of the group of `base` what its type takes over."""
    group = dict(get(base, "optimizer.matrices", {}))
    group |= {key[len(MATRICES):]: value for key, value in shared.items() if key.startswith(MATRICES)}
    # What the base's type uses, too, is there as scaled.
    settings = {MATRICES + key: group.get(key, value) for key, value in (own or {}).items()
                if uses(method.optimizer, key, method.sketch)}
    if group.get("type") == method.optimizer:
        settings |= shared
    else:
        settings |= {key: value for key, value in shared.items() if not key.startswith(MATRICES)}
        if method.optimizer in ORTHOGONALIZING and group.get("type") in ORTHOGONALIZING:
            settings |= {MATRICES + key: group[key] for key in CARRIED if key in group and uses(method.optimizer, key)}
        elif group.get("type") in ORTHOGONALIZING and get(base, "optimizer.overrides"):
            settings["optimizer.overrides"] = []  # exceptions from settings that this method does not have
        if not settings.get(MATRICES + "momentum_warmup_steps"):
            settings.pop(MATRICES + "momentum_start", None)  # is for a warm-up, which this type does not take over
    settings[MATRICES + "type"] = method.optimizer
    if method.rank:
        settings |= {MATRICES + "rank": method.rank, MATRICES + "sketch": method.sketch}
    return settings


@dataclass
class Grid:
    """All that may be run. `rates` by optimizer; the sweep takes the first seed. `results` are by the run's name."""

    methods: list
    rates: dict
    seeds: list
    sweep_fraction: float
    configs: dict  # method key -> effective config, without rate and seed
    folder: Path
    extend: int = 0  # rates that a method may have beyond an end of its grid, where the best one is that end
    made: dict = field(default_factory=dict, repr=False)

    def run(self, method: Method, rate: float, seed: int, full: bool) -> Run:
        name = f"{method.key}-lr{rate_text(rate)}-" + (f"s{seed}" if full else "sweep")
        if name not in self.made:
            self.made[name] = self.make_run(name, method, rate, seed, full)
        return self.made[name]

    def make_run(self, name: str, method: Method, rate: float, seed: int, full: bool) -> Run:
        config = copy.deepcopy(self.configs[method.key])
        config["optimizer"]["matrices"]["lr"] = rate
        config["seed"], config["name"] = seed, name
        config["output"] = str(self.folder / "runs" / name)
        training = config["training"]
        if not full:
            whole = training["steps"]
            training["steps"] = max(1, round(whole * self.sweep_fraction))
            warmup = get(config, "schedule.warmup_steps", 0)
            if warmup:
                config["schedule"]["warmup_steps"] = min(warmup, max(1, round(warmup * self.sweep_fraction)))
            config["validation"]["every"] = 0
            for group in config["optimizer"].values():
                if isinstance(group, dict) and group.get("momentum_warmup_steps"):
                    group["momentum_warmup_steps"] = max(1, round(group["momentum_warmup_steps"] * self.sweep_fraction))
            training["tokens"] = training["steps"] * training["batch"] * training["sequence_length"]
        return Run(name, method, rate, seed, full, config, training["steps"])

    def sweep(self, method: Method, results: dict) -> list:
        """The runs that choose the method's rate, ascending: none where there is nothing to choose."""
        rates = list(self.rates[method.optimizer])
        full = self.sweep_fraction >= 1.0
        if len(rates) == 1 and not full:
            return []
        for _ in range(self.extend if len(rates) > 1 else 0):
            state, best = self.judge(method, rates, results)
            if state == "open" or (best is not None and rates[0] < best < rates[-1]):
                break
            if best == rates[-1]:
                rates.append(float(f"{rates[-1] * RATE_RATIO:.4g}"))
            else:  # also where all diverged
                rates.insert(0, float(f"{rates[0] / RATE_RATIO:.4g}"))
        return [self.run(method, rate, self.seeds[0], full) for rate in rates]

    def judge(self, method: Method, rates: list, results: dict) -> tuple:
        """("open", None) as long as a run of the rates is not done, then ("done", best rate, None if all diverged)."""
        runs = [self.run(method, rate, self.seeds[0], self.sweep_fraction >= 1.0) for rate in rates]
        found = [results.get(run.name) for run in runs]
        if any(result is None or not result.ended for result in found):
            return "open", None
        good = [(result.val_loss, run.rate) for run, result in zip(runs, found) if result.good]
        return "done", min(good)[1] if good else None

    def search(self, method: Method, results: dict) -> tuple:
        """What judge says of all rates that the method has by now."""
        runs = self.sweep(method, results)
        if not runs:
            return "done", self.rates[method.optimizer][0]
        return self.judge(method, [run.rate for run in runs], results)

    def best_rate(self, method: Method, results: dict):
        """The rate of the lowest validation loss, None as long as the search goes on or where all of it diverged."""
        return self.search(method, results)[1]

    def final(self, method: Method, results: dict) -> list:
        """The runs that the table is made of, as far as the rate is known."""
        rate = self.best_rate(method, results)
        return [] if rate is None else [self.run(method, rate, seed, True) for seed in self.seeds]

    def known(self, results: dict) -> list:
        """All runs known by now, in the order in which they are to be started."""
        sweeps = [self.sweep(method, results) for method in self.methods]
        order = []
        # The middle rates of all methods first: an interrupted grid then says something about each.
        for distance in range(max(map(len, sweeps), default=0)):
            for runs in sweeps:
                by_distance = sorted(runs, key=lambda run, runs=runs: abs(runs.index(run) - len(runs) // 2))
                order += by_distance[distance:distance + 1]
        finals = [self.final(method, results) for method in self.methods]

        def best(runs: list) -> float:
            found = [results[run.name].val_loss for run in runs if run.name in results and results[run.name].good]
            return min(found, default=float("inf"))

        # Seed by seed, the closest to the best one first: so far as time goes, the closest ones have their seeds.
        for i in range(len(self.seeds)):
            order += [runs[i] for runs in sorted(finals, key=best) if i < len(runs)]
        return list({run.name: run for run in order}.values())

    def total_steps(self, method: Method, results: dict) -> dict:
        """Name -> steps of all runs that the method will have; names of those whose rate is open are made up."""
        runs = {run.name: run.steps for run in [*self.sweep(method, results), *self.final(method, results)]}
        if self.search(method, results)[0] == "open":
            steps = self.configs[method.key]["training"]["steps"]
            already = 1 if self.sweep_fraction >= 1.0 else 0
            runs |= {f"{method.key}-later-{i}": steps for i in range(len(self.seeds) - already)}
        return runs

    def extensions(self, method: Method, results: dict) -> dict:
        """Name -> steps of the runs by which the method's search may still be extended, at most; names are made up."""
        listed = self.rates[method.optimizer]
        if len(listed) == 1 or self.search(method, results)[0] != "open":
            return {}
        runs = self.sweep(method, results)
        return {f"{method.key}-beyond-{i}": runs[0].steps for i in range(len(runs) - len(listed), self.extend)}

    def check(self, run: Run) -> bool:
        """Whether the run's config is frozen already; refused where it is another one."""
        former = read_json(self.folder / "configs" / f"{run.name}.json",
                           frozen_remedy(self.folder, run.name))
        if former is None:
            return False
        words = differences(former, run.config)
        if words:
            raise Problem(f"the run '{run.name}' in '{self.folder}' has other settings than now: {'; '.join(words)}. "
                          "Give the settings it was started with, another --out, or remove its files below configs/ "
                          "and runs/.")
        return True

    def freeze(self, run: Run) -> None:
        """Writes the run's config, of which it is trained and continued whatever happens to the files it came from."""
        if not self.check(run):
            write_json(self.folder / "configs" / f"{run.name}.json", run.config)


def frozen_remedy(folder: Path, name: str) -> str:
    """What to do about a damaged config of a run."""
    return f"Remove it and '{folder / 'runs' / name}' to run it anew."


def expand(pattern: str) -> list:
    """Files of a shard pattern with *, ? and {a,b}, as the program reads it."""
    pattern = str(Path(pattern).expanduser())
    begin, end = pattern.find("{"), pattern.find("}")
    if 0 <= begin < end:
        return sorted({file for part in pattern[begin + 1:end].split(",")
                       for file in expand(pattern[:begin] + part + pattern[end + 1:])})
    return sorted(glob.glob(pattern))


def shard_tokens(pattern: str) -> int:
    """Tokens in the shards, by their headers."""
    total = 0
    for file in expand(pattern):
        with open(file, "rb") as shard:
            shard.seek(8)
            total += int.from_bytes(shard.read(4), "little")
    return total


def validation_tokens(config: dict) -> int:
    """Targets of one validation: those asked for (0: all), as far as the split has them; 0 where that is not known."""
    asked, there = get(config, "validation.tokens", 0), shard_tokens(get(config, "data.validation", ""))
    return min(asked, there) if asked and there else asked or there


def vocabulary_size(config: dict) -> int:
    """Logits of the model, 0 where their number is not known: what the uniform perplexity is."""
    return max(get(config, "model.vocabulary", 0), get(config, "model.head_vocabulary", 0)) or data_vocabulary(config)


def data_vocabulary(config: dict) -> int:
    """Entries of the data's vocabulary, 0 where it is not known."""
    path = get(config, "data.vocabulary")
    if not path:
        shards = expand(get(config, "data.train", ""))
        path = Path(shards[0]).parent / "vocabulary.json" if shards else ""
    try:
        return int(json.loads(Path(path).read_text(encoding="utf-8"))["size"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def differences(old: dict, new: dict) -> list:
    """What differs between two effective configs, in words. Keys that only the newer program knows are left out."""
    old, new = flatten(old), flatten(new)
    words = []
    for key, value in old.items():
        if key in FREE or key.split(".")[0] in ("sample",) or (key in new and new[key] == value):
            continue
        words.append(f"{key} was {json.dumps(value)}, now {json.dumps(new[key]) if key in new else 'not there'}")
    return words
