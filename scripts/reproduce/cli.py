"""Trains the models of a table with every optimizer, learning rate and seed of its grid, and writes the comparison.

    python3 scripts/reproduce.py --table fair-gpt2 --out runs/fair --text my-text/ --train-bpe 4096
    python3 scripts/reproduce.py --table gpt2-small --optimizers adamw,muon,low_rank_muon --ranks 50,100,200 \\
        --seeds 3 --scale 0.02 --out runs/small --budget 8h

Every run is a `polaron train` in a directory of its own below OUT/runs. Killed at any time, the same command with
--resume goes on: a finished run is read, an interrupted one continues from its last checkpoint. A run of the same name
with other settings is refused. Runs that diverge are rows that say so. Written after every run: OUT/table.md,
results.csv (full runs), sweep.csv (the search for learning rates) and, where there is matplotlib, pictures; at the end
the optimizers' milliseconds a step, for the model's width and for others.

Rates: every optimizer gets the same number of learning rates on a grid of its own, a factor of 2 apart; the best by
validation perplexity is trained with all seeds. In the fair tables those are full runs; --lrs auto (the other tables'
default) chooses by runs of --sweep-fraction of the steps.

Exit: 0 done, 1 runs failed, 2 something is wrong with the request (nothing was trained), 3 with files, 130 or 143
interrupted; else as polaron.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from . import bench as benches
from . import estimate as estimates
from . import report, scaling, tables, text
from .base import Problem, format_bytes, format_tokens, get, parse_duration, read_json, write_json
from .grid import (MATRICES, Grid, check_own, data_vocabulary, expand, find_methods, frozen_remedy, optimizer_settings,
                   shard_tokens, split_settings, uses, vocabulary_size)
from .program import Polaron
from .progress import Progress
from .runs import Lock, Runner, find_damage


DEFAULT_WIDTHS = (128, 256, 512, 1024)


def names(text_: str) -> list:
    return [word.strip() for word in text_.split(",") if word.strip()]


def at_least(least: int):
    def parse(word: str) -> int:
        if not word.isdigit() or int(word) < least:
            raise argparse.ArgumentTypeError(f"'{word}' is no whole number of at least {least}")
        return int(word)

    return parse


def fraction(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"'{word}' is no number above 0 and up to 1")
    return value


def duration(word: str) -> float:
    try:
        return parse_duration(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{word}' is no duration such as 90s, 20m or 1h30m") from error


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reproduce.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--table", required=True, metavar="NAME", help=", ".join(tables.TABLES))
    add("--out", required=True, type=Path, metavar="DIR", help="folder of the runs and the results")
    add("--optimizers", type=names, metavar="NAME,...",
        help=f"of {', '.join(tables.OPTIMIZERS)} (default: the table's)")
    add("--ranks", type=names, metavar="RANK,...", help="of the unscaled model, say 50,100 or 1/8,1/4")
    add("--sketches", type=names, metavar="NAME,...", help="of columns, columns_authors (quirk Q1), gaussian, power")
    add("--seeds", type=at_least(1), metavar="N", help="seeds 1 to N (default: the table's, 3)")
    add("--scale", type=fraction, default=1.0, metavar="S", help="shrinks tokens and model; the table states the rule")
    add("--lrs", nargs="+", default=[], metavar="LRS", help="auto; or rates for all optimizers (0.01,0.02) or one "
        "(muon=0.01,0.02)")
    add("--number-of-lrs", type=at_least(1), metavar="N", help="of each optimizer's grid (default 3)")
    add("--sweep-fraction", type=fraction, metavar="F", help="length of the runs that choose a learning rate; 1: full "
        "runs, which count (auto: 0.25)")
    add("--extend", type=at_least(0), default=0, metavar="N", help="where the best rate is an end of its grid, try "
        "up to N more beyond (default 0)")
    add("--train", metavar="GLOB", help="training shards")
    add("--validation", metavar="GLOB", help="validation shards")
    add("--text", nargs="+", metavar="PATH", help="text to make shards of: folders, .txt, .jsonl (default: the sources "
        "of Python's standard library)")
    add("--validation-text", nargs="+", metavar="PATH", help="text to validate on (default: a part of --text)")
    add("--tokenizer", metavar="NAME", help="of that text: bytes (the default), or a tokenizer.json")
    add("--train-bpe", type=at_least(257), metavar="SIZE", help="train a BPE of SIZE entries on that text")
    add("--set", action="append", default=[], metavar="KEY=VALUE",
        help="put over the table's config, in all runs (before it is scaled); optimizer.matrices.KEY in those whose "
        "optimizer uses KEY")
    add("--budget", type=duration, metavar="TIME", help="refuse to start what would take longer, say 20m: all "
        "searches extended as far as --extend allows, and the optimizers' times measured")
    add("--processes", type=at_least(1), default=1, metavar="N", help="of each run, by mpirun")
    add("--mpirun", default="mpirun", metavar="COMMAND", help="how to start them (default mpirun)")
    add("--jobs", type=at_least(1), default=1, metavar="N", help="runs side by side (default 1)")
    add("--threads", type=at_least(0), default=None, metavar="N", help="of each process (default: the cores / jobs)")
    add("--nice", type=at_least(0), default=0, metavar="N", help="lower priority, up to 19")
    add("--polaron", default=None, metavar="PATH",
        help="the program (default: that built last below build/, or on PATH)")
    add("--figures", type=names, metavar="NAME,...", help="of tokens, seconds, rates, width, or none (default: all. "
        f"The optimizers' time by width is then measured as far as {benches.WIDTHS_SHARE:.0%}% of the grid's time or "
        f"{benches.WIDTHS_SECONDS:.0f} s allow, and not with --no-bench; where width is named here, in full)")
    add("--widths", type=names, metavar="N,...", help="of the figure 'width', in full (default 128,256,512,1024)")
    add("--no-bench", action="store_true", help="do not measure the optimizers' milliseconds a step")
    add("--keep-checkpoints", action="store_true", help="of finished runs, too")
    add("--resume", action="store_true", help="go on with what is in --out")
    add("--report", action="store_true", help="train nothing; write the results of what is there")
    add("--dry-run", action="store_true", help="train nothing; show the runs, and what is known of the time")
    return parser


def parse_set(words: list) -> dict:
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise Problem(f"--set: '{word}' is not KEY=VALUE.")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings


def complete(options, arguments: list):
    """Checks what can be checked before anything is read or made."""
    table = tables.find_table(options.table)
    options.arms = tables.choose_arms(table, options.optimizers, options.ranks, options.sketches)
    used = list(dict.fromkeys(arm.optimizer for arm in options.arms))
    auto = "auto" in options.lrs
    words = [word for word in options.lrs if word != "auto"]
    options.rates = tables.parse_rates(words, table, used, options.number_of_lrs or table.number_of_rates)
    if options.sweep_fraction is None:
        options.sweep_fraction = 0.25 if auto else table.sweep_fraction if not words else 1.0
    options.seed_list = list(range(1, (options.seeds or table.seeds) + 1))
    options.cores = os.cpu_count() or 1
    if options.threads is None:
        options.threads = max(1, options.cores // (options.jobs * options.processes)) if options.jobs > 1 else 0
    options.widths_asked = bool(options.widths) or "width" in (options.figures or [])
    if options.figures is None:
        measured = options.widths_asked or not options.no_bench
        options.figures = ["tokens", "seconds", "rates", *(["width"] if measured else [])]
    for width in options.widths or []:
        if not width.isdigit() or int(width) == 0:
            raise Problem(f"--widths: '{width}' is no width, a whole number such as 256.")
    options.widths = [str(width) for width in sorted({int(width) for width in options.widths or DEFAULT_WIDTHS})]
    for figure in options.figures:
        if figure not in ("tokens", "seconds", "rates", "width", "none"):
            raise Problem(f"there is no figure '{figure}'. The figures are tokens, seconds, rates and width.")
    if options.scale != 1.0 and "training.tokens" in parse_set(options.set):
        raise Problem("--scale shrinks the tokens of the table, and --set training.tokens gives their number: give one "
                      "of the two. Beside --scale, --set training.steps=N is of the table before it is scaled.")
    if bool(options.train) != bool(options.validation):
        raise Problem("--train and --validation go together: perplexity is measured on the validation shards.")
    if options.validation_text and not options.text:
        raise Problem("--validation-text goes with --text.")
    if options.train and options.text:
        raise Problem("--text makes shards, --train names shards: give one of them.")
    if options.processes > 1 and shutil.which(shlex.split(options.mpirun)[0]) is None:
        raise Problem(f"there is no '{options.mpirun}' to start several processes. Debian, Ubuntu: sudo apt install "
                      "openmpi-bin libopenmpi-dev, then build polaron again; or leave out --processes.")
    for pattern in filter(None, (options.train, options.validation)):
        if not expand(pattern):
            raise Problem(f"no file matches '{pattern}'. Make shards by data/prepare_text.py, or give a text by "
                          "--text.")
    options.out = options.out.expanduser().absolute()
    special = [letter for letter in "*?[{" if letter in str(options.out)]
    if special and not options.train:
        raise Problem(f"--out: '{options.out}' has a {special[0]} in it. Shards made there are found by a pattern, in "
                      "which that stands for other letters: give another folder.")
    if (options.out / "runs").is_dir() and any((options.out / "runs").iterdir()) \
            and not (options.resume or options.report or options.dry_run):
        raise Problem(f"'{options.out}' holds runs already. Go on with them by --resume, or choose another --out.")
    options.command = "python3 scripts/reproduce.py " + shlex.join(arguments)
    return table


def data_settings(options) -> dict:
    """The shards of all runs; texts are turned into shards here."""
    if options.train:
        train, validation = options.train, options.validation
    elif (options.dry_run or options.report) and not (options.out / "data" / "prepared.json").exists():
        if options.report:
            raise Problem(f"'{options.out}' holds no shards of its own. Give --train and --validation as for its runs.")
        train, validation = str(options.out / "data/train_*.bin"), str(options.out / "data/validation_*.bin")
    else:
        bpe = options.train_bpe or (4096 if options.text and not options.tokenizer and options.table.startswith("fair")
                                    else None)
        train, validation = text.prepare(options, bpe)
    return {"data.train": os.path.abspath(os.path.expanduser(train)),
            "data.validation": os.path.abspath(os.path.expanduser(validation))}


def make_grid(table, options, polaron: Polaron) -> tuple:
    """(grid, facts for the report, effective config of the unscaled table, settings that all runs share)."""
    config_path = tables.REPOSITORY / table.config
    if not config_path.is_file():
        raise Problem(f"the table {options.table} needs '{table.config}', which this checkout does not have.")
    common, own = split_settings({**data_settings(options), **parse_set(options.set)})
    base = polaron.effective(config_path, common)
    if own:
        group = base["optimizer"]["matrices"]
        common |= {MATRICES + key: value for key, value in own.items()
                   if uses(group["type"], key, group.get("sketch", ""))}
        base = polaron.effective(config_path, common)
    shared = {**common, **scaling.scale(base, options.scale, data_vocabulary(base))}
    width = shared.get("model.width", base["model"]["width"])
    methods = find_methods(options.arms, base, width)
    check_own(own, methods)
    configs = {method.key: polaron.effective(config_path, optimizer_settings(method, base, shared, own))
               for method in methods}
    one = next(iter(configs.values()))
    if not get(one, "validation.tokens") and not expand(common["data.validation"]):
        raise Problem("there are no validation shards.")
    steps = one["training"]["steps"]
    if not get(one, "checkpoint.every"):
        for config in configs.values():
            config["checkpoint"] = {"every": max(1, steps // 20), "keep": 1}
    grid = Grid(methods, options.rates, options.seed_list, options.sweep_fraction, configs, options.out,
                options.extend)
    tokens = steps * one["training"]["batch"] * one["training"]["sequence_length"]
    there = shard_tokens(common["data.train"])
    training = base["training"]
    facts = {
        "epochs": f" ({tokens / there:.2g} epochs of {format_tokens(there)})" if there else "",
        "unscaled": f"{base['model']['layers']} layers of width {base['model']['width']}, {training['steps']:,} steps "
                    f"of {training['batch']} x {training['sequence_length']} tokens",
    }
    return grid, facts, base, common


def available_memory() -> int:
    """Bytes that programs can still have, 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").split("\n")
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 0)


