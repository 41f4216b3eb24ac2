"""Runs of a GoogleTest program, a process a suite: a kernel that faults or hangs costs the tests of no other suite."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from .session import Session, StepFailed, StepUnfinished

PROCESS_SECONDS, SUITE_SECONDS = 60.0, 150.0
MOST_REASONS = 5  # told in full
LEAST_SECONDS = 5.0  # with less it is not worth the start of a process
OUTCOME = re.compile(r"\[ +(RUN|OK|FAILED|SKIPPED) +\] (\S+?\.[^\s,]+)")
ENDS = {"OK": "passed", "FAILED": "failed", "SKIPPED": "skipped"}


def listed(output: str) -> dict:
    """Of --gtest_list_tests: suite -> full names of its tests, in the order in which they run."""
    suites, suite = {}, ""
    for line in output.splitlines():
        words = line.split("#")[0].rstrip()
        if re.fullmatch(r"\S+\.", words):
            suite = words[:-1]
        elif suite and re.fullmatch(r"  \S+", words):
            suites.setdefault(suite, []).append(f"{suite}.{words.strip()}")
    return suites


def outcomes(output: str) -> tuple:
    """(test -> "passed", "failed", "skipped", or "began" where it did not end; test -> what it printed)."""
    states, said, current = {}, {}, None
    for line in output.splitlines():
        found = OUTCOME.search(line)
        if found and found[1] == "RUN":
            current = found[2]
            states[current], said[current] = "began", []
        elif found and found[2] == current:
            states[current], current = ENDS[found[1]], None
        elif current and line.strip():
            said[current].append(line.strip())
    return states, {name: "; ".join(lines)[:300] for name, lines in said.items()}


@dataclass
class Tally:
    """What became of the tests of one suite."""

    passed: list = field(default_factory=list)
    failed: dict = field(default_factory=dict)  # name -> how
    skipped: dict = field(default_factory=dict)  # name -> why
    not_run: list = field(default_factory=list)
    unfinished: str = ""  # the test that was running when the time was up
    problems: list = field(default_factory=list)  # of the program rather than of a test
    hung: bool = False
    output: str = ""

    def sentence(self) -> str:
        parts = [f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"]
        return ", ".join(parts + ([f"{len(self.not_run)} not run"] if self.not_run else []))

    def judge(self) -> str:
        """The sentence for the report; raises unless every test ran and passed."""
        reasons = [f"{name}: {how}" for name, how in self.failed.items()] + self.problems
        if self.skipped:
            name, why = next(iter(self.skipped.items()))
            reasons.append(f"with a device none may be skipped: {name}: {why}")
        if reasons:
            others = [reason.split(": ")[0] for reason in reasons[MOST_REASONS:]]
            reasons = reasons[:MOST_REASONS] + (["also " + ", ".join(others)] if others else [])
            raise StepFailed("\n".join([self.sentence(), *reasons]))
        if self.unfinished or self.not_run:
            raise StepUnfinished(f"{self.sentence()}; the time was up in {self.unfinished or self.not_run[0]}")
        if not self.passed:
            raise StepFailed("no test ran")
        return self.sentence()


def run(
    session: Session,
    program: Path,
    names: list,
    process_limit: float,
    tool: tuple = (),
    error_code: int = 0,
) -> Tally:
    """Runs the tests of one suite. A failed test may take those after it along, so these run again in a process of
    their own, until each that failed, hung or crashed did so with nothing failed before it. `tool`: what the program
    runs under, with which a process that needs longer than its limit has not failed; `error_code`: the tool's own."""
    tally, remaining, end = Tally(), list(names), session.clock() + SUITE_SECONDS
    while remaining:
        left = min(session.left(), end - session.clock())
        if left < LEAST_SECONDS:
            break
        limit = min(process_limit, left)
        finished = session.command([*tool, program, "--gtest_filter=" + ":".join(remaining)], limit=limit)
        tally.output += finished.output
        states, said = outcomes(finished.output)
        tally.passed += [name for name in remaining if states.get(name) == "passed"]
        tally.skipped |= {name: said[name] for name in remaining if states.get(name) == "skipped"}
        remaining = [name for name in remaining if states.get(name) not in ("passed", "skipped")]
        if not remaining:
            if finished.code not in (0, error_code):
                tally.problems.append(f"after its tests the program {finished.why()}")
            break
        first = remaining[0]
        if first not in states:
            tally.problems.append(f"no test began: {finished.why()}")
            break
        remaining = remaining[1:]
        if states[first] == "failed":
            tally.failed[first] = said[first]
        elif finished.timed_out and (tool or finished.cut_short or limit < process_limit):
            tally.unfinished = first
            break
        else:
            tally.hung = tally.hung or finished.timed_out
            tally.failed[first] = finished.why()
    tally.not_run = remaining
    return tally
