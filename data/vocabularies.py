"""Tokenizers, and the vocabulary file with which the program encodes and decodes (docs/formats.md, "Vocabulary").

`bytes` needs the standard library alone; GPT-2's vocabulary goes through tiktoken, or tokenizers; any tokenizer.json
through tokenizers.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from shards import DATA, USAGE, PrepareError, pack, token_bytes

SEPARATOR = "<|endoftext|>"
# Tokens that open or close a document, the best known first: the separator where the user names none.
SEPARATOR_NAMES = (SEPARATOR, "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def vocabulary_file(kind: str, name: str, size: int, separator: int | None, special: dict, **more) -> dict:
    return {
        "format": "polaron vocabulary",
        "version": 1,
        "kind": kind,
        "name": name,
        "size": size,
        "separator": separator,
        "special_tokens": special,
        **more,
    }


class Encoder:
    """Encodes documents; each worker process has a copy of its own. Subclasses set size, separator and name."""

    size: int
    separator: int
    name: str

    def prepare(self) -> None:
        """Called once in each process that encodes, before encode()."""

    def encode(self, text: bytes) -> bytes:
        """The packed ids of a document's UTF-8 text, without the separator."""
        raise NotImplementedError

    def vocabulary(self) -> dict:
        raise NotImplementedError

    @property
    def width(self) -> int:
        return token_bytes(self.size)

    def document(self, text: bytes) -> bytes:
        return pack([self.separator], self.width) + self.encode(text)


class ByteEncoder(Encoder):
    """Ids 0 to 255 are the bytes of the text; 256 opens a document."""

    size, separator, name = 257, 256, "bytes"

    def encode(self, text: bytes) -> bytes:
        packed = bytearray(2 * len(text))
        packed[0::2] = text
        return bytes(packed)

    def vocabulary(self) -> dict:
        return vocabulary_file("bytes", self.name, self.size, self.separator, {SEPARATOR: self.separator})


