"""Tests of scripts/bench_scaling.py with a polaron and an mpirun that only pretend; those that draw are skipped where
matplotlib is missing.

python3 -m unittest discover -s tests/python
"""

import argparse
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

from reproduce_case import MPIRUN, SCRIPTS

sys.path.insert(0, str(SCRIPTS))

from bench_scaling import base, cli  # noqa: E402

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None

# Moves 1000 bytes of sketches, 2000 of factors or 3000 of parameters through each process; the first step is slow.
POLARON = f"""#!{sys.executable}
import json, os, sys
words = sys.argv[1:]
settings = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--set")
how = settings.get("parallel.exchange", "parameters")
bytes_of = {{"parameters": 3000, "factors": 2000, "sketch": 1000}}
if os.environ.get("FAKE_FULL_RANK"):
    bytes_of = dict.fromkeys(bytes_of, 3000)
if words[0] == "plan":
    n = int(words[words.index("--processes") + 1])
    traffic = {{name: {{"total": count * n if n > 1 else 0}} for name, count in bytes_of.items()}}
    with open(words[words.index("--json") + 1], "w") as file:
        json.dump({{"traffic": traffic, "memory": {{"total": 5000 // n}}}}, file)
    sys.exit(0)
n = int(os.environ.get("FAKE_PROCESSES", "1"))
if how == "sketch" and os.environ.get("FAKE_FAILURE"):
    print("step 1")
    print("error: there is no luck today", file=sys.stderr)
    sys.exit(4)
folder = json.loads(settings["output"])
os.makedirs(folder)
with open(folder + "/metrics.jsonl", "w") as file:
    def write(**line):
        file.write(json.dumps(line) + "\\n")
    write(kind="run", processes=n, threads=2, device="Fake")
    for step in range(1, int(settings["training.steps"]) + 1):
        write(kind="step", step=step, tokens_per_s=1.0 if step <= 2 else 100.0 * n + step)
    write(kind="end", moved_a_step=bytes_of[how] * n if n > 1 else None)
"""


class InFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        for name, text in (("polaron", POLARON), ("mpirun", MPIRUN)):
            (self.folder / name).write_text(text, encoding="utf-8")
            (self.folder / name).chmod(0o755)
        self.temporary = self.folder / "temporary"
        self.temporary.mkdir()
        former = tempfile.tempdir
        tempfile.tempdir = str(self.temporary)
        self.addCleanup(setattr, tempfile, "tempdir", former)

    def script(self, *arguments, **variables):
        """What the script does in the folder, without a new process: importing matplotlib takes seconds."""
        before, output, errors = os.getcwd(), io.StringIO(), io.StringIO()
        os.chdir(self.folder)
        os.environ.update(variables)
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
                warnings.filterwarnings("error", ".*(glyph|legend|tight|layout|label)")  # what matplotlib cannot draw
                status = cli.main(["./polaron", "a.json", "--mpirun", "./mpirun", "--steps", "4", "--skip", "2",
                                   *arguments])
        finally:
            os.chdir(before)
            for name in variables:
                del os.environ[name]
        return status, output.getvalue(), errors.getvalue()

    def results(self) -> list:
        return sorted(path.name for path in self.folder.glob("scaling*"))


@unittest.skipUnless(HAS_MATPLOTLIB, "matplotlib is missing")
class Measuring(InFolder):
    def test_every_exchange_is_run_on_every_number_of_processes_and_one_process_once(self):
        status, output, errors = self.script()
        self.assertEqual(status, 0, errors)
        result = json.loads((self.folder / "scaling.json").read_text(encoding="utf-8"))
        self.assertEqual(
            [(run["processes"], run["exchange"], run["moved_a_step"]) for run in result["measured"]],
            [(1, "", 0), (2, "parameters", 6000), (2, "factors", 4000), (2, "sketch", 2000),
             (4, "parameters", 12000), (4, "factors", 8000), (4, "sketch", 4000)])
        # The first two of the six steps do not count.
        self.assertEqual([run["tokens_per_s"] for run in result["measured"]], [104.5] + [204.5] * 3 + [404.5] * 3)
        self.assertEqual({plan["processes"] for plan in result["planned"]}, {1, 2, 4, 8, 64, 512})
        table = (self.folder / "scaling.md").read_text(encoding="utf-8")
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n") if line.startswith("|")]
        self.assertIn(["4", "sketch", "2", "404", "3.87 x", "1 kB", "1 kB", "1.25 kB"], rows)
        self.assertIn(["512", "factors", "-", "-", "-", "-", "2 kB", "9 B"], rows)
        self.assertIn("| 512 ", output)
        self.assertNotIn("planned were", errors)
        picture = (self.folder / "scaling.png").read_bytes()
        self.assertEqual(picture[:8], b"\x89PNG\r\n\x1a\n")
        self.assertEqual(list(self.temporary.iterdir()), [])
        self.assertIn("[7/7] 4 processes, exchange of sketches", errors)
        self.assertIn("left", errors)

    def test_exchanges_that_are_the_same_without_low_rank_are_run_once(self):
        status, _, errors = self.script("--processes", "2", FAKE_FULL_RANK="1")
        self.assertEqual(status, 0, errors)
        result = json.loads((self.folder / "scaling.json").read_text(encoding="utf-8"))
        self.assertEqual([run["exchange"] for run in result["measured"]], ["parameters"])
        self.assertIn("factors is that of parameters", errors)

    def test_a_failed_run_shows_its_last_lines_and_leaves_nothing(self):
        status, _, errors = self.script("--processes", "2", FAKE_FAILURE="1")
        self.assertEqual(status, 2)
        for words in ("2 processes, exchange of sketches", "exit code 4", "error: there is no luck today"):
            self.assertIn(words, errors)
        self.assertEqual(self.results(), [])
        self.assertEqual(list(self.temporary.iterdir()), [])

    def test_what_is_missing_is_named(self):
        status, _, errors = self.script("--mpirun", "no-such-mpirun")
        self.assertEqual(status, 2)
        self.assertIn("no-such-mpirun", errors)
        self.assertIn("openmpi-bin", errors)
        status, _, errors = self.script("--out", "no/folder")
        self.assertEqual((status, "'no'" in errors), (2, True))
        # An mpirun that starts each process by itself.
        (self.folder / "mpirun").write_text('#!/bin/sh\nshift 2\nexec "$@"\n', encoding="utf-8")
        status, _, errors = self.script("--processes", "2")
        self.assertEqual(status, 2)
        self.assertIn("1 ran", errors)


class Words(unittest.TestCase):
    def test_numbers_of_processes_are_sorted_and_positive(self):
        self.assertEqual(cli.numbers("4,1,2,2"), [1, 2, 4])
        self.assertEqual(cli.numbers(""), [])
        for text in ("0,1", "-2", "two", "1.5"):
            with self.assertRaises(argparse.ArgumentTypeError):
                cli.numbers(text)

    def test_bytes_are_short(self):
        self.assertEqual([base.format_bytes(count) for count in (0, 999, 1000, 17.1e6, 2.5e9)],
                         ["0 B", "999 B", "1 kB", "17.1 MB", "2.5 GB"])


if __name__ == "__main__":
    unittest.main()
