"""How long the grid will take: from a short probe before the first run, from the runs themselves afterwards."""

import json
import shutil
import statistics
import subprocess
from pathlib import Path

from .base import Problem, format_duration, get, read_json, write_json
from .bench import Bench, allowance, missing_widths, trained
from .grid import data_vocabulary, validation_tokens
from .program import Polaron, end_with_parent, environment, last_lines, on_processes
from .results import read_lines
from .scaling import scale

PROBE_STEPS, PROBE_VALIDATION_TOKENS = 4, 4096
PROBE_RATE = 1e-8  # of all parameters: a rate of the grid may diverge, which is a result and no reason to stop
ENOUGH_STEPS = 20  # of a run, to judge its method's speed by
# `polaron bench optimizer` takes as long as 13 to 15 steps of Muon, all methods and repeats included, and its start. A step
# over all matrices takes as long as 217 to 248 width^3 operations a layer do at the rate of a large product, which every
# run notes. Measured on gpt2-tiny at widths 256 to 1024.
BENCH_STEPS, MUON_FLOPS, BENCH_START_SECONDS = 15, 240, 1.0


def probe_config(config: dict, output: Path) -> dict:
    """A few tiny steps of the same model and batch, and a small validation."""
    config = json.loads(json.dumps(config))
    training = config["training"]
    training["steps"] = PROBE_STEPS
    training["tokens"] = PROBE_STEPS * training["batch"] * training["sequence_length"]
    config["name"], config["output"] = "probe", str(output)
    config["schedule"] = {"type": "constant"}
    groups = config["optimizer"].values()
    for group in [each for value in groups for each in (value if isinstance(value, list) else [value])]:
        if isinstance(group, dict) and "lr" in group:
            group["lr"] = PROBE_RATE
    config["checkpoint"] = {"every": 0, "keep": 1}
    config["sample"] = {"every": 0}
    sequences = training["batch"] if training["micro_batch"] == "auto" else training["micro_batch"]
    tokens = max(PROBE_VALIDATION_TOKENS, sequences * training["sequence_length"])  # whole batches
    config["validation"]["every"] = 0
    config["validation"]["tokens"] = min(get(config, "validation.tokens", 0) or tokens, tokens)
    return config


