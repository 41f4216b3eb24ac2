#!/usr/bin/env python3
"""Makes the PyTorch parity fixtures in tests/parity/fixtures. The C++ tests read those files and need no Python.

Regenerate (into the committed place, or elsewhere), or check that the committed files still come out:

    pip install torch transformers safetensors numpy
    python tests/parity/make_fixtures.py [--out DIR]
    python tests/parity/make_fixtures.py --check

Weights and tokens come from NumPy's PCG64 with fixed seeds, so they do not depend on the version of PyTorch. Expected
values were written with torch 2.15.0 and transformers 5.23.0 on one thread.

Models, all random, with every bias and norm gain randomised so that nothing is 0 or 1 by accident:

    gpt2           GPT2LMHeadModel as save_pretrained writes it: 2 layers, 4 heads, width 32, GELU (tanh)
    gpt2_variant   GELU (exact), inner size 70, 3 heads; written as old files on the hub are: names without the prefix
                   "transformer.", causal masks stored as h.N.attn.bias (a reader must ignore those)
    llama          LlamaForCausalLM: width 48, inner 80, 4 heads on 2 key/value heads, untied
    llama_variant  inner size 85 (odd, so that storage is padded), 4 heads on 1, rope_theta 500000, tied embeddings;
                   config.json in the form of transformers 4 (rope_theta and torch_dtype at top level; transformers 5
                   writes rope_parameters and dtype, as in llama/config.json)
    modded_gpt2, modded_llama   see modded_torch.py; a folder as polaron writes it, not as transformers does

fixtures/MODEL/config.json, model.safetensors   a Hugging Face folder, fp32

fixtures/MODEL/expected.safetensors   computed in float64 throughout (also where transformers forces float32 inside:
    norms, softmax, rotary angles), then stored as fp32: the true value, free of PyTorch's own rounding
    ids           int32 [B,T]     input tokens
    targets       int32 [B,T]     target of each position, none ignored
    logits        fp32  [B,T,V]
    loss          fp32  [1]       mean cross-entropy over the B*T targets
    grad.NAME     fp32            d loss / d NAME, shape of NAME, for every parameter NAME of the transformers model (a
                                  tied head is part of the embedding's gradient and has no entry of its own)
    of the modded models also (their logits are of the V tokens that exist, their loss of all softmax entries):
    separator     int32 [1]       token that opens a document
    progress      fp32  [n]       shares of a run; all of the above is with the windows at the first
    windows       int32 [n]       long window at each, in blocks of tokens
    losses        fp32  [n]       loss at each

fixtures/curves.safetensors
    ids           int32 [20,B,T+1]  batch i: inputs ids[i,:,:T], targets ids[i,:,1:]. T is shorter than the models'
                                    position tables. Tokens of a Markov chain, so that there is something to learn.

fixtures/curves.json   {"steps": 20, "batches": "curves.safetensors", "curves": [...]}; a curve is
    name, model            the curve starts from the weights in fixtures/MODEL
    clip                   null, or the maximal global gradient norm (torch.nn.utils.clip_grad_norm_, all parameters)
    newton_schulz_dtype    "float32": torch.optim.Muon's Newton-Schulz with its cast to bfloat16 taken out;
                           "bfloat16": torch.optim.Muon untouched; null: no Muon in this curve
    groups                 [{optimizer: "adamw" | "muon", its hyperparameters under torch's names, parameters: [NAME]}].
                           Together they name each parameter once.
                           AdamW: decay on embeddings, position embeddings, an untied head and (where AdamW has them)
                           matrices; no decay on vectors (biases and norm gains).
                           Muon: the matrices inside the blocks, each taken as [out, in]; GPT-2's Conv1D weights, stored
                           [in, out], are transposed first, and c_attn is three matrices q, k, v. adjust_lr_fn
                           "original": lr * sqrt(max(1, out/in)); "match_rms_adamw": lr * 0.2 * sqrt(max(out, in)).
    losses                 21 numbers. losses[i], i < 20: mean loss on batch i BEFORE update i, computed in float32.
                           losses[20]: mean loss on batch 0 after all 20 updates.
    grad_norms             20 numbers: global gradient norm at step i, before clipping
    losses_float64         the same run in float64 throughout (null for "bfloat16"): shows how well conditioned it is
"""

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import modded_torch
import numpy as np
import torch
import torch.optim._muon as torch_muon
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

