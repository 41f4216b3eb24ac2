"""Tests of scripts/reproduce.py: which settings reach which runs, and what the table says of them."""

import json
import unittest

from reproduce_case import ReproduceCase


class Settings(ReproduceCase):
    def matrices(self, name: str) -> dict:
        config = json.loads((self.out / "configs" / f"{name}.json").read_text(encoding="utf-8"))
        return config["optimizer"]["matrices"]

    def test_settings_of_an_optimizer_are_for_the_runs_that_have_it(self):
        status, _, errors = self.reproduce(
            "--optimizers", "adamw,muon,low_rank_muon", "--ranks", "64", "--seeds", "1", "--lrs", "0.01", "--set",
            "optimizer.matrices.bf16_weights=true", "--set", "optimizer.matrices.rank_lr_compensation=sqrt")
        self.assertEqual(status, 0, errors)
        self.assertEqual(self.matrices("adamw-lr0.01-s1"), {"type": "adamw", "lr": 0.01, "bf16_weights": True})
        self.assertEqual(self.matrices("muon-lr0.01-s1"), {"type": "muon", "lr": 0.01})
        self.assertEqual(self.matrices("low_rank_muon-r64-columns-lr0.01-s1"), {
            "type": "low_rank_muon", "lr": 0.01, "rank": 64, "sketch": "columns", "rank_lr_compensation": "sqrt"})

    def test_a_type_beside_the_settings_changes_nothing(self):
        arguments = ("--optimizers", "adamw", "--seeds", "1", "--lrs", "0.01", "--set",
                     "optimizer.matrices.bf16_weights=true")
        self.assertEqual(self.reproduce(*arguments)[0], 0)
        status, _, errors = self.reproduce(*arguments, "--set", "optimizer.matrices.type=adamw", "--resume")
        self.assertEqual(status, 0, errors)
        self.assertIn("optimizer.matrices.type is left out: --optimizers gives it", errors)

    def test_settings_that_no_optimizer_of_the_grid_uses_are_refused(self):
        status, _, errors = self.reproduce("--optimizers", "muon", "--set", "optimizer.matrices.bf16_weights=true")
        self.assertEqual((status, self.calls()), (2, []), errors)
        self.assertIn("optimizer.matrices.bf16_weights: no optimizer of this grid uses it; it is for adamw", errors)


    def head(self, *settings: str, sketches: str = "columns") -> str:
        """The table's words above its rows."""
        words = [word for setting in settings for word in ("--set", setting)]
        out = self.folder / f"out-{len(list(self.folder.glob('out-*')))}"
        status, _, errors = self.reproduce("--optimizers", "adamw,low_rank_muon", "--ranks", "64", "--sketches",
                                           sketches, "--seeds", "1", "--lrs", "0.01", "--out", str(out), *words)
        self.assertEqual(status, 0, errors)
        return (out / "table.md").read_text(encoding="utf-8").split("\n|")[0]

    def test_the_table_says_which_numbers_are_bf16(self):
        head = self.head("precision=bf16")
        self.assertIn("weights and optimizer states are fp32 (also AdamW's), products bf16.", head)
        self.assertNotIn("Quirks", head)
        head = self.head("optimizer.matrices.bf16_weights=true", "optimizer.embeddings.bf16_moments=true")
        self.assertIn("weights are fp32 (bf16: those of the matrices under AdamW), optimizer states fp32 (bf16: those "
                      "of the embeddings), products fp32.", head)
        self.assertIn("Q3, weights of the matrices under AdamW are kept in bf16 alone; Q18, moments of the embeddings "
                      "are bf16.", head)

    def test_the_table_names_the_quirks_that_are_on(self):
        head = self.head("quirks.shared_columns=true", "quirks.previous_batch_gradient=true",
                         "quirks.previous_batch_dropped_every=500", "optimizer.vectors.lr=0")
        for words in ("Quirks of the authors' code that are on", "Q11, q, k, v and o share their columns",
                      "Q2, the gradient of the batch before is added (previous_batch_dropped_every 500)", "Q5, "):
            self.assertIn(words, head)
        head = self.head("quirks.shared_columns=false", "quirks.previous_batch_dropped_every=500")
        self.assertNotIn("Quirks", head)
        self.assertIn("Q1, the sketch columns_authors", self.head(sketches="columns_authors"))


if __name__ == "__main__":
    unittest.main()
