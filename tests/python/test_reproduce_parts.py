"""Tests of the parts of scripts/reproduce.py by themselves: the rule of --scale, rates, results, files, words.

python3 -m unittest discover -s tests/python
"""

import json
import math
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from reproduce_case import ReproduceCase

from reproduce import base, estimate, grid, results, runs, scaling, tables
from reproduce.base import Problem

# As the authors' small GPT-2.
PAPER = {
    "model": {"layers": 12, "width": 768, "heads": 6, "kv_heads": 6, "head_size": 128, "mlp_hidden": 3072,
              "context_length": 65536, "window_final": 3456},
    "training": {"steps": 5960, "sequence_length": 65536, "batch": 8, "micro_batch": 1},
    "schedule": {"type": "linear", "warmup_steps": 0},
    "optimizer": {"matrices": {"type": "muon", "momentum": 0.95, "momentum_warmup_steps": 300, "scale": "original"},
                  "embeddings": {"type": "adamw", "lr": 0.3}, "overrides": []},
    "validation": {"every": 10, "tokens": 10485760},
    "checkpoint": {"every": 0},
}


class Scaling(unittest.TestCase):
    def test_the_authors_small_gpt2_at_a_fiftieth(self):
        # sqrt(0.02) = 0.1414, 0.02^(1/4) = 0.3761
        self.assertEqual(scaling.scale(PAPER, 0.02), {
            "training.steps": 843,  # 5960 x 0.1414
            "training.sequence_length": 9216,  # 65536 x 0.1414 = 9268 = 72.4 x 128
            "training.batch": 8, "training.micro_batch": 4,  # of at most 65,536 tokens, and a divisor of 8
            "model.width": 320,  # 768 x 0.3761 = 288.8 = 4.51 x 64
            "model.heads": 5, "model.head_size": 64, "model.kv_heads": 5,  # 128 does not divide 320
            "model.mlp_hidden": 1280, "model.context_length": 9216,
            "model.window_final": 512,  # 3456 x 9216/65536 = 486
            "optimizer.matrices.momentum_warmup_steps": 42,  # 300 x 843/5960
            "validation.every": 43,  # 20 times
            "validation.tokens": 209715})

    def test_a_scale_of_one_changes_nothing(self):
        self.assertEqual(scaling.scale(PAPER, 1.0), {})

    def test_tokens_shrink_by_the_scale(self):
        whole = 5960 * 8 * 65536
        for s in (0.5, 0.1, 0.02, 0.005):
            settings = scaling.scale(PAPER, s)
            tokens = settings["training.steps"] * settings["training.batch"] * settings["training.sequence_length"]
            self.assertAlmostEqual(tokens / (whole * s), 1.0, delta=0.03)

    def test_sequences_get_shorter_down_to_256_and_then_no_fewer_than_8(self):
        self.assertEqual(scaling.scale_tokens(49152, 8, 0.02), (6912, 8))
        self.assertEqual(scaling.scale_tokens(49152, 8, 1e-6), (256, 8))
        self.assertEqual(scaling.scale_tokens(1024, 480, 0.25), (1024, 240))
        self.assertEqual(scaling.scale_tokens(1024, 480, 1e-4), (640, 8))
        self.assertEqual(scaling.scale_tokens(256, 16, 0.01), (256, 8))  # never longer than it was

    def test_automatic_micro_batches_stay_automatic(self):
        config = json.loads(json.dumps(PAPER))
        config["training"]["micro_batch"] = "auto"
        self.assertEqual(scaling.scale(config, 0.02)["training.micro_batch"], "auto")
        self.assertEqual(estimate.probe_config(config, Path("run"))["validation"]["tokens"], 8 * 65536)

    def test_heads_fill_the_width(self):
        for width in range(64, 2049, 64):
            for head_size in (64, 128):
                heads, size = scaling.fit_heads(width, 8, head_size)
                self.assertEqual(heads * size, width)
                self.assertEqual(size, head_size if width % head_size == 0 else 64)

    def test_a_vocabulary_is_no_larger_than_the_data_s(self):
        config = json.loads(json.dumps(PAPER))
        config["model"] |= {"vocabulary": 50257, "head_vocabulary": 50304}
        settings = scaling.scale(config, 0.5, 4097)
        self.assertEqual((settings["model.vocabulary"], settings["model.head_vocabulary"]), (4097, 4224))
        for vocabulary in (0, 50257, 60000):
            self.assertNotIn("model.vocabulary", scaling.scale(config, 0.5, vocabulary))

    def test_shared_keys_stay_shared(self):
        config = json.loads(json.dumps(PAPER))
        config["model"] |= {"heads": 12, "kv_heads": 4, "head_size": 64}
        self.assertEqual(scaling.scale(config, 0.5)["model.heads"], 10)
        self.assertEqual(scaling.scale(config, 0.5)["model.kv_heads"], 10)  # 3 does not divide 10
        config["model"]["kv_heads"] = 6
        self.assertEqual(scaling.scale(config, 0.5)["model.kv_heads"], 5)

    def test_ranks_shrink_with_the_width_to_no_less_than_4(self):
        arms = [tables.Arm("low_rank_muon", rank, "columns") for rank in ("100", "5", "1/8", "1/1000")]
        self.assertEqual([method.rank for method in grid.find_methods(arms, PAPER, 768)], [100, 5, 96, 1])
        self.assertEqual([method.rank for method in grid.find_methods(arms, PAPER, 320)], [42, 4, 40, 1])
        label = grid.find_methods(arms[:1], PAPER, 320)[0].label
        self.assertEqual(label, "low-rank Muon, rank 42 (for 100), columns")

    def test_ranks_that_become_the_same_are_one_method(self):
        arms = [tables.Arm("low_rank_muon", rank, "columns") for rank in ("5", "10", "100")]
        self.assertEqual([method.rank for method in grid.find_methods(arms, PAPER, 64)], [4, 8])


