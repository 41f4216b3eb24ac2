#!/usr/bin/env python3
"""Checks that transformers and polaron agree on a checkpoint's loss, within 1e-5.

A checkpoint that polaron wrote:

    python scripts/check_hf.py --polaron build/polaron runs/x/checkpoints/latest --data 'data/x/validation_*.bin' --tokens 8192

A model that transformers wrote (DIR must not exist; its vocabulary is as large as the data asks):

    python scripts/check_hf.py --polaron build/polaron --write-model llama DIR --data 'data/x/validation_*.bin' --tokens 8192

The checkpoint is loaded with AutoModelForCausalLM.from_pretrained in fp32, and the mean loss over the first N targets
of the shards is computed in the windows of `polaron eval`: with the shards joined in the order of their names, window i
has the inputs [i*T, i*T+T) and the targets one further; a last window that N cuts short counts only its first targets.
T and N are those that `polaron eval CHECKPOINT --data GLOB --tokens N --json` reports on standard output, as one JSON
object with "loss", "tokens" and "sequence_length".

Needs torch, transformers, safetensors and numpy. Exit: 0 they agree, 1 they do not, 2 something is missing or wrong.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a mistyped path must not become a download

MISSING = ""  # package that is not there; --help needs none
try:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging
except ImportError as error:
    MISSING = str(error)

TOLERANCE = 1e-5
# magic, version -> token type (header: 256 int32, the third one the number of tokens)
SHARD_FORMATS = {(20240520, 1): "uint16", (20240801, 7): "uint32"}


class Failure(Exception):
    pass


def open_shards(pattern: str) -> list[np.ndarray]:
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise Failure(f"no file matches {pattern}")
    shards = []
    for path in paths:
        header = np.fromfile(path, dtype=np.int32, count=256)
        token_type = SHARD_FORMATS.get((int(header[0]), int(header[1]))) if header.size == 256 else None
        if token_type is None:
            raise Failure(f"{path}: not a token shard (magic or version unknown)")
        shards.append(np.memmap(path, dtype=token_type, mode="r", offset=1024, shape=(int(header[2]),)))
    return shards


def first_tokens(shards: list[np.ndarray], count: int) -> np.ndarray:
    tokens, have = [], 0
    for shard in shards:
        if have == count:
            break
        tokens.append(np.asarray(shard[: count - have], dtype=np.int64))
        have += tokens[-1].size
    if have < count:
        raise Failure(f"the shards hold {have} tokens; {count} are needed")
    return np.concatenate(tokens)


def write_model(kind: str, folder: Path, vocabulary: int) -> None:
    """A small random model whose predictions differ from token to token, as save_pretrained writes it."""
    if folder.exists():
        raise Failure(f"{folder} exists; give --write-model a directory that does not")
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_positions=96, n_embd=64, n_head=4, n_layer=3,
                                           resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                                           bos_token_id=0, eos_token_id=0))
    else:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, hidden_size=64, intermediate_size=171,
                                             num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                                             max_position_embeddings=96, rms_norm_eps=1e-5,
                                             tie_word_embeddings=False, bos_token_id=0, eos_token_id=0))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=random)
            if parameter.ndim == 1:
                parameter.copy_(0.1 * draw if name.endswith("bias") else 1.0 + 0.2 * draw)
            else:
                parameter.copy_(draw / 8.0)  # 1 / sqrt(width)
    model.save_pretrained(folder)
    print(f"wrote {folder}: {kind}, {sum(p.numel() for p in model.parameters()):,} parameters, "
          f"vocabulary {vocabulary}, {model.config.max_position_embeddings} positions")


def polaron_eval(binary: Path, checkpoint: Path, data: str, tokens: int | None) -> dict:
    command = [str(binary), "eval", str(checkpoint), "--data", data, "--json"]
    if tokens is not None:
        command += ["--tokens", str(tokens)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Failure(f"{binary}: {error.strerror}") from error
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)}\nended with exit code {done.returncode}:\n{done.stderr or done.stdout}")
    for text in [done.stdout, *reversed(done.stdout.splitlines())]:
        try:
            result = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(result, dict):
            break
    else:
        raise Failure(f"{' '.join(command)}\nprinted no JSON object, but:\n{done.stdout}")
    missing = {"loss", "tokens", "sequence_length"} - result.keys()
    if missing:
        raise Failure(f"polaron eval --json does not report {', '.join(sorted(missing))}: {result}")
    if tokens is not None and result["tokens"] != tokens:
        raise Failure(f"asked for {tokens} tokens, but polaron evaluated {result['tokens']}")
    return result


def transformers_loss(checkpoint: Path, shards: list[np.ndarray], targets: int, length: int) -> float:
    model, report = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
    model.eval()
    faults = {key: value for key, value in report.items() if value}
    if faults:
        raise Failure(f"{checkpoint}: transformers reports {faults}")
    positions = model.config.max_position_embeddings  # GPT-2's n_positions goes by this name too
    if length > positions:
        raise Failure(f"{checkpoint}: sequence length {length}, but its config.json has {positions} positions")
    tokens = first_tokens(shards, targets + 1)
    if tokens.max() >= model.config.vocab_size:
        raise Failure(f"token {tokens.max()} in the data; the model's vocabulary has {model.config.vocab_size} entries")
    stream = torch.from_numpy(tokens)
    total = 0.0
    with torch.no_grad():
        whole = targets // length
        inputs, wanted = stream[: whole * length].view(-1, length), stream[1 : whole * length + 1].view(-1, length)
        batches = list(zip(inputs.split(8), wanted.split(8), strict=True)) if whole else []
        if targets % length:
            batches.append((stream[whole * length : targets][None], stream[whole * length + 1 : targets + 1][None]))
        for batch, answer in batches:
            logits = model(input_ids=batch).logits.double()
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), answer.flatten(), reduction="sum").item()
    return total / targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="directory of the checkpoint")
    parser.add_argument("--polaron", type=Path, metavar="BINARY", help="the polaron program")
    parser.add_argument("--data", metavar="GLOB", help="token shards (quote the pattern)")
    parser.add_argument("--tokens", type=int, metavar="N", help="targets to evaluate (default: polaron's)")
    parser.add_argument("--write-model", nargs=2, metavar=("gpt2|llama", "DIR"),
                        help="write a random model with transformers and check it (without --polaron: only write)")
    parser.add_argument("--vocabulary", type=int, metavar="V",
                        help="vocabulary of the model written (default: largest token of the data + 1)")
    arguments = parser.parse_args()
    if (arguments.checkpoint is None) == (arguments.write_model is None):
        parser.error("give either CHECKPOINT or --write-model KIND DIR")
    if arguments.write_model and arguments.write_model[0] not in ("gpt2", "llama"):
        parser.error(f"--write-model knows gpt2 and llama, not {arguments.write_model[0]}")
    if arguments.checkpoint and not arguments.polaron:
        parser.error("--polaron is missing")
    if not arguments.data and (arguments.polaron or not arguments.vocabulary):
        parser.error("--data is missing")
    if arguments.tokens is not None and arguments.tokens < 1:
        parser.error("--tokens must be positive")
    if MISSING:
        print(f"check_hf: {MISSING}. Install it: {sys.executable} -m pip install torch transformers safetensors numpy",
              file=sys.stderr)
        return 2
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

    try:
        shards = open_shards(arguments.data) if arguments.data else []
        checkpoint = arguments.checkpoint
        if arguments.write_model:
            checkpoint = Path(arguments.write_model[1])
            vocabulary = arguments.vocabulary or 1 + max(int(shard.max()) for shard in shards)
            write_model(arguments.write_model[0], checkpoint, vocabulary)
            if not arguments.polaron:
                return 0
        for file in ("config.json", "model.safetensors"):
            if not (checkpoint / file).is_file():
                raise Failure(f"{checkpoint}: no {file} in it")
        result = polaron_eval(arguments.polaron, checkpoint, arguments.data, arguments.tokens)
        theirs = transformers_loss(checkpoint, shards, result["tokens"], result["sequence_length"])
    except Failure as failure:
        print(f"check_hf: {failure}", file=sys.stderr)
        return 2
    difference = abs(result["loss"] - theirs)
    agree = difference <= TOLERANCE  # false for NaN
    print(f"polaron       loss {result['loss']:.8f}  over {result['tokens']} tokens in windows of "
          f"{result['sequence_length']}\ntransformers  loss {theirs:.8f}\n"
          f"difference {difference:.2e}, {'within' if agree else 'MORE THAN'} {TOLERANCE:g}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
