"""Tests of scripts/check_hf.py where torch is missing.

python3 -m unittest discover -s tests/python
"""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_hf.py"


class WithoutTorch(unittest.TestCase):
    def script(self, *arguments: str):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("numpy", "torch"):
                Path(folder, f"{name}.py").write_text(f"raise ImportError('no {name} here')", encoding="utf-8")
            return subprocess.run([sys.executable, str(SCRIPT), *arguments], env=os.environ | {"PYTHONPATH": folder},
                                  capture_output=True, text=True, check=False)

    def test_help_needs_nothing(self):
        done = self.script("--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("--write-model", done.stdout)

    def test_what_is_missing_is_said(self):
        done = self.script("checkpoint", "--polaron", "polaron", "--data", "*.bin")
        self.assertEqual(done.returncode, 2)
        self.assertNotIn("Traceback", done.stderr)
        for words in ("no numpy here", "pip install torch"):
            self.assertIn(words, done.stderr)


if __name__ == "__main__":
    unittest.main()
