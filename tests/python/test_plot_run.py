"""Tests of scripts/plot_run.py; those that draw are skipped where matplotlib is missing.

python3 -m unittest discover -s tests/python
"""

import contextlib
import importlib.util
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import unittest
import warnings
from pathlib import Path
from typing import NamedTuple

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import plot_run  # noqa: E402

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


def step(number: int, **fields) -> dict:
    return {
        "kind": "step",
        "step": number,
        "tokens": 100 * number,
        "loss": 5.0 - 0.01 * number,
        "lr": 0.02,
        "ms": 500.0,
        "tokens_per_s": 200.0,
        **fields,
    }


def validation(number: int, perplexity) -> dict:
    return {"kind": "validation", "step": number, "tokens": 100 * number, "perplexity": perplexity}


class Result(NamedTuple):
    status: int
    errors: str


class InFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, name: str, lines: list, tail: str = "") -> Path:
        path = self.folder / name / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail, encoding="utf-8")
        return path

    def script(self, *arguments) -> Result:
        """What the script does in the folder, without a new process: importing matplotlib takes seconds."""
        before = os.getcwd()
        output, errors = io.StringIO(), io.StringIO()
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
                warnings.filterwarnings("error", ".*(glyph|legend|tight|layout|label)")  # what matplotlib cannot draw
                status = plot_run.main(list(arguments))
        finally:
            os.chdir(before)
        return Result(status, errors.getvalue())


class Reading(InFolder):
    def test_what_is_torn_or_foreign_is_counted_and_the_rest_read(self):
        path = self.write(
            "run",
            [
                {"kind": "run", "model": "gpt2"},
                step(1),
                [1],
                "text",
                {"kind": "note"},
                step(2),
                {"kind": "step"},
                validation(2, 24.5),
            ],
            tail='{"kind":"step","st',
        )
        with open(path, "ab") as file:
            file.write(b"\xff\xfe\n")
        run = plot_run.read_run(path)
        self.assertEqual([line["step"] for line in run.steps], [1, 2])
        self.assertEqual(len(run.validations), 1)
        self.assertEqual(run.info["model"], "gpt2")
        self.assertEqual(run.bad_lines, 3)

    def test_the_later_line_of_a_step_counts(self):
        run = plot_run.read_run(self.write("run", [step(1), step(2, loss=9.0), step(2, loss=4.0), step(3)]))
        self.assertEqual([line["loss"] for line in run.steps], [4.99, 4.0, 4.97])

    def test_what_is_no_number_is_nan(self):
        for value in (None, "3", True, [3], 10**400):
            self.assertTrue(math.isnan(plot_run.number({"loss": value}, "loss")), value)
        self.assertTrue(math.isnan(plot_run.number({}, "loss")))
        self.assertEqual(plot_run.number({"loss": 3}, "loss"), 3.0)

    def test_names_tell_runs_apart(self):
        paths = [self.write(name, []) for name in ("a/muon", "b/muon", "b/adamw")]
        runs = [plot_run.read_run(path) for path in paths]
        plot_run.name_runs(runs[1:], paths[1:])
        self.assertEqual([run.name for run in runs[1:]], ["muon", "adamw"])
        plot_run.name_runs(runs, paths)
        self.assertEqual([run.name for run in runs], ["a/muon", "b/muon", "b/adamw"])
        plot_run.name_runs(runs[:2], [paths[0], paths[0]])  # one run twice: no name tells them apart
        self.assertEqual(runs[0].name, "muon")


class Numbers(InFolder):
    def test_time_is_the_sum_of_the_steps_times(self):
        run = plot_run.read_run(
            self.write(
                "run",
                [
                    validation(0, 100.0),
                    step(1),
                    step(2, ms=None),
                    step(3, ms=1500.0),
                    validation(2, 50.0),
                    validation(9, 40.0),
                ],
            )
        )
        self.assertEqual(plot_run.positions(run, "time"), ([0.5, 0.5, 2.0], [0.0, 0.5, 2.0]))
        self.assertEqual(plot_run.positions(run, "tokens"), ([100, 200, 300], [0, 200, 900]))
        self.assertEqual(plot_run.positions(run, "steps"), ([1, 2, 3], [0, 2, 9]))

    def test_the_running_mean_does_not_lag_and_skips_gaps(self):
        line = [3.0 - 0.01 * i for i in range(400)]
        mean = plot_run.running_mean(line, 5)
        self.assertLess(max(abs(mean[i] - line[i]) for i in range(150, 250)), 1e-9)
        gaps = plot_run.running_mean([2.0, math.nan, 2.0, math.inf, 2.0], 3)
        self.assertTrue(math.isnan(gaps[1]) and math.isnan(gaps[3]))
        for i in (0, 2, 4):
            self.assertAlmostEqual(gaps[i], 2.0)

    def test_a_single_spike_leaves_the_mean_alone_and_a_lasting_rise_does_not(self):
        self.assertEqual(plot_run.without_spikes([2.0] * 10 + [50.0] + [2.0] * 10), [2.0] * 21)
        self.assertEqual(plot_run.without_spikes([2.0] * 10 + [9.0] * 10)[12:], [9.0] * 8)

    def test_throughput_of_an_interval_is_tokens_over_time(self):
        run = plot_run.Run(
            "run",
            steps=[step(1, ms=1000.0, tokens_per_s=100.0), step(2, ms=3000.0, tokens_per_s=20.0), step(3, ms=None)],
        )
        self.assertEqual(plot_run.throughput_by_interval(run, [1, 2, 3], 1), ([2.0], [40.0]))

    def test_labels_are_short(self):
        self.assertEqual(
            [plot_run.short(value) for value in (0, 0.02, 24, 1500, 1e7, 2e9, 1e-5)],
            ["0", "0.02", "24", "1.5k", "10M", "2B", "1e-05"],
        )
        self.assertEqual(
            [plot_run.perplexity_text(value) for value in (5.317, 50257.2, 3e8)], ["5.32", "50,257", "3e+08"]
        )


