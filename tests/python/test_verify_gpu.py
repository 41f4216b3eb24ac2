"""scripts/verify_gpu: what it makes of tests, losses and benchmarks, and how it goes on after a failure."""

import contextlib
import io
import json
import math
import os
import sys
import tempfile
import unittest
import unittest.mock
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from verify_gpu import cli, correctness, device, kernels, losses, training  # noqa: E402
from verify_gpu.report import render  # noqa: E402
from verify_gpu.session import FAILED, MEASURED, PASSED, SKIPPED, Result, Session, StepFailed, StepSkipped  # noqa: E402

NVIDIA_SMI = """#!/bin/sh
case "$*" in
  *memory.used*) echo 100 ;;
  *) echo "NVIDIA H200, 580.1, 143771, 9.0, 1980, 700" ;;
esac
"""
POLARON = """#!/bin/sh
echo "error: the device is on fire" >&2
exit 5
"""


def gtest_report(**tests):
    """name="passed" | "failed" | "SKIPPED" as GoogleTest's JSON has it."""
    suite = []
    for name, state in tests.items():
        test = {"name": name, "status": "RUN", "result": "SKIPPED" if state == "SKIPPED" else "COMPLETED"}
        suite.append(test | ({"failures": [{"failure": "1 != 2"}]} if state == "failed" else {}))
    return {"testsuites": [{"name": "Suite", "testsuite": suite}]}


class Judgements(unittest.TestCase):
    def test_all_tests_must_run_and_pass(self):
        def judge(code=0, **tests):
            return correctness.judge_tests(correctness.count_tests(gtest_report(**tests)), code)

        self.assertEqual(judge(a="passed", b="passed"), "2 passed, 0 failed, 0 skipped")
        for wrong in ({"a": "passed", "b": "failed"}, {"a": "passed", "b": "SKIPPED"}, {}, {"a": "passed", "code": 99}):
            with self.assertRaises(StepFailed, msg=wrong):
                judge(**wrong)
        with self.assertRaisesRegex(StepFailed, r"Suite\.b"):
            judge(a="passed", b="failed")

    def test_of_failed_tests_those_are_named_that_fail_by_themselves(self):
        tried = []

        def run_tests(session, chosen, name, limit):
            tried.append(name)
            state = "failed" if name == "Suite.faults" else "passed"
            return correctness.count_tests(gtest_report(**{name.split(".")[1]: state})), unittest.mock.Mock(code=0)

        session = unittest.mock.Mock(**{"left.return_value": 100.0})
        with unittest.mock.patch.object(correctness, "run_tests", run_tests):
            found = correctness.alone(session, None, ["Suite.faults", "Suite.after", "Suite.later"])
            self.assertEqual(found, "alone fail: Suite.faults")
            self.assertEqual(tried, ["Suite.faults", "Suite.after", "Suite.later"])
            session.left.return_value = 5.0
            self.assertEqual(correctness.alone(session, None, ["Suite.after"]), "alone fail: none (1 not tried)")

    def test_a_sanitizer_must_have_counted_nothing(self):
        for clean in (
            "========= ERROR SUMMARY: 0 errors",
            "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
        ):
            self.assertIn("SUMMARY: 0 ", correctness.judge_sanitizer(f"[ OK ] a\n{clean}\n"))
        for wrong in (
            "ERROR SUMMARY: 10 errors",
            "RACECHECK SUMMARY: 10 hazards displayed (10 errors, 0 warnings)",
            "[ OK ] a",
        ):
            with self.assertRaises(StepFailed, msg=wrong):
                correctness.judge_sanitizer(f"========= {wrong}\n")

    def test_losses_may_differ_by_the_tolerance_and_no_more(self):
        expected = [10.0, 8.0, 6.0]
        found = losses.compare([10.0, 8.03, 6.0, 5.0], expected)
        self.assertAlmostEqual(found["worst_difference"], 0.03 / 8)
        with self.assertRaisesRegex(StepFailed, "step 2: loss 8.05"):
            losses.compare([10.0, 8.05, 6.0], expected)
        with self.assertRaisesRegex(StepFailed, "2 losses, 3 expected"):
            losses.compare([10.0, 8.0], expected)
        for at in (1, 3):  # also beyond the compared ones
            actual = [10.0, 8.0, 6.0, 5.0]
            actual[at] = math.nan
            with self.assertRaisesRegex(StepFailed, f"step {at + 1} is not finite"):
                losses.compare(actual, expected)

    def test_optimizer_times_are_divided_by_the_time_of_22_bytes_an_element(self):
        data = {"methods": [{"method": "muon", "ms": 3.0, "times_muon": 1.0}]}
        (row,) = kernels.optimizer_rows(data, 1024, 2, "1/8", 4.0e12)
        floor = 1e3 * 22 * 12 * 2 * 1024 * 1024 / 4.0e12
        self.assertAlmostEqual(row["floor_ms"], floor)
        self.assertAlmostEqual(row["times_floor"], 3.0 / floor)

    def test_mfu_is_of_the_datasheet_and_of_the_measured_rate(self):
        bench = {"tokens_per_s": 5e5, "gemm_flops": 8e14, "sequence_length": 1024, "ms": 100.0, "ops": []}
        plan = {"flops_a_token": 8e8, "memory": {"total": 2 * 2**30}}
        row = training.row_of(training.CASES[0], bench, plan, 3 * 2**30, 1e15)
        self.assertAlmostEqual(row["mfu_datasheet"], 0.4)
        self.assertAlmostEqual(row["mfu_measured"], 0.5)
        self.assertAlmostEqual(row["peak_over_plan"], 1.5)
        self.assertIsNone(training.row_of(training.CASES[0], bench, plan, 0, None)["mfu_datasheet"])

    def test_a_device_that_is_not_known_has_no_datasheet(self):
        self.assertEqual(device.datasheet("NVIDIA H200"), (989.4, 4.8))
        self.assertIsNone(device.datasheet("NVIDIA GeForce RTX 9999"))


