"""scripts/verify_gpu: what it makes of losses and benchmarks, sessions, the command line, the report."""

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

from verify_gpu_case import NVIDIA_SMI, POLARON

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from verify_gpu import cli, device, kernels, losses, machine, sanitize, training  # noqa: E402
from verify_gpu.report import render  # noqa: E402
from verify_gpu.session import (  # noqa: E402
    FAILED,
    MEASURED,
    PASSED,
    SKIPPED,
    UNFINISHED,
    Result,
    Session,
    StepFailed,
    StepSkipped,
)


class Judgements(unittest.TestCase):
    def test_a_sanitizer_must_have_counted_nothing(self):
        for clean in (
            "========= ERROR SUMMARY: 0 errors",
            "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
        ):
            self.assertIn("SUMMARY: 0 ", sanitize.judge(f"[ OK ] a\n{clean}\n"))
        for wrong in (
            "ERROR SUMMARY: 10 errors",
            "RACECHECK SUMMARY: 10 hazards displayed (10 errors, 0 warnings)",
            "[ OK ] a",
        ):
            with self.assertRaises(StepFailed, msg=wrong):
                sanitize.judge(f"========= {wrong}\n")

    def test_the_first_error_of_a_sanitizer_is_told_with_its_place(self):
        output = (
            "========= COMPUTE-SANITIZER\n[ RUN      ] A.b\n"
            "========= Invalid __global__ write of size 4 bytes\n=========     at kernel(float *)+0x70 in norm.cu:8\n"
            "========= ERROR SUMMARY: 1 error\n"
        )
        with self.assertRaisesRegex(StepFailed, r"SUMMARY: 1 error\nInvalid __global__ write of size 4 .* norm\.cu:8"):
            sanitize.judge(output)

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

    def test_what_a_failed_step_knows_all_the_same_is_in_its_results(self):
        def fails():
            raise StepFailed("the last case broke", {"cases": [1, 2]})

        with self.quiet():
            session = self.session()
            session.render = lambda about, results: ""
            session.begin_phase("kernels", 100)
            session.step("ops", fails)
        (result,) = json.loads((session.out / "results.json").read_text())["results"]
        self.assertEqual((result["status"], result["data"]), (FAILED, {"cases": [1, 2]}))

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

    def test_a_command_that_ends_with_the_phase_is_not_finished_and_one_at_its_own_limit_failed(self):
        with self.quiet():
            session = self.session()
            session.begin_phase("kernels", 0.5)  # a command is given a second at least
            session.step("cut", lambda: session.must(["sleep", "60"], limit=30))
            session.begin_phase("train", 500)
            session.step("slow", lambda: session.must(["sleep", "60"], limit=0.3))
        self.assertEqual([result.status for result in session.results], [UNFINISHED, FAILED])
        self.assertIn("| kernels | cut | *not finished* |", (session.out / "report.md").read_text())

    def test_a_phase_ends_with_the_budget_of_all(self):
        session = self.session(budget=100.0, clock=lambda: self.now)
        with self.quiet():
            self.now = 70.0
            session.begin_phase("train", 500)
        self.assertEqual(session.left(), 30.0)

    def test_a_program_that_is_not_there_fails_by_name(self):
        with self.assertRaisesRegex(StepFailed, "/nowhere/polaron"):
            self.session().must(["/nowhere/polaron"])


class CommandLine(unittest.TestCase):
    libraries_load = True

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
                with (
                    contextlib.redirect_stdout(output),
                    unittest.mock.patch.object(machine, "loads", lambda session, library: self.libraries_load),
                ):
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

    def test_a_library_that_is_missing_is_named_before_the_phases(self):
        with unittest.mock.patch.object(self, "libraries_load", False):
            code, _, results = self.run_with("train", "--no-build")
        self.assertEqual(code, 1)
        self.assertEqual([result["phase"] for result in results["results"]][:3], ["machine", "build", "train"])
        self.assertIn("missing: libcublasLt.so.13, libcusolver.so.12", results["results"][0]["detail"])

    def test_without_a_device_every_phase_says_so_and_the_exit_code_is_5(self):
        with tempfile.TemporaryDirectory() as name, unittest.mock.patch.dict(os.environ, PATH=name):
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                code = cli.main(["kernels", "torch", "--out", f"{name}/out"])
            self.assertEqual(code, 5)
            self.assertEqual(output.getvalue().count("no device: there is no nvidia-smi here"), 2)
            self.assertIn("| torch | device | skipped |", Path(name, "out/report.md").read_text())

    def test_a_copy_without_history_is_told_its_commit(self):
        with unittest.mock.patch.dict(os.environ, POLARON_COMMIT="v1-3-gabc"):
            self.assertEqual(self.run_with("train")[2]["about"]["commit"], "v1-3-gabc")

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

    def test_without_a_budget_all_ends_within_ten_minutes(self):
        self.assertEqual(cli.parse([]).budget, 560)
        self.assertEqual(cli.parse(["--budget", "1700"]).budget, 1700)

    def test_phases_come_in_their_own_order(self):
        self.assertEqual(cli.parse(["torch", "correctness"]).phases, ["correctness", "torch"])
        self.assertEqual(cli.parse([]).phases, ["correctness", "sanitize", "kernels", "train", "torch"])


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

    def test_what_the_output_captures_stands_beside_what_the_subspace_holds(self):
        row = {"spectrum": "1/j", "method": "columns", "rank": 64, "ms": 0.5, "captured": 0.4}
        rows = [row | {"captured_by_output": 0.375}, row | {"method": "exact"}]
        report = render({}, [Result("kernels", "o", MEASURED, data={"orthogonalization": rows})])
        self.assertIn("| 1/j | columns | 64 | 0.500 | 0.4000 | 0.3750 |", report)
        self.assertIn("| 1/j | exact | 64 | 0.500 | 0.4000 | - |", report)


if __name__ == "__main__":
    unittest.main()
