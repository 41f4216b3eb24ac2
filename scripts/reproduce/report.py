"""table.md, results.csv and sweep.csv, from the runs' results."""

import csv
import io
import statistics
from dataclasses import dataclass, field

from .base import format_bytes, format_tokens, rate_text, write_atomically
from .grid import validation_tokens
from .quirks import number_formats, quirks
from .runs import mean_load
from .scaling import RULE
from .tables import OPTIMIZERS

COLUMNS = ("name", "optimizer", "rank", "sketch", "lr", "seed", "state", "steps", "tokens", "val_loss", "perplexity",
           "tokens_per_s", "ms_optimizer", "peak_memory_bytes", "seconds_training", "seconds_validation", "load",
           "nice", "processes", "threads", "program", "reason")
CLOSE = 0.01  # of a perplexity


@dataclass
class Row:
    """A method's row of the table."""

    method: object
    rate: float = 0.0
    good: list = field(default_factory=list)  # results of finished full runs at the chosen rate
    diverged: list = field(default_factory=list)
    waiting: int = 0
    failed: int = 0
    hopeless: bool = False  # every rate diverged
    edge: str = ""  # "lowest" or "highest", where the chosen rate is that one of the rates tried

    @property
    def mean(self) -> float:
        return statistics.mean(result.perplexity for result in self.good) if self.good else float("inf")

    @property
    def deviation(self) -> float:
        return statistics.stdev(result.perplexity for result in self.good) if len(self.good) > 1 else 0.0


def make_rows(grid, results: dict, failed=()) -> list:
    rows = []
    for method in grid.methods:
        row = Row(method)
        state, rate = grid.search(method, results)
        sweep = grid.sweep(method, results)
        if rate is None:
            row.hopeless = state == "done"
            row.waiting = 0 if row.hopeless else len(grid.seeds)
        else:
            row.rate = rate
            rates = [run.rate for run in sweep]
            if len(rates) > 1 and rate in (min(rates), max(rates)):
                row.edge = "lowest" if rate == min(rates) else "highest"
            for run in grid.final(method, results):
                result = results.get(run.name)
                if result is not None and result.good:
                    row.good.append(result)
                elif result is not None and result.state == "diverged":
                    row.diverged.append(result)
                elif run.name in failed:
                    row.failed += 1
                else:
                    row.waiting += 1
        rows.append(row)
    return sorted(rows, key=lambda row: row.mean)


def quiet(load, nice: int, options) -> bool:
    """Whether the machine did nothing else, so that a speed is one."""
    threads = max(1, options.threads or options.cores) * options.jobs * options.processes
    return load is not None and nice == 0 and load <= min(threads, options.cores) + 0.7


def perplexity_text(row: Row) -> str:
    if row.hopeless:
        return "**diverged** at every rate"
    notes = []
    if row.diverged:
        runs = len(row.diverged) + len(row.good) + row.waiting + row.failed
        notes.append(f"{len(row.diverged)} of {runs} **diverged**")
    if row.failed:
        notes.append(f"{row.failed} failed")
    if row.waiting:
        notes.append(f"{row.waiting} to come")
    if not row.good:
        return ", ".join(notes) or "-"
    number = f"{row.mean:.2f}" + (f" ± {row.deviation:.2f}" if len(row.good) > 1 else "")
    return number + (f" ({', '.join(notes)})" if notes else "")


