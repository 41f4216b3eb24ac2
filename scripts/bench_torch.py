#!/usr/bin/env python3
"""Times a GPT-2 124M training step in PyTorch on the CPU: the baseline for `polaron bench step`.

    pip install torch transformers numpy
    python scripts/bench_torch.py [--lengths 64,512] [--bf16] [--threads 2] [--steps 7] [--json FILE]

One step is forward, mean cross-entropy, backward and AdamW (fused, and foreach as the alternative) on all parameters:
transformers' GPT2LMHeadModel (vocabulary 50257, 12 layers, 12 heads, width 768), batch 4, SDPA attention, no dropout,
fp32 (matrix products in full fp32) or bf16 autocast. Eager and torch.compile (of forward and loss) are both tried. Each
variant runs warm-up steps, then the median of the timed ones counts. Tokens are random; the time does not depend on
them.

Prints one JSON object a line, {"what", "T", "B", "dtype", "compile", "optimizer", "threads", "ms", "tokens_per_s", ..},
and for each length one with "best": true, the fastest variant, which is the one to compare with. Run it on a machine
that does nothing else: "load_average" (1 minute, before the variant starts) shows whether it did.
"""

import argparse
import json
import os
import statistics
import sys
import time

VOCABULARY = 50257


def build(attention: str):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    config._attn_implementation = attention
    model = GPT2LMHeadModel(config).float().train()
    assert (config.vocab_size, config.n_layer, config.n_embd) == (VOCABULARY, 12, 768)
    return model


def time_variant(batch: int, length: int, compiled: bool, optimizer_kind: str, bf16: bool, steps: int, warmup: int):
    import torch

    model = build("sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1,
                                  **{optimizer_kind: True})

    def forward(inputs, targets):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model(input_ids=inputs).logits
        return torch.nn.functional.cross_entropy(logits.float().view(-1, VOCABULARY), targets.view(-1))

    run = torch.compile(forward) if compiled else forward
    tokens = torch.randint(0, VOCABULARY, (warmup + steps, batch, length + 1))
    times, loss = [], None
    for window in tokens:
        inputs, targets = window[:, :-1].contiguous(), window[:, 1:].contiguous()
        start = time.perf_counter()
        loss = run(inputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(1e3 * (time.perf_counter() - start))
    return times, loss.item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="64,512", metavar="T,...", help="sequence lengths (default 64,512)")
    parser.add_argument("--batch", type=int, default=4, metavar="B", help="sequences a step (default 4)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--steps", type=int, default=7, help="timed steps; their median counts (default 7)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before timing, compilation included (default 3)")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--compile", choices=("both", "on", "off"), default="both", help="torch.compile (default both)")
    parser.add_argument("--optimizers", default="fused,foreach", help="AdamW variants (default fused,foreach)")
    parser.add_argument("--json", metavar="FILE", help="append the lines to FILE too")
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.warmup < 1:
        parser.error("--steps and --warmup must be at least 1")

    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # before torch starts its threads
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"bench_torch: {error.name} is missing: pip install torch transformers", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("highest")
    common = {"what": "GPT-2 124M training step, PyTorch", "torch": torch.__version__,
              "transformers": transformers.__version__, "B": arguments.batch, "threads": arguments.threads,
              "dtype": "bf16 autocast" if arguments.bf16 else "fp32", "attention": "sdpa"}

    def report(line: dict) -> None:
        print(json.dumps(line), flush=True)
        if arguments.json:
            with open(arguments.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    failed = False
    for length in (int(text) for text in arguments.lengths.split(",")):
        lines = []
        for compiled in {"both": (False, True), "on": (True,), "off": (False,)}[arguments.compile]:
            for kind in arguments.optimizers.split(","):
                variant = common | {"T": length, "compile": compiled, "optimizer": f"AdamW {kind}",
                                    "load_average": round(os.getloadavg()[0], 2)}
                try:
                    times, loss = time_variant(arguments.batch, length, compiled, kind, arguments.bf16,
                                               arguments.steps, arguments.warmup)
                except Exception as error:  # a variant that does not run here (no compiler) must not hide the others
                    report(variant | {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})
                    failed = True
                    continue
                timed = times[arguments.warmup:]
                median = statistics.median(timed)
                lines.append(variant | {
                    "ms": round(median, 2), "tokens_per_s": round(1e3 * arguments.batch * length / median, 1),
                    "ms_min": round(min(timed), 2), "ms_max": round(max(timed), 2), "steps": len(timed),
                    "ms_first": round(times[0], 1), "loss": round(loss, 4)})
                report(lines[-1])
                if compiled:
                    torch.compiler.reset()
        if lines:
            report(min(lines, key=lambda line: line["ms"]) | {"best": True})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