def probe(config: dict, polaron: Polaron, options) -> dict:
    """{"step": seconds, "validation_token": seconds, "gemm_flops": per second} of a short run; also finds out whether
    training works at all."""
    folder = options.out / "probe"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        write_json(folder / "probe.json", probe_config(config, folder / "run"))
        command = [polaron.path, "train", str(folder / "probe.json")]
        if options.threads:
            command += ["--threads", str(options.threads)]
        command = on_processes(command, options.processes, options.mpirun)
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
                              check=False, env=environment(options.nice), preexec_fn=end_with_parent)  # noqa: PLW1509
        lines, _ = read_lines(folder / "run" / "metrics.jsonl")
        steps = [line["ms"] / 1e3 for line in lines if line.get("kind") == "step" and line.get("ms")]
        if done.returncode != 0 or not steps:
            raise Problem(f"a probe of {PROBE_STEPS} steps failed with exit code {done.returncode}; nothing is "
                          f"started. Its last lines:\n{last_lines(done.stdout + done.stderr)}", done.returncode or 2)
        # The first validation comes before the first step and touches all memory for the first time.
        token = min((line["ms"] / 1e3 / line["val_tokens"] for line in lines
                     if line.get("kind") == "validation" and line.get("val_tokens")), default=0.0)
        rate = next((line.get("gemm_flops", 0.0) for line in lines if line.get("kind") == "run"), 0.0)
        return {"step": statistics.median(steps[1:] or steps), "validation_token": token, "gemm_flops": rate}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Estimate:
    """Seconds that are left, from `probed` (see probe) and the results of runs."""

    def __init__(self, grid, options, probed=None):
        self.grid, self.options, self.probed = grid, options, probed
        self.benches = 0 if options.no_bench else len(Bench(options).missing(grid))
        self.widths = missing_widths(options) if "width" in options.figures else []

    @staticmethod
    def speeds(grid, results: dict) -> dict:
        """Method key -> seconds a step, validation included, of the methods that have run long enough.

        Medians, over a run's steps and over a method's runs: a machine that was busy or asleep for a while says
        nothing of what is to come."""
        found = {}
        for run in grid.known(results):
            result = results.get(run.name)
            if result and result.step >= min(ENOUGH_STEPS, run.steps) and result.step_seconds > 0:
                validation = result.validation_seconds / result.step if run.full else 0.0
                found.setdefault(run.method.key, []).append(result.step_seconds + validation)
        return {key: statistics.median(seconds) for key, seconds in found.items()}

    def probe_speed(self) -> float:
        config = next(iter(self.grid.configs.values()))
        steps, every = config["training"]["steps"], get(config, "validation.every", 0)
        validations = 1 + (steps // every if every else 0)
        tokens = validations * validation_tokens(config)
        return self.probed["step"] + tokens * self.probed["validation_token"] / steps

    def left(self, results: dict, active=(), most: bool = False):
        """Seconds of wall time until the grid is done, None if nothing is known. `active`: (run name, steps done).
        `most`: with every run by which searches may be extended."""
        speeds = self.speeds(self.grid, results)
        if not speeds and self.probed is None:
            return None
        usual = statistics.median(speeds.values()) if speeds else self.probe_speed()
        progress = {name: result.step for name, result in results.items()} | dict(active)
        total = 0.0
        for method in self.grid.methods:
            speed = speeds.get(method.key, usual)
            for name, steps in self.runs_of(method, results, most).items():
                if not (name in results and results[name].ended):
                    total += speed * max(0, steps - progress.get(name, 0))
        return total / self.options.jobs + self.measuring(results, total)

    def measuring(self, results: dict, training_left: float) -> float:
        """Seconds that the optimizers' times will about take, after the runs. `training_left`: seconds of all runs."""
        model = next(iter(self.grid.configs.values()))["model"]
        rates = [result.gemm_flops for result in results.values() if result.gemm_flops > 0]
        rate = statistics.median(rates) if rates else (self.probed or {}).get("gemm_flops", 0.0)

        def seconds(width: int) -> float:
            step = MUON_FLOPS * model["layers"] * width**3 / rate if rate > 0 else 0.0
            return BENCH_STEPS * step + BENCH_START_SECONDS

        widths = sum(seconds(int(of)) for of in self.widths)
        if not self.options.widths_asked:
            widths = min(widths, allowance(trained(results) + training_left, self.options))
        return self.benches * seconds(model["width"]) + widths

    def runs_of(self, method, results: dict, most: bool) -> dict:
        runs = self.grid.total_steps(method, results)
        return runs | self.grid.extensions(method, results) if most else runs

    def number_of_runs(self, results: dict, most: bool = False) -> int:
        return sum(len(self.runs_of(method, results, most)) for method in self.grid.methods)

    def words(self, results: dict, active=()) -> str:
        """"about 5 min left", with the most that it can become where searches may be extended; empty where nothing is
        known or left."""
        left, most = self.left(results, active), self.left(results, active, True)
        if not left:
            return ""
        least, most = format_duration(left), format_duration(most)
        return f"about {least} left" + (f" (up to {most})" if most != least else "")


def known_or_probed(grid, polaron: Polaron, options, results: dict, first_config: dict) -> Estimate:
    """Probes only where neither a run nor a former probe of the same settings tells the speed."""
    path = options.out / "probe.json"
    if Estimate.speeds(grid, results):
        return Estimate(grid, options)
    training, model = first_config["training"], first_config["model"]
    settings = {"training": training, "model": model, "threads": options.threads, "processes": options.processes,
                "polaron": polaron.path}
    former = read_json(path)
    if former is None or former.get("settings") != settings:
        former = {"settings": settings, "seconds": probe(first_config, polaron, options)}
        write_json(path, former)
    return Estimate(grid, options, former["seconds"])


def smaller_scale(left: float, budget: float, base: dict, config_path, polaron: Polaron, data: dict, s: float):
    """The largest scale (of two digits) whose FLOPs fit the budget at the present speed, None where none does."""

    def work(chosen: float) -> float:
        settings = {**data, **scale(base, chosen, data_vocabulary(base))}
        plan = polaron.plan(config_path, settings, 1)
        steps = settings.get("training.steps", base["training"]["steps"])
        return plan["flops_a_token"] * plan["tokens_a_step"] * steps

    now, low, high = work(s), 1e-5, s
    if work(low) * left > budget * now:
        return None
    for _ in range(10):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if work(middle) * left <= budget * now else (low, middle)
    digits = f"{low:.1e}"
    rounded = float(digits)
    return rounded if rounded <= low else float(f"{low * 0.95:.1e}")


def check_budget(estimate: Estimate, results: dict, options, smaller) -> None:
    """Refuses a grid that takes longer, or may where its searches are extended. `smaller`: () -> a scale that would
    fit, or None."""
    left, most = estimate.left(results), estimate.left(results, most=True)
    if options.budget is None or most is None or most <= options.budget:
        return
    runs = estimate.number_of_runs(results, True) - sum(result.ended for result in results.values())
    fitting = int(runs * options.budget / most)
    words = [f"{fitting} of the {runs} runs that are left would fit" if fitting else "not even one run would fit"]
    if left <= options.budget:
        words.append(f"without --extend {options.extend} all of them would")
    chosen = smaller()
    if chosen:
        words.append(f"with --scale {chosen:g} and a new --out all of them would")
    if len(options.seed_list) > 1:
        words.append("--seeds 1 or fewer --optimizers and --ranks make fewer runs")
    needed = f"about {format_duration(most)}"
    if most > left:
        needed = f"about {format_duration(left)}, or {format_duration(most)} if all searches are extended"
    raise Problem(f"the grid needs {needed}, {format_duration(most - options.budget)} more than the --budget of "
                  f"{format_duration(options.budget)}: {'; '.join(words)}. Nothing was started.")