STEPS = 20
CURVE_BATCH, CURVE_LENGTH = 4, 18
COMMITTED = Path(__file__).resolve().parent / "fixtures"
STOCK_NEWTON_SCHULZ = torch_muon._zeropower_via_newtonschulz


# --- models ---------------------------------------------------------------------------------------------------------


def gpt2_config(**changes) -> GPT2Config:
    settings = dict(vocab_size=61, n_positions=24, n_embd=32, n_head=4, n_layer=2, activation_function="gelu_new",
                    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    return GPT2Config(**(settings | changes))


def llama_config(**changes) -> LlamaConfig:
    settings = dict(vocab_size=61, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=24, rms_norm_eps=1e-5, tie_word_embeddings=False,
                    attention_bias=False, mlp_bias=False, attention_dropout=0.0, bos_token_id=0, eos_token_id=0,
                    rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    return LlamaConfig(**(settings | changes))


# name -> (class, config, seed, batch, sequence length of expected.safetensors)
MODELS = {
    "gpt2": (GPT2LMHeadModel, gpt2_config(), 1, 2, 24),
    "gpt2_variant": (GPT2LMHeadModel, gpt2_config(vocab_size=64, n_embd=24, n_head=3, n_layer=1, n_inner=70,
                                                  activation_function="gelu"), 2, 3, 19),
    "llama": (LlamaForCausalLM, llama_config(), 3, 3, 19),
    "llama_variant": (LlamaForCausalLM, llama_config(
        hidden_size=40, intermediate_size=85, num_key_value_heads=1, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}), 4, 2, 23),
}


def make_model(name: str) -> torch.nn.Module:
    """The model with weights drawn anew: gains 1 + 0.2 n, biases 0.1 n, embeddings 0.2 n, matrices n / sqrt(in)."""
    model_class, config, seed, _, _ = MODELS[name]
    config._attn_implementation = "eager"
    model = model_class(config).float().eval()
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter_name, parameter in sorted(model.named_parameters()):
            draw = random.standard_normal(tuple(parameter.shape))
            if parameter_name.endswith("bias"):
                value = 0.1 * draw
            elif parameter.ndim == 1:
                value = 1.0 + 0.2 * draw
            elif any(part in parameter_name for part in ("wte", "wpe", "embed_tokens")):
                value = 0.2 * draw
            else:
                inputs = parameter.shape[0] if is_conv1d(parameter_name) else parameter.shape[1]
                value = draw / inputs**0.5
            parameter.copy_(torch.from_numpy(value))
    return model


def is_conv1d(parameter_name: str) -> bool:
    """GPT-2's matrices inside blocks, which transformers stores as [in, out]."""
    return ".h." in parameter_name and parameter_name.endswith(
        ("c_attn.weight", "attn.c_proj.weight", "c_fc.weight", "mlp.c_proj.weight"))


def role(parameter_name: str, parameter: torch.Tensor) -> str:
    if parameter.ndim == 1:
        return "vector"
    return "matrix" if ".h." in parameter_name or ".layers." in parameter_name else "embedding or head"


def write_model(name: str, model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name == "gpt2_variant":
        file = folder / "model.safetensors"
        tensors = {key.removeprefix("transformer."): value for key, value in load_file(file).items()}
        positions = model.config.n_positions
        for layer in range(model.config.n_layer):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, positions, positions).tril()
        save_file(tensors, file, metadata={"format": "pt"})
    if name == "llama_variant":
        file = folder / "config.json"
        config = json.loads(file.read_text())
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        config["rope_scaling"] = None
        config["torch_dtype"] = config.pop("dtype")
        config["transformers_version"] = "4.46.0"
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    ids = torch.arange(20).reshape(2, 10)
    if not torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits):
        raise RuntimeError(f"{folder}: reading the folder back does not give the same model")


