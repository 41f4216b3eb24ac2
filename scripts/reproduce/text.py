"""Shards from text: data/prepare_text.py run once, into the grid's folder."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from .base import Problem, read_json, write_json
from .program import end_with_parent, last_lines
from .tables import REPOSITORY

SCRIPT = REPOSITORY / "data" / "prepare_text.py"


def standard_library() -> list:
    """The sources of Python's standard library, modules and packages themselves, and its documentation where that is
    there: a text that every machine has."""
    library = Path(sysconfig.get_paths()["stdlib"])
    left_out = ("test", "tests", "encodings", "site-packages", "dist-packages", "__pycache__")
    found = [path for pattern in ("*.py", "*/*.py") for path in library.glob(pattern)
             if not any(part in left_out for part in path.relative_to(library).parts) and path.name != "_pydecimal.py"]
    found += [path for path in library.glob("pydoc_data/*.py") if path not in found]
    if not found:
        raise Problem(f"there are no sources of Python's standard library in '{library}'. Give a text by --text.")
    return [str(path) for path in sorted(found)]


def prepare(options, train_bpe) -> tuple:
    """(training pattern, validation pattern) below options.out; what is there already is used again."""
    inputs, held_out = ([str(Path(text).expanduser().resolve()) for text in texts or []]
                        for texts in (options.text, options.validation_text))
    for path in inputs + held_out:
        if not os.path.exists(path):
            raise Problem(f"--text: there is no '{path}'.")
    settings = {"text": inputs or "Python's standard library", "tokenizer": options.tokenizer, "train_bpe": train_bpe}
    if held_out:
        settings["validation_text"] = held_out
    folder = options.out / "data"
    done = read_json(folder / "prepared.json", f"Remove '{folder}'; it is made again.")
    if done is not None and done != settings:
        raise Problem(f"'{folder}' holds shards of {done}, now asked for are {settings}. Give another --out, or remove "
                      "it.")
    if done is None:
        make(inputs or standard_library(), held_out, options.tokenizer, train_bpe, folder)
        write_json(folder / "prepared.json", settings)
    return str(folder / "train_*.bin"), str(folder / "validation_*.bin")


def make(inputs: list, held_out: list, tokenizer, train_bpe, folder: Path) -> None:
    unfinished = folder.with_name("data.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, str(SCRIPT), *inputs, "--output", str(unfinished)]
    if train_bpe:
        command += ["--train-bpe", str(train_bpe)]
    elif tokenizer:
        command += ["--tokenizer", tokenizer]
    if held_out:
        command += ["--validation-input", *held_out]
    print("preparing the text" if len(inputs) > 3 else f"preparing {' '.join(inputs)}", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False,
                          preexec_fn=end_with_parent)  # noqa: PLW1509
    if done.returncode != 0:
        shown = shlex.join(command if len(inputs) < 4 else [*command[:3], "...", *command[2 + len(inputs):]])
        raise Problem(f"`{shown}` failed with exit code {done.returncode}:\n{last_lines(done.stdout + done.stderr)}",
                      done.returncode)
    os.replace(unfinished, folder)
