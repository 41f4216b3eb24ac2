"""The table of what was measured and planned, in Markdown."""

import os

from .base import format_bytes, format_rate


def table(measured: list, planned: list) -> str:
    """Markdown: a row for each pair of processes and exchange, whether it was run or only planned."""
    rows = [("processes", "exchange", "threads each", "tokens/s", "of one process", "moved a step", "planned",
             "memory, planned")]
    alone = next((run.tokens_per_s for run in measured if run.processes == 1), None)
    by_place = {(run.processes, run.exchange): run for run in measured}
    for plan in planned:
        run = by_place.get((plan.processes, plan.exchange if plan.processes > 1 else ""))
        rows.append((
            str(plan.processes), plan.exchange if plan.processes > 1 else "-",
            str(run.threads) if run else "-", format_rate(run.tokens_per_s) if run else "-",
            f"{run.tokens_per_s / alone:.2f} x" if run and alone else "-",
            format_bytes(run.moved_a_step / run.processes) if run else "-",
            format_bytes(plan.moved_a_step / plan.processes), format_bytes(plan.memory)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"

    return "\n".join([line(rows[0]), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows[1:])])


def report(title: str, measured: list, planned: list, options) -> str:
    run = measured[0]
    return (f"# {title}\n\n{table(measured, planned)}\n\n"
            f"{run.device or 'Unknown processor'}, {os.cpu_count()} cores. Tokens a second: median of {options.steps} "
            f"steps after {options.skip}, the same global batch for any number of processes. Moved a step: bytes "
            f"through one process. Memory: of process 0, what polaron allocates. Rows without tokens/s are only "
            f"planned; more processes than the model has matrices could not run.\n")
