"""Reads documents from text files, JSON lines and folders, and splits them into training and validation.

The main process reads the inputs as chunks (lines of a .jsonl file, names of text files); a worker turns a chunk into
documents, so that parsing is shared out as well. Standard library only.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from shards import DATA, USAGE, PrepareError

CHUNK_BYTES = 1 << 20
DEFAULT_EXTENSIONS = ".txt,.md,.rst,.jsonl"
COMPRESSIONS = {".xz": lzma.open, ".gz": gzip.open}
READ_ERRORS = (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile)


@dataclass
class Input:
    """One input file."""

    path: str
    size: int  # bytes on disk, for the progress bar
    found: bool  # in a folder rather than named by the user: skipped, not refused, if it is not text


@dataclass
class Chunk:
    """A piece of work: the documents of some lines or files."""

    kind: str  # "lines": of a JSON lines file; "files": paths of text files; "texts": documents as they are
    source: str  # the file, for messages
    first: int  # number of the first item, counted from 1
    items: list
    size: int  # bytes on disk that it stands for
    found: bool = False


@dataclass
class Reading:
    """What the workers need to know to turn chunks into documents."""

    text_key: str = "text"


@dataclass
class Skipped:
    """Documents left out, by reason."""

    empty: int = 0
    not_text: list = field(default_factory=list)


def base_and_compression(path: str) -> tuple[str, str | None]:
    base, extension = os.path.splitext(path)
    return (base, extension) if extension in COMPRESSIONS else (path, None)


def open_input(path: str):
    """(file to read bytes from, file whose tell() counts bytes on disk)."""
    raw = open(path, "rb")
    compression = base_and_compression(path)[1]
    return (COMPRESSIONS[compression](raw, "rb"), raw) if compression else (raw, raw)


def is_json_lines(path: str) -> bool:
    return base_and_compression(path)[0].endswith((".jsonl", ".ndjson"))


def find_inputs(paths: list[str], extensions: str = DEFAULT_EXTENSIONS) -> list[Input]:
    """The files to read, in a fixed order: those named as they are, folders walked in sorted order (hidden entries and
    symbolic links left out), with one of the extensions, compressed or not."""
    wanted = tuple(e if e.startswith(".") else "." + e for e in (x.strip() for x in extensions.split(",")) if e)
    inputs = []
    for path in paths:
        if os.path.isdir(path):
            before = len(inputs)
            for folder, folders, files in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
                for name in sorted(files):
                    full = os.path.join(folder, name)
                    if name.startswith(".") or os.path.islink(full) or not os.path.isfile(full):
                        continue
                    if base_and_compression(name)[0].endswith(wanted):
                        inputs.append(Input(full, os.path.getsize(full), found=True))
            if len(inputs) == before:
                raise PrepareError(
                    DATA, f"{path}: no file ends in {', '.join(wanted)} there. Name others with --extensions .py,.c"
                )
        elif os.path.isfile(path):
            inputs.append(Input(path, os.path.getsize(path), found=False))
        else:
            raise PrepareError(DATA, f"{path}: no such file or folder.")
    return inputs


def without_held_out(inputs: list[Input], held_out: list[Input]) -> tuple[list[Input], int]:
    """The inputs but for files that are held out as well, by whatever path; how many those are."""
    paths = {os.path.realpath(entry.path) for entry in held_out}
    left = [entry for entry in inputs if os.path.realpath(entry.path) not in paths]
    if inputs and not left:
        raise PrepareError(DATA, "all of the inputs are held out by --validation-input: nothing is left to train on.")
    return left, len(inputs) - len(left)


def chunks(inputs: list[Input], marker: str | None = None) -> Iterator[Chunk]:
    """The inputs, in order, in chunks of about a megabyte. A marker cuts text files into documents wherever it is."""
    waiting: list[str] = []  # text files gathered into one chunk
    waiting_size, found = 0, False
    for entry in inputs:
        json_lines = is_json_lines(entry.path)
        if not json_lines and marker is None:
            if waiting and (waiting_size + entry.size > CHUNK_BYTES or found != entry.found):
                yield Chunk("files", "", 1, waiting, waiting_size, found)
                waiting, waiting_size = [], 0
            waiting.append(entry.path)
            waiting_size += entry.size
            found = entry.found
            continue
        if waiting:
            yield Chunk("files", "", 1, waiting, waiting_size, found)
            waiting, waiting_size = [], 0
        pieces = line_chunks(entry) if json_lines else marked_chunks(entry, marker.encode())
        try:
            yield from pieces
        except READ_ERRORS as error:
            raise damaged(entry.path, error) from None
    if waiting:
        yield Chunk("files", "", 1, waiting, waiting_size, found)


def damaged(path: str, error: Exception) -> PrepareError:
    return PrepareError(DATA, f"{path}: cannot be decompressed, it is damaged or cut short: {error}.")


def line_chunks(entry: Input) -> Iterator[Chunk]:
    file, raw = open_input(entry.path)
    with raw, file:
        lines: list[bytes] = []
        size, number, told = 0, 0, 0
        for line in file:
            lines.append(line)
            size += len(line)
            number += 1
            if size >= CHUNK_BYTES:
                position = raw.tell()
                yield Chunk("lines", entry.path, number - len(lines) + 1, lines, position - told)
                lines, size, told = [], 0, position
        yield Chunk("lines", entry.path, number - len(lines) + 1, lines, entry.size - told)


def marked_chunks(entry: Input, marker: bytes) -> Iterator[Chunk]:
    file, raw = open_input(entry.path)
    with raw, file:
        buffer = bytearray()
        number, told, searched = 0, 0, 0
        while block := file.read(CHUNK_BYTES):
            buffer += block
            texts, start = [], 0
            while (end := buffer.find(marker, max(start, searched))) >= 0:
                texts.append(bytes(buffer[start:end]).strip(b"\r\n"))
                start = end + len(marker)
            del buffer[:start]
            searched = max(0, len(buffer) - len(marker) + 1)  # a marker may lie across two blocks
            if texts:
                yield Chunk("texts", entry.path, number + 1, texts, raw.tell() - told, entry.found)
                told = raw.tell()
                number += len(texts)
        last = bytes(buffer).strip(b"\r\n")
        yield Chunk("texts", entry.path, number + 1, [last] if last else [], entry.size - told, entry.found)


def documents(chunk: Chunk, reading: Reading, skipped: Skipped) -> Iterator[tuple[str, bytes]]:
    """(name for messages, UTF-8 text) of each document of a chunk; empty ones are left out."""
    for name, text in _raw_documents(chunk, reading):
        if text is None:
            skipped.not_text.append(name)
        elif not text:
            skipped.empty += 1
        else:
            yield name, text


def _raw_documents(chunk: Chunk, reading: Reading) -> Iterator[tuple[str, bytes | None]]:
    if chunk.kind == "lines":
        for number, line in enumerate(chunk.items, chunk.first):
            if line.strip():
                name = f"{chunk.source}, line {number}"
                yield name, json_text(name, line, reading.text_key)
    elif chunk.kind == "files":
        for path in chunk.items:
            try:
                file, raw = open_input(path)
                with raw, file:
                    text = file.read()
            except READ_ERRORS as error:
                raise damaged(path, error) from None
            yield path, checked_text(path, text, chunk.found)
    else:
        for number, text in enumerate(chunk.items, chunk.first):
            name = f"{chunk.source}, document {number}"
            yield (
                name,
                text.encode("utf-8", "replace") if isinstance(text, str) else checked_text(name, text, chunk.found),
            )


def json_text(name: str, line: bytes, key: str) -> bytes:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise PrepareError(DATA, f"{name}: not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise PrepareError(DATA, f"{name}: not a JSON object.")
    if key not in value:
        there = ", ".join(sorted(value)) or "none"
        raise PrepareError(
            DATA, f"{name}: has no key '{key}' (keys: {there}). Name the key of the text with --text-key."
        )
    if not isinstance(value[key], str):
        raise PrepareError(DATA, f"{name}: the value of '{key}' is not a string.")
    return value[key].encode("utf-8", "replace")  # JSON can hold half a surrogate pair, which UTF-8 cannot


def checked_text(name: str, text: bytes, found: bool) -> bytes | None:
    """The text without a byte order mark; None for a file found in a folder that is not UTF-8 text."""
    text = text[3:] if text.startswith(b"\xef\xbb\xbf") else text
    try:
        text.decode("utf-8")
        if b"\0" not in text:
            return text
        offset, reason = text.index(b"\0"), "has a zero byte"
    except UnicodeDecodeError as error:
        offset, reason = error.start, "is not UTF-8"
    if found:
        return None
    raise PrepareError(DATA, f"{name}: {reason} at offset {offset}, so it is not text.")


def digest(text: bytes) -> int:
    """64 bits that depend on the text alone, so that copies of one document fall on the same side of the split."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


