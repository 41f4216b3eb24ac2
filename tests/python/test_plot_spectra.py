"""Tests of scripts/plot_spectra.py; those that draw are skipped where matplotlib is missing.

python3 -m unittest discover -s tests/python
"""

import contextlib
import importlib.util
import io
import json
import math
import sys
import tempfile
import unittest
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import plot_spectra  # noqa: E402

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


def line(step: int, matrix: str, values: list, of: str = "momentum", **more) -> dict:
    return {"step": step, "matrix": matrix, "of": of, "singular_values": values, "stable_rank": 1.0,
            "captured": {"64": 0.8}, "orthogonality_error": 0.1, **more}


class InFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, *lines: dict, tail: str = "") -> Path:
        path = self.folder / "spectra.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in lines) + tail, encoding="utf-8")
        return path

    def script(self, *arguments: str) -> tuple:
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
            warnings.filterwarnings("error", ".*(glyph|legend|tight|layout|label)")
            status = plot_spectra.main([str(self.folder), "--out", str(self.folder / "x"), *arguments])
        return status, output.getvalue(), errors.getvalue()


class Reading(InFolder):
    def test_names_are_split_into_kind_and_layer(self):
        self.assertEqual(plot_spectra.split_name("blocks.3.attention.qkv.weight[q]"), ("attention.qkv.weight[q]", 3))
        self.assertEqual(plot_spectra.split_name("head.weight"), ("head.weight", -1))

    def test_the_rank_of_ninety_percent(self):
        self.assertEqual(plot_spectra.rank_of_share([4.0, 3.0, 2.0, 1.0]), 3)  # 9 of 10
        self.assertEqual(plot_spectra.rank_of_share([1.0] * 10), 9)
        self.assertEqual(plot_spectra.rank_of_share([1.0, 0.0]), 1)
        self.assertTrue(math.isnan(plot_spectra.rank_of_share([0.0, 0.0])))

    def test_the_file_s_own_rank_is_taken_where_it_is_there(self):
        spectra, _ = plot_spectra.read_spectra(self.write(
            line(1, "blocks.0.a", [1.0, 1.0, 1.0], rank_90=2), line(2, "blocks.0.a", [1.0, 1.0, 1.0])))
        self.assertEqual([spectrum.rank for spectrum in spectra], [2.0, 3.0])

    def test_later_lines_of_a_step_count_and_torn_ones_do_not(self):
        spectra, bad = plot_spectra.read_spectra(self.write(
            line(5, "blocks.0.a", [2.0, 1.0]), line(5, "blocks.0.a", [1.0, 3.0]), {"step": 6},
            line(7, "blocks.0.a", [None, 1.0]), tail='{"step": 10, "mat'))
        self.assertEqual([(spectrum.step, spectrum.values) for spectrum in spectra], [(5, [3.0, 1.0])])
        self.assertEqual(bad, 3)

    def test_the_nearest_step_is_taken(self):
        spectra, _ = plot_spectra.read_spectra(self.write(*(line(step, "blocks.0.a", [1.0]) for step in (0, 100, 200))))
        self.assertEqual([plot_spectra.nearest_step(spectra, step) for step in (None, 120, 150, 999)],
                         [200, 100, 100, 200])

    def test_the_title_begins_with_the_run_s_name(self):
        path = self.write(line(1, "blocks.0.a", [1.0]))
        self.assertEqual(plot_spectra.title_of(path), self.folder.name)
        (self.folder / "metrics.jsonl").write_text('{"kind": "run", "model": "gpt2", "optimizer": "muon"}\n',
                                                   encoding="utf-8")
        self.assertEqual(plot_spectra.title_of(path), f"{self.folder.name}: gpt2, muon")

    def test_what_is_missing_is_named(self):
        status, _, errors = self.script()
        self.assertEqual((status, "diagnostics.spectra" in errors), (2, True))
        self.write()
        self.assertIn("no spectrum yet", self.script()[2])
        self.write(line(1, "blocks.0.mlp.weight", [1.0]))
        status, _, errors = self.script("--matrices", "*qkv*")
        self.assertEqual(status, 2)
        for words in ("'*qkv*'", "mlp.weight"):
            self.assertIn(words, errors)
        self.assertIn("of the gradient", self.script("--of", "gradient")[2])


@unittest.skipUnless(HAS_MATPLOTLIB, "matplotlib is missing")
class Drawing(InFolder):
    def test_both_pictures_are_drawn(self):
        kinds = ("attention.qkv.weight[q]", "attention.out.weight", "mlp_$x", "head.weight")
        self.write(*(line(step, f"blocks.{layer}.{kind}", [math.exp(-i / (3 + layer)) for i in range(20)])
                     for step in (0, 10) for layer in range(3) for kind in kinds))
        status, output, errors = self.script()
        self.assertEqual((status, errors), (0, ""))
        for name in ("x-decay.png", "x-rank.png"):
            self.assertEqual((self.folder / name).read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
            self.assertIn(name, output)

    def test_a_single_matrix_and_zeros_are_no_obstacle(self):
        self.write(line(0, "head.weight", [0.0, 0.0]), line(1, "head.weight", [1.0, 0.0]))
        self.assertEqual(self.script("--step", "0")[0], 0)
        self.assertEqual(self.script()[0], 0)


if __name__ == "__main__":
    unittest.main()
