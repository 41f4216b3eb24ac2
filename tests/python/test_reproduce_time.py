"""Tests of scripts/reproduce.py: what is said of the time, refused for it, and measured of the optimizers' by width."""

import json
import unittest

from reproduce_case import CHOSEN, HAS_MATPLOTLIB, RATES, SMALL, ReproduceCase


class Estimated(ReproduceCase):
    def test_a_grid_beyond_the_budget_is_refused_before_training(self):
        # 8 runs of 40 steps of 2 s and 5 validations of 65,536 tokens, of which a probe's 4,096 take 2 s.
        status, _, errors = self.reproduce(*SMALL, "--budget", "10m", FAKE_MS="2000")
        self.assertEqual(status, 2)
        self.assertEqual(self.calls(), [])
        # 8 (80 s + 5 x 32 s) = 1,920 s: 1,320 s more than 600 s.
        for words in ("about 32 min", "22 min more", "2 of the 8 runs", "--scale 0.", "--seeds 1"):
            self.assertIn(words, errors)
        # Nothing was started, so the settings are still open.
        status, _, errors = self.reproduce(*SMALL, "--budget", "33m", "--set", "model.layers=5", FAKE_MS="2000")
        self.assertEqual(status, 0, errors)
        self.assertIn("about 32 min left", errors)

    def test_the_estimate_counts_the_validation_tokens_that_there_are(self):
        # A validation of 4,096 tokens takes 2 s: 5 of 8,192 take 20 s, beside 40 steps of 2 s.
        self.write_shard("validation_000000.bin", 8192)
        for asked in (0, 65536):
            status, _, errors = self.reproduce("--optimizers", "muon", "--seeds", "1", "--lrs", "0.02", "--set",
                                               f"validation.tokens={asked}", "--budget", "1m", "--no-bench",
                                               FAKE_MS="2000")
            self.assertEqual((status, "40 s more" in errors), (2, True), errors)

    def test_the_estimate_counts_the_extensions_that_there_may_be(self):
        # 2 runs of 40 steps of 2 s and 5 validations of 32 s are 8 min, with 3 more 20 min.
        arguments = ("--optimizers", "muon", "--seeds", "1", "--lrs", "muon=0.0025,0.005", "--extend", "3",
                     "--no-bench")
        status, _, errors = self.reproduce(*arguments, "--budget", "10m", FAKE_MS="2000")
        self.assertEqual((status, self.calls()), (2, []), errors)
        for words in ("about 8 min, or 20 min if all searches are extended", "10 min more than the --budget of 10 min",
                      "2 of the 5 runs that are left would fit", "without --extend 3 all of them would"):
            self.assertIn(words, errors)
        status, _, errors = self.reproduce(*arguments, "--budget", "21m", FAKE_MS="2000")
        self.assertEqual(status, 0, errors)
        self.assertIn("2 runs of 1 methods (up to 5 where searches are extended), 0 done; about 8 min left (up to "
                      "20 min)", errors)
        self.assertEqual(len(self.calls()), 5)
        self.assertIn("1 methods, 5 done\n", self.reproduce(*arguments, "--resume")[2])

    def test_short_searches_are_extended_by_short_runs(self):
        arguments = (*SMALL, "--lrs", "auto", *RATES, "--extend", "3", "--dry-run")
        self.assertIn("10 runs of 2 methods (up to 16 where", self.reproduce(*arguments)[2])

    def test_the_estimate_counts_the_measurement_of_the_optimizers(self):
        # 40 steps of 2 s and 5 validations of 2 s are 90 s. At the rate that the runs note a measurement takes 6 s at
        # width 256, 48 s at 512, 0.75 s at 128, and a second to start.
        arguments = ("--optimizers", "muon", "--seeds", "1", "--lrs", "0.02", "--set", "validation.tokens=4096",
                     "--budget", "1m")
        for more, seconds in ((("--no-bench",), 30), ((), 37), (("--figures", "width", "--widths", "128,256"), 46),
                              (("--no-bench", "--figures", "width", "--widths", "512"), 79)):
            with self.subTest(more=more):
                status, _, errors = self.reproduce(*arguments, *more, FAKE_MS="2000")
                self.assertEqual(status, 2, errors)
                self.assertIn(f" {seconds} s more", errors)
        # What nobody asked for is measured for 30 s at most.
        errors = self.plain(*arguments, FAKE_MS="2000")[2]
        self.assertIn(" 67 s more", errors)
        # What is measured is not measured again.
        self.assertEqual(self.reproduce(*arguments[:-2], FAKE_MS="2000")[0], 0)
        errors = self.reproduce(*arguments, "--seeds", "2", "--resume", FAKE_MS="2000")[2]
        self.assertIn("about 88 s", errors)

    def test_the_estimate_follows_the_runs(self):
        self.assertEqual(self.reproduce("--optimizers", "muon", "--seeds", "1", FAKE_MS="2000")[0], 0)
        # What is left is AdamW's: 3 runs of 40 steps of 2 s and 4 validations of 2 s.
        status, _, errors = self.reproduce("--optimizers", "muon,adamw", "--seeds", "1", "--budget", "4m", "--resume")
        self.assertEqual(status, 2)
        self.assertIn("about 4 min", errors)
        self.assertIn("24 s more", errors)

    def test_a_pause_of_the_machine_is_not_in_the_estimate(self):
        self.assertEqual(self.reproduce("--optimizers", "muon", "--seeds", "1", FAKE_MS="2000")[0], 0)
        for path in self.out.glob("runs/*/metrics.jsonl"):
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            next(line for line in lines if line.get("step") == 30 and line["kind"] == "step")["ms"] = 3.6e6
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        errors = self.reproduce("--optimizers", "muon,adamw", "--seeds", "1", "--budget", "4m", "--resume")[2]
        self.assertIn("about 4 min", errors)


