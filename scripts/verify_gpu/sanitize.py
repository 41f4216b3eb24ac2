"""The phase `sanitize`: compute-sanitizer over the tests of our own kernels."""

import re
import shutil
from pathlib import Path

from . import correctness, suites
from .session import PASSED, SKIPPED, Session, StepFailed, StepSkipped, StepUnfinished

OURS = """ElementwiseFamily EmbeddingFamily NormFamily LossFamily AttentionPrepareFamily AttentionFamily MixFamily
  MatrixUpdates""".split()
WITH_LIBRARIES = "LinearFamily LowRankFamily NewtonSchulzFamily BasisFamily".split()
# In this order, for as long as there is time. Racecheck follows shared memory: the families that use it.
CHECKS = (
    ("memcheck", OURS),
    ("racecheck", "NormFamily LossFamily AttentionFamily EmbeddingFamily ElementwiseFamily MixFamily".split()),
    ("memcheck", WITH_LIBRARIES),
)
ERRORS = 99
# All of our kernels are in namespace polaron, which their mangled names hold; those of cuBLAS and cuSOLVER are not
# looked at, and calls of CUDA that fail are for the tests to notice: the libraries try some in vain.
OPTIONS = {
    "memcheck": ("--kernel-name", "kns=polaron", "--report-api-errors", "no"),
    "racecheck": ("--kernel-name", "kns=polaron"),
}
REPORTED = re.compile(r"^=+ +((?:Invalid|Misaligned|Error:|Warning:|Race|Potential|Internal Sanitizer Error).*)")


def first_report(output: str) -> str:
    """The first error that compute-sanitizer reports, with the place in the code; nothing where there is none."""
    lines = output.splitlines()
    for i, line in enumerate(lines):
        if found := REPORTED.match(line):
            place = lines[i + 1].lstrip("= ") if i + 1 < len(lines) and lines[i + 1].startswith("==") else ""
            return f"{found[1]} {place}".strip()[:400]
    return ""


def judge(output: str) -> str:
    """compute-sanitizer's own summary; raises StepFailed unless there is one and it counts nothing."""
    summaries = [line.strip("= \n") for line in output.splitlines() if "SUMMARY: " in line]
    if not summaries:
        raise StepFailed("compute-sanitizer gave no summary")
    if not all("SUMMARY: 0 " in line for line in summaries):
        raise StepFailed("\n".join([*summaries, first_report(output)]).strip())
    return "; ".join(summaries)


def check(session: Session, program: Path, words: tuple, names: list) -> tuple:
    tally = suites.run(session, program, names, suites.PROCESS_SECONDS, words, ERRORS)
    if "Device not supported" in tally.output:
        raise StepSkipped("compute-sanitizer does not support this device or its virtual machine")
    try:
        sentence = tally.judge()
    except StepUnfinished:
        if report := first_report(tally.output):
            raise StepFailed(f"{tally.sentence()}, not finished: {report}") from None
        raise
    except StepFailed as failed:
        raise StepFailed(f"{failed}\n{first_report(tally.output)}".strip()) from None
    return PASSED, f"{sentence}; {judge(tally.output)}", {}


def run(session: Session, chosen) -> None:
    found = {}

    def look():
        if session.dry:
            raise StepSkipped("a dry run has no device")
        if not (sanitizer := shutil.which("compute-sanitizer", path=session.environment.get("PATH"))):
            raise StepSkipped("there is no compute-sanitizer here")
        found.update(correctness.find_suites(session, chosen))
        return PASSED, sanitizer, {}

    if not session.step("compute-sanitizer", look):
        return
    for tool, families in CHECKS:
        words = ("compute-sanitizer", "--tool", tool, "--error-exitcode", str(ERRORS), *OPTIONS[tool])
        for family in families:
            for suite in (suite for suite in found if suite.split("/")[-1] == family):
                session.step(
                    f"{tool} {suite}",
                    lambda words=words, suite=suite: check(
                        session, correctness.program_of(chosen), words, found[suite]
                    ),
                    needs=20,
                )
                if session.results[-1].status == SKIPPED and "not support" in session.results[-1].detail:
                    return
