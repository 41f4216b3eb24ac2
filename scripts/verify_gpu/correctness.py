"""The phase `correctness`: the CUDA tests on the device, and training against the CPU."""

import math
import tempfile
from pathlib import Path

from . import losses, suites
from .session import PASSED, Session, StepFailed, StepSkipped

ON_DEVICE = "*/device*:*on_a_device*:CudaLibrary.of_this_build*"
DRY = "*KernelBench*/cpu"
# The most fundamental first; suites that are not named here come last.
ORDER = """CudaLibrary ElementwiseFamily LinearFamily EmbeddingFamily NormFamily LossFamily AttentionPrepareFamily
  AttentionFamily MixFamily MatrixUpdates NewtonSchulzFamily LowRankFamily BasisFamily CudaOptimizer CudaTraining
  KernelBench""".split()
AFTER_A_HANG_SECONDS = 20.0  # for a process, once one hung: the next may do so too


def program_of(chosen) -> Path:
    return chosen.build / "tests/cuda/test_cuda"


def place(suite: str) -> int:
    name = suite.split("/")[-1]
    return ORDER.index(name) if name in ORDER else len(ORDER)


def find_suites(session: Session, chosen) -> dict:
    """suite -> names of its tests on the device, the most fundamental first."""
    program = program_of(chosen)
    if not program.exists():
        raise StepSkipped(f"there is no {program}") if chosen.no_build else StepFailed(f"there is no {program}")
    chosen_filter = DRY if session.dry else ON_DEVICE
    session.environment["POLARON_CUDA_LIBRARY"] = str(chosen.build / "libpolaron_cuda.so")
    finished = session.must([program, "--gtest_list_tests", f"--gtest_filter={chosen_filter}"], limit=60)
    found = suites.listed(finished.output)
    if not found:
        raise StepFailed(f"{program.name} has no test of {chosen_filter}")
    return {suite: found[suite] for suite in sorted(found, key=place)}


def tests(session: Session, chosen) -> None:
    found = {}
    process_limit = suites.PROCESS_SECONDS

    def look():
        found.update(find_suites(session, chosen))
        return PASSED, f"{sum(map(len, found.values()))} in {len(found)} suites", {}

    session.step("CUDA tests for the device", look)
    for suite, names in found.items():

        def on_the_device(names=names):
            nonlocal process_limit
            tally = suites.run(session, program_of(chosen), names, process_limit)
            if tally.hung:
                process_limit = AFTER_A_HANG_SECONDS
            return PASSED, tally.judge(), {}

        session.step(f"tests {suite}", on_the_device, needs=0 if session.dry else 10)


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
                f"{sum(map(math.isfinite, rest))} of {steps - losses.COMPARED_STEPS} more losses are finite", data
            )
        data["last_loss"] = actual[-1]
        return (
            PASSED,
            (
                f"{losses.COMPARED_STEPS} losses within {100 * data['worst_difference']:.3f} % of the CPU's, "
                f"{len(rest)} more finite, the last one {actual[-1]:.4f}"
            ),
            data,
        )

    def first_steps_against_the_cpu(precision):
        data = losses.compare(run_once(precision, losses.COMPARED_STEPS, precision), found["expected"])
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
            for exact in [] if session.dry else ["fp32", "tf32"]:  # dry runs are of fp32 below
                session.step(
                    f"GPT-2 124M in {exact} against the CPU",
                    lambda exact=exact: first_steps_against_the_cpu(exact),
                    needs=15,
                )
            session.step(
                f"GPT-2 124M in {precision} against the CPU", against_the_cpu, needs=20 if not session.dry else 0
            )
            if "first" in found:
                session.step("two runs are identical", twice, needs=20 if not session.dry else 0)
    finally:
        losses.remove(work)
        losses.remove(session.out / "text")


def run(session: Session, chosen) -> None:
    tests(session, chosen)
    train(session, chosen)
