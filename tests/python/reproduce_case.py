"""What the tests of scripts/reproduce.py share: a folder with a pretended polaron, shards and an --out."""

import contextlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import unittest
import warnings
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from reproduce import cli, runs  # noqa: E402

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
RATES = ("adamw=0.0005,0.001,0.002", "muon=0.01,0.02,0.04")
SMALL = ("--optimizers", "adamw,muon", "--seeds", "2", "--lrs", *RATES)  # 8 runs
CHOSEN = (*SMALL, "--lrs", "adamw=0.001", "muon=0.02")  # 4 runs
FAKE = Path(__file__).with_name("fake_polaron.py")
MPIRUN = """#!/bin/sh
[ "$1" = -n ] || exit 1
FAKE_PROCESSES=$2; export FAKE_PROCESSES
shift 2
exec "$@"
"""


class ReproduceCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        # A copy, so that it finds its folder by its own name.
        fake = f"#!{sys.executable} -S\n" + FAKE.read_text(encoding="utf-8")
        (self.folder / "polaron").write_text(fake, encoding="utf-8")
        (self.folder / "mpirun").write_text(MPIRUN, encoding="utf-8")
        for name in ("polaron", "mpirun"):
            (self.folder / name).chmod(0o755)
        for name in ("train_000000.bin", "validation_000000.bin"):
            self.write_shard(name, 1_000_000)
        (self.folder / "vocabulary.json").write_text('{"size": 4096}', encoding="utf-8")
        self.out = self.folder / "out"
        for name, value in (("POLL_SECONDS", 0.005), ("ORPHAN_PATIENCE", 20.0)):
            self.addCleanup(setattr, runs, name, getattr(runs, name))
            setattr(runs, name, value)

    def write_shard(self, name: str, tokens: int) -> None:
        """A header alone."""
        header = [20240520, 1, tokens] + [0] * 253
        (self.folder / name).write_bytes(b"".join(number.to_bytes(4, "little") for number in header))

    def arguments(self, *more: str) -> list:
        """A grid of a few steps: 40 of 16 x 256 tokens, a validation every 10 and a checkpoint every 5."""
        return ["--out", str(self.out), "--polaron", str(self.folder / "polaron"), "--figures", "none",
                *(() if "--train" in more or "--text" in more else
                  ("--train", str(self.folder / "train_*.bin"), "--validation", str(self.folder / "validation_*.bin"))),
                *(() if "--table" in more else ("--table", "fair-gpt2")), "--set", "training.steps=40", "--set",
                "checkpoint.every=5", "--set", "validation.every=10", *more]

    def reproduce(self, *more: str, **variables) -> tuple:
        """(exit code, output, errors) of the script, without a new process."""
        output, errors = io.StringIO(), io.StringIO()
        os.environ.update(variables)
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
                warnings.filterwarnings("error", ".*(glyph|legend|tight|layout|label)")  # what matplotlib cannot draw
                try:
                    status = cli.main(self.arguments(*more))
                except SystemExit as stop:  # argparse
                    status = stop.code
        finally:
            for name in variables:
                del os.environ[name]
        return status, output.getvalue(), errors.getvalue()

    def plain(self, *more: str, **variables) -> tuple:
        """As reproduce, without a --figures of the tests."""
        arguments = self.arguments

        def without(*words: str) -> list:
            found = arguments(*words)
            del found[found.index("--figures"):found.index("--figures") + 2]
            return found

        self.arguments = without
        try:
            return self.reproduce(*more, **variables)
        finally:
            del self.arguments

    def calls(self) -> list:
        """"NAME FIRST_STEP" of each training that was started, probes left out."""
        path = self.folder / "calls.txt"
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        return [line for line in lines if line and not line.startswith("probe ")]

    def table(self) -> dict:
        """First cell -> cells of the main table's rows."""
        text = (self.out / "table.md").read_text(encoding="utf-8").split("##")[0]
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n") if line.startswith("|")]
        return {row[0]: row for row in rows[2:]}

    def metrics(self, name: str) -> list:
        text = (self.out / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]
