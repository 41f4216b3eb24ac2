"""Calls of polaron that answer at once: what a config means, what it needs, how fast its optimizers are."""

import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from .base import Problem
from .tables import REPOSITORY

LAST_LINES = 15
BUILD = "cmake --preset release && cmake --build --preset release"
SLOW = ("portable", "sanitize", "thread")  # presets
LAST_CHOICE = "quickstart"  # the preset without a CUDA backend


def last_lines(text: str) -> str:
    lines = [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    return "\n".join("    " + line for line in lines[-LAST_LINES:]) or "    (it said nothing)"


def set_words(settings: dict) -> list:
    words = []
    for key, value in settings.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return words


def environment(nice: int = 0) -> dict:
    """Lets Open MPI start more processes than there are cores, and as root where that is who calls."""
    more = {"OMPI_MCA_rmaps_base_oversubscribe": "1"}
    if os.geteuid() == 0:
        more |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if nice > 0:
        # Threads that spin at barriers lose most of their time where other work has the cores.
        more |= {"OMP_WAIT_POLICY": "passive"}
    return os.environ | more


def on_processes(command: list, processes: int, mpirun: str) -> list:
    """The command itself for one process, else started by mpirun."""
    return command if processes == 1 else [*shlex.split(mpirun), "-n", str(processes), *command]


def end_with_parent() -> None:
    """Called in a started process: when this script is killed, the kernel tells the process to checkpoint and stop."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, on Linux
    except (OSError, AttributeError):
        pass


def newest_build(repository: Path):
    """The program built last, as scripts/launch.sh finds it, or None; builds that are slow on purpose left out, and the
    quickstart's where there is another."""
    built = [path for path in (*repository.glob("build/*/polaron"), repository / "build" / "polaron")
             if path.parent.name not in SLOW and path.is_file() and os.access(path, os.X_OK)]
    return max(built, key=lambda path: (path.parent.name != LAST_CHOICE, path.stat().st_mtime), default=None)


def find_program(path, by: str = "") -> str:
    """The program's whole path. `path`: as on a command line, where `by` gives it; None: that built last, or what is on
    PATH."""
    if path is None:
        path = str(newest_build(REPOSITORY) or "polaron")
    found = shutil.which(path)
    if found is None:
        raise Problem(f"there is no program '{path}'. Build it ({BUILD}) and give its path{by}, say "
                      "build/release/polaron.")
    return os.path.abspath(found)


class Polaron:
    """The program; `path` as find_program takes it."""

    def __init__(self, path=None):
        self.path = find_program(path, " by --polaron")

    def ask(self, *words: str, code: int = 0) -> str:
        command = [self.path, *words]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
                              check=False, env=environment())
        if done.returncode != 0:
            raise Problem(f"`{shlex.join(command)}` failed with exit code {done.returncode}:\n"
                          + last_lines(done.stdout + done.stderr), code or done.returncode)
        return done.stdout

    def version(self) -> str:
        return self.ask("--version").strip()

    def effective(self, config, settings: dict) -> dict:
        """The config in full, as the program understands it."""
        return json.loads(self.ask("config", str(config), *set_words(settings), code=2))

    def numbers(self, *words: str) -> dict:
        """What a command with --json FILE writes."""
        with tempfile.TemporaryDirectory(prefix="polaron-reproduce-") as folder:
            file = Path(folder) / "numbers.json"
            self.ask(*words, "--json", str(file))
            return json.loads(file.read_text(encoding="utf-8"))

    def plan(self, config, settings: dict, processes: int) -> dict:
        return self.numbers("plan", str(config), "--processes", str(processes), *set_words(settings))

    def bench_optimizer(self, config, settings: dict, repeats: int) -> dict:
        """Milliseconds of a step over all matrices by method, for the config's rank."""
        result = self.numbers("bench", "optimizer", str(config), "--repeats", str(repeats), *set_words(settings))
        return {method["method"]: method["ms"] for method in result["methods"]}
