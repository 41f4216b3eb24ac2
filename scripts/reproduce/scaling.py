"""--scale: a config made smaller by one stated rule, so that a protocol for eight GPUs runs on a laptop."""

import math

from .base import get

RULE = """\
tokens x s, as steps x sqrt(s) and tokens a step x sqrt(s): of up to 8 sequences a step (the authors' one for each
of 8 GPUs) the length shrinks, to a multiple of 128 and at least 256; of more, their number, to at least 8 and then
the length. Width x s^(1/4), to a multiple of 64 and at least 64; heads of the same size, or of a smaller one where
that does not divide the width; MLP and ranks by the ratio of the widths (ranks at least 4); layers stay. Attention
windows by the ratio of sequence lengths, to a multiple of 128; warm-ups and intervals by the ratio of steps.
Validation at most 20 times, on tokens x s, at least 65,536 or as many as there were. A vocabulary larger than the
data's becomes the data's, that of the head to a multiple of 128. Learning rates stay."""

MIN_SEQUENCE, SEQUENCE_MULTIPLE, WIDTH_MULTIPLE, MIN_RANK = 256, 128, 64, 4
SEQUENCES = 8  # a step, of the authors' world of 8
VALIDATION_TOKENS, VALIDATIONS = 65536, 20


def to_multiple(value: float, multiple: int, least: int) -> int:
    return max(least, multiple * math.floor(value / multiple + 0.5))


def fit_heads(width: int, heads: int, head_size: int) -> tuple:
    """(heads, head size) with heads x size = width: the size stays, or is halved until it divides the width."""
    size = head_size
    while size > 1 and width % size != 0:
        size //= 2
    return width // size, size


def scaled_rank(rank: int, ratio: float) -> int:
    return max(MIN_RANK, round(rank * ratio))


def scale_tokens(sequence: int, batch: int, s: float) -> tuple:
    """(sequence length, sequences a step) for tokens a step x sqrt(s)."""
    root = math.sqrt(s)
    if batch <= SEQUENCES:
        return min(sequence, to_multiple(sequence * root, SEQUENCE_MULTIPLE, MIN_SEQUENCE)), batch
    number = round(batch * root)
    if number >= SEQUENCES:
        return sequence, number
    length = to_multiple(sequence * batch * root / SEQUENCES, SEQUENCE_MULTIPLE, MIN_SEQUENCE)
    return min(sequence, length), SEQUENCES


def micro_batch(batch: int, sequence: int, training: dict):
    """The largest divisor of the batch with at most as many tokens as a micro-batch of `training` has, at least one
    sequence; "auto" where that has it."""
    if training["micro_batch"] == "auto":
        return "auto"
    tokens = training["micro_batch"] * training["sequence_length"]
    return max([size for size in range(1, batch + 1) if batch % size == 0 and size * sequence <= tokens], default=1)


def scale(config: dict, s: float, vocabulary: int = 0) -> dict:
    """What to set over the effective config `config`; nothing for s = 1. `vocabulary`: the data's, 0 if not known."""
    if s == 1.0:
        return {}
    model, training = config["model"], config["training"]
    root = math.sqrt(s)
    sequence, batch = scale_tokens(training["sequence_length"], training["batch"], s)
    steps = max(1, round(training["steps"] * root))
    step_ratio, sequence_ratio = steps / training["steps"], sequence / training["sequence_length"]
    width = min(model["width"], to_multiple(model["width"] * s ** 0.25, WIDTH_MULTIPLE, WIDTH_MULTIPLE))
    ratio = width / model["width"]
    heads, head_size = fit_heads(width, model["heads"], model["head_size"])
    settings = {
        "model.width": width, "model.heads": heads, "model.head_size": head_size,
        "model.mlp_hidden": max(1, round(model["mlp_hidden"] * ratio)),
        "training.steps": steps, "training.sequence_length": sequence, "training.batch": batch,
        "training.micro_batch": micro_batch(batch, sequence, training),
    }
    groups = model["heads"] // model["kv_heads"]  # query heads that share a key
    settings["model.kv_heads"] = heads // groups if heads % groups == 0 else heads
    if model["context_length"] == training["sequence_length"]:
        settings["model.context_length"] = sequence
    for key in ("model.attention_window", "model.window_final"):
        window = get(config, key)
        if window:
            settings[key] = to_multiple(window * sequence_ratio, SEQUENCE_MULTIPLE, SEQUENCE_MULTIPLE)
    seldom = -(-steps // VALIDATIONS)
    for key, least in (("schedule.warmup_steps", 1), ("validation.every", seldom), ("checkpoint.every", 1)):
        value = get(config, key)
        if value:
            settings[key] = max(least, round(value * step_ratio))
    tokens = get(config, "validation.tokens")
    if tokens:
        settings["validation.tokens"] = min(tokens, max(VALIDATION_TOKENS, round(tokens * s)))
    if 0 < vocabulary < get(config, "model.vocabulary", 0):
        settings["model.vocabulary"] = vocabulary
        if get(config, "model.head_vocabulary"):
            settings["model.head_vocabulary"] = -(-vocabulary // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE
    for role, group in config["optimizer"].items():
        warmup = group.get("momentum_warmup_steps") if isinstance(group, dict) else 0
        if warmup:
            settings[f"optimizer.{role}.momentum_warmup_steps"] = max(1, round(warmup * step_ratio))
    return settings
