"""The modded models of arXiv 2509.11983 in plain PyTorch, and their parity fixtures (make_fixtures.py writes them).

Written from a description of the authors' public code (docs/paper.md sums it up), not from polaron's, and in its terms:
the mask is made of their lists of FULL and PARTIAL blocks of tokens, element by element, where polaron keeps one number
a row. Tensors have the names of polaron's checkpoints.

    modded_gpt2    x0 mixing, U-net skips, value embeddings in the first and last three of 8 blocks, no norm before
                   attention, RMS norm of q, k and v, scale 0.12, ReLU squared, norms without gains, no attention in
                   block 3
    modded_llama   LayerNorm (with gains and shifts, as configs/paper trains them), SwiGLU of an odd size, plain
                   attention, skips and value embeddings; the scalars of x0 mixing exist and are not used

Both: half-truncated rotary positions, long and short windows of whole blocks within documents, more softmax entries
than tokens, logits 15 z / sqrt(z^2 + 225). Nothing is zero or one by accident: output matrices, head and scalars, which
start as zero, zero, 0, 1 and 0.5, are drawn here.
"""

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, layer_norm, linear, silu

VOCABULARY, SOFTMAX, SEPARATOR = 61, 67, 60
LAYERS, VALUE_TABLES = 8, 3
SKIPS = {6: 3, 7: 0}  # to block: from block
LONG_WINDOWS = (0, 4, 7)
RMS_EPS, LAYERNORM_EPS = 1.1920929e-7, 1e-5


@dataclass(frozen=True)
class Model:
    llama: bool
    seed: int
    width: int
    heads: int
    hidden: int
    block: int  # tokens of a block of the mask
    window_final: int  # tokens of the window at the end of a run
    progress: tuple[float, ...]  # shares of a run at which the windows are taken; gradients at the first
    length: int
    separators: tuple[tuple[int, ...], ...]  # where documents begin, a sequence
    attention_free: tuple[int, ...] = ()

    @property
    def head_size(self) -> int:
        return self.width // self.heads


PROGRESS = (0.8, 0.0, 0.08, 0.5, 0.9, 1.0)
MODELS = {
    # Documents cut at the start, of one token, beginning in a block and at its edge, two in a block; 6 blocks long.
    "modded_gpt2": Model(False, 11, 24, 2, 60, 8, 48, PROGRESS, 64, ((5, 35, 36, 40), (0, 50, 51, 60)), (3,)),
    "modded_llama": Model(True, 12, 24, 3, 41, 4, 36, PROGRESS, 48, ((2, 3, 40), (4, 21, 23, 24), (0,))),
}


def config(m: Model) -> dict:
    """config.json, which polaron reads as that of a checkpoint of its own."""
    shared = {
        "layers": LAYERS, "width": m.width, "heads": m.heads, "kv_heads": m.heads, "head_size": m.head_size,
        "mlp_hidden": m.hidden, "vocabulary": VOCABULARY, "head_vocabulary": SOFTMAX, "context_length": m.length,
        "positions": "rotary", "rotary_frequencies": "half_truncated", "biases": False, "tied_embeddings": False,
        "document_mask": True, "window_block": m.block, "window_final": m.window_final,
        "long_window_blocks": list(LONG_WINDOWS), "logit_softcap": 15.0, "logit_softcap_form": "algebraic",
        "value_embeddings": VALUE_TABLES, "skips": [[source, to] for to, source in SKIPS.items()],
        "attention_free_blocks": list(m.attention_free)}
    gpt2 = {"preset": "gpt2", "mlp": "relu2", "norm": "rmsnorm", "norm_affine": False, "norm_eps": RMS_EPS,
            "embedding_norm": True, "attention_norm": False, "x0_mixing": True, "qk_norm": True, "v_norm": True,
            "attention_scale": 0.12}
    llama = {"preset": "llama", "mlp": "swiglu", "norm": "layernorm", "norm_eps": LAYERNORM_EPS,
             "attention_scale": m.head_size**-0.5}
    return {"model_type": "polaron", "vocab_size": VOCABULARY, "polaron": shared | (llama if m.llama else gpt2)}


