"""The line that tells how far the grid is: written over on a terminal, else a line for each run."""

import shutil
import sys
import time

BAR = 20
HEARTBEAT_SECONDS = 900.0  # between lines where the output is no terminal


class Progress:
    def __init__(self, estimate, stream=None):
        self.estimate, self.stream = estimate, stream or sys.stderr
        self.terminal, self.width = self.stream.isatty(), 0
        self.told = time.monotonic()

    def counts(self, results: dict) -> tuple:
        return sum(result.ended for result in results.values()), self.estimate.number_of_runs(results)

    def left(self, results: dict, active=()) -> str:
        words = self.estimate.words(results, active)
        return f", {words}" if words else ""

    def poll(self, runner) -> None:
        if not runner.active or (not self.terminal and time.monotonic() < self.told + HEARTBEAT_SECONDS):
            return
        ended, runs = self.counts(runner.results)
        active = [(training.run.name, training.step()) for training in runner.active]
        part = sum(step / max(1, training.run.steps) for (_, step), training in zip(active, runner.active))
        filled = min(BAR, int(BAR * (ended + part) / max(1, runs)))
        running = ", ".join(f"{name} {step}/{training.run.steps}"
                            for (name, step), training in zip(active, runner.active))
        text = f"[{'#' * filled}{'.' * (BAR - filled)}] {ended}/{runs}{self.left(runner.results, active)} | {running}"
        if not self.terminal:
            self.line(text)
            return
        text = text[:max(20, shutil.get_terminal_size().columns - 1)]
        print("\r" + text.ljust(self.width), end="", file=self.stream, flush=True)
        self.width = len(text)

    def line(self, text: str) -> None:
        start = "\r" + " " * self.width + "\r" if self.terminal and self.width else ""
        print(start + text, file=self.stream, flush=True)
        self.width, self.told = 0, time.monotonic()

    def ended(self, run, result, results: dict) -> None:
        ended, runs = self.counts(results)
        what = f"perplexity {result.perplexity:.2f}" if result.good else f"diverged ({result.reason})"
        self.line(f"[{ended}/{runs}] {run.label}: {what}{self.left(results)}")
