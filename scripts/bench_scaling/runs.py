"""Calls of polaron: what a run would move and need, and runs that are measured."""

import json
import os
import shlex
import signal
import statistics
import subprocess
import time
from pathlib import Path

from reproduce.base import Problem
from reproduce.program import environment, last_lines, on_processes

from .base import Measured, Planned, name_of


def run_plan(polaron: str, config: str, overrides: list, processes: int, exchange: str, folder: Path) -> Planned:
    file = folder / "plan.json"
    command = [polaron, "plan", config, "--processes", str(processes), "--json", str(file)]
    for override in [*overrides, f"parallel.exchange={exchange}"]:
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise Problem(f"`{shlex.join(command)}` failed with exit code {done.returncode}:\n"
                      + last_lines(done.stdout + done.stderr))
    plan = json.loads(file.read_text(encoding="utf-8"))
    return Planned(processes, exchange, plan["traffic"][exchange]["total"], plan["memory"]["total"])


def read_lines(path: Path) -> list:
    """The JSON objects of a metrics.jsonl that may still grow."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                lines.append(json.loads(text))
            except ValueError:
                pass
    return [line for line in lines if isinstance(line, dict)]


def stop(process: subprocess.Popen) -> None:
    """Ends a run and what it has started, politely at first: mpirun tells its processes."""
    for signal_number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, signal_number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def train(options, overrides: list, processes: int, exchange: str, folder: Path, on_step) -> Measured:
    """One run; on_step(number of steps done) is called while it goes on."""
    output = folder / "run"
    command = on_processes([options.polaron, "train", options.config], processes, options.mpirun)
    settings = [*overrides, f"training.steps={options.skip + options.steps}", f"output={json.dumps(str(output))}"]
    for setting in settings + ([f"parallel.exchange={exchange}"] if exchange else []):
        command += ["--set", setting]
    load = os.getloadavg()[0]
    with open(folder / "output.txt", "w+b") as said:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
                                       env=environment(), start_new_session=True)
        except OSError as error:
            raise Problem(f"cannot start '{command[0]}': {error.strerror}.") from error
        try:
            while process.poll() is None:
                on_step(sum(line.get("kind") == "step" for line in read_lines(output / "metrics.jsonl")))
                time.sleep(0.2)
        finally:
            stop(process)
        said.seek(0)
        text = said.read().decode(errors="replace")
    if process.returncode != 0:
        raise Problem(f"training on {name_of(processes, exchange)} failed with exit code {process.returncode}. "
                      f"Its last lines:\n{last_lines(text)}\nIt was: {shlex.join(command)}")
    return read_run(read_lines(output / "metrics.jsonl"), processes, exchange, options.skip, load)


def read_run(lines: list, processes: int, exchange: str, skip: int, load: float) -> Measured:
    rates = [line["tokens_per_s"] for line in lines
             if line.get("kind") == "step" and line["step"] > skip and line.get("tokens_per_s")]
    run = next((line for line in lines if line.get("kind") == "run"), {})
    end = next((line for line in reversed(lines) if line.get("kind") == "end"), None)
    if not rates or end is None:
        raise Problem(f"the run on {name_of(processes, exchange)} left no times of steps, or no end, in metrics.jsonl.")
    if run.get("processes") != processes:
        raise Problem(f"{name_of(processes, exchange)} were asked for and {run.get('processes')} ran: does mpirun "
                      "belong to the MPI that polaron was built with?")
    quartiles = statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else [rates[0]] * 3
    return Measured(processes, exchange, run.get("threads", 0), statistics.median(rates), (quartiles[0], quartiles[2]),
                    end.get("moved_a_step") or 0, load, run.get("device", ""))