class ByWidth(ReproduceCase):
    def test_help_says_how_to_get_all_widths(self):
        status, output, _ = self.reproduce("--help")
        self.assertEqual(status, 0)
        self.assertIn("as far as 2% of the grid's time or 30 s allow", " ".join(output.split()))

    @unittest.skipUnless(HAS_MATPLOTLIB, "matplotlib is missing")
    def test_the_optimizers_time_by_width_is_a_picture_of_the_plain_command(self):
        status, _, errors = self.plain(*CHOSEN)
        self.assertEqual(status, 0, errors)
        self.assertEqual((self.out / "optimizer-width.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        self.assertEqual(list(self.widths()), ["128", "256", "512", "1024"])
        self.assertNotIn("lacks", errors)

    def widths(self) -> dict:
        return json.loads((self.out / "widths.json").read_text(encoding="utf-8"))

    @unittest.skipUnless(HAS_MATPLOTLIB, "matplotlib is missing")
    def test_wide_models_are_left_out_where_they_cost_much_unless_asked_for(self):
        # At the model's width of 256 the methods add up to 1 s, with repeats 6 s, and so 48 s at 512; the grid says
        # that it took 18 s.
        status, _, errors = self.plain(*CHOSEN, FAKE_BENCH="50")
        self.assertEqual(status, 0, errors)
        self.assertEqual(list(self.widths()), ["128", "256"])
        self.assertTrue((self.out / "optimizer-width.png").exists())
        self.assertIn("lacks 512, 1024: width 512 alone would take about", errors)
        self.assertIn("give --resume --figures tokens,seconds,rates,width", errors)
        status, _, errors = self.plain(*CHOSEN, "--resume", "--figures", "tokens,seconds,rates,width", FAKE_BENCH="50")
        self.assertEqual(status, 0, errors)
        self.assertEqual(list(self.widths()), ["128", "256", "512", "1024"])

    @unittest.skipUnless(HAS_MATPLOTLIB, "matplotlib is missing")
    def test_without_bench_no_width_is_measured_unless_asked_for(self):
        self.assertEqual(self.plain(*CHOSEN, "--no-bench")[0], 0)
        self.assertFalse((self.out / "widths.json").exists())
        self.assertEqual(self.plain(*CHOSEN, "--no-bench", "--resume", "--widths", "128,64")[0], 0)
        self.assertEqual(list(self.widths()), ["64", "128"])

    @unittest.skipUnless(HAS_MATPLOTLIB, "matplotlib is missing")
    def test_widths_of_an_older_version_are_drawn(self):
        self.assertEqual(self.plain(*CHOSEN, "--widths", "64,128")[0], 0)
        old = {width: entry["ms"] for width, entry in self.widths().items()}
        (self.out / "widths.json").write_text(json.dumps(old), encoding="utf-8")
        (self.out / "optimizer-width.png").unlink()
        self.assertEqual(self.plain(*CHOSEN, "--report", "--widths", "64,128")[0], 0)
        self.assertTrue((self.out / "optimizer-width.png").exists())


if __name__ == "__main__":
    unittest.main()
