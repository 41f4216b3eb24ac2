"""The line that tells how far the runs are."""

import sys
import time

from .base import Measured, format_bytes, format_rate, format_time


class Progress:
    """One line that is written over while runs go on; where the output is no terminal, a line for each run."""

    def __init__(self, runs: int, steps: int):
        self.runs, self.steps = runs, steps
        self.started, self.done, self.width = time.monotonic(), 0, 0
        self.terminal = sys.stderr.isatty()

    def left(self, steps_done: int) -> str:
        """Steps take about equally long in all runs: they are of as many tokens, on the same cores."""
        so_far = self.done * self.steps + steps_done
        if so_far == 0:
            return ""
        rest = (time.monotonic() - self.started) / so_far * (self.runs * self.steps - so_far)
        return f", about {format_time(rest)} left"

    def write(self, text: str, last: bool = False) -> None:
        if self.terminal:
            print("\r" + text.ljust(self.width), end="\n" if last else "", file=sys.stderr, flush=True)
            self.width = 0 if last else len(text)
        elif last:
            print(text, file=sys.stderr, flush=True)

    def step(self, name: str, steps_done: int) -> None:
        self.write(f"[{self.done + 1}/{self.runs}] {name}: step {steps_done} of {self.steps}{self.left(steps_done)}")

    def finish(self, name: str, run: Measured) -> None:
        self.done += 1
        left = self.left(0) if self.done < self.runs else ""
        moved = f", {format_bytes(run.moved_a_step / run.processes)} a step" if run.processes > 1 else ""
        rate = format_rate(run.tokens_per_s)
        self.write(f"[{self.done}/{self.runs}] {name}: {rate} tokens/s{moved}{left}", last=True)

    def abandon(self) -> None:
        if self.terminal and self.width > 0:
            print(file=sys.stderr)
