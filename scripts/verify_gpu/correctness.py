"""The phase `correctness`: the CUDA tests on the device, the sanitizers, and training against the CPU."""

import json
import math
import shutil
import tempfile
from pathlib import Path

from . import losses
from .session import PASSED, Session, StepFailed, StepSkipped

ON_DEVICE = "*/device*:*on_a_device*:CudaLibrary*"


def count_tests(report: dict) -> dict:
    """Of GoogleTest's JSON: how many tests passed, failed and were skipped, and the failed ones' names."""
    counts = {"passed": 0, "failed": 0, "skipped": 0, "failed_tests": [], "skipped_tests": []}
    for suite in report.get("testsuites", []):
        for test in suite.get("testsuite", []):
            name = f"{suite['name']}.{test['name']}"
            if test.get("failures"):
                counts["failed"] += 1
                counts["failed_tests"].append(name)
            elif test.get("result") == "SKIPPED":
                counts["skipped"] += 1
                counts["skipped_tests"].append(name)
            elif test.get("status") == "RUN":
                counts["passed"] += 1
    return counts


def judge_tests(counts: dict, code: int) -> str:
    """The sentence for the report; raises StepFailed unless every test ran and passed."""
    sentence = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
    if counts["failed_tests"]:
        raise StepFailed(f"{sentence}: {', '.join(counts['failed_tests'][:5])}")
    if code != 0:
        raise StepFailed(f"{sentence}; the program ended with {code}")
    if counts["passed"] == 0:
        raise StepFailed("no test ran")
    if counts["skipped"] > 0:
        raise StepFailed(f"{sentence}; with a device none may be: {', '.join(counts['skipped_tests'][:5])}")
    return sentence


def run_tests(session: Session, chosen, chosen_filter: str, limit: float, tool: list | None = None) -> tuple:
    program = chosen.build / "tests/cuda/test_cuda"
    if chosen.no_build and not program.exists():
        raise StepSkipped(f"there is no {program}")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.json"
        finished = session.command(
            [
                *(tool or []),
                program,
                f"--gtest_filter={chosen_filter}",
                "--gtest_brief=1",
                f"--gtest_output=json:{report}",
            ],
            limit=limit,
        )
        if tool and "Device not supported" in finished.output:
            raise StepSkipped(f"{Path(tool[0]).name} does not support this device or its virtual machine")
        if finished.timed_out or not report.exists():  # not there: it crashed
            raise StepFailed(finished.why())
        counts = count_tests(json.loads(report.read_text(encoding="utf-8")))
    return counts, finished


MOST_ALONE, ALONE_SECONDS = 40, 120.0


def alone(session: Session, chosen, names: list) -> str:
    """Which of the failed tests fail in a process of their own: a kernel that faults takes those after it along."""
    failing, out_of_time, end = [], 0, session.left() - ALONE_SECONDS
    for name in names[:MOST_ALONE]:
        if session.left() < max(20.0, end):
            out_of_time += 1
            continue
        try:
            counts, finished = run_tests(session, chosen, name, 30)
            judge_tests(counts, finished.code)
        except StepFailed:
            failing.append(name)
    out_of_time += len(names[MOST_ALONE:])
    return f"alone fail: {', '.join(failing) or 'none'}" + (f" ({out_of_time} not tried)" if out_of_time else "")


def tests(session: Session, chosen) -> None:
    chosen_filter = "*KernelBench*/cpu" if session.dry else ON_DEVICE

    def on_the_device():
        counts, finished = run_tests(session, chosen, chosen_filter, 240)
        try:
            return PASSED, judge_tests(counts, finished.code), counts
        except StepFailed as failed:
            raise StepFailed(f"{failed}; {alone(session, chosen, counts['failed_tests'])}") from None

    session.step("CUDA tests on the device", on_the_device)


def find_sanitizer() -> str:
    if found := shutil.which("compute-sanitizer"):
        return found
    raise StepSkipped("there is no compute-sanitizer here")


def judge_sanitizer(output: str) -> str:
    """compute-sanitizer's own summary; raises StepFailed unless there is one and it counts nothing."""
    summaries = [line.strip("= \n") for line in output.splitlines() if "SUMMARY: " in line]
    if not summaries:
        raise StepFailed("compute-sanitizer gave no summary")
    if not all("SUMMARY: 0 " in line for line in summaries):
        raise StepFailed("; ".join(summaries))
    return "; ".join(summaries)