# --- float64 --------------------------------------------------------------------------------------------------------


class AlwaysDouble(TorchFunctionMode):
    """Runs code in float64 that asks for float32 inside (RMSNorm, softmax and rotary angles in transformers)."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        def double(value):
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        keywords = {key: double(value) for key, value in (keywords or {}).items()}
        result = function(*(double(value) for value in arguments), **keywords)
        if isinstance(result, torch.Tensor) and result.dtype in (torch.float32, torch.bfloat16, torch.float16):
            raise RuntimeError(f"{function} computed in {result.dtype} within a float64 run")
        return result


def to_double(model: torch.nn.Module) -> torch.nn.Module:
    """The model in float64; rotary frequencies, which transformers computes in float32, are computed anew."""
    model = model.double()
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            base = module.config.rope_parameters["rope_theta"]
            head = module.config.hidden_size // module.config.num_attention_heads
            module.inv_freq = base ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
            module.original_inv_freq = module.inv_freq.clone()
    return model


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def expected_values(name: str, ids: torch.Tensor, targets: torch.Tensor, double: bool) -> dict[str, torch.Tensor]:
    model = to_double(make_model(name)) if double else make_model(name)
    with AlwaysDouble() if double else nullcontext():
        logits = model(input_ids=ids).logits
        loss = mean_loss(logits, targets)
    loss.backward()
    values = {"logits": logits.detach(), "loss": loss.detach().reshape(1)}
    return values | {f"grad.{key}": value.grad for key, value in model.named_parameters()}


def write_expected(name: str, folder: Path) -> None:
    _, config, seed, batch, length = MODELS[name]
    tokens = np.random.default_rng(100 + seed).integers(0, config.vocab_size, (batch, length + 1))
    ids, targets = torch.from_numpy(tokens[:, :-1]).contiguous(), torch.from_numpy(tokens[:, 1:]).contiguous()
    exact = expected_values(name, ids, targets, double=True)
    single = expected_values(name, ids, targets, double=False)
    tensors = {key: value.float().contiguous() for key, value in exact.items()}
    tensors |= {"ids": ids.int(), "targets": targets.int()}
    save_file(tensors, folder / "expected.safetensors")

    norm = sum(value.square().sum() for key, value in exact.items() if key.startswith("grad.")) ** 0.5
    worst = max(((single[key] - value).norm() / max(value.norm(), 1e-3 * norm)).item()
                for key, value in exact.items() if key.startswith("grad."))
    print(f"{name}: loss {exact['loss'].item():.6f}, gradient norm {norm:.4f}; PyTorch's fp32 differs from float64 by "
          f"{(single['logits'] - exact['logits']).abs().max():.1e} (logits), {worst:.1e} (gradients, relative)")


# --- curves ---------------------------------------------------------------------------------------------------------


def newton_schulz_without_cast(grad, ns_coefficients, ns_steps, eps):
    """torch.optim.Muon's orthogonalization in the dtype of its input instead of bfloat16."""
    a, b, c = ns_coefficients
    tall = grad.shape[0] > grad.shape[1]
    x = grad.T if tall else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x


