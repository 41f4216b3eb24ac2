"""Shard files and the folder that holds them (docs/formats.md, "Shards"), for the prepare_*.py scripts.

Standard library only.
"""

from __future__ import annotations

import array
import glob
import json
import os
import platform
import re
import signal
import struct
import sys
import time

USAGE, DATA = 2, 3  # exit codes, as the program's own (README, "Exit codes")

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
# bytes per token -> (magic, version)
FORMS = {2: (20240520, 1), 4: (20240801, 7)}
LARGEST_SHARD = 2**31 - 1  # the header's count is an int32
DEFAULT_SHARD_TOKENS = 100_000_000
SHARD_PATTERNS = ("train_*.bin", "validation_*.bin")


class PrepareError(Exception):
    """Something the user can act on; the message names it. `code` is the exit code."""

    def __init__(self, code: int, message: str):
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


def token_bytes(vocabulary_size: int) -> int:
    """The bytes of one token in a shard for a vocabulary of this size."""
    return 4 if vocabulary_size > 65535 else 2


def pack(ids: list[int], width: int) -> bytes:
    """Token ids as they lie in a shard: little-endian, `width` bytes each."""
    packed = array.array("H" if width == 2 else "I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def header(width: int, count: int) -> bytes:
    magic, version = FORMS[width]
    return struct.pack("<3i", magic, version, count) + bytes(HEADER_BYTES - 12)


def check_shard(path: str) -> tuple[int, int]:
    """(bytes per token, tokens) of a shard file; PrepareError where it is none or is not whole."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(HEADER_BYTES)
    if len(start) < HEADER_BYTES:
        raise PrepareError(DATA, f"{path}: ends at offset {size}, within the {HEADER_BYTES}-byte header of a shard.")
    magic, version, count = struct.unpack_from("<3i", start)
    for width, form in FORMS.items():
        if form == (magic, version):
            if count < 0 or size != HEADER_BYTES + count * width:
                raise PrepareError(
                    DATA, f"{path}: the header promises {count} tokens of {width} bytes, but the file has {size} bytes."
                )
            return width, count
    raise PrepareError(DATA, f"{path}: magic {magic}, version {version}: not a token shard.")


def read_shard(path: str) -> array.array:
    """All token ids of a shard file."""
    width, count = check_shard(path)
    ids = array.array("H" if width == 2 else "I")
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        ids.fromfile(file, count)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


class SplitWriter:
    """Writes tokens into train_000000.bin, ... of `shard_tokens` tokens each, under temporary names."""

    def __init__(self, output: Output, split: str):
        self.output = output
        self.split = split
        self.tokens = 0
        self.documents = 0
        self.text_bytes = 0
        self.shards: list[tuple[str, str]] = []  # temporary name, final name
        self._file = None
        self._in_shard = 0

    def write(self, packed: bytes) -> None:
        """Appends packed tokens; a document may run from one shard into the next."""
        width = self.output.width
        view = memoryview(packed)
        while len(view):
            if self._file is None:
                self._open()
            part = view[: (self.output.shard_tokens - self._in_shard) * width]
            self._file.write(part)
            self._in_shard += len(part) // width
            self.tokens += len(part) // width
            view = view[len(part) :]
            if self._in_shard == self.output.shard_tokens:
                self.close()

    def _open(self) -> None:
        name = f"{self.split}_{len(self.shards):06d}.bin"
        temporary = self.output.temporary(name)
        self.shards.append((temporary, name))
        self._file = open(temporary, "wb")
        self._file.write(header(self.output.width, 0))
        self._in_shard = 0

    def close(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        with file:
            file.seek(0)
            file.write(header(self.output.width, self._in_shard))
            file.flush()
            os.fsync(file.fileno())

    def abandon(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:  # the disk is full: what could not be written is not wanted any more
                pass


class Output:
    """A folder of shards that appears whole or not at all.

    Use as a context manager: everything is written under temporary names and renamed by commit(); leaving the block
    without it removes what was written. Shards or a vocabulary that are there already are refused unless `force`.
    """

    def __init__(self, folder: str, width: int, shard_tokens: int = DEFAULT_SHARD_TOKENS, force: bool = False):
        if not 1 <= shard_tokens <= LARGEST_SHARD:
            raise PrepareError(USAGE, f"--shard-tokens {shard_tokens}: must be from 1 to {LARGEST_SHARD}.")
        self.folder = folder
        self.width = width
        self.shard_tokens = shard_tokens
        check_free(folder, force)
        self._created = not os.path.isdir(folder)
        os.makedirs(folder, exist_ok=True)
        remove_abandoned(folder)
        self.train = SplitWriter(self, "train")
        self.validation = SplitWriter(self, "validation")
        self._extra: list[tuple[str, str]] = []
        self._committed = False

    def temporary(self, name: str) -> str:
        return os.path.join(self.folder, f".{name}.partial-{platform.node()}-{os.getpid()}")

    def add_file(self, name: str, text: str) -> None:
        """A further file of the folder, e.g. vocabulary.json."""
        temporary = self.temporary(name)
        self._extra.append((temporary, name))
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)

    def add_vocabulary(self, vocabulary: dict) -> None:
        self.add_file("vocabulary.json", vocabulary_text(vocabulary))

    def commit(self) -> None:
        for writer in (self.train, self.validation):
            writer.close()
        for path in existing_files(self.folder):
            os.remove(path)
        for temporary, name in self.train.shards + self.validation.shards + self._extra:
            os.replace(temporary, os.path.join(self.folder, name))
        self._committed = True

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_) -> None:
        if self._committed:
            return
        for writer in (self.train, self.validation):
            writer.abandon()
        for temporary, _name in self.train.shards + self.validation.shards + self._extra:
            if os.path.exists(temporary):
                os.remove(temporary)
        if self._created and not os.listdir(self.folder):
            os.rmdir(self.folder)


def remove_abandoned(folder: str) -> None:
    """Removes what processes of this machine left of an Output that nothing could end in order, as SIGKILL."""
    pattern = re.compile(rf"\..+\.partial-{re.escape(platform.node())}-(\d+)")
    for match in filter(None, map(pattern.fullmatch, os.listdir(folder))):
        pid = int(match[1])
        if pid == os.getpid() or not is_running(pid):  # this process has written nothing yet
            os.remove(os.path.join(folder, match[0]))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def vocabulary_text(vocabulary: dict) -> str:
    return json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")) + "\n"


def replace_file(path: str, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    temporary = f"{path}.partial-{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def existing_files(folder: str) -> list[str]:
    """What an earlier run left in `folder` and a new one would replace."""
    return matching(folder, *SHARD_PATTERNS, "vocabulary.json", "tokenizer.json", "source.json")


def existing_shards(folder: str) -> list[str]:
    return matching(folder, *SHARD_PATTERNS)


def matching(folder: str, *patterns: str) -> list[str]:
    return sorted(path for pattern in patterns for path in glob.glob(os.path.join(glob.escape(folder), pattern)))


def check_free(folder: str, force: bool) -> None:
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise PrepareError(USAGE, f"{folder}: exists and is not a folder.")
    there = existing_files(folder)
    if there and not force:
        raise PrepareError(
            USAGE, f"{there[0]}: exists already. Choose another --output folder, or replace its contents with --force."
        )


class Progress:
    """A progress bar: tqdm's where it can be imported, else a plain one; without a terminal a line every 10 %."""

    def __init__(self, total: int, description: str, unit: str = "B"):
        self.total = max(1, total)
        self.description = description
        self.done = 0
        self.started = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._shown = 0.0
        self._tqdm = None
        if self._terminal:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._tqdm = tqdm(total=total, desc=description, unit=unit, unit_scale=True, dynamic_ncols=True)

    def update(self, amount: int) -> None:
        self.done += amount
        if self._tqdm is not None:
            self._tqdm.update(amount)
            return
        fraction = min(1.0, self.done / self.total)
        elapsed = time.monotonic() - self.started
        if self._terminal:
            if elapsed - self._shown < 0.1 and fraction < 1:
                return
            self._shown = elapsed
            filled = int(30 * fraction)
            left = elapsed * (1 - fraction) / fraction if fraction > 0 else 0.0
            bar = "#" * filled + "-" * (30 - filled)
            print(
                f"\r{self.description} [{bar}] {fraction:4.0%} {left:5.0f} s left", end="", file=sys.stderr, flush=True
            )
        elif int(10 * fraction) > int(10 * self._shown):
            self._shown = fraction
            print(f"{self.description}: {fraction:.0%} after {elapsed:.0f} s", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
        elif self._terminal and self.done:
            print(file=sys.stderr)


def summary(output: Output, seconds: float) -> str:
    lines = []
    for writer in (output.train, output.validation):
        if not writer.tokens:
            continue
        files = f"{len(writer.shards)} file{'s' if len(writer.shards) != 1 else ''}"
        line = f"{writer.split:<11}{writer.documents:>12,} documents{writer.tokens:>16,} tokens{files:>12}"
        if writer.text_bytes:
            line += f"{writer.text_bytes / writer.tokens:8.2f} bytes of text a token"
        lines.append(line)
    lines.append(f"written to {output.folder} in {seconds:.1f} s")
    return "\n".join(lines)


def run_script(main) -> None:
    """Runs main() and exits as the program does: a message for the user and a code, no traceback."""

    ends = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        ends.append(signal.SIGHUP)

    def stop(_signal, _frame):
        for each in ends:  # a second one must not end the clearing up
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in ends:
        signal.signal(each, stop)
    try:
        main()
    except PrepareError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"error: {name}{error.strerror or error}", file=sys.stderr)
        sys.exit(DATA)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