def warn_of_memory(run_, polaron: Polaron, options) -> None:
    """Says when the runs side by side need more memory than there is, by `polaron plan`."""
    with tempfile.TemporaryDirectory(prefix="polaron-reproduce-") as folder:
        write_json(Path(folder) / "config.json", run_.config)
        plan = polaron.plan(Path(folder) / "config.json", {}, options.processes)
    needed = get(plan, "memory.total", 0) * options.jobs * options.processes
    there = available_memory()
    if get(run_.config, "device") != "cuda" and 0 < there < needed:
        print(f"reproduce: the runs need about {format_bytes(needed)} of memory, and {format_bytes(there)} are free: "
              "fewer --jobs or --processes need less.", file=sys.stderr)


def describe(grid, runner, options, estimate) -> None:
    known = runner.refresh()
    ended = sum(runner.results[run.name].ended for run in known)
    runs, most = estimate.number_of_runs(runner.results), estimate.number_of_runs(runner.results, True)
    more = f" (up to {most} where searches are extended)" if most > runs else ""
    left = estimate.words(runner.results)
    words = f"{options.table}: {runs} runs of {len(grid.methods)} methods{more}, {ended} done"
    print(words + (f"; {left}" if left else ""), file=sys.stderr, flush=True)


def dry_run(grid, runner, options) -> int:
    estimate = estimates.Estimate(grid, options)
    describe(grid, runner, options, estimate)
    for run in runner.refresh():
        result = runner.results[run.name]
        grid.check(run)
        print(f"{run.name:44} {run.steps:7} steps  {result.state}" + (f" at step {result.step}" if result.step else ""))
    if estimate.left(runner.results) is None:
        print("the time is measured by a probe before the first run", file=sys.stderr)
    print("after these: the best rate of each method with the other seeds", file=sys.stderr)
    return 0