class Checkpoints(unittest.TestCase):
    def test_one_is_found_where_a_copy_has_lost_the_link_to_it(self):
        with tempfile.TemporaryDirectory() as name:
            self.assertFalse(runs.checkpoint_of(Path(name)))
            (Path(name) / "checkpoints" / "step-00000010").mkdir(parents=True)
            self.assertTrue(runs.checkpoint_of(Path(name)))


class Choosing(unittest.TestCase):
    def test_every_optimizer_gets_as_many_rates_a_factor_of_two_apart(self):
        for name, table in tables.TABLES.items():
            rates = tables.parse_rates([], table, list(tables.OPTIMIZERS), table.number_of_rates)
            with self.subTest(table=name):
                self.assertEqual({len(found) for found in rates.values()}, {table.number_of_rates})
                for found in rates.values():
                    for low, high in zip(found, found[1:]):
                        self.assertAlmostEqual(high / low, 2.0, delta=0.01)
        self.assertEqual(tables.spread(0.02, 3), [0.01, 0.02, 0.04])
        self.assertEqual(tables.spread(0.02, 4), [0.005, 0.01, 0.02, 0.04])

    def test_rates_may_be_given_for_all_or_for_one(self):
        table = tables.TABLES["fair-gpt2"]
        self.assertEqual(tables.parse_rates(["muon=0.1,0.05"], table, ["muon", "adamw"], 1),
                         {"muon": [0.05, 0.1], "adamw": [table.rates["adamw"]]})
        self.assertEqual(tables.parse_rates(["0.1"], table, ["muon", "adamw"], 3), {"muon": [0.1], "adamw": [0.1]})

    def test_arms_are_the_tables_own_or_all_combinations(self):
        table = tables.TABLES["fair-gpt2"]
        self.assertEqual(len(tables.choose_arms(table, None, None, None)), 9)
        self.assertEqual(len(tables.choose_arms(table, ["adamw", "low_rank_muon"], None, None)), 6)
        self.assertEqual(tables.choose_arms(table, ["low_rank_muon", "muon"], ["8", "1/4"], ["power"]),
                         [tables.Arm("low_rank_muon", "8", "power"), tables.Arm("low_rank_muon", "1/4", "power"),
                          tables.Arm("muon")])
        self.assertEqual(tables.choose_arms(table, ["sgd"], None, None), [tables.Arm("sgd")])

    def test_another_method_takes_over_the_settings_that_it_uses(self):
        config = json.loads(json.dumps(PAPER))
        config["optimizer"]["overrides"] = [{"pattern": "*mlp*", "weight_decay": 0.02}]
        shared = {"model.width": 320, "optimizer.matrices.momentum_warmup_steps": 42}  # scaled
        settings = grid.optimizer_settings(grid.Method("low_rank_muon", 42, "100", "columns"), config, shared)
        self.assertEqual(settings, {
            "model.width": 320, "optimizer.matrices.type": "low_rank_muon", "optimizer.matrices.rank": 42,
            "optimizer.matrices.sketch": "columns", "optimizer.matrices.momentum": 0.95,
            "optimizer.matrices.momentum_warmup_steps": 42, "optimizer.matrices.scale": "original"})
        self.assertEqual(grid.optimizer_settings(grid.Method("muon"), config, shared),
                         {**shared, "optimizer.matrices.type": "muon"})
        self.assertEqual(grid.optimizer_settings(grid.Method("msgd"), config, shared), {
            "model.width": 320, "optimizer.matrices.type": "msgd", "optimizer.matrices.scale": "original"})
        self.assertEqual(grid.optimizer_settings(grid.Method("adamw"), config, shared),
                         {"model.width": 320, "optimizer.matrices.type": "adamw", "optimizer.overrides": []})

    def test_settings_of_one_type_go_to_the_methods_that_use_them(self):
        config = json.loads(json.dumps(PAPER))
        config["optimizer"]["matrices"]["weight_decay"] = 0.05  # as set
        config["optimizer"]["overrides"] = [{"pattern": "*mlp*", "weight_decay": 0.02}]
        shared, own = grid.split_settings({"optimizer.matrices.bf16_weights": True, "precision": "bf16",
                                           "optimizer.matrices.weight_decay": 0.05,
                                           "optimizer.matrices.rank_lr_compensation": "sqrt"})
        self.assertEqual(shared, {"precision": "bf16"})
        shared["optimizer.matrices.momentum_warmup_steps"] = 42  # scaled

        def found(*method) -> dict:
            settings = grid.optimizer_settings(grid.Method(*method), config, shared, own)
            return {key.removeprefix("optimizer.matrices."): value for key, value in settings.items()}

        self.assertEqual(found("adamw"), {"precision": "bf16", "type": "adamw", "bf16_weights": True,
                                          "weight_decay": 0.05, "optimizer.overrides": []})
        # As without bf16_weights: exceptions for AdamW are none in both cases.
        self.assertEqual(grid.optimizer_settings(grid.Method("adamw"), config, shared)["optimizer.overrides"], [])
        self.assertEqual(found("muon"), {"precision": "bf16", "type": "muon", "weight_decay": 0.05,
                                         "momentum_warmup_steps": 42})
        self.assertEqual(found("low_rank_msgd", 42, "100", "columns"), {
            "precision": "bf16", "type": "low_rank_msgd", "weight_decay": 0.05, "rank": 42, "sketch": "columns",
            "rank_lr_compensation": "sqrt", "scale": "original"})

    def test_a_warm_up_that_is_set_is_scaled_for_all_who_have_one(self):
        config = json.loads(json.dumps(PAPER))
        own = {"momentum_warmup_steps": 300, "momentum_start": 0.8}
        config["optimizer"]["matrices"] |= own
        shared = {"optimizer.matrices.momentum_warmup_steps": 42, "optimizer.matrices.momentum_start": 0.8}
        for name in ("muon", "low_rank_muon", "sgd"):
            settings = grid.optimizer_settings(grid.Method(name), config, shared, own)
            self.assertEqual([settings[f"optimizer.matrices.{key}"] for key in own], [42, 0.8], name)
        # A warm-up that is the base's alone is none of SGD's, and so is its start.
        settings = grid.optimizer_settings(grid.Method("sgd"), config, shared, {"momentum_start": 0.8})
        self.assertEqual(settings, {"optimizer.matrices.type": "sgd"})

    def test_a_sweep_warms_up_in_proportion(self):
        with tempfile.TemporaryDirectory() as folder:
            config = json.loads(json.dumps(PAPER)) | {"seed": 0}
            config["schedule"]["warmup_steps"] = 40
            made = grid.Grid([grid.Method("muon")], {"muon": [0.01, 0.02]}, [1], 0.25, {"muon": config}, Path(folder))
            run = made.run(grid.Method("muon"), 0.02, 1, False)
        self.assertEqual((run.steps, run.config["schedule"]["warmup_steps"]), (1490, 10))
        self.assertEqual(run.config["optimizer"]["matrices"]["momentum_warmup_steps"], 75)
        self.assertEqual(config["optimizer"]["matrices"]["momentum_warmup_steps"], 300)