class Sessions(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.now = 0.0

    def session(self, budget=1000.0, **options):
        session = Session(self.folder / "out", budget, False, render, **options)
        self.addCleanup(session.log.close)
        return session

    def quiet(self):
        return contextlib.redirect_stdout(io.StringIO())

    def test_results_are_on_the_disk_after_every_step(self):
        with self.quiet():
            session = self.session()
            session.begin_phase("kernels", 100)
            session.step("one", lambda: (PASSED, "fine", {}))
            first = json.loads((session.out / "results.json").read_text())
            self.assertEqual([result["step"] for result in first["results"]], ["one"])

            def fails():
                raise StepFailed("a | b")

            def breaks():
                raise KeyError("x")

            def cannot():
                raise StepSkipped("no tool")

            self.assertFalse(session.step("two", fails))
            self.assertFalse(session.step("three", breaks))
            self.assertFalse(session.step("four", cannot))
        self.assertEqual([result.status for result in session.results], [PASSED, FAILED, FAILED, SKIPPED])
        report = (session.out / "report.md").read_text()
        self.assertIn("a \\| b", report)
        self.assertIn("| kernels | four | skipped | 0.0 | no tool |", report)
        self.assertTrue(session.failed())

    def test_a_step_without_enough_time_left_is_skipped_and_says_so(self):
        with self.quiet():
            session = self.session(clock=lambda: self.now)
            session.begin_phase("train", 100)
            self.now = 90.0
            session.step("long", lambda: self.fail("it ran"), needs=20)
        self.assertEqual(session.results[0].status, SKIPPED)
        self.assertIn("10 s left, 20 s needed", session.results[0].detail)

    def test_a_command_is_ended_at_the_limit_and_its_output_kept(self):
        session = self.session()
        finished = session.command(["sh", "-c", "echo begun; sleep 60; echo late"], limit=0.3)
        self.assertTrue(finished.timed_out)
        self.assertEqual(finished.output, "begun\n")

    def test_a_program_that_is_not_there_fails_by_name(self):
        with self.assertRaisesRegex(StepFailed, "/nowhere/polaron"):
            self.session().must(["/nowhere/polaron"])


class CommandLine(unittest.TestCase):
    def run_with(self, *arguments):
        """(exit code, output, results) on a machine that seems to have an H200."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for program, text in (("nvidia-smi", NVIDIA_SMI), ("polaron", POLARON), ("bench_kernels", POLARON)):
                (folder / program).write_text(text)
                (folder / program).chmod(0o755)
            before = os.environ["PATH"]
            os.environ["PATH"] = f"{folder}:{before}"
            os.environ.pop("POLARON_VERIFY_DRY", None)
            output = io.StringIO()
            try:
                with contextlib.redirect_stdout(output):
                    code = cli.main([*arguments, "--program", str(folder / "polaron"), "--out", str(folder / "out")])
            finally:
                os.environ["PATH"] = before
            return code, output.getvalue(), json.loads((folder / "out/results.json").read_text())

    def test_a_phase_that_fails_does_not_stop_the_next_one(self):
        code, output, results = self.run_with("kernels", "train")
        self.assertEqual(code, 1)
        self.assertEqual(results["about"]["device"]["name"], "NVIDIA H200")
        failed = {result["phase"]: result["detail"] for result in results["results"] if result["status"] == FAILED}
        self.assertEqual(set(failed), {"kernels", "train"})
        self.assertIn("the device is on fire", failed["train"])
        self.assertIn("failed", output.splitlines()[-1])

    def test_without_a_device_every_phase_says_so_and_the_exit_code_is_5(self):
        with tempfile.TemporaryDirectory() as name, unittest.mock.patch.dict(os.environ, PATH=name):
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                code = cli.main(["kernels", "torch", "--out", f"{name}/out"])
            self.assertEqual(code, 5)
            self.assertEqual(output.getvalue().count("no device: there is no nvidia-smi here"), 2)
            self.assertIn("| torch | device | skipped |", Path(name, "out/report.md").read_text())

    def test_unknown_phases_and_budgets_are_usage_errors(self):
        for wrong in (["kernel"], ["--budget", "0"]):
            with self.assertRaises(SystemExit) as ended, contextlib.redirect_stderr(io.StringIO()):
                cli.parse(wrong)
            self.assertEqual(ended.exception.code, 2)

    def test_reports_of_several_calls_become_one_unless_their_devices_differ(self):
        with tempfile.TemporaryDirectory() as name:
            files = []
            for phase, gpu in (("kernels", "A"), ("train", "A"), ("torch", "B")):
                files.append(Path(name, phase))
                files[-1].write_text(
                    json.dumps(
                        {
                            "about": {"device": {"name": gpu}, "commit": "c"},
                            "results": [vars(Result(phase, "step", PASSED))],
                        }
                    )
                )
            output, errors = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                self.assertEqual(cli.main(["report", *map(str, files[:2])]), 0)
                self.assertEqual(cli.main(["report", *map(str, files)]), 2)
            self.assertIn("| kernels | step | passed |", output.getvalue())
            self.assertIn("| train | step | passed |", output.getvalue())
            self.assertIn("another device", errors.getvalue())

    def test_phases_come_in_their_own_order(self):
        self.assertEqual(cli.parse(["torch", "correctness"]).phases, ["correctness", "torch"])
        self.assertEqual(cli.parse([]).phases, ["correctness", "kernels", "train", "torch"])


class Report(unittest.TestCase):
    def test_training_and_optimizers_stand_beside_torch(self):
        row = {
            "config": "gpt2-124m",
            "optimizer": "AdamW",
            "micro_batch": 32,
            "batch": 512,
            "sequence_length": 1024,
            "ms": 900.0,
            "tokens_per_s": 600000.0,
            "mfu_datasheet": 0.5,
            "mfu_measured": 0.6,
            "peak_bytes": 2**30,
            "planned_bytes": 2**30,
            "ops": [{"op": "linear forward", "calls": 3, "ms": 4.0, "gflop": 1.0, "gb": 1.0}],
        }
        optimizer = {
            "width": 1024,
            "layers": 24,
            "rank": "1/8",
            "method": "muon",
            "ms": 2.0,
            "times_muon": 1.0,
            "times_floor": 3.0,
        }
        results = [
            Result("train", "a", MEASURED, data=row),
            Result("kernels", "b", MEASURED, data={"rows": [optimizer]}),
            Result(
                "torch",
                "c",
                MEASURED,
                data={
                    "what": "step",
                    "model": "gpt2-124m",
                    "batch": 32,
                    "sequence_length": 1024,
                    "compile": True,
                    "ms": 1.0,
                    "tokens_per_s": 400000.0,
                },
            ),
            Result(
                "torch", "d", MEASURED, data={"what": "optimizer", "width": 1024, "layers": 24, "ms": {"Muon": 7.0}}
            ),
        ]
        report = render({"device": {"name": "x"}}, results)
        self.assertIn(
            "| gpt2-124m | AdamW | 32 of 512 x 1024 | 900.0 | 600,000 | 50.0 | 60.0 | 1.00 | 1.00 | 1.50 |", report
        )
        self.assertIn("| 24 x 1024 | 1/8 | muon | 2.000 | 1.0 | 3.00 | 3.50 |", report)


if __name__ == "__main__":
    unittest.main()