class Refusing(InFolder):
    def test_a_missing_run_is_named(self):
        (self.folder / "empty").mkdir()
        for run in ("nowhere", "empty", "nowhere/metrics.jsonl"):
            result = self.script(run)
            self.assertEqual(result.status, 2)
            self.assertIn(f"'{run}'", result.errors)

    def test_without_matplotlib_it_says_how_to_install_it(self):
        self.write("run", [step(1)])
        fake = self.folder / "fake"
        fake.mkdir()
        (fake / "matplotlib.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
        result = subprocess.run(
            [sys.executable, str(SCRIPTS / "plot_run.py"), "run"],
            cwd=self.folder,
            text=True,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": str(fake)},
            check=False,
        )
        self.assertEqual(result.returncode, 2)
        self.assertIn("apt install python3-matplotlib", result.stderr)
        self.assertIn("pip install matplotlib", result.stderr)
        self.assertNotIn("Traceback", result.stderr)

    @unittest.skipUnless(HAS_MATPLOTLIB, "matplotlib is missing")
    def test_a_failure_leaves_the_former_picture(self):
        self.write("run", [step(1)])
        self.write("nothing", [{"kind": "run"}])
        picture = self.folder / "plot.png"
        picture.write_bytes(b"former")
        self.assertEqual(self.script("nothing").status, 2)
        self.assertEqual(self.script("run", "--out", "plot.docx").status, 2)
        result = self.script("run", "--out", "no/folder.png")
        self.assertEqual(result.status, 2)
        self.assertIn("no/folder.png", result.errors)
        self.assertEqual(picture.read_bytes(), b"former")
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["nothing", "plot.png", "run"])


@unittest.skipUnless(HAS_MATPLOTLIB, "matplotlib is missing")
class Drawing(InFolder):
    def draw(self, *arguments) -> Result:
        result = self.script(*arguments)
        self.assertEqual(result.status, 0, result.errors)
        return result

    def test_runs_of_any_length_with_gaps_and_without_validation_make_one_picture(self):
        self.write(
            "long",
            [step(i) for i in range(1, 201)] + [validation(i, 1000.0 / (i + 1)) for i in range(0, 201, 20)],
            tail='{"kind":"st',
        )
        self.write("short", [step(1)])
        self.write(
            "diverged",
            [step(i, loss=5.0 if i < 40 else None, lr=0.5, mfu=None) for i in range(1, 42)] + [validation(20, None)],
        )
        self.write("_odd $name", [step(1, loss=None, lr=0, tokens_per_s=None), step(2, loss=1e30, ms=0)])
        for axis in ("tokens", "steps", "time"):
            result = self.draw("long", "short/metrics.jsonl", "diverged", "_odd $name", "--x", axis, "--title", "100 $")
            data = (self.folder / "plot.png").read_bytes()
            self.assertEqual(data[:8], b"\x89PNG\r\n\x1a\n")
            width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
            self.assertGreater(width, 1500)
            self.assertGreater(height, 900)
            self.assertIn("'long/metrics.jsonl': skipped 1 line", result.errors)

    def test_a_run_without_steps_is_left_out_and_named(self):
        self.write("run", [step(1), step(2)])
        self.write("begun", [{"kind": "run"}])
        result = self.draw("run", "begun", "--out", "both.svg")
        self.assertIn("'begun/metrics.jsonl' has no steps yet", result.errors)
        self.assertNotIn("begun", (self.folder / "both.svg").read_text(encoding="utf-8"))

    def test_the_curves_are_the_metrics(self):
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        run = plot_run.read_run(
            self.write("run", [step(i) for i in range(1, 11)] + [validation(0, 90.0), validation(10, 30.0)])
        )
        kept = []
        save, plot_run.save = plot_run.save, lambda figure, out: kept.append(figure)
        self.addCleanup(setattr, plot_run, "save", save)
        plot_run.draw([run], "tokens", "title", self.folder / "plot.png")
        loss, perplexity, rate, speed = kept[0].axes
        self.assertEqual(list(loss.lines[0].get_xdata()), [100 * i for i in range(1, 11)])
        self.assertEqual(list(loss.lines[0].get_ydata()), [5.0 - 0.01 * i for i in range(1, 11)])
        self.assertEqual(list(perplexity.lines[0].get_xdata()), [0, 1000])
        self.assertEqual(list(perplexity.lines[0].get_ydata()), [90.0, 30.0])
        self.assertEqual(perplexity.get_yscale(), "log")
        self.assertEqual(list(rate.lines[0].get_ydata()), [0.02] * 10)
        self.assertEqual(set(speed.lines[1].get_ydata()), {200.0})
        self.assertEqual({axes.get_xlabel() for axes in kept[0].axes}, {"tokens"})
        plt.close("all")


if __name__ == "__main__":
    unittest.main()
