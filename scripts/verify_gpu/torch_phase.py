"""The phase `torch`: the same work in PyTorch, by scripts/bench_torch_gpu.py."""

import json
import subprocess
import sys

from .session import MEASURED, ROOT, Session, StepFailed, StepSkipped

WHAT = [
    "step gpt2-124m 32",
    "step llama-350m 16",
    "optimizer 1024 24",
    "optimizer 4096 8",
    "optimizer 768 12",
    "optimizer 2048 12",
]
DRY = ["step tiny-gpt2 2", "step tiny-llama 2", "optimizer 64 1"]


def importable() -> bool:
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0


def run(session: Session, chosen) -> None:
    there = importable()
    for what in DRY if session.dry else WHAT:

        def work(what=what):
            if not there:
                raise StepSkipped(f"{sys.executable} cannot import torch")
            words = [sys.executable, ROOT / "scripts/bench_torch_gpu.py", *what.split()]
            finished = session.must(words + (["--device", "cpu", "--steps", 1] if session.dry else []), limit=200)
            lines = [line for line in finished.output.splitlines() if line.startswith("{")]
            if not lines:
                raise StepFailed("it printed no result")
            data = json.loads(lines[-1])
            detail = (
                f"{data['tokens_per_s']:,.0f} tokens/s"
                if "tokens_per_s" in data
                else ", ".join(f"{name} {ms:.2f} ms" for name, ms in data["ms"].items())
            )
            return MEASURED, f"torch {data['torch']}: {detail}", data

        session.step(f"PyTorch, {what}", work, needs=0 if session.dry else 60)