def printable_bytes() -> dict[str, int]:
    """GPT-2's printable character for each byte, the other way round: the printable bytes of Latin-1 stand for
    themselves, the others, in order, for U+0100 and up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    characters.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return characters


@dataclass
class BytePairs:
    """A byte-level BPE: what the program needs to run it."""

    tokens: list  # [id] bytes, or None for special and unused ids
    merges: list  # [rank] (left id, right id)
    special: dict  # name -> id
    pattern: str = GPT2_PATTERN
    ignore_merges: bool = False

    def vocabulary(self, name: str, separator: int) -> dict:
        tokens = [None if t is None else base64.b64encode(t).decode() for t in self.tokens]
        return vocabulary_file(
            "byte_level_bpe",
            name,
            len(self.tokens),
            separator,
            self.special,
            pattern=self.pattern,
            ignore_merges=self.ignore_merges,
            tokens=tokens,
            merges=[list(pair) for pair in self.merges],
        )


def byte_pairs(vocabulary: dict, merges: list, special: dict) -> BytePairs | None:
    """From token -> id and a list of pairs of tokens, both in GPT-2's printable characters. None where it is no
    byte-level BPE: tokens in other characters, or bytes without a token."""
    characters = printable_bytes()
    size = 1 + max([*vocabulary.values(), *special.values()])
    tokens: list = [None] * size
    for text, token_id in vocabulary.items():
        if text in special:
            continue
        if not text or any(c not in characters for c in text):
            return None
        tokens[token_id] = bytes(characters[c] for c in text)
    known = {t for t in tokens if t is not None}
    if any(bytes([byte]) not in known for byte in range(256)):
        return None
    try:
        pairs = [(vocabulary[left], vocabulary[right]) for left, right in merges]
    except KeyError:
        return None
    if any(tokens[a] is None or tokens[b] is None or tokens[a] + tokens[b] not in known for a, b in pairs):
        return None
    return BytePairs(tokens, pairs, special)


def missing(package: str, purpose: str) -> PrepareError:
    return PrepareError(
        USAGE, f"{purpose} needs the Python package {package}, which is not there: pip install {package}"
    )


class Gpt2Encoder(Encoder):
    """GPT-2's byte-pair encoding, from its own two files."""

    name = "gpt2"

    def __init__(self, folder: str):
        vocabulary_path = first_existing(folder, "encoder.json", "vocab.json")
        merges_path = first_existing(folder, "vocab.bpe", "merges.txt")
        try:
            with open(vocabulary_path, encoding="utf-8") as file:
                vocabulary = json.load(file)
            with open(merges_path, encoding="utf-8") as file:
                lines = [line.rstrip("\n\r") for line in file]
            merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
            special = {SEPARATOR: vocabulary[SEPARATOR]}
            tables = byte_pairs(vocabulary, merges, special)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PrepareError(DATA, f"{vocabulary_path}, {merges_path}: not GPT-2's files: {error!r}.") from None
        if tables is None:
            raise PrepareError(DATA, f"{vocabulary_path}, {merges_path}: not the files of one byte-level BPE.")
        self.tables = tables
        self.size = len(tables.tokens)
        self.separator = vocabulary[SEPARATOR]
        self._encode = None

    def __getstate__(self) -> dict:  # each process prepares its own: what tokenizes need not be what pickle can send
        return {**self.__dict__, "_encode": None}

    def prepare(self) -> None:
        try:
            import tiktoken
        except ImportError:
            self._encode = self._with_tokenizers()
            return
        # tiktoken takes a token's id for its rank, which GPT-2's ids are.
        ranks = {token: token_id for token_id, token in enumerate(self.tables.tokens) if token is not None}
        encoding = tiktoken.Encoding(
            "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=self.tables.special
        )
        self._encode = encoding.encode_ordinary

    def _with_tokenizers(self):
        try:
            import tokenizers
        except ImportError:
            raise missing("tiktoken", "--tokenizer gpt2") from None
        printable = {byte: character for character, byte in printable_bytes().items()}
        text = [None if t is None else "".join(printable[byte] for byte in t) for t in self.tables.tokens]
        model = tokenizers.models.BPE(
            vocab={t: token_id for token_id, t in enumerate(text) if t is not None},
            merges=[(text[left], text[right]) for left, right in self.tables.merges],
        )
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        return lambda document: token_ids(tokenizer, document)

    def encode(self, text: bytes) -> bytes:
        return pack(self._encode(text.decode("utf-8")), self.width)

    def vocabulary(self) -> dict:
        return self.tables.vocabulary(self.name, self.separator)


def token_ids(tokenizer, text: str) -> list[int]:
    if hasattr(tokenizer, "encode_batch_fast"):  # leaves out the offsets, which nobody needs here: twice as fast
        return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return tokenizer.encode(text, add_special_tokens=False).ids


def first_existing(folder: str, *names: str) -> str:
    for name in names:
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    raise PrepareError(
        DATA, f"{folder}: holds neither {' nor '.join(names)} (--vocab DIR is the folder of GPT-2's files)."
    )


