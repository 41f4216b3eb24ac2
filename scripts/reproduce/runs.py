"""Starts trainings, continues interrupted ones, and watches over them until they end."""

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from .base import Problem, read_json, write_json
from .grid import Run
from .program import Polaron, end_with_parent, environment, last_lines, on_processes, set_words
from .results import EXIT_NUMERICAL, read_result

POLL_SECONDS, NOTE_SECONDS = 1.0, 60.0
STOP_PATIENCE = 300.0  # for a training to write its checkpoint
ORPHAN_PATIENCE = 300.0  # for a training that a killed call left behind to write its checkpoint
ATTEMPTS = 3  # of a run that crashes


class Lock:
    """Held as long as this process or a training that it started lives: the file stays open in both."""

    def __init__(self, folder: Path, patience: float = ORPHAN_PATIENCE):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "lock"
        self.file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
        until = time.monotonic() + patience
        told = False
        while True:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = self.owner()
                if owner or time.monotonic() >= until:
                    who = f"process {owner}" if owner else "a training that a former call left behind"
                    raise Problem(f"'{folder}' is in use by {who}. Wait for it, or stop it (SIGTERM makes it "
                                  "checkpoint).") from None
                if not told:
                    print("waiting for a training that a former call left behind to stop", file=sys.stderr, flush=True)
                    told = True
                time.sleep(0.5)
        self.file.seek(0)
        self.file.truncate()
        self.file.write(str(os.getpid()))
        self.file.flush()

    def owner(self) -> int:
        """The process that wrote its number into the lock, 0 where that is gone."""
        self.file.seek(0)
        text = self.file.read().strip()
        try:
            words = Path(f"/proc/{int(text)}/cmdline").read_bytes()
        except (ValueError, OSError):
            return 0
        return int(text) if b"reproduce" in words or b"python" in words else 0

    def release(self) -> None:
        self.file.close()


class Record:
    """records/NAME.json: what metrics.jsonl does not know, above all how busy the machine was; and that the run ended,
    so that a damaged metrics.jsonl is not taken for that of a run killed early."""

    def __init__(self, folder: Path, name: str):
        self.path = folder / "records" / f"{name}.json"
        self.values = read_json(self.path) or {"sessions": 0, "load_sum": 0.0, "load_samples": 0}
        self.saved = 0.0

    def start(self, options) -> None:
        self.values["sessions"] += 1
        self.values.pop("ended", None)
        self.values |= {"nice": options.nice, "jobs": options.jobs, "processes": options.processes}
        self.sample(force=True)

    def sample(self, force: bool = False) -> None:
        if force or time.monotonic() >= self.saved + NOTE_SECONDS:
            self.values["load_sum"] += os.getloadavg()[0]
            self.values["load_samples"] += 1
            write_json(self.path, self.values)
            self.saved = time.monotonic()

    def end(self, state: str, steps: int) -> None:
        ended = {"state": state, "steps": steps}
        if self.values.get("ended") != ended:
            self.values["ended"] = ended
            write_json(self.path, self.values)


def damage(folder: Path, name: str, values: dict) -> str:
    """What is wrong with the result of a run that ended by `values`, its record; empty where nothing is, or where the
    run's directory was removed to train it anew."""
    run_folder, ended = folder / "runs" / name, values.get("ended")
    if not ended or not run_folder.exists():
        return ""
    result = read_result(run_folder, ended["steps"])
    if result.ended:
        return ""
    lost = f"; it breaks off after step {result.step}" if result.step else ""
    return (f"'{run_folder / 'metrics.jsonl'}' is damaged: by '{folder / 'records' / name}.json' the run ended "
            f"({ended['state']}), and the file does not say so{lost}. Put it back from a copy, or remove "
            f"'{run_folder}' to train the run anew.")


def find_damage(folder: Path) -> list:
    """The damage of all results below `folder`, in words."""
    found = [damage(folder, path.stem, read_json(path) or {}) for path in sorted((folder / "records").glob("*.json"))]
    return [words for words in found if words]


def mean_load(folder: Path, name: str):
    """(mean load average, nice) while the run was trained, None where nobody noted it."""
    values = read_json(folder / "records" / f"{name}.json")
    if not values or not values.get("load_samples"):
        return None
    return values["load_sum"] / values["load_samples"], values.get("nice", 0)


def checkpoint_of(run_folder: Path) -> bool:
    """Whether `polaron train --resume` finds one: it does without the link `latest`."""
    folder = run_folder / "checkpoints"
    return (folder / "latest").exists() or any(path.is_dir() for path in folder.glob("step-*"))


