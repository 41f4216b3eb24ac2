"""Tests of scripts/plan_table.py with a program that only pretends to plan."""

import contextlib
import importlib.util
import io
import stat
import tempfile
import unittest
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("plan_table", SOURCE / "scripts" / "plan_table.py")
plan_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plan_table)

FAKE = """#!/usr/bin/env python3
import json, sys
config, processes, out = sys.argv[2], int(sys.argv[4]), sys.argv[6]
if config == "bad.json":
    print("error: bad.json: no such file", file=sys.stderr)
    sys.exit(2)
if processes > 64:
    print(f"error: {processes} processes, but the model has only 64 matrices", file=sys.stderr)
    sys.exit(2)
total = 1000 * processes * (2 if "--set" in sys.argv else 1)
json.dump({"config": config[:-5], "processes": processes, "parameters": 124000000,
           "memory": {"weights": 496e6, "total": 2.5e9},
           "traffic": {name: {"total": total} for name in ("parameters", "factors", "sketch")}}, open(out, "w"))
"""


class PlanTable(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.polaron = Path(folder.name) / "polaron"
        self.polaron.write_text(FAKE)
        self.polaron.chmod(self.polaron.stat().st_mode | stat.S_IXUSR)

    def run_with(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = plan_table.main([str(self.polaron), *arguments])
        return code, out.getvalue(), err.getvalue()

    def test_a_row_for_each_config_and_number_with_bytes_through_each_process(self):
        code, out, _ = self.run_with("a.json", "b.json", "--processes", "1,8", "--set", "x=1")
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
        self.assertEqual(code, 0)
        self.assertEqual(len(rows), 6)
        self.assertEqual(rows[2][:4], ["a", "1", "124 M", "496 MB"])
        self.assertEqual(rows[2][9:], ["2.5 GB", "-", "-", "-"])
        self.assertEqual(rows[5][:2] + rows[5][10:], ["b", "8", "2 KB", "2 KB", "2 KB"])

    def test_what_the_program_refuses_is_told(self):
        code, out, err = self.run_with("bad.json")
        self.assertEqual((code, out), (2, ""))
        self.assertIn("no such file", err)

    def test_a_number_of_processes_that_the_program_refuses_is_a_row_and_a_line(self):
        code, out, _ = self.run_with("a.json", "--processes", "8,100")
        self.assertEqual(code, 0)
        self.assertIn("| 100       | refused (below) |", out)
        self.assertIn("\na: 100 processes, but the model has only 64 matrices\n", out)

    def test_numbers_of_processes_are_numbers(self):
        self.assertEqual(self.run_with("a.json", "--processes", "1,x")[0], 2)

    def test_sizes_have_three_digits(self):
        self.assertEqual([plan_table.size(n) for n in (0, 999, 1000, 123456, 2.5e9)],
                         ["0 B", "999 B", "1 KB", "123 KB", "2.5 GB"])


if __name__ == "__main__":
    unittest.main()
