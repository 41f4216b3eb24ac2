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

from verify_gpu import (  # noqa: E402
    build,
    cli,
    correctness,
    device,
    kernels,
    losses,
    machine,
    sanitize,
    suites,
    training,
)
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


# A GoogleTest program whose tests end as their names say; after one that faults all others of the process fail.
TEST_CUDA = """#!/usr/bin/env -S python3 -I -S
import os, sys, time
SUITES = {"Places/NormFamily": %s, "Cases/CudaTraining": ["passes/device"], "Places/LinearFamily": ["passes/device"]}
chosen = next(word.split("=", 1)[1] for word in sys.argv if word.startswith("--gtest_filter="))
faulted = False
for suite, tests in SUITES.items():
    if "--gtest_list_tests" in sys.argv:
        print(suite + ".", *(f"  {test}  # GetParam() = device" for test in tests), sep="\\n")
        continue
    for test in tests:
        name = f"{suite}.{test}"
        if name not in chosen.split(":"):
            continue
        print(f"[ RUN      ] {name}", flush=True)
        if test.startswith("aborts"):
            os.abort()
        if test.startswith("hangs"):
            time.sleep(60)
        if test.startswith("skips"):
            print("family.h:11: Skipped\\nthere is no driver\\n\\n[  SKIPPED ]", name, "(0 ms)", flush=True)
            continue
        faulted = faulted or test.startswith("faults")
        if faulted:
            print("matrix.cpp:5: Failure\\nan illegal memory access")
            print(f"[  FAILED  ] {name}, where GetParam() = device (0 ms)", flush=True)
        else:
            print("[       OK ]", name, "(0 ms)", flush=True)
print("[  FAILED  ] 1 test, listed below:" if faulted else "[  PASSED  ]")
sys.exit(1 if faulted else 0)
"""


# Trains: in bf16 the third loss is off.
TRAINS = """#!/usr/bin/env -S python3 -I -S
import json, pathlib, sys
settings = dict(word.split("=", 1) for before, word in zip(sys.argv, sys.argv[1:]) if before == "--set")
settings = {key: json.loads(value) for key, value in settings.items()}
out = pathlib.Path(settings["output"])
(out / "checkpoints/latest").mkdir(parents=True)
(out / "checkpoints/latest/weights.safetensors").write_text("w")
off = settings["precision"] == "bf16"
losses = [10 - 0.01 * i + (off and i == 2) for i in range(settings["training.steps"])]
lines = [json.dumps({"kind": "step", "loss": loss}) for loss in losses]
(out / "metrics.jsonl").write_text("".join(line + chr(10) for line in lines))
"""


