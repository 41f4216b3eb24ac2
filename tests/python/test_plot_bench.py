"""Tests of scripts/plot_bench.py; those that draw are skipped where matplotlib is missing.

python3 -m unittest discover -s tests/python
"""

import contextlib
import importlib.util
import io
import json
import sys
import tempfile
import unittest
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import plot_bench  # noqa: E402

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


def orthogonalization(rows: int) -> dict:
    results = []
    for spectrum in ("i^-1", "i^-2"):
        results.append({"spectrum": spectrum, "method": "Newton-Schulz, full", "rank": rows, "ms": 9.0, "residual": 0})
        for rank in (rows // 8, rows // 4):
            for method in ("columns", "exact"):
                results.append({"spectrum": spectrum, "method": method, "rank": rank, "ms": 1.0, "residual": 0.5})
    return {"rows": rows, "cols": rows, "results": results}


def regression() -> dict:
    results = [{"alpha": alpha, "method": method, "rank": 0, "lr": lr, "last": last, "steps": 101}
               for alpha in (2.0, 1.2) for method in ("MSGD", "low-rank MSGD, rank 3")
               for lr, last in ((0.5, 0.4), (1.0, 1e30))]
    return {"rows": 12, "cols": 16, "noise": 1.0, "steps": 100, "seeds": 2, "results": results}


class PlotBench(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def script(self, *contents) -> tuple:
        paths = []
        for index, content in enumerate(contents):
            paths.append(self.folder / f"{index}.json")
            paths[-1].write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
            warnings.filterwarnings("error", ".*(glyph|legend|tight|layout|label)")
            status = plot_bench.main([*map(str, paths), "--out", str(self.folder / "x")])
        return status, errors.getvalue(), sorted(path.name for path in self.folder.glob("x*"))

    @unittest.skipUnless(HAS_MATPLOTLIB, "no matplotlib")
    def test_orthogonalizations_of_several_sizes_make_three_pictures(self):
        self.assertEqual(self.script(orthogonalization(64), orthogonalization(32)),
                         (0, "", ["x-error.png", "x-rank.png", "x-time.png"]))

    def test_times_are_the_median_over_the_spectra(self):
        bench = orthogonalization(32)
        for spectrum, ms in (("i^-3", 2.0), ("i^-1", 90.0)):  # the second: that of the first spectrum was disturbed
            bench["results"] = [each for each in bench["results"]
                                if (each["spectrum"], each["method"]) != (spectrum, "Newton-Schulz, full")]
            bench["results"].insert(0, {"spectrum": spectrum, "method": "Newton-Schulz, full", "rank": 32, "ms": ms,
                                        "residual": 0})
        path = self.folder / "times.json"
        path.write_text(json.dumps(bench), encoding="utf-8")
        self.assertEqual(plot_bench.times(plot_bench.read_bench(str(path))),
                         {"Newton-Schulz, full": {32: 9.0}, "columns": {4: 1.0, 8: 1.0}})

    @unittest.skipUnless(HAS_MATPLOTLIB, "no matplotlib")
    def test_a_regression_makes_one_also_where_runs_diverged(self):
        self.assertEqual(self.script(regression()), (0, "", ["x.png"]))

    def test_what_cannot_be_drawn_is_said_and_nothing_is_written(self):
        broken = orthogonalization(32)
        del broken["results"][1]["ms"]
        full_rank = orthogonalization(32)
        full_rank["results"] = [each for each in full_rank["results"] if each["rank"] == 32]
        for contents, said in (((regression(), orthogonalization(32)), "one file of a regression"),
                               ((orthogonalization(32), orthogonalization(32)), "the same size"),
                               (("{",), "0.json' is no JSON"),
                               ((broken,), "result 1 of a bench orthogonalize has no 'ms'"),
                               ((full_rank, orthogonalization(64)), "0.json' holds no result of a rank below 32"),
                               (({"results": []},), "0.json' holds no results"),
                               (({"results": regression()["results"]},), "rows and cols")):
            status, errors, written = self.script(*contents)
            self.assertEqual((status, written), (2, []), errors)
            self.assertIn(said, errors)

    def test_a_missing_file_is_named(self):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            self.assertEqual(plot_bench.main([str(self.folder / "none.json")]), 2)
        self.assertIn("none.json", errors.getvalue())


if __name__ == "__main__":
    unittest.main()
