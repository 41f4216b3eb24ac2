"""One verification: commands with time limits, and results that are on the disk as soon as they are known."""

import contextlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PASSED, FAILED, SKIPPED, MEASURED, UNFINISHED = "passed", "failed", "skipped", "measured", "not finished"


def finite(value):
    """The same with None for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class StepEnded(Exception):
    """What a step ended with, for the report: a message, and what is known all the same."""

    def __init__(self, message: str, data: dict | None = None):
        super().__init__(message)
        self.data = data or {}


class StepFailed(StepEnded):
    """It did not do what it should."""


class StepSkipped(StepEnded):
    """It could not be done here; the message says why."""


class StepUnfinished(StepEnded):
    """The time did not suffice, which says nothing against what was tried; the message says how far it came."""


@dataclass
class Finished:
    code: int
    output: str
    seconds: float
    timed_out: bool
    cut_short: bool = False  # ended with the phase, before its own limit

    def last_lines(self, count: int = 12) -> str:
        lines = [line.rstrip() for line in self.output.replace("\r", "\n").split("\n") if line.strip()]
        return "\n".join(lines[-count:])

    def why(self) -> str:
        if self.timed_out:
            return f"still running after {self.seconds:.0f} s, ended"
        if self.code is not None and self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}: {self.last_lines(4)}"
        return f"exit {self.code}: {self.last_lines(4)}"


@dataclass
class Result:
    phase: str
    step: str
    status: str
    seconds: float = 0.0
    detail: str = ""
    data: dict = field(default_factory=dict)


def write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


class Session:
    """`render` makes the markdown of the report from this session's `about` and `results`."""

    def __init__(self, out: Path, budget: float, dry: bool, render, clock=time.monotonic):
        self.out, self.dry, self.clock, self.render = out, dry, clock, render
        self.results: list[Result] = []
        self.about: dict = {}
        self.end = clock() + budget  # of everything
        self.phase, self.phase_end = "", self.end
        self.environment = dict(os.environ)
        out.mkdir(parents=True, exist_ok=True)
        self.log = open(out / "verify.log", "w", encoding="utf-8")

    # --- time

    def begin_phase(self, name: str, seconds: float) -> None:
        self.phase, self.phase_end = name, min(self.clock() + seconds, self.end)
        self.say(f"== {name}")

    def left(self) -> float:
        return self.phase_end - self.clock()

    # --- output

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.log.write(text + "\n")
        self.log.flush()

    def save(self) -> None:
        write_whole(
            self.out / "results.json",
            json.dumps(finite({"about": self.about, "results": [vars(result) for result in self.results]}), indent=1)
            + "\n",
        )
        write_whole(self.out / "report.md", self.render(self.about, self.results))

    def record(self, result: Result) -> None:
        self.results.append(result)
        detail = f"  {result.detail}" if result.detail else ""
        self.say(f"   {result.status:13}{result.step} ({result.seconds:.1f} s){detail}")
        self.save()

    def failed(self) -> bool:
        return any(result.status == FAILED for result in self.results)

    # --- work

    def put_first(self, name: str, *folders) -> None:
        """Folders before those of a variable like PATH, for the commands from now on."""
        before = self.environment.get(name)
        self.environment[name] = os.pathsep.join([*map(str, folders), *([before] if before else [])])

    def step(self, name: str, work, needs: float = 0.0) -> bool:
        """Runs work() -> (status, detail, data) and records how it ended. `needs`: seconds without which it is skipped."""
        start = self.clock()
        if self.left() < needs:
            self.record(
                Result(self.phase, name, SKIPPED, 0.0, f"{max(self.left(), 0):.0f} s left, {needs:.0f} s needed")
            )
            return False
        try:
            status, detail, data = work()
        except StepEnded as ended:
            status = {StepFailed: FAILED, StepSkipped: SKIPPED, StepUnfinished: UNFINISHED}[type(ended)]
            detail, data = str(ended), ended.data
        except Exception as error:  # one step's defect must not cost the results of the others
            status, detail, data = FAILED, f"{type(error).__name__}: {error}", {}
        self.record(Result(self.phase, name, status, round(self.clock() - start, 2), detail, data))
        return status in (PASSED, MEASURED)

    def command(
        self, words: list, limit: float = 600.0, environment: dict | None = None, cwd: Path = ROOT, watch=None
    ) -> Finished:
        """Runs a program, its output into the log. Ends it, and all it started, at the limit or with the phase. `watch` is
        called now and then while it runs."""
        words = [str(word) for word in words]
        start = self.clock()
        own_limit, limit = limit, min(limit, max(self.left(), 1.0))
        self.log.write(f"$ {shlex.join(words)}\n")
        self.log.flush()
        begin = self.log.tell()
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=self.environment | (environment or {}),
                start_new_session=True,
            )
        except OSError as error:
            return Finished(127, f"{words[0]}: {error.strerror}", 0.0, False)
        timed_out = False
        try:
            while True:
                try:
                    process.wait(0.5 if watch else max(0.1, limit - (self.clock() - start)))
                    break
                except subprocess.TimeoutExpired:
                    if watch:
                        watch()
                    if self.clock() - start >= limit:
                        timed_out = True
                        break
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold on to it for long
                    process.wait(10)
        self.log.seek(0, os.SEEK_END)
        with open(self.out / "verify.log", encoding="utf-8", errors="replace") as log:
            log.seek(begin)
            output = log.read()
        return Finished(process.returncode, output, self.clock() - start, timed_out, timed_out and limit < own_limit)

    def must(self, words: list, **options) -> Finished:
        finished = self.command(words, **options)
        if finished.cut_short:
            raise StepUnfinished(f"{Path(str(words[0])).name}: {finished.why()} with the time for all")
        if finished.timed_out or finished.code != 0:
            raise StepFailed(f"{Path(str(words[0])).name}: {finished.why()}")
        return finished


def report_problem(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