class Leaves:
    """A model's parameters as Muon is to see them: matrices [out, in], q, k and v apart. Calling it runs the model."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.leaves = {}  # name -> leaf tensors
        for name, parameter in model.named_parameters():
            value = parameter.detach()
            if is_conv1d(name):
                value = value.T
                blocks = value.chunk(3) if name.endswith("c_attn.weight") else (value,)
            else:
                blocks = (value,)
            self.leaves[name] = [torch.nn.Parameter(block.clone().contiguous()) for block in blocks]

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        whole = {}
        for name, blocks in self.leaves.items():
            value = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
            whole[name] = value.T if is_conv1d(name) else value
        return functional_call(self.model, whole, kwargs={"input_ids": ids}).logits

    def of(self, names: list[str]) -> list[torch.nn.Parameter]:
        return [leaf for name in names for leaf in self.leaves[name]]


ADAMW = {"lr": 5e-3, "betas": [0.9, 0.95], "eps": 1e-8}
MUON = {"lr": 2e-2, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True,
        "ns_coefficients": [3.4445, -4.775, 2.0315], "eps": 1e-7, "ns_steps": 5, "adjust_lr_fn": "original"}
MATCH_RMS = {"lr": 1e-2, "adjust_lr_fn": "match_rms_adamw"}

# name, model, changes to MUON (to ADAMW in a curve without Muon), clip, dtype of Newton-Schulz (None: AdamW throughout)
CURVES = [
    ("gpt2_adamw", "gpt2", {}, None, None),
    ("llama_adamw_clip", "llama", {}, 1.0, None),
    ("llama_variant_adamw_large_eps", "llama_variant", {"eps": 1e-3}, None, None),
    ("gpt2_muon_original", "gpt2", {}, None, "float32"),
    ("gpt2_muon_match_rms_clip", "gpt2", MATCH_RMS, 1.0, "float32"),
    ("llama_muon_original_clip", "llama", {}, 1.0, "float32"),
    ("llama_muon_match_rms_plain_momentum", "llama", MATCH_RMS | {"nesterov": False}, None, "float32"),
    ("llama_variant_muon_match_rms", "llama_variant", MATCH_RMS, None, "float32"),
    ("gpt2_muon_original_bfloat16", "gpt2", {}, None, "bfloat16"),
]


def parameter_groups(model: torch.nn.Module, changes: dict, muon: bool) -> list[dict]:
    adamw = ADAMW if muon else ADAMW | changes
    names = {"vector": [], "matrix": [], "embedding or head": []}
    for name, parameter in model.named_parameters():
        names[role(name, parameter)].append(name)
    decayed = {"optimizer": "adamw", **adamw, "weight_decay": 0.1, "parameters": names["embedding or head"]}
    plain = {"optimizer": "adamw", **adamw, "weight_decay": 0.0, "parameters": names["vector"]}
    if not muon:
        decayed["parameters"] = names["embedding or head"] + names["matrix"]
        return [decayed, plain]
    return [{"optimizer": "muon", **(MUON | changes), "parameters": names["matrix"]}, decayed, plain]


def run_curve(curve, batches: torch.Tensor, double: bool, noise_seed: int = 0) -> tuple[list[float], list[float]]:
    """Losses (21) and gradient norms (20). noise_seed: change the initial weights by up to 1e-7, relatively."""
    _, model_name, changes, clip, newton_schulz = curve
    model = to_double(make_model(model_name)) if double else make_model(model_name)
    leaves = Leaves(model)
    if noise_seed:
        random = np.random.default_rng(noise_seed)
        for leaf in (leaf for blocks in leaves.leaves.values() for leaf in blocks):
            leaf.data *= 1.0 + 1e-7 * torch.from_numpy(random.uniform(-1, 1, tuple(leaf.shape))).to(leaf.dtype)
    optimizers = []
    for group in parameter_groups(model, changes, newton_schulz is not None):
        settings = {key: value for key, value in group.items() if key not in ("optimizer", "parameters")}
        made = torch.optim.Muon if group["optimizer"] == "muon" else torch.optim.AdamW
        optimizers.append(made(leaves.of(group["parameters"]), **settings))
    everything = leaves.of(list(leaves.leaves))
    use_stock = newton_schulz == "bfloat16"
    torch_muon._zeropower_via_newtonschulz = STOCK_NEWTON_SCHULZ if use_stock else newton_schulz_without_cast

    losses, norms = [], []
    for step in range(STEPS + 1):
        batch = batches[step % STEPS].long()
        with AlwaysDouble() if double else nullcontext():
            loss = mean_loss(leaves(batch[:, :-1]), batch[:, 1:])
        losses.append(loss.item())
        if step == STEPS:
            break
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(everything, clip or float("inf")).item())
        for optimizer in optimizers:
            optimizer.step()
    torch_muon._zeropower_via_newtonschulz = STOCK_NEWTON_SCHULZ
    return losses, norms


def markov_tokens(seed: int, vocabulary: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Sequences in which each token has three followers, with probabilities 0.7, 0.2 and 0.1."""
    random = np.random.default_rng(seed)
    followers = np.stack([random.permutation(vocabulary) for _ in range(3)], axis=1)
    tokens = np.empty(shape, dtype=np.int32)
    tokens[..., 0] = random.integers(0, vocabulary, shape[:2])
    for position in range(1, shape[2]):
        choice = random.choice(3, size=shape[:2], p=[0.7, 0.2, 0.1])
        tokens[..., position] = followers[tokens[..., position - 1], choice]
    return torch.from_numpy(tokens)


