#!/usr/bin/env python3
"""Times training in PyTorch on a GPU: what `polaron bench step` and `polaron bench optimizer` are compared with.

    python scripts/bench_torch_gpu.py step gpt2-124m 32           GPT-2 124M, 32 x 1024 tokens a step
    python scripts/bench_torch_gpu.py step llama-350m 16
    python scripts/bench_torch_gpu.py optimizer 1024 24           optimizers over the matrices of 24 layers of width 1024

`step`: forward, mean cross-entropy, backward and fused AdamW; a plain model in torch.nn under bf16 autocast, torch.compile,
scaled_dot_product_attention (flash where the device has it), no dropout; random tokens. Where compiling fails it runs eagerly
and says so. `optimizer`: torch.optim.Muon and torch.optim.AdamW (fused) alone, on random gradients. Medians after warm-up.
Prints one JSON object as its last line. Needs torch alone.
"""

import argparse
import json
import statistics
import sys
import time

SHAPES = {  # layers, width, heads, hidden, vocabulary, length
    "gpt2-124m": (12, 768, 12, 3072, 50304, 1024),
    "llama-350m": (24, 1024, 16, 2736, 32000, 1024),
    "tiny-gpt2": (1, 64, 2, 256, 128, 16),
    "tiny-llama": (1, 64, 2, 128, 128, 16),
}


def build(name: str):
    import torch
    from torch import nn

    layers, width, heads, hidden, vocabulary, length = SHAPES[name]
    gpt2 = "gpt2" in name
    size = width // heads

    def rotate(x, cos, sin):
        low, high = x.chunk(2, dim=-1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            norm = nn.LayerNorm if gpt2 else nn.RMSNorm
            self.norm1, self.norm2 = norm(width, eps=1e-5), norm(width, eps=1e-5)
            self.qkv = nn.Linear(width, 3 * width, bias=gpt2)
            self.out = nn.Linear(width, width, bias=gpt2)
            self.up = nn.Linear(width, hidden if gpt2 else 2 * hidden, bias=gpt2)
            self.down = nn.Linear(hidden, width, bias=gpt2)

        def forward(self, x, cos, sin):
            batch, tokens, _ = x.shape
            q, k, v = (
                part.view(batch, tokens, heads, size).transpose(1, 2)
                for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
            )
            if not gpt2:
                q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))
            h = self.up(self.norm2(x))
            if gpt2:
                h = nn.functional.gelu(h, approximate="tanh")
            else:
                gate, up = h.chunk(2, dim=-1)
                h = nn.functional.silu(gate) * up
            return x + self.down(h)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(vocabulary, width)
            self.positions = nn.Embedding(length, width) if gpt2 else None
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = (nn.LayerNorm if gpt2 else nn.RMSNorm)(width, eps=1e-5)
            self.head = nn.Linear(width, vocabulary, bias=False)
            if gpt2:
                self.head.weight = self.tokens.weight
            for parameter in self.parameters():
                if parameter.dim() == 2:
                    nn.init.normal_(parameter, std=0.02)
            angles = torch.outer(torch.arange(length).float(), 10000.0 ** (-torch.arange(0, size, 2).float() / size))
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)

        def forward(self, inputs, targets):
            x = self.tokens(inputs)
            if self.positions is not None:
                x = x + self.positions.weight
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            logits = self.head(self.norm(x))
            return nn.functional.cross_entropy(logits.float().view(-1, vocabulary), targets.view(-1))

    torch.manual_seed(0)
    return Model(), vocabulary, length


def synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def median_ms(work, steps: int, warmup: int, device: str) -> float:
    times = []
    for i in range(warmup + steps):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        if i >= warmup:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def time_step(name: str, batch: int, device: str, steps: int, compiled: bool) -> dict:
    import torch

    model, vocabulary, length = build(name)
    model = model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    run = torch.compile(model) if compiled else model
    tokens = torch.randint(0, vocabulary, (batch, length + 1), device=device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = run(inputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    ms = median_ms(step, steps, 3, device)
    result = {
        "what": "step",
        "model": name,
        "batch": batch,
        "sequence_length": length,
        "compile": compiled,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "ms": ms,
        "tokens_per_s": 1e3 * batch * length / ms,
    }
    if device == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated()
    return result


def time_optimizers(width: int, layers: int, device: str, steps: int) -> dict:
    import torch

    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    makers = {"AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, fused=True)}
    if hasattr(torch.optim, "Muon"):
        makers["Muon"] = lambda parameters: torch.optim.Muon(parameters, lr=1e-4)
    times = {}
    for name, make in makers.items():
        parameters = [
            torch.nn.Parameter(torch.randn(shape, device=device) * 0.02) for _ in range(layers) for shape in shapes
        ]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter) * 1e-3
        times[name] = median_ms(make(parameters).step, steps, 2, device)
        del parameters
    return {"what": "optimizer", "width": width, "layers": layers, "ms": times}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "optimizer"))
    parser.add_argument("first", help="step: the model; optimizer: the width")
    parser.add_argument("second", type=int, help="step: sequences a step; optimizer: layers")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=10, help="timed steps; their median counts (default 10)")
    chosen = parser.parse_args()
    if chosen.what == "step" and chosen.first not in SHAPES:
        parser.error(f"the models are {', '.join(SHAPES)}")
    try:
        import torch
    except ImportError:
        print("bench_torch_gpu: torch is missing", file=sys.stderr)
        return 2
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("bench_torch_gpu: torch finds no CUDA device", file=sys.stderr)
        return 5
    if chosen.what == "optimizer":
        result = time_optimizers(int(chosen.first), chosen.second, chosen.device, chosen.steps)
    else:
        try:
            result = time_step(chosen.first, chosen.second, chosen.device, chosen.steps, chosen.device == "cuda")
        except Exception as error:  # no compiler for the generated code, say
            if chosen.device != "cuda":
                raise
            print(f"torch.compile: {type(error).__name__}: {error}", file=sys.stderr)
            torch.compiler.reset()
            result = time_step(chosen.first, chosen.second, chosen.device, chosen.steps, False)
    result["torch"] = torch.__version__
    if chosen.device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