class Extending(ReproduceCase):
    def test_a_grid_is_extended_until_the_best_rate_is_within(self):
        # The best rate of the pretended Muon is 0.02.
        status, _, errors = self.reproduce("--optimizers", "muon", "--seeds", "2", "--lrs", "muon=0.0025,0.005",
                                           "--extend", "5")
        self.assertEqual(status, 0, errors)
        self.assertEqual(sorted(call.split()[0] for call in self.calls()), [
            "muon-lr0.0025-s1", "muon-lr0.005-s1", "muon-lr0.01-s1", "muon-lr0.02-s1", "muon-lr0.02-s2",
            "muon-lr0.04-s1"])
        self.assertEqual(self.table()["Muon"][1:3], ["0.02", "20.25 ± 0.35"])

    def test_it_is_extended_no_further_than_asked(self):
        self.reproduce("--optimizers", "muon", "--seeds", "1", "--lrs", "muon=0.0025,0.005", "--extend", "1")
        self.assertEqual(self.table()["Muon"][1], "0.01 (highest tried)")

    def test_where_all_diverged_a_lower_rate_is_tried(self):
        self.reproduce("--optimizers", "muon", "--seeds", "1", "--lrs", "muon=0.02,0.04", "--extend", "1",
                       FAKE_DIVERGE="muon-lr0.0[24]-*")
        self.assertEqual(self.table()["Muon"][1], "0.01 (lowest tried)")