class TokenizerJsonEncoder(Encoder):
    """Any Hugging Face tokenizer.json."""

    def __init__(self, text: str, source: str, name: str, separator: str | None = None):
        self.text = text
        self.source = source
        self.name = name
        try:
            self.content = json.loads(text)
            self._load()
        except ImportError:
            raise missing("tokenizers", f"--tokenizer {source}") from None
        except PrepareError:
            raise
        except Exception as error:  # the package raises plain Exception for what it cannot read
            raise PrepareError(DATA, f"{source}: not a tokenizer.json that 'tokenizers' can read: {error}.") from None
        self.ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.size = 1 + max(self.ids.values())
        names = [separator] if separator else [n for n in SEPARATOR_NAMES if n in self.ids]
        if not names or names[0] not in self.ids:
            special = ", ".join(t["content"] for t in self.content.get("added_tokens") or []) or "none"
            what = f"has no token '{separator}'" if separator else "has no token known to separate documents"
            raise PrepareError(USAGE, f"{source}: {what}. Name one with --separator (special tokens: {special}).")
        self.separator = self.ids[names[0]]

    def _load(self) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes are parallel already
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(self.text)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        try:
            self._tokenizer.encode_special_tokens = True  # "<s>" in a document is text, not a special token
        except AttributeError:
            pass

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_tokenizer"}

    def prepare(self) -> None:
        self._load()

    def encode(self, text: bytes) -> bytes:
        return pack(token_ids(self._tokenizer, text.decode("utf-8")), self.width)

    def byte_pairs(self) -> BytePairs | None:
        """The tables of a byte-level BPE that the program can run as `tokenizers` does; None for any other."""
        model = self.content.get("model", {})
        added = self.content.get("added_tokens") or []
        plain = (
            model.get("type") == "BPE"
            and not self.content.get("normalizer")
            and not model.get("dropout")
            and not model.get("continuing_subword_prefix")
            and not model.get("end_of_word_suffix")
            and not model.get("byte_fallback")
            and all(token.get("special") for token in added)
        )
        pattern = split_pattern(self.content.get("pre_tokenizer"))
        if not plain or pattern is None:
            return None
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        special = {token["content"]: token["id"] for token in added}
        tables = byte_pairs(model["vocab"], merges, special)
        if tables is not None:
            tables.pattern = pattern
            tables.ignore_merges = bool(model.get("ignore_merges"))
        return tables

    def vocabulary(self) -> dict:
        tables = self.byte_pairs()
        if tables is not None:
            return tables.vocabulary(self.name, self.separator)
        special = {t["content"]: t["id"] for t in self.content.get("added_tokens") or [] if t.get("special")}
        return vocabulary_file("opaque", self.name, self.size, self.separator, special)


def split_pattern(pre_tokenizer: dict | None) -> str | None:
    """The regular expression of a byte-level pre-tokenizer: ByteLevel alone, or one Split and then ByteLevel."""
    if not pre_tokenizer:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(steps) == 1:
        return GPT2_PATTERN if last.get("use_regex", True) else None
    first = steps[0]
    if len(steps) > 2 or last.get("use_regex", True) or first.get("type") != "Split":
        return None
    whole = (first.get("behavior"), bool(first.get("invert"))) in (("Isolated", False), ("Removed", True))
    return first["pattern"].get("Regex") if whole else None


def train_byte_pairs(texts: Iterator[str], size: int) -> str:
    """The tokenizer.json of a byte-level BPE of `size` entries, the last of them <|endoftext|>; GPT-2's pattern."""
    try:
        import tokenizers
    except ImportError:
        raise missing("tokenizers", "--train-bpe") from None
    if size < 257:
        raise PrepareError(USAGE, f"--train-bpe {size}: must be at least 257 (256 bytes and {SEPARATOR}).")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - 1, min_frequency=2, show_progress=False, initial_alphabet=sorted(byte_level.alphabet())
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([SEPARATOR])  # last, as in GPT-2
    return tokenizer.to_str(pretty=False)


def make_encoder(tokenizer: str, folder: str | None = None, separator: str | None = None) -> Encoder:
    """The encoder that --tokenizer, --vocab and --separator name."""
    if separator and tokenizer in ("bytes", "gpt2"):
        raise PrepareError(USAGE, f"--separator: the tokenizer '{tokenizer}' has its own separator, {SEPARATOR}.")
    if tokenizer == "bytes":
        return ByteEncoder()
    if tokenizer == "gpt2":
        if not folder:
            raise PrepareError(
                USAGE,
                "--tokenizer gpt2 needs --vocab DIR, the folder of GPT-2's encoder.json and vocab.bpe "
                "(or vocab.json and merges.txt).",
            )
        return Gpt2Encoder(folder)
    path = os.path.join(tokenizer, "tokenizer.json") if os.path.isdir(tokenizer) else tokenizer
    if not os.path.isfile(path):
        raise PrepareError(USAGE, f"--tokenizer {tokenizer}: neither 'bytes', 'gpt2' nor the path of a tokenizer.json.")
    with open(path, encoding="utf-8") as file:
        name = os.path.basename(os.path.dirname(os.path.abspath(path))) or "tokenizer"
        return TokenizerJsonEncoder(file.read(), path, name, separator)