def largest_difference(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def write_curves(out: Path) -> None:
    batches = markov_tokens(42, 61, (STEPS, CURVE_BATCH, CURVE_LENGTH + 1))
    save_file({"ids": batches}, out / "curves.safetensors")
    written = []
    for curve in CURVES:
        name, model_name, changes, clip, newton_schulz = curve
        losses, norms = run_curve(curve, batches, double=False)
        double = None if newton_schulz == "bfloat16" else run_curve(curve, batches, double=True)[0]
        written.append({
            "name": name, "model": model_name, "clip": clip, "newton_schulz_dtype": newton_schulz,
            "groups": parameter_groups(make_model(model_name), changes, newton_schulz is not None),
            "losses": losses, "grad_norms": norms, "losses_float64": double})
        noise = max(largest_difference(losses, run_curve(curve, batches, False, seed)[0]) for seed in range(7, 11))
        against = double or next(other["losses"] for other in written if name.startswith(other["name"]))
        print(f"{name}: loss {losses[0]:.4f} -> {losses[19]:.4f}; gradient norm {min(norms):.2f} to {max(norms):.2f}; "
              f"differs by {largest_difference(losses, against):.1e} from "
              f"{'float64' if double else 'the same in fp32'}, by up to {noise:.1e} from initial "
              "weights changed by 1e-7 (four times)")
    document = {"steps": STEPS, "batches": "curves.safetensors", "curves": written}
    (out / "curves.json").write_text(json.dumps(document, indent=1) + "\n")


# --- command line ---------------------------------------------------------------------------------------------------


def make_all(out: Path) -> None:
    for name in MODELS:
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_model(name, make_model(name), folder)
        write_expected(name, folder)
    for name in modded_torch.MODELS:
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        modded_torch.write_model(name, folder)
    write_curves(out)
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e6:.2f} MB")
    if size > 2_000_000:
        raise RuntimeError("the fixtures are over 2 MB")


def check(fresh: Path) -> bool:
    """Compares a fresh set with the committed one: inputs equal, expected values within 1e-6, curves within 1e-5."""
    good = True
    for file in sorted(fresh.rglob("*.safetensors")):
        ours, theirs = load_file(file), load_file(COMMITTED / file.relative_to(fresh))
        exact = file.name != "expected.safetensors"
        for key in sorted(ours.keys() | theirs.keys()):
            if key not in ours or key not in theirs or not torch.allclose(
                    ours[key], theirs[key], rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6):
                print(f"{file.relative_to(fresh)}: {key} differs")
                good = False
    ours, theirs = (json.loads((place / "curves.json").read_text())["curves"] for place in (fresh, COMMITTED))
    for mine, other in zip(ours, theirs, strict=True):
        tolerance = 2e-3 if mine["newton_schulz_dtype"] == "bfloat16" else 1e-5
        same = all(mine[key] == other[key] for key in ("name", "model", "clip", "newton_schulz_dtype", "groups"))
        if not same or largest_difference(mine["losses"], other["losses"]) > tolerance:
            print(f"curves.json: {mine['name']} differs")
            good = False
    print("the committed fixtures come out again" if good else "the committed fixtures do NOT come out again")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the PyTorch parity fixtures (see the text at the top).")
    parser.add_argument("--out", type=Path, default=COMMITTED, help="folder to write (default: the committed one)")
    parser.add_argument("--check", action="store_true", help="compare a fresh set with the committed one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if arguments.check:
        with tempfile.TemporaryDirectory() as folder:
            make_all(Path(folder))
            return 0 if check(Path(folder)) else 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    make_all(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