def make_weights(m: Model) -> dict[str, torch.Tensor]:
    """Matrices n / sqrt(in), head twice that (logits that the soft-cap bends), tables n, gains 1 + 0.2 n."""
    random = np.random.default_rng(m.seed)
    weights = {}

    def draw(name: str, *shape: int, scale: float = 1.0, mean=0.0) -> None:
        weights[name] = torch.from_numpy(mean + scale * random.standard_normal(shape)).float()

    def draw_norm(name: str) -> None:
        if m.llama:
            draw(f"{name}.weight", m.width, scale=0.2, mean=1.0)
            draw(f"{name}.bias", m.width, scale=0.1)

    for table in ("token", *(f"value{i}" for i in range(VALUE_TABLES))):
        draw(f"embedding.{table}", VOCABULARY, m.width)
    draw("scalars", 5 * LAYERS, scale=0.2, mean=np.array([1.0] * LAYERS + [1.0, 0.0] * LAYERS + [0.5] * 2 * LAYERS))
    for i in range(LAYERS):
        if i not in m.attention_free:
            draw_norm(f"blocks.{i}.norm1")
            for name in ("qkv.weight.q", "qkv.weight.k", "qkv.weight.v", "out.weight"):
                draw(f"blocks.{i}.attention.{name}", m.width, m.width, scale=m.width**-0.5)
        draw_norm(f"blocks.{i}.norm2")
        for name in ("gate_up.weight.gate", "gate_up.weight.up") if m.llama else ("up.weight",):
            draw(f"blocks.{i}.mlp.{name}", m.hidden, m.width, scale=m.width**-0.5)
        draw(f"blocks.{i}.mlp.down.weight", m.width, m.hidden, scale=m.hidden**-0.5)
    draw_norm("final_norm")
    draw("head.weight", SOFTMAX, m.width, scale=2 * m.width**-0.5)
    return weights


def make_tokens(m: Model) -> torch.Tensor:
    """[sequences, length + 1], with separators at the first token of each document."""
    tokens = np.random.default_rng(100 + m.seed).integers(0, SEPARATOR, (len(m.separators), m.length + 1))
    for sequence, starts in zip(tokens, m.separators, strict=True):
        sequence[list(starts)] = SEPARATOR
    return torch.from_numpy(tokens)


# --- mask -----------------------------------------------------------------------------------------------------------


def window_at(m: Model, progress: float) -> int:
    """The long window in blocks; the short one is half of it, rounded down."""
    share = 4 * progress**3 - 6 * progress**2 + 3 * progress
    return ceil(max(m.window_final * share, 1) / m.block)


def mask(tokens: torch.Tensor, block: int, window: int) -> torch.Tensor:
    """[T, T]: which keys the queries of one sequence see."""
    document = (tokens == SEPARATOR).cumsum(0)
    low, high = document[::block].tolist(), document[block - 1::block].tolist()
    kept = torch.zeros(len(low), len(low), dtype=torch.bool)
    for i in range(len(low)):
        full = [j for j in range(i) if low[i] == high[j] and high[i] == low[j]]
        partial = [j for j in range(i + 1) if low[i] <= high[j] and high[i] >= low[j] and j not in full]
        kept[i, partial[::-1][:max(window - len(full), 1)] + full[::-1][:max(window - 1, 0)]] = True
    by_block = kept.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return by_block & (document[:, None] == document) & torch.ones_like(by_block).tril()


# --- model ----------------------------------------------------------------------------------------------------------


def rms(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + RMS_EPS).sqrt()


def rotate(x: torch.Tensor) -> torch.Tensor:
    """[B, T, heads, head size]: half of the pairs turn, the other half stand still."""
    turning = x.shape[-1] // 4
    frequencies = torch.zeros(2 * turning, dtype=x.dtype)
    frequencies[:turning] = (1 / 1024) ** (torch.arange(turning, dtype=x.dtype) / (turning - 1))
    angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None, None] * frequencies
    first, second = x.chunk(2, -1)
    return torch.cat([first * angles.cos() + second * angles.sin(), second * angles.cos() - first * angles.sin()], -1)


