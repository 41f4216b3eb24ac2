"""What a run has come to, by its own metrics.jsonl: that file is the only source of results."""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from .base import finite

EXIT_NUMERICAL = 4
SLOW_FIRST_STEPS = 3  # not counted in tokens a second


@dataclass
class Result:
    name: str = ""  # of the run
    state: str = "new"  # new, unfinished, finished, diverged
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of steps
    step_seconds: float = 0.0  # median over the steps
    validation_seconds: float = 0.0
    tokens_per_s: float = 0.0  # median over the steps
    memory: int = 0  # bytes, the largest of all steps
    loss: float = float("nan")  # of the last step
    val_loss: float = float("inf")
    perplexity: float = float("inf")
    val_tokens: int = 0  # of the last validation
    validations: list = field(default_factory=list)  # (tokens, seconds of steps so far, perplexity)
    reason: str = ""  # why the run diverged
    device: str = ""
    processes: int = 1
    threads: int = 0
    parameters: int = 0
    version: str = ""
    precision: str = ""  # of matrix products
    gemm_flops: float = 0.0  # a second, of a large one
    dropped_lines: int = 0  # half-written ones

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "diverged")

    @property
    def good(self) -> bool:
        return self.state == "finished"


def read_lines(path: Path) -> tuple:
    """(JSON objects, number of lines that are none): a killed process leaves at most a torn last line."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return [], 0
    lines, dropped = [], 0
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            lines.append(value)
        else:
            dropped += 1
    return lines, dropped


def read_result(folder: Path, steps: int, vocabulary: int = 0) -> Result:
    """`folder`: the run directory; `steps`: of the whole run; `vocabulary`: entries, 0 where not known."""
    lines, dropped = read_lines(folder / "metrics.jsonl")
    result = Result(dropped_lines=dropped)
    if not lines:
        result.state = "unfinished" if folder.exists() else "new"
        return result
    result.state = "unfinished"
    by_step, validations, end = {}, {}, None
    for line in lines:
        kind = line.get("kind")
        if kind == "run":
            end = None
            result.device, result.version = str(line.get("device", "")), str(line.get("version", ""))
            result.processes, result.threads = line.get("processes", 1), line.get("threads", 0)
            result.parameters = line.get("parameters", 0)
            result.precision = str(line.get("precision", ""))
            result.gemm_flops = line["gemm_flops"] if finite(line.get("gemm_flops")) else 0.0
        elif kind == "step" and finite(line.get("step")):
            by_step[line["step"]] = line
        elif kind == "validation" and finite(line.get("step")):
            validations[line["step"]] = line
        elif kind == "end":
            end = line
    done = [by_step[step] for step in sorted(by_step)]
    elapsed = {0: 0.0}
    for line in done:
        if finite(line.get("ms")):
            result.seconds += line["ms"] / 1e3
        elapsed[line["step"]] = result.seconds
        result.memory = max(result.memory, line["memory"] if finite(line.get("memory")) else 0)
    if done:
        result.step, result.tokens = done[-1]["step"], done[-1].get("tokens", 0)
        result.loss = done[-1]["loss"] if finite(done[-1].get("loss")) else float("nan")
    result.tokens_per_s = usual([line["tokens_per_s"] for line in done if finite(line.get("tokens_per_s"))])
    result.step_seconds = usual([line["ms"] / 1e3 for line in done if finite(line.get("ms"))])
    for step in sorted(validations):
        line = validations[step]
        result.validation_seconds += line["ms"] / 1e3 if finite(line.get("ms")) else 0.0
        perplexity = line["perplexity"] if finite(line.get("perplexity")) else float("inf")
        result.val_tokens = line["val_tokens"] if finite(line.get("val_tokens")) else 0
        result.validations.append((line.get("tokens", 0), elapsed.get(step, result.seconds), perplexity))
    judge(result, end, validations.get(steps), steps, vocabulary)
    return result


def usual(values: list) -> float:
    """The median of the steps' `values`, in order, without the first ones; 0 where there are none."""
    return statistics.median(values[SLOW_FIRST_STEPS:] or values) if values else 0.0


def judge(result: Result, end, last, steps: int, vocabulary: int) -> None:
    """Whether the run finished or diverged. `last` is the validation after the last step."""
    if end is not None and end.get("exit_code") == EXIT_NUMERICAL:
        result.state = "diverged"
        result.reason = end.get("reason") or "not finite"
        if "at step" not in result.reason:  # polaron's own reasons say it
            result.reason += f" at step {end.get('step', result.step)}"
    elif end is not None and end.get("exit_code") == 0 and end.get("step", 0) >= steps and last is not None:
        if not finite(last.get("val_loss")):
            result.state, result.reason = "diverged", "the final validation loss is not finite"
            return
        result.val_loss = last["val_loss"]
        result.perplexity = last["perplexity"] if finite(last.get("perplexity")) else float("inf")
        if vocabulary and result.perplexity > vocabulary:
            result.state = "diverged"
            result.reason = f"perplexity {result.perplexity:,.0f}, above the uniform {vocabulary:,}"
        else:
            result.state = "finished"