def progress_of(run_folder: Path) -> int:
    """The last step in metrics.jsonl, from the end of the file."""
    try:
        with open(run_folder / "metrics.jsonl", "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            tail = file.read().decode(errors="replace").split("\n")
    except OSError:
        return 0
    for text in reversed(tail):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            return line["step"]
    return 0


class Training:
    """A started run of polaron."""

    def __init__(self, run: Run, polaron: Polaron, options, lock: Lock):
        self.run, self.options = run, options
        self.folder = options.out / "runs" / run.name
        self.output = options.out / "logs" / f"{run.name}.txt"
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.record = Record(options.out, run.name)
        resume = checkpoint_of(self.folder)
        if not resume and self.folder.exists():
            words = damage(options.out, run.name, self.record.values)
            if words:
                raise Problem(words, 3)
            print(f"reproduce: '{run.name}' was stopped at step {progress_of(self.folder)} and has no checkpoint; it "
                  "begins anew", file=sys.stderr, flush=True)
            shutil.rmtree(self.folder)
        command = [polaron.path, "train", str(options.out / "configs" / f"{run.name}.json")]
        command += set_words({"output": str(self.folder)} | ({"threads": options.threads} if options.threads else {}))
        command += ["--resume"] if resume else []
        self.command, self.told = on_processes(command, options.processes, options.mpirun), False
        self.first_step = progress_of(self.folder) if resume else 0
        self.record.start(options)
        self.started = time.monotonic()
        with open(self.output, "ab") as said:
            try:
                self.process = subprocess.Popen(
                    self.command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
                    env=environment(options.nice), start_new_session=True, preexec_fn=end_with_parent,  # noqa: PLW1509
                    pass_fds=(lock.file.fileno(),))
            except OSError as error:
                raise Problem(f"cannot start '{self.command[0]}': {error.strerror}.") from error

    def step(self) -> int:
        return progress_of(self.folder)

    def running(self) -> bool:
        self.record.sample()
        return self.process.poll() is None

    def tell_to_stop(self) -> None:
        """Once: polaron then writes a checkpoint, and mpirun tells its processes; a second signal stops at once."""
        if not self.told and self.process.poll() is None:
            self.told = True
            self.process.terminate()

    def stop(self) -> None:
        self.tell_to_stop()
        try:
            self.process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def last_words(self) -> str:
        try:
            return last_lines(self.output.read_text(encoding="utf-8", errors="replace")[-8000:])
        except OSError:
            return last_lines("")


class Runner:
    """Runs what the grid asks for, `jobs` at a time, until nothing is left."""

    def __init__(self, grid, polaron: Polaron, options, lock: Lock, vocabulary: int):
        self.grid, self.polaron, self.options, self.lock, self.vocabulary = grid, polaron, options, lock, vocabulary
        self.results, self.active, self.attempts, self.failed = {}, [], {}, {}

    def read(self, run: Run):
        folder = self.options.out / "runs" / run.name
        result = read_result(folder, run.steps, self.vocabulary)
        result.name = run.name
        return result

    def refresh(self) -> list:
        """Reads the results of all known runs that are not active; finished ones may make more runs known."""
        active = {training.run.name for training in self.active}
        while True:
            known = self.grid.known(self.results)
            unread = [run for run in known if run.name not in self.results and run.name not in active]
            if not unread:
                return known
            for run in unread:
                self.results[run.name] = self.read(run)

    def note_ended(self) -> None:
        """In the records, of runs that ended when nobody noted it: in a killed call, or by an older version."""
        for name, result in self.results.items():
            if result.ended:
                Record(self.options.out, name).end(result.state, self.grid.made[name].steps)

    def next(self):
        active = {training.run.name for training in self.active}
        for run in self.refresh():
            if run.name not in active and run.name not in self.failed and not self.results[run.name].ended:
                return run
        return None

    def loop(self, on_poll, on_end) -> None:
        """on_poll(runner) is called while runs go on, on_end(run, result) after each."""
        try:
            while True:
                while len(self.active) < self.options.jobs and (run := self.next()) is not None:
                    self.grid.freeze(run)
                    self.active.append(Training(run, self.polaron, self.options, self.lock))
                if not self.active:
                    return
                for training in [training for training in self.active if not training.running()]:
                    self.active.remove(training)
                    self.finish(training, on_end)
                on_poll(self)
                time.sleep(POLL_SECONDS)
        finally:
            for training in self.active:  # all are told before any is waited for
                training.tell_to_stop()
            for training in self.active:
                training.stop()

    def finish(self, training: Training, on_end) -> None:
        run, code = training.run, training.process.returncode
        result = self.results[run.name] = self.read(run)
        if result.ended:
            training.record.end(result.state, run.steps)  # before the checkpoints go
            if not self.options.keep_checkpoints:
                shutil.rmtree(training.folder / "checkpoints", ignore_errors=True)
            on_end(run, result)
            return
        words = f"'{run.name}' ended with exit code {code}. Its last lines:\n{training.last_words()}\nIt was: " \
                f"{shlex.join(training.command)}"
        if code in (2, 3) or code == EXIT_NUMERICAL:
            raise Problem(f"the training {words}", code)
        # A crash, a kill or a full memory: continue from the checkpoint; the grid goes on without a run that cannot.
        self.attempts[run.name] = self.attempts.get(run.name, 0) + 1
        if result.step > training.first_step:
            self.attempts[run.name] = 1
        if self.attempts[run.name] >= ATTEMPTS:
            self.failed[run.name] = f"exit code {code}"
            print(f"reproduce: the training {words}\nIt is left out.", file=sys.stderr, flush=True)
