"""What the tests of scripts/verify_gpu share: programs that stand for those of a machine with a GPU."""

from pathlib import Path

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