def markdown(header: tuple, lines: list) -> str:
    cells = [header, *lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]

    def row(line) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"

    return "\n".join([row(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(row, lines)])


def main_table(rows: list, bench, loads: dict, options) -> tuple:
    """(markdown, whether a speed is marked)."""
    lines, marked = [], False
    for row in rows:
        speed = memory = "-"
        if row.good:
            rate = statistics.median(result.tokens_per_s for result in row.good)
            calm = all(quiet(*loads[result.name], options) for result in row.good)
            marked = marked or not calm
            speed = f"{rate:,.0f}" + ("" if calm else "*")
            memory = format_bytes(max(result.memory for result in row.good))
        milliseconds = bench.milliseconds(row.method) if bench else None
        cost = "-"
        if milliseconds is not None:
            calm = quiet(bench.load(row.method), bench.nice(row.method), options)
            marked = marked or not calm
            cost = f"{milliseconds:.1f}" + ("" if calm else "*")
        rate = "-" if not row.rate else rate_text(row.rate) + (f" ({row.edge} tried)" if row.edge else "")
        lines.append((row.method.label, rate, perplexity_text(row), str(len(row.good)), speed, cost, memory))
    header = ("optimizer of the matrices", "lr", "validation perplexity", "seeds", "tokens/s", "optimizer, ms a step",
              "peak memory")
    return markdown(header, lines), marked


def search_table(grid, results: dict) -> str:
    lines = []
    for method in grid.methods:
        runs, best = grid.sweep(method, results), grid.best_rate(method, results)
        if not runs:
            continue
        cells = []
        for run in runs:
            result = results.get(run.name)
            if result is None or not result.ended:
                text = "to come"
            elif result.good:
                text = f"{result.perplexity:.2f}"
            else:
                text = "diverged"
            text = f"**{text}**" if run.rate == best else text
            cells.append(f"{rate_text(run.rate)}: {text}")
        lines.append((method.label, " · ".join(cells)))
    return markdown(("optimizer of the matrices", "learning rate: validation perplexity"), lines) if lines else ""


def compared(rows: list, one: Row, other: Row) -> str:
    """How the perplexity of `one` stands to that of `other`, in words."""
    change = one.mean / other.mean - 1
    spread = (one.deviation ** 2 + other.deviation ** 2) ** 0.5
    seeds = min(len(one.good), len(other.good))
    if seeds < 2:
        doubt = " (one seed: no deviation is known)"
    elif abs(one.mean - other.mean) <= 2 * spread:
        doubt = f" (within twice the deviation over {seeds} seeds)"
    else:
        doubt = ""
    if abs(change) < 5e-4:
        return f"equals that of {other.method.label}{doubt}"
    return f"is {abs(change):.1%} {'above' if change > 0 else 'below'} that of {other.method.label}{doubt}"


def findings(rows: list) -> list:
    """What the table says, stated plainly."""
    found = {}
    for row in rows:  # sorted: the first of each optimizer is its best
        if row.good:
            found.setdefault(row.method.optimizer, row)
    sentences = []
    low = found.get("low_rank_muon")
    if low:
        others = [found[name] for name in ("muon", "adamw") if name in found]
        if others:
            several = sum(row.method.optimizer == "low_rank_muon" for row in rows) > 1
            best = f"the best low-rank Muon ({low.method.label})" if several else low.method.label
            words = " and ".join(compared(rows, low, other) for other in others)
            sentences.append(f"The perplexity of {best} {words}.")
    if "low_rank_msgd" in found and "msgd" in found:
        sentences.append(f"That of {found['low_rank_msgd'].method.label} "
                         + compared(rows, found["low_rank_msgd"], found["msgd"]) + ".")
    if "muon" in found and "adamw" in found:
        sentences.append(f"That of Muon {compared(rows, found['muon'], found['adamw'])}.")
    if any(row.waiting for row in rows):
        sentences.append("Runs are still to come; this may change.")
    return sentences


def results_csv(runs: list, results: dict, loads: dict, bench) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        result = results.get(run.name)
        if result is None:
            continue
        load, nice = loads.get(run.name, (None, 0))
        milliseconds = bench.milliseconds(run.method) if bench else None

        def shown(value, digits: int, there: bool = True) -> str:
            return f"{value:.{digits}f}" if there and value is not None else ""

        writer.writerow((
            run.name, run.method.optimizer, run.method.rank or "", run.method.sketch, run.rate, run.seed, result.state,
            result.step, result.tokens, shown(result.val_loss, 6, result.good),
            shown(result.perplexity, 4, result.good), shown(result.tokens_per_s, 1), shown(milliseconds, 2),
            result.memory, shown(result.seconds, 1),
            shown(result.validation_seconds, 1), shown(load, 2), nice, result.processes, result.threads, result.version,
            result.reason))
    return text.getvalue()


def header(table, grid, results: dict, options, facts: dict) -> list:
    """What was run, so that the table stands by itself."""
    config = next(iter(grid.configs.values()))
    model, training = config["model"], config["training"]
    some = next((result for result in results.values() if result.parameters), None)
    size = f", {some.parameters:,} parameters" if some else ""
    tokens = training["steps"] * training["batch"] * training["sequence_length"]
    # As the runs say: a split with fewer tokens than the config asks for is used whole.
    validation = max((result.val_tokens for result in results.values()), default=0) or validation_tokens(config)
    validated = f"{format_tokens(validation)} tokens" if validation else "all tokens"
    lines = [f"# {table.title}", "",
             f"Table `{options.table}`: {model['preset']}, {model['layers']} layers, width {model['width']}, "
             f"{model['heads']} heads of {model['head_size']}, MLP {model['mlp_hidden']}{size}. "
             f"{training['steps']:,} steps of {training['batch']} x {training['sequence_length']} tokens = "
             f"{format_tokens(tokens)} tokens a run{facts.get('epochs', '')}. Perplexity of "
             f"{validated} of the validation split after the last step. Schedule {config['schedule']['type']}, the "
             f"rates' peak in the column lr; {number_formats(grid.configs)}"
             + (f", products {some.precision}." if some and some.precision else ".")]
    on = quirks(grid.configs)
    if on:
        lines += ["", f"Quirks of the authors' code that are on (docs/paper.md): {'; '.join(on)}."]
    if options.scale != 1.0:
        rule = RULE.replace("\n", " ")
        lines += ["", f"**Scaled by s = {options.scale:g}** from {facts['unscaled']}: {rule}"]
    rates = max((len(grid.sweep(method, results)) for method in grid.methods), default=1)
    if rates > 1:
        how = "full runs of the first seed" if grid.sweep_fraction >= 1 else \
            f"runs of {grid.sweep_fraction:g} of the steps, with a schedule of their own (which may not be the best " \
            "one for all of them, least so for AdamW, which begins slowly: --sweep-fraction 1 chooses by full runs)"
        lines += ["", f"The rate of each row is the best of up to {rates} by {how}; the search is below. "
                  + ("Where the best rate was at the end of the grid, the grid was extended. " if grid.extend else "")
                  + ("The first seed's run at that rate is also one of those in mean and deviation. "
                     if grid.sweep_fraction >= 1 else "")
                  + "What is no matrix is optimized alike in all rows."]
    return lines


def settings_of(grid) -> list:
    """A line for each optimizer: what its group is set to, but for what the table's columns say."""
    lines = {}
    for method in grid.methods:
        group = grid.configs[method.key]["optimizer"]["matrices"]
        words = [f"{key} {value}" for key, value in group.items() if key not in ("type", "lr", "rank", "sketch")]
        lines.setdefault(method.optimizer, f"- {OPTIMIZERS[method.optimizer]}: {', '.join(words)}")
    return list(lines.values())


def make_report(table, grid, runner, options, facts: dict, bench=None) -> str:
    """Writes table.md, results.csv and sweep.csv; returns the main table."""
    results = runner.results
    known = runner.refresh()
    loads = {run.name: mean_load(options.out, run.name) or (None, 0) for run in known}
    rows = make_rows(grid, results, runner.failed)
    text, marked = main_table(rows, bench, loads, options)
    lines = [*header(table, grid, results, options, facts), "", text, ""]
    some = next((result for result in results.values() if result.device), None)
    if marked:
        measured = [load for load, _ in loads.values() if load is not None]
        average = f" (load average {statistics.mean(measured):.1f} on {options.cores} cores)" if measured else ""
        lines += [f"\\* measured beside other work or at low priority{average}: no speed figure.", ""]
    lines += [f"{some.device if some else 'Unknown processor'}, {options.cores} cores; ± is the sample deviation over "
              "seeds. Tokens/s: median over the steps. Optimizer: a step over all matrices, `polaron bench optimizer`. "
              "Memory: what the process holds, at most.", ""]
    said = findings(rows)
    if said:
        lines += ["**What it says.** " + " ".join(said), ""]
    ends = [row for row in rows if row.edge]
    if ends:
        lines += ["At the end of the rates tried, so perhaps better beyond: "
                  + "; ".join(f"{row.method.label} ({rate_text(row.rate)}, the {row.edge})" for row in ends) + ".", ""]
    gone = [(run, results[run.name]) for run in known if run.name in results and results[run.name].state == "diverged"]
    if gone:
        lines += ["Diverged:", "", *(f"- {run.label}: {result.reason}" for run, result in gone), ""]
    torn = [run.name for run in known if run.name in results and results[run.name].ended
            and results[run.name].dropped_lines]
    if torn:
        lines += ["Lines of metrics.jsonl that are half-written were left out, so that pictures may lack points: "
                  + ", ".join(f"{name} ({results[name].dropped_lines})" for name in torn) + ".", ""]
    search = search_table(grid, results)
    if search:
        lines += ["## The search for learning rates", "", search, ""]
    lines += ["## Settings of the matrices' optimizers", "", *settings_of(grid), "", "## Command", "",
              f"    {options.command}", ""]
    write_atomically(options.out / "table.md", "\n".join(lines))
    full = [run for run in known if run.full]
    swept = {run.name: run for method in grid.methods for run in grid.sweep(method, results)}
    write_atomically(options.out / "results.csv", results_csv(full, results, loads, bench))
    write_atomically(options.out / "sweep.csv", results_csv(list(swept.values()), results, loads, bench))
    return text
