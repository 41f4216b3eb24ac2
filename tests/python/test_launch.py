"""scripts/launch.sh, scripts/slurm and scripts/compare_optimizers.sh: the commands that they would run."""

import importlib.util
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from reproduce import base, program  # noqa: E402

OPEN_MPI = 'if [ "$1" = --version ]; then echo "mpirun (Open MPI) 4.1.4"; fi'
OTHER_MPI = 'if [ "$1" = --version ]; then echo "HYDRA build details"; fi'


class Launching(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def program(self, name, body):
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    def run_script(self, script, arguments, variables):
        environment = {"PATH": f"{self.folder}:/usr/bin:/bin", **variables}
        return subprocess.run(["bash", str(SCRIPTS / script), *arguments], env=environment, capture_output=True,
                              cwd=self.folder, text=True, check=False)

    def launch(self, *arguments, mpi=OPEN_MPI, **variables):
        variables = {"MPIRUN": self.program("mpirun", mpi), "POLARON": "/bin/polaron", **variables}
        return self.run_script("launch.sh", ["--dry-run", *arguments], variables)

    def srun(self, body):
        """A stand-in: the body starts the task, whose words are "$@"."""
        self.program("srun", f'while case $1 in -*) ;; *) false ;; esac do shift; done\n{body}')

    def words(self, outcome):
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        return shlex.split(outcome.stdout)

    def test_the_scripts_are_bash(self):
        for script in [SCRIPTS / "launch.sh", *sorted((SCRIPTS / "slurm").glob("*.sbatch"))]:
            outcome = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
            self.assertEqual(outcome.returncode, 0, outcome.stderr)

    def test_as_many_processes_as_are_asked_for_with_the_arguments_untouched(self):
        words = self.words(self.launch("-n", "4", "train", "a config.json", "--resume", CUDA_VISIBLE_DEVICES="0"))
        self.assertEqual(words[1:3], ["-n", "4"])
        self.assertIn("--bind-to", words)
        self.assertEqual(words[words.index("/bin/polaron"):], ["/bin/polaron", "train", "a config.json", "--resume"])

    def test_one_process_a_visible_gpu(self):
        self.assertEqual(self.words(self.launch("train", "c", CUDA_VISIBLE_DEVICES="2,3,5"))[2], "3")
        self.program("nvidia-smi", "printf 'GPU 0: a\\nGPU 1: b\\n'")
        self.assertEqual(self.words(self.launch("train", "c"))[2], "2")
        self.assertEqual(self.words(self.launch("train", "c", CUDA_VISIBLE_DEVICES=""))[2], "1")
        self.program("nvidia-smi", "exit 9")
        self.assertEqual(self.words(self.launch("train", "c"))[2], "1")

    def test_other_machines_are_told_the_settings_of_nccl(self):
        hosts = self.folder / "hosts"
        hosts.write_text("a slots=8\nb slots=8\n")
        words = self.words(self.launch("-n", "16", "--hosts", str(hosts), "train", "c", NCCL_DEBUG="INFO"))
        self.assertEqual(words[words.index("--hostfile") + 1], str(hosts))
        self.assertEqual(words[words.index("-x") + 1], "NCCL_DEBUG")

    def test_the_program_built_last_is_taken_but_none_that_is_slow_on_purpose(self):
        (self.folder / "scripts").mkdir()
        shutil.copy(SCRIPTS / "launch.sh", self.folder / "scripts")
        for age, preset in enumerate(("sanitize", "portable", "quickstart", "cuda-release", "release")):
            (self.folder / "build" / preset).mkdir(parents=True)
            os.utime(self.program(f"build/{preset}/polaron", ""), (2e9 - age, 2e9 - age))
        # quickstart's, without a CUDA backend, is the last choice
        for found in ("cuda-release", "release", "quickstart"):
            words = self.words(self.run_script(self.folder / "scripts" / "launch.sh", ["--dry-run", "train", "c"],
                                               {"MPIRUN": self.program("mpirun", OTHER_MPI)}))
            self.assertEqual(words[3], str(self.folder / "build" / found / "polaron"))
            self.assertEqual(words[3], str(program.newest_build(self.folder)))
            os.remove(words[3])

    def test_where_nothing_is_built_both_commands_are_named(self):
        (self.folder / "scripts").mkdir()
        shutil.copy(SCRIPTS / "launch.sh", self.folder / "scripts")
        outcome = self.run_script(self.folder / "scripts" / "launch.sh", ["--dry-run", "train", "c"], {})
        self.assertEqual(outcome.returncode, 2)
        self.assertIn(program.BUILD, outcome.stderr)
        outcome = self.run_script("slurm/train.sbatch", ["c"], {"POLARON": "no-such-program"})
        self.assertEqual(outcome.returncode, 2)
        self.assertIn(program.BUILD, outcome.stderr)
        with self.assertRaises(base.Problem) as caught:
            program.find_program("no-such-program")
        self.assertIn(program.BUILD, str(caught.exception))

    def test_other_launchers_get_the_plain_command(self):
        words = self.words(self.launch("-n", "2", "train", "c", mpi=OTHER_MPI))
        self.assertEqual(words[1:], ["-n", "2", "/bin/polaron", "train", "c"])

    def test_what_makes_no_sense_is_refused(self):
        for arguments, part in ((["-n", "none", "train", "c"], "-n none"), (["-n", "0", "train", "c"], "-n 0"),
                                ([], "missing"), (["--fast"], "--fast"), (["--hosts", "/nowhere", "train"], "needs -n"),
                                (["-n", "2", "--hosts", "/nowhere", "train"], "/nowhere")):
            outcome = self.launch(*arguments)
            self.assertEqual(outcome.returncode, 2)
            self.assertIn(part, outcome.stderr)

    def test_the_programs_exit_code_is_the_scripts(self):
        outcome = self.run_script("launch.sh", ["-n", "1", "train", "c"],
                                  {"MPIRUN": self.program("mpirun", "exit 6"), "POLARON": "/bin/polaron"})
        self.assertEqual(outcome.returncode, 6)

    def test_slurm_starts_every_process_by_srun(self):
        for script in ("slurm/train.sbatch", "slurm/shared_gpu.sbatch"):
            words = self.words(self.run_script(script, ["c", "--seed", "2"], {"DRY_RUN": "1"}))
            self.assertEqual(words[0], "srun")
            self.assertIn("--kill-on-bad-exit=1", words)
            self.assertEqual(words[words.index("train"):][:4], ["train", "c", "--seed", "2"])
            self.assertNotEqual(self.run_script(script, [], {"DRY_RUN": "1"}).returncode, 0)

    def test_slurm_gives_every_process_the_cores_that_the_job_asks_for(self):
        for script in ("slurm/train.sbatch", "slurm/shared_gpu.sbatch"):
            for variables, option in (({"SLURM_CPUS_PER_TASK": "8"}, "--cpus-per-task=8"), ({}, "--cpus-per-task=1")):
                words = self.words(self.run_script(script, ["c"], {"DRY_RUN": "1", **variables}))
                self.assertIn(option, words[:words.index("train") - 1])

    def test_a_slurm_job_that_was_stopped_is_queued_again_and_then_resumes(self):
        told = self.folder / "told"
        self.program("scontrol", f'echo "$@" > {told}')
        variables = {"POLARON": self.program("polaron", "exit 6"), "SLURM_JOB_ID": "17"}
        for srun_ends in ("", "; kill -KILL $$"):  # as srun does where a task ends by another code than 0
            self.srun(f'SLURM_PROCID=1 "$@" || exit 137; SLURM_PROCID=0 "$@" || exit 137{srun_ends}')
            self.assertEqual(self.run_script("slurm/train.sbatch", ["c"], variables).returncode, 6)
            self.assertEqual(told.read_text(), "requeue 17\n")
            self.assertEqual(list(self.folder.glob(".polaron*")), [])
            told.unlink()
        words = self.words(self.run_script("slurm/train.sbatch", ["c"], {"DRY_RUN": "1", "SLURM_RESTART_COUNT": "1"}))
        self.assertEqual(words[-2:], ["c", "--auto-resume"])

    def test_a_slurm_task_hands_signals_on_to_the_program(self):
        self.program("scontrol", "true")
        self.srun('SLURM_PROCID=0 exec "$@"')
        for name, code in (("TERM", 6), ("INT", 6), ("USR1", 0)):
            started, told = self.folder / "started", self.folder / "told"
            polaron = self.program("polaron", f"""exec {sys.executable} -c '
import os, pathlib, signal, sys
def answer(*_):
    pathlib.Path("told").write_text("{name}")
    sys.exit({code})
signal.signal(signal.SIG{name}, answer)
signal.alarm(60)
pathlib.Path("new").write_text(str(os.getppid()))
os.rename("new", "started")
signal.pause()'""")
            with subprocess.Popen(["bash", str(SCRIPTS / "slurm" / "train.sbatch"), "c"], cwd=self.folder,
                                  env={"PATH": f"{self.folder}:/usr/bin:/bin", "POLARON": polaron,
                                       "SLURM_JOB_ID": "17"}, stdout=subprocess.DEVNULL) as job:
                while not started.exists() and job.poll() is None:
                    time.sleep(0.01)
                os.kill(int(started.read_text()), getattr(signal, f"SIG{name}"))  # the task's first process alone
                self.assertEqual(job.wait(), code)
            self.assertEqual(told.read_text(), name)
            started.unlink()

    @unittest.skipUnless(importlib.util.find_spec("matplotlib"), "matplotlib is missing")
    def test_optimizers_are_compared_with_paths_of_the_callers_folder(self):
        told, folder = self.folder / "words", self.folder.resolve()
        self.program("program", f'for word; do echo "$word"; done > {told}; exit 9')
        outcome = self.run_script("compare_optimizers.sh", ["./program", "my shards", "out"],
                                  {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"})
        self.assertEqual(outcome.returncode, 9, outcome.stderr)
        words = told.read_text().split("\n")
        self.assertIn(f"data.train={folder}/my shards/train_*.bin", words)
        self.assertIn(f"output={folder}/out/adamw", words)

    def test_a_slurm_job_that_fails_is_not_queued_again(self):
        told = self.folder / "told"
        self.srun('SLURM_PROCID=0 "$@"')
        self.program("scontrol", f'echo "$@" > {told}')
        (self.folder / ".polaron-stopped-17").touch()  # of the job's last time
        variables = {"POLARON": self.program("polaron", "exit 4"), "SLURM_JOB_ID": "17"}
        self.assertEqual(self.run_script("slurm/train.sbatch", ["c"], variables).returncode, 4)
        self.assertFalse(told.exists())


if __name__ == "__main__":
    unittest.main()