class Results(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.run = Path(folder.name)

    def write(self, *lines: dict, tail: str = "") -> results.Result:
        text = "".join(json.dumps(line) + "\n" for line in lines) + tail
        (self.run / "metrics.jsonl").write_text(text, encoding="utf-8")
        return results.read_result(self.run, 4, 100)

    @staticmethod
    def steps(*numbers: int) -> list:
        return [{"kind": "step", "step": step, "tokens": 10 * step, "loss": 3.0, "ms": 500.0, "tokens_per_s": 20.0,
                 "memory": 5 * step} for step in numbers]

    VALIDATION = {"kind": "validation", "step": 4, "tokens": 40, "val_loss": 3.0, "perplexity": 20.0, "ms": 100.0}
    END = {"kind": "end", "step": 4, "exit_code": 0, "reason": "done"}

    def test_a_finished_run(self):
        result = self.write({"kind": "run", "device": "x"}, *self.steps(1, 2, 3, 4), self.VALIDATION, self.END)
        self.assertEqual((result.state, result.perplexity, result.seconds, result.validation_seconds, result.memory),
                         ("finished", 20.0, 2.0, 0.1, 20))
        self.assertEqual(result.validations, [(40, 2.0, 20.0)])

    def test_a_torn_line_is_dropped_and_the_run_unfinished(self):
        result = self.write({"kind": "run"}, *self.steps(1, 2), tail='{"kind": "step", "step": 3, "lo')
        self.assertEqual((result.state, result.step, result.dropped_lines), ("unfinished", 2, 1))

    def test_an_end_before_the_last_start_does_not_count(self):
        result = self.write({"kind": "run"}, *self.steps(1, 2, 3, 4), self.VALIDATION, self.END, {"kind": "run"})
        self.assertEqual(result.state, "unfinished")

    def test_an_end_of_a_shorter_run_does_not_count(self):
        result = self.write({"kind": "run"}, *self.steps(1, 2), self.VALIDATION | {"step": 2}, self.END | {"step": 2})
        self.assertEqual(result.state, "unfinished")

    def test_numbers_that_are_not_finite_are_a_divergence(self):
        result = self.write({"kind": "run"}, *self.steps(1, 2, 3, 4),
                            self.VALIDATION | {"val_loss": None, "perplexity": None}, self.END)
        self.assertEqual((result.state, result.good), ("diverged", False))

    def test_a_directory_without_metrics_is_an_unfinished_run(self):
        self.assertEqual(results.read_result(self.run, 4).state, "unfinished")
        self.assertEqual(results.read_result(self.run / "no", 4).state, "new")


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "notes.json"

    def test_a_file_is_the_old_or_the_new_one(self):
        base.write_json(self.path, {"a": 1})
        with mock.patch.object(os, "replace", side_effect=OSError("full")), self.assertRaises(Problem) as caught:
            base.write_json(self.path, {"a": 2})
        self.assertIn(f"cannot write '{self.path}'", str(caught.exception))
        self.assertEqual(base.read_json(self.path), {"a": 1})
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])  # no temporary file stays

    def test_half_a_file_is_named(self):
        self.path.write_text('{"a": ', encoding="utf-8")
        with self.assertRaises(Problem) as caught:
            base.read_json(self.path, "Remove it.")
        self.assertIn(f"'{self.path}' is half-written", str(caught.exception))
        self.assertIn("Remove it.", str(caught.exception))
        self.assertIsNone(base.read_json(self.path.with_name("none.json")))

    def test_shard_patterns_are_expanded_as_the_program_does(self):
        for name in ("a_0.bin", "a_1.bin", "b_0.bin"):
            (self.path.parent / name).write_bytes(bytes(8) + (7).to_bytes(4, "little"))
        pattern = str(self.path.parent / "{a,b}_0.bin")
        self.assertEqual([Path(path).name for path in grid.expand(pattern)], ["a_0.bin", "b_0.bin"])
        self.assertEqual(grid.shard_tokens(str(self.path.parent / "*.bin")), 21)


