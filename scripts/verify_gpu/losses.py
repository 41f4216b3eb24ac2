"""The run that is compared: GPT-2 124M from the same weights on the same text, 8 sequences of 256 tokens a step."""

import argparse
import hashlib
import json
import math
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .session import ROOT, Session, StepFailed, report_problem, write_whole

COMMITTED = ROOT / "docs/benchmarks/gpu/cpu-losses-124m.json"
SHARD = "train_000000.bin"
COMPARED_STEPS, MORE_STEPS = 20, 200
TOLERANCE = 0.005
CONFIG = "configs/gpt2-124m.json"
# Rates far below those of a real run: a path on which a difference of rounding stays one.
SETTINGS = {
    "optimizer.matrices.lr": 0.004,
    "optimizer.embeddings.lr": 6e-4,
    "optimizer.vectors.lr": 6e-4,
    "schedule.type": "constant",
    "schedule.final_fraction": None,
    "schedule.warmup_steps": 10,
    "training.tokens": None,
    "training.batch": 8,
    "training.micro_batch": 8,
    "training.sequence_length": 256,
    "validation": None,
    "sample": None,
    "data.validation": None,
}
TINY = {
    "model.layers": 2,
    "model.width": 64,
    "model.heads": 2,
    "model.vocabulary": 257,
    "model.context_length": 64,
    "training.sequence_length": 64,
}


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def set_words(settings: dict) -> list:
    words = []
    for key, value in settings.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return words


def command(polaron: Path, shard: Path, out: Path, steps: int, device: str, precision: str, tiny: bool) -> list:
    """A training that leaves metrics.jsonl and a checkpoint of its end in `out`."""
    settings = (
        SETTINGS
        | (TINY if tiny else {})
        | {
            "training.steps": steps,
            "data.train": str(shard),
            "output": str(out),
            "device": device,
            "precision": precision,
            "checkpoint.every": 0,
        }
    )
    if precision == "bf16" and device == "cpu":
        settings["allow_slow_bf16"] = True
    return [polaron, "train", ROOT / CONFIG, *set_words(settings)]


def losses_of(folder: Path) -> list:
    """Of each step, in order; a loss that is no number is NaN."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "step"]
    return [math.nan if record["loss"] is None else record["loss"] for record in steps]


def compare(actual: list, expected: list, tolerance: float = TOLERANCE) -> dict:
    """The worst relative difference of the first len(expected) losses. Raises StepFailed where it is too large."""
    if len(actual) < len(expected):
        raise StepFailed(f"{len(actual)} losses, {len(expected)} expected")
    differences = [abs(a - e) / abs(e) for a, e in zip(actual, expected)]
    finite = all(map(math.isfinite, actual))
    worst = max(differences, key=lambda value: math.inf if math.isnan(value) else value)
    data = {
        "losses": [a if math.isfinite(a) else None for a in actual],
        "cpu_losses": expected,
        "worst_difference": worst if math.isfinite(worst) else None,
        "tolerance": tolerance,
    }
    if not finite:
        first = next(i for i, loss in enumerate(actual) if not math.isfinite(loss))
        raise StepFailed(f"the loss of step {first + 1} is not finite", data)
    if not worst <= tolerance:
        step = differences.index(worst)
        raise StepFailed(
            f"step {step + 1}: loss {actual[step]:.5f}, on the CPU {expected[step]:.5f}: "
            f"{100 * worst:.3f} % apart, {100 * tolerance:g} % allowed",
            data,
        )
    return data


def find_shard(session: Session, folder: Path) -> Path:
    """Real text: the shard of GPT-2's tokens where it is there, else the bytes of the project's own documentation."""
    shard = folder / SHARD
    if shard.exists() and not session.dry:
        return shard
    made = session.out / "text"
    if not (made / SHARD).exists():
        session.must(
            [
                sys.executable,
                ROOT / "data/prepare_text.py",
                ROOT / "docs",
                ROOT / "README.md",
                "--extensions",
                ".md",
                "--tokenizer",
                "bytes",
                "--output",
                made,
                "--processes",
                "1",
                "--force",
            ],
            limit=60,
        )
    return made / SHARD


def cpu_losses(session: Session, polaron: Path, shard: Path) -> tuple:
    """(losses, where they are from): the committed ones where they are of this shard, else computed here."""
    if COMMITTED.exists() and not session.dry:
        committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
        if committed["shard_sha256"] == sha256(shard) and committed["settings"] == SETTINGS:
            return committed["losses"], f"committed, {committed['machine']}"
    with tempfile.TemporaryDirectory() as folder:
        session.must(
            command(polaron, shard, Path(folder) / "run", COMPARED_STEPS, "cpu", "fp32", session.dry), limit=300
        )
        return losses_of(Path(folder) / "run"), f"computed on this machine's CPU, on {shard.name} of {shard.parent}"


def write_cpu_losses(words: list) -> int:
    """`verify_gpu.sh cpu-losses`: runs the compared steps on the CPU and keeps their losses in docs/benchmarks/gpu."""
    parser = argparse.ArgumentParser(prog="verify_gpu.sh cpu-losses", description=write_cpu_losses.__doc__)
    parser.add_argument("--program", type=Path, default=ROOT / "build/release/polaron", metavar="POLARON")
    parser.add_argument("--data", type=Path, default=ROOT / "data/verify-gpu", metavar="DIR")
    parser.add_argument("--json", type=Path, default=COMMITTED, metavar="FILE")
    chosen = parser.parse_args(words)
    shard = chosen.data / SHARD
    if not shard.exists():
        return report_problem(f"there is no {shard}; docs/benchmarks/gpu/README.md says how it is made")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = command(chosen.program.resolve(), shard.resolve(), run, COMPARED_STEPS, "cpu", "fp32", False)
        if (code := subprocess.run(list(map(str, words))).returncode) != 0:
            return code
        start = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
        result = {
            "what": "losses of the first steps of GPT-2 124M on the CPU in fp32, for scripts/verify_gpu.sh",
            "config": CONFIG,
            "settings": SETTINGS,
            "seed": start["seed"],
            "shard_sha256": sha256(shard),
            "machine": f"{start['device']}, {start['threads']} threads, {platform.machine()}",
            "polaron": start["version"],
            "losses": losses_of(run),
        }
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    write_whole(chosen.json, json.dumps(result, indent=1) + "\n")
    print(f"written to {chosen.json}")
    return 0


def tree_hash(folder: Path) -> dict:
    """Of every file of tensors of a checkpoint; the others hold paths and times."""
    return {
        str(file.relative_to(folder)): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix == ".safetensors"
    }


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