# What memcheck looks at: every family once, without what runs long. Racecheck follows shared memory and is slower: the kernels that use it most.
SANITIZED = {
    "memcheck": f"{ON_DEVICE}-*CudaTraining*:*KernelBench*",
    "racecheck": ":".join(
        f"*{family}*/device" for family in ("Attention", "Norm", "Loss", "Embedding", "Basis", "Elementwise", "Mix")
    ),
}


def sanitize(session: Session, chosen, tool: str, limit: float) -> None:
    def check():
        if session.dry:
            raise StepSkipped("a dry run has no device")
        words = [find_sanitizer(), "--tool", tool, "--error-exitcode", "99"]
        counts, finished = run_tests(session, chosen, SANITIZED[tool], limit, words)
        summary = judge_sanitizer(finished.output)
        return PASSED, f"{judge_tests(counts, finished.code)}; {summary}", {}

    session.step(f"compute-sanitizer {tool}", check, needs=30)


def train(session: Session, chosen) -> None:
    device, precision = ("cpu", "fp32") if session.dry else ("cuda", "bf16")
    steps = losses.COMPARED_STEPS + (5 if session.dry else losses.MORE_STEPS)
    polaron = chosen.build / "polaron"
    work = Path(tempfile.mkdtemp(prefix="verify-gpu-"))
    found = {}

    def run_once(name: str, steps: int, precision: str) -> list:
        session.must(
            losses.command(polaron, found["shard"], work / name, steps, device, precision, session.dry), limit=200
        )
        return losses.losses_of(work / name)

    def reference():
        found["shard"] = losses.find_shard(session, chosen.data)
        found["expected"], origin = losses.cpu_losses(session, polaron, found["shard"])
        return PASSED, origin, {"cpu_losses": found["expected"]}

    def against_the_cpu():
        actual = found["first"] = run_once("first", steps, precision)
        data = losses.compare(actual[: losses.COMPARED_STEPS], found["expected"])
        rest = actual[losses.COMPARED_STEPS :]
        if len(actual) != steps or not all(map(math.isfinite, rest)):
            raise StepFailed(
                f"{sum(map(math.isfinite, rest))} of {steps - losses.COMPARED_STEPS} more losses are finite"
            )
        data["last_loss"] = actual[-1]
        return (
            PASSED,
            (
                f"{losses.COMPARED_STEPS} losses within {100 * data['worst_difference']:.3f} % of the CPU's, {len(rest)} more "
                f"finite, the last one {actual[-1]:.4f}"
            ),
            data,
        )

    def fp32_against_the_cpu():
        data = losses.compare(run_once("fp32", losses.COMPARED_STEPS, "fp32"), found["expected"])
        return PASSED, f"within {100 * data['worst_difference']:.4f} %", data

    def twice():
        second = run_once("second", steps, precision)
        if second != found["first"]:
            step = next(i for i, (a, b) in enumerate(zip(found["first"], second)) if a != b)
            raise StepFailed(f"step {step + 1}: loss {found['first'][step]!r}, then {second[step]!r}")
        hashes = [losses.tree_hash(work / name / "checkpoints/latest") for name in ("first", "second")]
        if not hashes[0] or hashes[0] != hashes[1]:
            different = [name for name in hashes[0] if hashes[0][name] != hashes[1].get(name)]
            raise StepFailed(f"the same losses, but other checkpoints: {', '.join(different) or 'there are none'}")
        return PASSED, f"{steps} losses and {len(hashes[0])} files of the checkpoint are the same to the bit", {}

    try:
        if session.step("losses of the CPU", reference):
            if session.step(
                f"GPT-2 124M in {precision} against the CPU", against_the_cpu, needs=20 if not session.dry else 0
            ):
                session.step("two runs are identical", twice)
            if not session.dry:  # it was fp32 already
                session.step("GPT-2 124M in fp32 against the CPU", fp32_against_the_cpu)
    finally:
        losses.remove(work)
        losses.remove(session.out / "text")


def run(session: Session, chosen) -> None:
    tests(session, chosen)
    train(session, chosen)
    sanitize(session, chosen, "memcheck", 150)
    sanitize(session, chosen, "racecheck", 120)