class Words(unittest.TestCase):
    def test_differences_name_key_and_both_values(self):
        old = {"model": {"layers": 6, "gone": 1}, "threads": 2, "output": "a", "sample": {"every": 1}}
        new = {"model": {"layers": 8, "added": 0}, "threads": 1, "output": "b", "sample": {"every": 2}}
        self.assertEqual(grid.differences(old, new), ["model.layers was 6, now 8", "model.gone was 1, now not there"])

    def test_durations(self):
        for text, seconds in (("90", 90), ("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800)):
            self.assertEqual(base.parse_duration(text), seconds)
        for text in ("", "m", "1x", "-5m", "1h30", "1.2.3s", "0m"):
            with self.assertRaises(ValueError, msg=text):
                base.parse_duration(text)
        self.assertEqual([base.format_duration(seconds) for seconds in (5, 1200, 7200, 4 * 86400)],
                         ["5 s", "20 min", "2.0 h", "4.0 days"])

    def test_tokens_are_short(self):
        self.assertEqual([base.format_tokens(count) for count in (999, 65536, 4001792, 3.125e9)],
                         ["999", "65.5k", "4M", "3.12B"])
        self.assertTrue(math.isfinite(1.0) and base.finite(1) and not base.finite(True) and not base.finite(None))


if __name__ == "__main__":
    unittest.main()
