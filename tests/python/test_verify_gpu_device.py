"""scripts/verify_gpu on a machine: suites of tests that fault, hang or are skipped, what is missing, and builds."""

import contextlib
import io
import json
import os
import sys
import tempfile
import unittest
import unittest.mock
from pathlib import Path

from verify_gpu_case import TEST_CUDA, TRAINS, write_program

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from verify_gpu import build, correctness, losses, machine, sanitize, suites  # noqa: E402
from verify_gpu.report import render  # noqa: E402
from verify_gpu.session import FAILED, PASSED, SKIPPED, UNFINISHED, Session  # noqa: E402


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


if __name__ == "__main__":
    unittest.main()