def check_kept(options) -> None:
    """Reads what former calls left in --out, the report's numbers too: a half-written file is to be named before
    training time is spent."""
    for path in sorted((options.out / "configs").glob("*.json")):
        read_json(path, frozen_remedy(options.out, path.stem))
    benches.Bench(options)
    read_json(options.out / "widths.json")
    damaged = find_damage(options.out)
    if damaged:
        raise Problem("\n".join(damaged), 3)


def write_results(table, grid, runner, options, facts, final: bool) -> str:
    from . import figures

    bench = benches.Bench(options)
    if final and not options.no_bench and not options.report:
        bench.measure(grid, runner.polaron)
    shown = report.make_report(table, grid, runner, options, facts, bench)
    figures.draw(grid, runner, options, bench, table.title, final)
    return shown


def run(options, arguments: list) -> int:
    table = complete(options, arguments)
    polaron = Polaron(options.polaron)
    if options.report or options.dry_run:
        grid, facts, _, _ = make_grid(table, options, polaron)
        runner = Runner(grid, polaron, options, None, vocabulary_size(next(iter(grid.configs.values()))))
        if options.dry_run:
            check_kept(options)
            return dry_run(grid, runner, options)
        for words in find_damage(options.out):  # no reason to withhold the others
            print(f"reproduce: {words} Until then it counts as to come.", file=sys.stderr)
        options.command = (read_json(options.out / "grid.json") or {}).get("command", options.command)
        print(write_results(table, grid, runner, options, facts, True))
        return 0
    if options.nice:
        os.nice(options.nice)
    options.out.mkdir(parents=True, exist_ok=True)
    lock = Lock(options.out)
    try:
        check_kept(options)
        grid, facts, base, common = make_grid(table, options, polaron)
        runner = Runner(grid, polaron, options, lock, vocabulary_size(next(iter(grid.configs.values()))))
        known = runner.refresh()
        for each in known:
            grid.check(each)
        runner.note_ended()
        write_json(options.out / "grid.json", {"command": options.command, "polaron": polaron.version(),
                                               "rates": grid.rates, "seeds": grid.seeds, "scale": options.scale,
                                               "sweep_fraction": grid.sweep_fraction,
                                               "methods": [method.key for method in grid.methods]})
        first = next((each for each in known if not runner.results[each.name].ended), None)
        estimate = estimates.Estimate(grid, options)
        if first is not None:
            warn_of_memory(first, polaron, options)
            estimate = estimates.known_or_probed(grid, polaron, options, runner.results, first.config)
            estimates.check_budget(estimate, runner.results, options, lambda: estimates.smaller_scale(
                estimate.left(runner.results, most=True), options.budget, base, tables.REPOSITORY / table.config,
                polaron, common, options.scale))
        describe(grid, runner, options, estimate)
        progress = Progress(estimate)

        def on_end(ended_run, result) -> None:
            progress.ended(ended_run, result, runner.results)
            try:
                write_results(table, grid, runner, options, facts, False)
            except Exception as problem:  # noqa: BLE001 - trainings need no table; at the end it is written again
                print(f"reproduce: the results so far are not written ({problem!r}); training goes on", file=sys.stderr)

        runner.loop(progress.poll, on_end)
        print("\n" + write_results(table, grid, runner, options, facts, True))
        print(f"wrote {options.out}/table.md, results.csv, sweep.csv")
        return 1 if runner.failed else 0
    finally:
        lock.release()


def main(arguments=None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = make_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that trainings are told to checkpoint
    try:
        return run(options, arguments)
    except Problem as problem:
        print(f"reproduce: {problem}", file=sys.stderr)
        return problem.code
    except KeyboardInterrupt:
        print("\nreproduce: interrupted; go on with --resume", file=sys.stderr)
        return 130
