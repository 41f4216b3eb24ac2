"""What all parts share: problems that the user can act on, files written as a whole, and short words for numbers."""

import json
import math
import os
import tempfile
from pathlib import Path


class Problem(Exception):
    """Something the user can act on; the message says what. The program ends with `code`."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


def write_atomically(path: Path, content) -> None:
    """Writes beside the file, flushes and renames: whenever the program is killed, the file is the old or the new."""
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's files are private
        os.replace(temporary, path)
    except OSError as error:
        raise Problem(f"cannot write '{path}': {error.strerror or error}.", 3) from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path: Path, value) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, remedy: str = "Remove it; it is made again."):
    """The JSON object in a file, None where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"cannot read '{path}': {error}.", 3) from error
    except ValueError as error:
        raise Problem(f"'{path}' is half-written or not JSON ({error}). {remedy}", 3) from error
    if not isinstance(value, dict):
        raise Problem(f"'{path}' holds no JSON object. {remedy}", 3)
    return value


def flatten(value, prefix: str = "") -> dict:
    """{"a": {"b": 1}} as {"a.b": 1}; lists are values."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else key))
    return flat


def get(config: dict, path: str, default=None):
    for key in path.split("."):
        if not isinstance(config, dict) or key not in config:
            return default
        config = config[key]
    return config


def finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def format_duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def parse_duration(text: str) -> float:
    """Seconds of 90, 90s, 20m, 1.5h, 1h30m, 2d."""
    total, number = 0.0, ""
    for letter in text.strip().lower():
        if letter.isdigit() or letter == ".":
            number += letter
        elif letter in "smhd" and number.count(".") <= 1 and number.strip("."):
            total += float(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[letter]
            number = ""
        else:
            raise ValueError(text)
    if number:
        if total or number.count(".") > 1 or not number.strip("."):
            raise ValueError(text)
        total = float(number)
    if total <= 0:
        raise ValueError(text)
    return total


def format_tokens(count: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def format_bytes(count: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def rate_text(rate: float) -> str:
    return f"{rate:.3g}"
