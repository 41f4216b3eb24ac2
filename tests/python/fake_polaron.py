"""A polaron that only pretends, for the tests of scripts/reproduce.py: it writes the files of a run without training.

Perplexity falls with the steps to a value that depends on the optimizer, its learning rate (best at BEST) and the seed.
Environment: FAKE_DIVERGE (glob of run names that end with exit code 4), FAKE_DIVERGE_ABOVE (rate of the matrices beyond
which every training does), FAKE_BAD (glob: perplexity beyond the vocabulary), FAKE_KILL (NAME:STEP, once: dies there as
by kill -9), FAKE_FAIL (NAME:CODE, always), FAKE_SLEEP (seconds a step), FAKE_MS (what a step says it took),
FAKE_BENCH (factor on the optimizers' milliseconds).
"""

import fnmatch
import glob
import json
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

BEST = {"adamw": (1e-3, 30.0), "muon": (0.02, 20.0), "low_rank_muon": (0.02, 22.0), "msgd": (0.02, 25.0),
        "low_rank_msgd": (0.01, 27.0), "sgd": (0.1, 50.0)}
VOCABULARY = 4096


def merge(config: dict, path: str, value) -> None:
    *parents, last = path.split(".")
    for key in parents:
        config = config.setdefault(key, {})
    config[last] = value


class Refused(Exception):
    """What polaron ends with exit code 2 for."""


def check_matrices(group: dict) -> None:
    for key in ("bf16_weights", "bf16_moments", "beta1", "beta2", "eps"):
        if key in group and group["type"] != "adamw":
            raise Refused(f"{key} is for adamw; the type here is {group['type']}")
    for key in ("rank", "basis", "rank_lr_compensation"):
        if key in group and not group["type"].startswith("low_rank"):
            raise Refused(f"{key} is for low_rank_muon and low_rank_msgd; the type here is {group['type']}")


