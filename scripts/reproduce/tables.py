"""The tables that can be asked for: which config each is of, and its grid where the command line gives no other."""

import math
from dataclasses import dataclass
from pathlib import Path

from .base import Problem, rate_text

REPOSITORY = Path(__file__).resolve().parents[2]

# Values of optimizer.matrices.type. The other roles keep what the config gives them, the same in all runs.
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon", "low_rank_muon": "low-rank Muon", "msgd": "MSGD",
              "low_rank_msgd": "low-rank MSGD", "sgd": "SGD"}
LOW_RANK = ("low_rank_muon", "low_rank_msgd")
SKETCHES = ("columns", "columns_authors", "gaussian", "power")


@dataclass(frozen=True)
class Arm:
    """One row of the table: what optimizes the matrices, whatever the learning rate and the seed."""

    optimizer: str
    rank: str = ""  # as asked for: "64" or "1/4"; empty without low rank
    sketch: str = ""


@dataclass(frozen=True)
class Table:
    config: str  # relative to the repository
    title: str
    arms: tuple
    rates: dict  # optimizer -> the centre of its learning rates
    number_of_rates: int = 3
    sweep_fraction: float = 1.0  # length of the runs that choose the learning rate; 1: they count as full runs
    seeds: int = 3


# Factor between neighbouring learning rates, the same for every optimizer.
RATE_RATIO = 2.0

FAIR_ARMS = (Arm("adamw"), Arm("muon"), Arm("low_rank_muon", "1/4", "columns"), Arm("low_rank_muon", "1/2", "columns"),
             Arm("low_rank_muon", "1/8", "columns"), Arm("low_rank_muon", "1/4", "gaussian"),
             Arm("low_rank_muon", "1/4", "power"), Arm("msgd"), Arm("low_rank_msgd", "1/4", "columns"))
# The middle of three rates: about the best ones of short runs (0.6M tokens) of a narrower model (128).
FAIR_RATES = {"adamw": 5e-4, "muon": 0.01, "low_rank_muon": 0.01, "msgd": 0.02, "low_rank_msgd": 0.02, "sgd": 0.1}
# The authors' one rate for Muon of any rank is 0.025; their AdamW's, 1e-4, is for bf16 weights without master copies.
PAPER_RATES = {"adamw": 1e-3, "muon": 0.025, "low_rank_muon": 0.025, "msgd": 0.025, "low_rank_msgd": 0.025, "sgd": 0.01}


def paper(name: str, ranks: tuple) -> Table:
    arms = (Arm("adamw"), Arm("muon"), *(Arm("low_rank_muon", rank, "columns") for rank in ranks))
    family, size = name.split("-")
    title = f"{'GPT-2' if family == 'gpt2' else 'LLaMA'} {size} as the authors train it"
    return Table(f"configs/paper/{name}.json", title, arms, PAPER_RATES, sweep_fraction=0.25)


TABLES = {
    "fair-gpt2": Table("configs/fair-gpt2.json", "A plain GPT-2, every optimizer tuned alike", FAIR_ARMS, FAIR_RATES),
    "fair-llama": Table("configs/fair-llama.json", "A plain LLaMA, every optimizer tuned alike", FAIR_ARMS, FAIR_RATES),
    **{f"{family}-{size}": paper(f"{family}-{size}", ("400",) if size == "large" else ("50", "100", "200"))
       for family in ("gpt2", "llama") for size in ("tiny", "small", "medium", "large")},
}


def find_table(name: str) -> Table:
    if name not in TABLES:
        raise Problem(f"there is no table '{name}'. The tables are {', '.join(TABLES)}.")
    return TABLES[name]


def check_names(names: list, valid, what: str) -> None:
    for name in names:
        if name not in valid:
            raise Problem(f"there is no {what} '{name}'. The {what}s are {', '.join(valid)}.")
    if not names:
        raise Problem(f"no {what} is named. The {what}s are {', '.join(valid)}.")


def check_rank(text: str) -> None:
    """A rank is a whole number from 1, or a fraction of the width such as 1/8."""
    numerator, slash, denominator = text.partition("/")
    valid = numerator.isdigit() and int(numerator) > 0
    if slash:
        valid = valid and denominator.isdigit() and 0 < int(numerator) <= int(denominator)
    if not valid:
        raise Problem(f"there is no rank '{text}'. A rank is a whole number from 1 to the model's width, such as 64, "
                      "or a fraction of the width, such as 1/8.")


def choose_arms(table: Table, optimizers, ranks, sketches) -> list:
    """The table's own arms, or where any of the three is given (a list, else None) every combination of them."""
    for names, valid, what in ((optimizers, OPTIMIZERS, "optimizer"), (sketches, SKETCHES, "sketch")):
        if names is not None:
            check_names(names, valid, what)
    for rank in ranks or []:
        check_rank(rank)
    if ranks is not None and not ranks:
        raise Problem("--ranks names no rank.")
    if ranks is None and sketches is None:
        if optimizers is None:
            return list(table.arms)
        arms = [arm for name in optimizers for arm in table.arms if arm.optimizer == name]
        missing = [name for name in optimizers if all(arm.optimizer != name for arm in arms)]
    else:
        arms, missing = [], optimizers or list(dict.fromkeys(arm.optimizer for arm in table.arms))
    own_ranks = ranks or list(dict.fromkeys(arm.rank for arm in table.arms if arm.rank))
    for name in missing:
        if name in LOW_RANK:
            arms += [Arm(name, rank, sketch) for sketch in sketches or ["columns"] for rank in own_ranks]
        else:
            arms.append(Arm(name))
    return list(dict.fromkeys(arms))


def spread(centre: float, number: int) -> list:
    """So many rates around the centre, a constant factor apart; of an even number one more lies below it."""
    return [float(f"{centre * RATE_RATIO ** (i - number // 2):.4g}") for i in range(number)]


def parse_rates(words: list, table: Table, optimizers: list, number: int) -> dict:
    """optimizer -> its learning rates. Words: "0.01,0.02" for all optimizers, "muon=0.01,0.02" for one."""
    rates = {name: spread(table.rates[name], number) for name in optimizers}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals:
            name, values = "", word
        else:
            check_names([name], OPTIMIZERS, "optimizer")
        try:
            listed = sorted({float(value) for value in values.split(",") if value.strip()})
        except ValueError:
            listed = []
        if not listed or not all(math.isfinite(rate) and rate > 0 for rate in listed):
            raise Problem(f"--lrs: '{word}' is neither auto nor learning rates such as 0.01,0.02 or muon=0.01,0.02.")
        for low, high in zip(listed, listed[1:]):
            if rate_text(low) == rate_text(high):
                raise Problem(f"--lrs: {low} and {high} would be one run, '{rate_text(low)}': runs are named by three "
                              "digits of their rate. Give one of the two.")
        for each in [name] if name else optimizers:
            if each in rates:
                rates[each] = listed
    return rates
