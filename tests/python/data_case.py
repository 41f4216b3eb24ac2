"""What the tests of the data preparation scripts share."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "data"))

import prepare_text  # noqa: E402
import shards  # noqa: E402

WORDS = "the low rank of a matrix is the number of its independent columns naïve café 北京 don't we'll 1234".split()


def have(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


def needs(*packages: str):
    return unittest.skipUnless(have(*packages), f"needs {', '.join(packages)}")


def sentence(seed: int, words: int = 30) -> str:
    state = seed * 2654435761 + 12345
    chosen = []
    for _ in range(words):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        chosen.append(WORDS[(state >> 33) % len(WORDS)])
    return " ".join(chosen) + f" #{seed}\n"


def split_documents(ids, separator: int) -> list[list[int]]:
    found: list[list[int]] = []
    for token in ids:
        if token == separator:
            found.append([])
        else:
            found[-1].append(token)
    return found


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="polaron_data_")
        self.addCleanup(shutil.rmtree, self.folder)

    def path(self, *names: str) -> str:
        path = os.path.join(self.folder, *names)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def place(self, *names: str) -> str:
        path = os.path.join(self.folder, *names)
        os.makedirs(path, exist_ok=True)
        return path

    def write(self, name: str, content) -> str:
        path = self.path(name)
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        return path

    def json_lines(self, name: str, texts, opener=open, key: str = "text") -> str:
        path = self.path(name)
        with opener(path, "wb") as file:
            for text in texts:
                file.write(json.dumps({key: text, "source": "test"}).encode() + b"\n")
        return path

    def prepare(self, *arguments: str) -> str:
        """Runs prepare_text.py in this process; the output folder. What it says is in self.told."""
        output = self.path("out")
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            prepare_text.prepare(prepare_text.parse_arguments([*arguments, "--output", output]))
        self.told = told.getvalue()
        return output

    def fails(self, code: int, *arguments: str, script: str = "prepare_text.py") -> str:
        """Runs a script as a user does; it must fail with this code and no traceback. Its message."""
        done = subprocess.run(
            [sys.executable, os.path.join(ROOT, "data", script), *arguments, "--output", self.path("out")],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        return done.stderr

    def ids(self, output: str, split: str) -> list[int]:
        names = sorted(name for name in os.listdir(output) if name.startswith(split + "_"))
        return [token for name in names for token in shards.read_shard(os.path.join(output, name))]

    def texts(self, output: str, split: str) -> set[bytes]:
        """The documents of a split of byte tokens."""
        return {bytes(ids) for ids in split_documents(self.ids(output, split), 256)}

    def vocabulary(self, output: str) -> dict:
        with open(os.path.join(output, "vocabulary.json"), encoding="utf-8") as file:
            return json.load(file)
