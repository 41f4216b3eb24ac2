"""The GPU that is there, by nvidia-smi."""

import shutil
import subprocess

# Dense bf16 peak in TFLOP/s and memory in TB/s by the makers' datasheets; nothing for a device that is not listed.
DATASHEETS = {
    "H200": (989.4, 4.8),
    "H100 80GB HBM3": (989.4, 3.35),
    "H100 PCIe": (756.0, 2.0),
    "A100-SXM4-80GB": (312.0, 2.04),
    "A100-SXM4-40GB": (312.0, 1.56),
}
FIELDS = ["name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "power.limit"]


def ask(fields: list) -> list:
    """The first GPU's fields as nvidia-smi prints them; raises OSError with the reason where there is none."""
    if shutil.which("nvidia-smi") is None:
        raise OSError("there is no nvidia-smi here")
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise OSError(f"nvidia-smi finds none: {(done.stdout + done.stderr).strip()[:200]}")
    return [value.strip() for value in lines[0].split(",")]


def find() -> dict:
    return dict(zip(FIELDS, ask(FIELDS)))


def datasheet(name: str) -> tuple | None:
    for known, rates in DATASHEETS.items():
        if name.endswith(known):
            return rates
    return None


class MemoryWatch:
    """The most memory in use on the device while it is called, in bytes above what was in use before."""

    def __init__(self):
        self.before = self.used()
        self.most = 0

    @staticmethod
    def used() -> int:
        try:
            return int(float(ask(["memory.used"])[0]) * 2**20)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return 0

    def __call__(self) -> None:
        self.most = max(self.most, self.used() - self.before)