def effective(words: list) -> dict:
    text = re.sub(r"//[^\n]*", "", Path(words[0]).read_text(encoding="utf-8"))
    config = json.loads(text)
    settings = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--set")
    for key, value in settings.items():
        merge(config, key, json.loads(value))
    if "optimizer.matrices.type" in settings:  # another type starts the group anew
        prefix = "optimizer.matrices."
        config["optimizer"]["matrices"] = {key[len(prefix):]: json.loads(value) for key, value in settings.items()
                                           if key.startswith(prefix)}
    check_matrices(config["optimizer"]["matrices"])
    config.pop("$schema", None)
    model, training = config["model"], config["training"]
    model.setdefault("kv_heads", model["heads"])
    model.setdefault("head_size", model["width"] // model["heads"])
    model.setdefault("mlp_hidden", 4 * model["width"])
    training.setdefault("sequence_length", model.get("context_length"))
    model.setdefault("context_length", training["sequence_length"])
    training.setdefault("micro_batch", training["batch"])
    a_step = training["batch"] * training["sequence_length"]
    if "training.steps" not in settings and "steps" not in training:
        training["steps"] = math.ceil(training["tokens"] / a_step)
    training["tokens"] = training["steps"] * a_step
    config["optimizer"]["matrices"].setdefault("lr", 0.02)
    for key, value in (("name", "x"), ("output", "runs/x"), ("seed", 1337), ("threads", 0)):
        config.setdefault(key, value)
    return config


def value_of(words: list, flag: str, default=None):
    return words[words.index(flag) + 1] if flag in words else default


def final_perplexity(config: dict) -> float:
    group = config["optimizer"]["matrices"]
    best, value = BEST[group["type"]]
    off = math.log2(group["lr"] / best)
    low_rank = 0.01 * (256 - group["rank"]) if "rank" in group else 0.0
    return value * (1 + 0.05 * off * off) + low_rank + 0.5 * (config["seed"] - 1)


def validation_targets(config: dict) -> int:
    """Those asked for (0: all), as far as the shards have them."""
    pattern = config["data"]["validation"]
    there = -1 + sum(int.from_bytes(Path(shard).read_bytes()[8:12], "little") for shard in glob.glob(pattern))
    return min(config["validation"]["tokens"] or there, there)


def matches(variable: str, name: str) -> bool:
    return fnmatch.fnmatch(name, os.environ.get(variable, ""))


def train(words: list) -> int:
    config = effective(words)
    name, run = config["name"], Path(config["output"])
    metrics, checkpoints = run / "metrics.jsonl", run / "checkpoints"
    print("training", name)
    first, kept = 0, []
    if "--resume" in words:
        first = int((checkpoints / "latest").read_text(encoding="utf-8"))
        for line in metrics.read_text(encoding="utf-8").split("\n"):
            try:
                kept += [line] if json.loads(line).get("step", 0) <= first else []
            except ValueError:
                pass
    elif metrics.exists():
        print("error: holds a run already", file=sys.stderr)
        return 2
    run.mkdir(parents=True, exist_ok=True)
    with open(Path(sys.argv[0]).with_name("calls.txt"), "a", encoding="utf-8") as calls:
        calls.write(f"{name} {first}\n")
    metrics.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    fail_name, _, code = os.environ.get("FAKE_FAIL", "").partition(":")
    if fail_name == name:
        print("error: there is no luck today", file=sys.stderr)
        return int(code)
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    with open(metrics, "a", encoding="utf-8", buffering=1) as file:
        return steps(config, name, file, checkpoints, first, stop)


def steps(config: dict, name: str, file, checkpoints: Path, first: int, stop: list) -> int:
    training, total = config["training"], config["training"]["steps"]
    a_step = training["batch"] * training["sequence_length"]
    end = final_perplexity(config) if not matches("FAKE_BAD", name) else 2.0 * VOCABULARY

    def write(**line) -> None:
        file.write(json.dumps(line) + "\n")

    def save(step: int) -> None:
        checkpoints.mkdir(exist_ok=True)
        (checkpoints / "latest").write_text(str(step), encoding="utf-8")

    write(kind="run", name=name, version="fake", device="Fake processor", threads=config["threads"] or 2,
          processes=int(os.environ.get("FAKE_PROCESSES", "1")), parameters=1000, step=first,
          gemm_flops=15 * 240 * 6 * 256**3 / 6,  # bench optimizer of 6 layers of width 256: 6 s
          precision={"auto": "fp32"}.get(config.get("precision", "auto"), config.get("precision")))
    kill_name, _, kill_step = os.environ.get("FAKE_KILL", "").partition(":")
    marker = Path(sys.argv[0]).with_name("killed")
    every, save_every = config.get("validation", {}).get("every", 0), config.get("checkpoint", {}).get("every", 0)
    for step in range(first + 1, total + 1):
        time.sleep(float(os.environ.get("FAKE_SLEEP", "0")))
        ms = float(os.environ.get("FAKE_MS", "100"))
        write(kind="step", step=step, tokens=step * a_step, loss=5.0, ms=ms, tokens_per_s=1000.0 + step % 3,
              memory=1_000_000 + step)
        too_fast = config["optimizer"]["matrices"]["lr"] > float(os.environ.get("FAKE_DIVERGE_ABOVE", "inf"))
        if (matches("FAKE_DIVERGE", name) or too_fast) and step >= total // 2:
            write(kind="end", step=step, reason=f"the loss is not finite at step {step}", exit_code=4, seconds=1.0)
            return 4
        if (every and step % every == 0) or step == total:
            perplexity = end * (1 + (total - step) / total)
            tokens = validation_targets(config)
            write(kind="validation", step=step, tokens=step * a_step, val_loss=math.log(perplexity),
                  perplexity=perplexity, val_tokens=tokens, ms=ms)
        if (save_every and step % save_every == 0) or step == total:
            save(step)
        if kill_name == name and step == int(kill_step) and not marker.exists():
            marker.touch()
            file.write('{"kind": "step", "ste')
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if stop:
            time.sleep(0.3)
            if len(stop) > 1:  # as polaron: at once, without a checkpoint
                return 6
            save(step)
            write(kind="end", step=step, reason="SIGTERM", exit_code=6, seconds=1.0)
            return 6
    write(kind="end", step=total, reason="done", exit_code=0, seconds=1.0)
    return 0


def main() -> int:
    command, words = sys.argv[1], sys.argv[2:]
    if command == "--version":
        print("polaron fake")
    elif command == "config":
        print(json.dumps(effective(words)))
    elif command == "plan":
        config = effective(words)
        width, training = config["model"]["width"], config["training"]
        Path(value_of(words, "--json")).write_text(json.dumps({
            "memory": {"total": 1000}, "flops_a_token": 12.0 * width * width,
            "tokens_a_step": training["batch"] * training["sequence_length"]}), encoding="utf-8")
    elif command == "bench":
        config = effective(words[1:])
        rank, width = config["optimizer"]["matrices"].get("rank", 64), config["model"]["width"]
        low_rank = {f"{name}, {sketch}": width * rank / 1e4 for name in ("low_rank_muon", "low_rank_msgd")
                    for sketch in ("columns", "gaussian", "power")}
        methods = {"muon": width * width / 1e4, "msgd": width * width / 2e4, "adamw (matrices)": 0.5} | low_rank
        Path(value_of(words, "--json")).write_text(json.dumps({
            "rank": rank, "methods": [{"method": name, "ms": ms * float(os.environ.get("FAKE_BENCH", "1"))}
                                      for name, ms in methods.items()]}), encoding="utf-8")
    elif command == "train":
        return train(words)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(2)