def write_program(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


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


class Suites(unittest.TestCase):
    """The phases with fake programs."""

    def run_phase(self, phase, tests, budget=1000.0, process_limit=20.0, sanitizer=None):
        """step -> (status, detail) of a phase where the tests of NormFamily are these."""
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
            folder = Path(name)
            write_program(folder / "build/tests/cuda/test_cuda", TEST_CUDA % json.dumps(tests))
            if sanitizer:
                write_program(folder / "compute-sanitizer", sanitizer)
            session = Session(folder / "out", budget, False, render)
            session.environment["PATH"] = f"{folder}:{os.environ['PATH']}"
            session.begin_phase("phase", budget)
            chosen = unittest.mock.Mock(build=folder / "build", no_build=False)
            with (
                unittest.mock.patch.object(suites, "PROCESS_SECONDS", process_limit),
                unittest.mock.patch.object(suites, "LEAST_SECONDS", 0.1),
                unittest.mock.patch.object(session, "step", self.step_without_least_time(session)),
                unittest.mock.patch.dict(os.environ, PATH=session.environment["PATH"]),
            ):
                phase(session, chosen)
            session.log.close()
            return {result.step: (result.status, result.detail) for result in session.results}

    @staticmethod
    def step_without_least_time(session):
        step = session.step
        return lambda name, work, needs=0.0: step(name, work)

    def of_norm(self, tests, **options):
        results = self.run_phase(correctness.tests, tests, **options)
        self.assertEqual(results["tests Cases/CudaTraining"], (PASSED, "1 passed, 0 failed, 0 skipped"))
        self.assertEqual(results["tests Places/LinearFamily"], (PASSED, "1 passed, 0 failed, 0 skipped"))
        return results["tests Places/NormFamily"]

    def test_the_most_fundamental_suites_come_first(self):
        results = self.run_phase(correctness.tests, ["passes/device"])
        self.assertEqual(
            list(results),
            ["CUDA tests for the device"]
            + [f"tests {suite}" for suite in ("Places/LinearFamily", "Places/NormFamily", "Cases/CudaTraining")],
        )
        self.assertEqual(results["CUDA tests for the device"], (PASSED, "3 in 3 suites"))

    def test_one_that_aborts_is_named_and_all_others_still_run(self):
        status, detail = self.of_norm(["passes/device", "aborts/device", "passes_too/device"])
        self.assertEqual(status, FAILED)
        self.assertIn("2 passed, 1 failed, 0 skipped", detail)
        self.assertIn("Places/NormFamily.aborts/device: ended by SIGABRT", detail)

    def test_one_that_hangs_is_named_and_all_others_still_run(self):
        status, detail = self.of_norm(["passes/device", "hangs/device", "passes_too/device"], process_limit=3.0)
        self.assertEqual(status, FAILED)
        self.assertIn("2 passed, 1 failed, 0 skipped", detail)
        self.assertIn("Places/NormFamily.hangs/device: still running after 3 s", detail)

    def test_one_that_is_skipped_where_a_device_is_has_failed(self):
        status, detail = self.of_norm(["passes/device", "skips/device"])
        self.assertEqual(status, FAILED)
        self.assertIn("1 passed, 0 failed, 1 skipped", detail)
        self.assertIn("none may be skipped: Places/NormFamily.skips/device: family.h:11: Skipped; there is no", detail)

    def test_those_after_a_fault_are_run_again_without_it(self):
        status, detail = self.of_norm(["faults/device", "passes/device", "faults_too/device", "passes_too/device"])
        self.assertEqual(status, FAILED)
        self.assertIn("2 passed, 2 failed, 0 skipped", detail)
        self.assertIn("Places/NormFamily.faults/device: matrix.cpp:5: Failure; an illegal memory access", detail)
        self.assertIn("Places/NormFamily.faults_too/device: ", detail)

    def test_what_the_time_did_not_suffice_for_is_not_finished_rather_than_failed(self):
        results = self.run_phase(
            lambda session, chosen: session.step(
                "Norm",
                lambda: (
                    PASSED,
                    suites.run(
                        session,
                        correctness.program_of(chosen),
                        [f"Places/NormFamily.{name}/device" for name in ("passes", "hangs", "passes_too")],
                        process_limit=20.0,
                    ).judge(),
                    {},
                ),
            ),
            ["passes/device", "hangs/device", "passes_too/device"],
            budget=3.0,
        )
        status, detail = results["Norm"]
        self.assertEqual(status, UNFINISHED)
        self.assertIn("1 passed, 0 failed, 0 skipped, 1 not run", detail)
        self.assertIn("the time was up in Places/NormFamily.hangs/device", detail)

    def test_a_program_that_does_not_start_fails_before_any_suite(self):
        with unittest.mock.patch.dict(globals(), TEST_CUDA="#!/bin/sh\necho no libopenblas.so.0 >&2; exit 127; # %s\n"):
            results = self.run_phase(correctness.tests, [])
        self.assertEqual(list(results), ["CUDA tests for the device"])
        self.assertEqual(results["CUDA tests for the device"][0], FAILED)
        self.assertIn("no libopenblas.so.0", results["CUDA tests for the device"][1])

    def test_a_sanitizer_that_needs_too_long_has_found_nothing_and_the_next_suite_is_its_own(self):
        clean = """#!/bin/sh
while [ "${1#*test_cuda}" = "$1" ]; do shift; done
"$@"
echo "========= ERROR SUMMARY: 0 errors"
"""
        results = self.run_phase(sanitize.run, ["passes/device", "hangs/device"], process_limit=3.0, sanitizer=clean)
        self.assertEqual(results["memcheck Places/NormFamily"][0], UNFINISHED)
        self.assertIn("the time was up in Places/NormFamily.hangs/device", results["memcheck Places/NormFamily"][1])
        self.assertEqual(results["memcheck Places/LinearFamily"][0], PASSED)
        steps = list(results)
        self.assertLess(steps.index("racecheck Places/NormFamily"), steps.index("memcheck Places/LinearFamily"))
        self.assertNotIn("memcheck Cases/CudaTraining", results)

    def test_a_sanitizer_looks_at_our_kernels_only_and_its_errors_fail_a_suite_whose_tests_pass(self):
        finds = """#!/bin/sh
case "$*" in *"--kernel-name kns=polaron"*) ;; *) exit 3 ;; esac
while [ "${1#*test_cuda}" = "$1" ]; do shift; done
"$@"
echo "========= Invalid __shared__ read of size 4 bytes"
echo "=========     at polaron::cuda::norm(float *) in norm.cu:8"
echo "========= ERROR SUMMARY: 1 error"
exit 99
"""
        results = self.run_phase(sanitize.run, ["passes/device"], sanitizer=finds)
        status, detail = results["memcheck Places/NormFamily"]
        self.assertEqual(status, FAILED)
        self.assertIn("Invalid __shared__ read of size 4 bytes at polaron::cuda::norm(float *) in norm.cu:8", detail)

    def test_a_device_that_the_sanitizer_does_not_support_is_asked_once(self):
        refuses = "#!/bin/sh\necho '========= Error: Device not supported'; exit 1\n"
        results = self.run_phase(sanitize.run, ["passes/device"], sanitizer=refuses)
        self.assertEqual([status for status, _ in results.values()], [PASSED, SKIPPED])


    def test_training_is_compared_in_fp32_first_and_losses_that_differ_are_told(self):
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
            folder = Path(name)
            write_program(folder / "build/polaron", TRAINS)
            (folder / losses.SHARD).write_text("tokens")
            session = Session(folder / "out", 1000.0, False, render)
            session.begin_phase("correctness", 1000.0)
            correctness.train(session, unittest.mock.Mock(build=folder / "build", data=folder))
            session.log.close()
            report = (folder / "out/report.md").read_text()
        status = {result.step: result.status for result in session.results}
        self.assertEqual(
            status,
            {"losses of the CPU": PASSED}
            | {f"GPT-2 124M in {precision} against the CPU": PASSED for precision in ("fp32", "tf32")}
            | {"GPT-2 124M in bf16 against the CPU": FAILED, "two runs are identical": PASSED},
        )
        self.assertEqual(list(status)[1], "GPT-2 124M in fp32 against the CPU")
        self.assertIn("| 3 | 9.98000 | 9.98000 | 9.98000 | 10.98000 |", report)


class Machines(unittest.TestCase):
    """The check before the build, on machines that are made up."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        for tool in machine.TOOLS:
            write_program(self.folder / "cuda/bin" / tool, "#!/bin/sh\necho Cuda compilation tools, release 13.0, V13\n")
        for header in machine.HEADERS:
            self.write(f"cuda/include/{header}")
        for library in machine.LIBRARIES:
            self.write(f"cuda/lib64/{library}")

    def write(self, file):
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / file).write_text("")

    def check(self, no_build=False, sites=()):
        """(whether to go on, the step's status and detail, the commands' environment afterwards)"""

        def loads(session, library):
            folders = session.environment.get("LD_LIBRARY_PATH", "").split(":")
            return any(Path(folder or "/nowhere", library).exists() for folder in folders)

        chosen = unittest.mock.Mock(no_build=no_build, phases=["correctness"], data=self.folder / "data")
        with (
            contextlib.redirect_stdout(io.StringIO()),
            unittest.mock.patch.dict(os.environ, PATH=f"{self.folder}/cuda/bin:/usr/bin:/bin", CPATH=""),
            unittest.mock.patch.object(sys, "path", [str(site) for site in sites]),
            unittest.mock.patch.object(machine, "loads", loads),
        ):
            session = Session(self.folder / "out", 100.0, False, render)
            session.begin_phase("machine", 100.0)
            ready = machine.check(session, chosen)
            session.log.close()
        (result,) = session.results
        return ready, result.status, result.detail, session.environment

    def test_with_a_whole_toolkit_passes_and_says_that_the_text_is_not_there(self):
        ready, status, detail, _ = self.check()
        self.assertEqual((ready, status), (True, PASSED))
        self.assertIn("CUDA 13.0", detail)
        self.assertIn("no train_000000.bin in", detail)
        self.write("data/train_000000.bin")
        self.assertNotIn("train_000000.bin", self.check()[2])

    def test_with_too_old_a_compiler_there_is_no_build(self):
        write_program(self.folder / "cuda/bin/nvcc", "#!/bin/sh\necho release 12.4, V12\n")
        ready, status, detail, _ = self.check()
        self.assertEqual((ready, status), (False, FAILED))
        self.assertIn("missing: CUDA 13 (nvcc is of 12.4)", detail)
        self.assertEqual(self.check(no_build=True)[:2], (True, PASSED))

    def test_headers_and_libraries_are_also_found_in_pythons_packages(self):
        for header in machine.HEADERS[1:]:
            (self.folder / "cuda/include" / header).unlink()
        for library in machine.LIBRARIES:
            (self.folder / "cuda/lib64" / library).unlink()
        ready, status, detail, _ = self.check()
        self.assertEqual((ready, status), (False, FAILED))
        for file in (*machine.HEADERS[1:], *machine.LIBRARIES):
            self.assertIn(file, detail)
            self.write(f"site/nvidia/cu13/{'include' if file.endswith('.h') else 'lib'}/{file}")
        ready, status, _, environment = self.check(sites=[self.folder / "site"])
        self.assertEqual((ready, status), (True, PASSED))
        self.assertEqual(environment["CPATH"], f"{self.folder}/site/nvidia/cu13/include")
        self.assertEqual(environment["LD_LIBRARY_PATH"].split(":")[0], f"{self.folder}/site/nvidia/cu13/lib")

    def test_without_a_library_the_rest_is_still_tried_and_the_step_has_failed(self):
        (self.folder / "cuda/lib64/libcusolver.so.12").unlink()
        ready, status, detail, _ = self.check()
        self.assertEqual((ready, status), (True, FAILED))
        self.assertIn("missing: libcusolver.so.12", detail)


class Builds(unittest.TestCase):
    CMAKE = """#!/bin/sh
[ "$1" = -S ] && exit 0
case "$*" in *%s*) echo "x.cpp: error"; exit 1 ;; esac
"""

    def build(self, broken):
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
            folder = Path(name)
            write_program(folder / "bin/cmake", self.CMAKE % broken)
            for file in build.TARGETS.values():  # of an earlier build
                write_program(folder / "build" / file, "")
            session = Session(folder / "out", 100.0, False, render)
            session.environment["PATH"] = f"{folder}/bin:{os.environ['PATH']}"
            session.begin_phase("build", 100.0)
            with unittest.mock.patch.dict(os.environ, PATH=session.environment["PATH"]):
                chosen = unittest.mock.Mock(build=folder / "build", packages=None, no_build=False)
                ready = build.run(session, chosen)
            session.log.close()
            left = {target for target, file in build.TARGETS.items() if (folder / "build" / file).exists()}
            return ready, session.results[0], left

    def test_what_does_not_build_costs_only_what_needs_it_and_leaves_no_old_program(self):
        ready, result, left = self.build("test_cuda")
        self.assertTrue(ready)
        self.assertEqual(result.status, FAILED)
        self.assertEqual(result.detail, "test_cuda: exit 1: x.cpp: error")
        self.assertEqual(left, set(build.TARGETS) - {"test_cuda"})
        self.assertFalse(self.build("polaron_cuda")[0])
        self.assertEqual(self.build("nothing")[1].status, PASSED)


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
