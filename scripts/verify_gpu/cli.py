"""The command line of scripts/verify_gpu.sh."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from . import build, correctness, device, kernels, losses, machine, sanitize, torch_phase, training
from .report import render
from .session import FAILED, MEASURED, PASSED, ROOT, SKIPPED, UNFINISHED, Result, Session, report_problem

PHASES = {
    "correctness": correctness.run,
    "sanitize": sanitize.run,
    "kernels": kernels.run,
    "train": training.run,
    "torch": torch_phase.run,
}
BUDGET_SECONDS = 560.0
MOST_SECONDS = {"sanitize": 240.0}  # of a phase that would go on for long; the others take what is left
NO_DEVICE = 5


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="verify_gpu.sh",
        description="Everything that needs a real GPU: builds, tests and "
        "measures on the device that is there. See the head of scripts/verify_gpu.sh.",
    )
    add = parser.add_argument
    add("phases", nargs="*", metavar="PHASE", help=f"{', '.join(PHASES)}; all of them where none is given")
    add(
        "--budget",
        type=float,
        default=BUDGET_SECONDS,
        metavar="SECONDS",
        help=f"for everything, the build included (default {BUDGET_SECONDS:.0f})",
    )
    add("--out", type=Path, default=Path("runs/verify-gpu"), metavar="DIR", help="results (default runs/verify-gpu)")
    add("--build", type=Path, default=ROOT / "build/verify-gpu", metavar="DIR", help="build directory")
    add("--no-build", action="store_true", help="use the programs in the build directory as they are")
    add("--program", type=Path, metavar="POLARON", help="use this program, and those of its build, as they are")
    add("--packages", type=Path, metavar="DIR", help="Debian packages of `pack`, unpacked for the build")
    add(
        "--data",
        type=Path,
        default=ROOT / "data/verify-gpu",
        metavar="DIR",
        help="shards of real text with GPT-2's tokens "
        "(default data/verify-gpu); docs/benchmarks/gpu/README.md says how they are made",
    )
    chosen = parser.parse_args(arguments)
    for name in chosen.phases:
        if name not in PHASES:
            parser.error(f"there is no phase '{name}'; the phases are {', '.join(PHASES)}")
    if chosen.budget <= 0:
        parser.error("--budget must be above zero")
    chosen.phases = [name for name in PHASES if name in chosen.phases] or list(PHASES)
    if chosen.program:
        chosen.build, chosen.no_build = chosen.program.resolve().parent, True
    chosen.out, chosen.build, chosen.data = chosen.out.resolve(), chosen.build.resolve(), chosen.data.resolve()
    return chosen


def commit() -> str:
    if told := os.environ.get("POLARON_COMMIT"):  # copies of a checkout may lack its history
        return told
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def verify(session: Session, chosen: argparse.Namespace) -> int:
    dry = session.dry
    session.about = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit(),
        "dry": dry,
        "host": f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors",
        "phases": chosen.phases,
    }
    try:
        session.about["device"] = {"name": "none: a dry run on the CPU"} if dry else device.find()
    except (OSError, subprocess.TimeoutExpired) as reason:
        for name in chosen.phases:
            session.begin_phase(name, chosen.budget)
            session.record(Result(name, "device", SKIPPED, 0.0, f"no device: {reason}"))
        return NO_DEVICE
    session.say(f"{session.about['device']['name']}, commit {session.about['commit']}")
    session.save()
    session.begin_phase("machine", chosen.budget)
    ready = dry or machine.check(session, chosen)
    if ready:
        session.begin_phase("build", chosen.budget)
        ready = build.run(session, chosen)
    if not ready:
        for name in chosen.phases:
            session.record(Result(name, "all", SKIPPED, 0.0, "there is nothing to run"))
        return 1
    for name in chosen.phases:
        session.begin_phase(name, MOST_SECONDS.get(name, chosen.budget))
        if session.left() <= 0:
            session.record(Result(name, "all", SKIPPED, 0.0, "the budget is used up"))
            continue
        try:
            PHASES[name](session, chosen)
        except Exception as error:  # a defect in one phase must not cost the others
            session.record(Result(name, "phase", FAILED, 0.0, f"{type(error).__name__}: {error}"))
    counts = {
        status: sum(result.status == status for result in session.results)
        for status in (PASSED, MEASURED, SKIPPED, UNFINISHED, FAILED)
    }
    session.say(
        "verify_gpu: "
        + ", ".join(f"{count} {status}" for status, count in counts.items())
        + f"; {session.out / 'report.md'}"
    )
    return 1 if session.failed() else 0


def merge(files: list) -> int:
    """Prints one report of several results.json: the phases of one verification, run by a call each."""
    about, results = {}, []
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        for key in ("commit", "device"):
            if about and about.get(key) != found["about"].get(key):
                return report_problem(f"{file} is of another {key} than {files[0]}")
        about = found["about"] | about
        results += [Result(**result) for result in found["results"]]
    print(render(about, results), end="")
    return 0


def main(arguments=None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["pack"]:
        return build.pack(Path(words[1])) if len(words) == 2 else report_problem("usage: verify_gpu.sh pack DIR")
    if words[:1] == ["report"]:
        return (
            merge([Path(word) for word in words[1:]])
            if len(words) > 1
            else report_problem("usage: verify_gpu.sh report FILE...")
        )
    if words[:1] == ["cpu-losses"]:
        return losses.write_cpu_losses(words[1:])
    chosen = parse(words)
    # Where images keep NVIDIA's programs without naming them.
    os.environ["PATH"] += os.pathsep + os.pathsep.join(("/usr/local/cuda/bin", "/usr/local/nvidia/bin"))
    session = Session(chosen.out, chosen.budget, os.environ.get("POLARON_VERIFY_DRY", "") not in ("", "0"), render)
    try:
        return verify(session, chosen)
    finally:
        session.log.close()