def logits_of(m: Model, weights: dict[str, torch.Tensor], tokens: torch.Tensor, window: int) -> torch.Tensor:
    """[B, T, SOFTMAX], after the soft-cap."""
    skip = weights["scalars"][:LAYERS]
    mix = weights["scalars"][LAYERS:3 * LAYERS].reshape(LAYERS, 2)
    value = weights["scalars"][3 * LAYERS:].reshape(LAYERS, 2)
    masks = {blocks: torch.stack([mask(row, m.block, blocks) for row in tokens]) for blocks in (window, window // 2)}
    value_tables = [*range(VALUE_TABLES), *[None] * (LAYERS - 2 * VALUE_TABLES), *range(VALUE_TABLES)]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        if not m.llama:
            return rms(x)
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], LAYERNORM_EPS)

    def attention(x: torch.Tensor, i: int) -> torch.Tensor:
        prefix = f"blocks.{i}.attention"
        q, k, v = (linear(x, weights[f"{prefix}.qkv.weight.{n}"]).unflatten(-1, (m.heads, m.head_size)) for n in "qkv")
        if not m.llama:
            q, k, v = rms(q), rms(k), rms(v)
        v = value[i, 0] * v
        if value_tables[i] is not None:
            v = v + value[i, 1] * weights[f"embedding.value{value_tables[i]}"][tokens].view_as(v)
        scores = torch.einsum("bqhd,bkhd->bhqk", rotate(q), rotate(k)) * (m.head_size**-0.5 if m.llama else 0.12)
        seen = masks[window if i in LONG_WINDOWS else window // 2]
        shares = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        return linear(torch.einsum("bhqk,bkhd->bqhd", shares, v).flatten(2), weights[f"{prefix}.out.weight"])

    def mlp(x: torch.Tensor, prefix: str) -> torch.Tensor:
        if m.llama:
            hidden = silu(linear(x, weights[f"{prefix}.gate_up.weight.gate"]))
            hidden = hidden * linear(x, weights[f"{prefix}.gate_up.weight.up"])
        else:
            hidden = linear(x, weights[f"{prefix}.up.weight"]).relu().square()
        return linear(hidden, weights[f"{prefix}.down.weight"])

    x = weights["embedding.token"][tokens]
    if not m.llama:
        x = rms(x)
    x0, outputs = x, []
    for i in range(LAYERS):
        if i in SKIPS:
            x = x + skip[SKIPS[i]] * outputs[SKIPS[i]]
        if not m.llama:
            x = mix[i, 0] * x + mix[i, 1] * x0
        if i not in m.attention_free:
            x = x + attention(norm(x, f"blocks.{i}.norm1") if m.llama else x, i)
        x = x + mlp(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp")
        outputs.append(x)
    z = linear(norm(x, "final_norm"), weights["head.weight"])
    return 15 * z / (z.square() + 225).sqrt()


# --- fixtures -------------------------------------------------------------------------------------------------------


def expected_values(m: Model, tokens: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    weights = {name: value.to(dtype).requires_grad_() for name, value in make_weights(m).items()}
    windows = [window_at(m, progress) for progress in m.progress]
    ids, targets = tokens[:, :-1], tokens[:, 1:]
    losses = []
    for window in windows:
        logits = logits_of(m, weights, ids, window)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
        if not losses:
            loss.backward()
            first = {"logits": logits.detach()[..., :VOCABULARY], "loss": loss.detach().reshape(1)}
        losses.append(loss.item())
    gradients = {f"grad.{name}": value.grad for name, value in weights.items()}
    return first | gradients | {"losses": torch.tensor(losses, dtype=dtype)}


def write_model(name: str, folder: Path) -> None:
    m = MODELS[name]
    (folder / "config.json").write_text(json.dumps(config(m), indent=2) + "\n")
    save_file(make_weights(m), folder / "model.safetensors", metadata={"format": "pt"})
    tokens = make_tokens(m)
    exact = expected_values(m, tokens, torch.float64)
    single = expected_values(m, tokens, torch.float32)
    tensors = {key: value.float().contiguous() for key, value in exact.items()}
    tensors |= {"ids": tokens[:, :-1].int().contiguous(), "targets": tokens[:, 1:].int().contiguous(),
                "separator": torch.tensor([SEPARATOR], dtype=torch.int32), "progress": torch.tensor(m.progress),
                "windows": torch.tensor([window_at(m, progress) for progress in m.progress], dtype=torch.int32)}
    save_file(tensors, folder / "expected.safetensors")

    gradients = [key for key in exact if key.startswith("grad.")]
    norm = sum(exact[key].square().sum() for key in gradients) ** 0.5
    worst = max(((single[key] - exact[key]).norm() / exact[key].norm()).item() for key in gradients)
    least = min(exact[key].norm().item() for key in gradients)
    print(f"{name}: loss {exact['loss'].item():.6f}, gradient norm {norm:.4f} (least of a tensor {least:.4f}); windows "
          f"{tensors['windows'].tolist()}; PyTorch's fp32 differs from float64 by "
          f"{(single['logits'] - exact['logits']).abs().max():.1e} (logits), {worst:.1e} (gradients, relative)")