@dataclass
class Split:
    """Which documents are held out. fraction: of all documents, chosen by digest; forced: this digest alone; tail: the
    last `fraction` of every document (for a corpus of one)."""

    fraction: float = 0.0
    forced: int | None = None
    tail: bool = False

    def parts(self, text: bytes) -> tuple[bytes, bytes]:
        """(training part, validation part) of a document; either may be empty."""
        if self.tail:
            cut = tail_start(text, self.fraction)
            return text[:cut], text[cut:]
        return (b"", text) if self.holds_out(digest(text)) else (text, b"")

    def holds_out(self, value: int) -> bool:
        return value == self.forced if self.forced is not None else value < self.fraction * 2**64


def tail_start(text: bytes, fraction: float) -> int:
    """Where the last `fraction` of the text starts: at a line's start where one lies near, else at a character's.
    The last part becomes larger by a half at most."""
    cut = min(len(text) - 1, int(len(text) * (1 - fraction)))
    nearest = max(0, cut - (len(text) - cut) // 2)
    line = text.rfind(b"\n", nearest, cut) + 1
    if line > 0:
        return line
    while cut > 0 and text[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def choose_split(pieces: Iterator[Chunk], reading: Reading, fraction: float) -> tuple[Split, str]:
    """A split that leaves neither side empty, and a remark for the user where it is not the plain one. Reads documents
    only until it has seen one for either side."""
    if fraction == 0:
        return Split(), ""
    plain = Split(fraction)
    seen: dict[int, bool] = {}
    for chunk in pieces:
        for _name, text in documents(chunk, reading, Skipped()):
            value = digest(text)
            seen[value] = plain.holds_out(value)
        if len(set(seen.values())) == 2:
            return plain, ""
    if not seen:
        raise PrepareError(DATA, "the inputs hold no document with any text.")
    if len(seen) == 1:
        return Split(fraction, tail=True), "There is one document only: its last part is held out for validation."
    return (
        Split(fraction, forced=min(seen)),
        f"The {len(seen)} documents are too few to hold out {fraction:.1%} of them: one is held out for validation.",
    )


def check_fraction(fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise PrepareError(USAGE, f"--validation-fraction {fraction}: must be at least 0 and less than 1.")
