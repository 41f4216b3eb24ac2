"""Tests of scripts/reproduce.py with a polaron that only pretends: what is run, continued, refused and written.

python3 -m unittest discover -s tests/python
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

from reproduce_case import CHOSEN, HAS_MATPLOTLIB, RATES, SCRIPTS, SMALL, ReproduceCase


class Running(ReproduceCase):
    def test_the_best_of_three_rates_is_trained_with_every_seed(self):
        status, output, errors = self.reproduce(*SMALL)
        self.assertEqual(status, 0, errors)
        # 0.001 and 0.02 are the best rates of the pretended AdamW and Muon, and the middle ones.
        self.assertEqual(self.calls(), [
            "adamw-lr0.001-s1 0", "muon-lr0.02-s1 0", "adamw-lr0.0005-s1 0", "muon-lr0.01-s1 0", "adamw-lr0.002-s1 0",
            "muon-lr0.04-s1 0", "muon-lr0.02-s2 0", "adamw-lr0.001-s2 0"])
        rows = self.table()
        self.assertEqual(list(rows), ["Muon", "AdamW"])  # by perplexity
        self.assertEqual(rows["Muon"][1:4], ["0.02", "20.25 ± 0.35", "2"])
        self.assertEqual(rows["AdamW"][1:4], ["0.001", "30.25 ± 0.35", "2"])
        self.assertEqual([row[6] for row in rows.values()], ["1 MB", "1 MB"])
        self.assertEqual(rows["Muon"][5].rstrip("*"), "6.6")
        text = (self.out / "table.md").read_text(encoding="utf-8")
        self.assertIn("Muon is 33.1% below that of AdamW", text)
        self.assertIn("The first seed's run at that rate is also one of those in mean and deviation.", text)
        self.assertIn("| Muon ", output)
        self.assertIn("[8/8]", errors)

    def test_results_and_search_are_tables_of_numbers_too(self):
        self.assertEqual(self.reproduce(*SMALL)[0], 0)
        with open(self.out / "results.csv", encoding="utf-8") as file:
            results = {row["name"]: row for row in csv.DictReader(file)}
        self.assertEqual(len(results), 8)
        run = results["muon-lr0.02-s2"]
        self.assertEqual([run[key] for key in ("state", "steps", "perplexity", "seed")],
                         ["finished", "40", "20.5000", "2"])
        self.assertEqual((run["seconds_training"], run["seconds_validation"]), ("4.0", "0.4"))
        self.assertGreaterEqual(float(run["load"]), 0.0)
        with open(self.out / "sweep.csv", encoding="utf-8") as file:
            self.assertEqual(sum(row["optimizer"] == "adamw" for row in csv.DictReader(file)), 3)

    def test_the_table_names_the_tokens_that_were_validated(self):
        self.write_shard("validation_000000.bin", 5001)  # of 65,536 asked for
        self.assertEqual(self.reproduce("--optimizers", "muon", "--seeds", "1", "--lrs", "0.02")[0], 0)
        self.assertIn("Perplexity of 5k tokens of the", (self.out / "table.md").read_text(encoding="utf-8"))

    def test_a_finished_grid_is_not_repeated_and_needs_resume(self):
        self.assertEqual(self.reproduce(*SMALL)[0], 0)
        before, table = self.calls(), (self.out / "table.md").read_text(encoding="utf-8")
        status, _, errors = self.reproduce(*SMALL)
        self.assertEqual((status, "--resume" in errors), (2, True))
        status, _, errors = self.reproduce(*SMALL, "--resume")
        self.assertEqual((status, self.calls()), (0, before), errors)
        self.assertEqual((self.out / "table.md").read_text(encoding="utf-8").split("## Command")[0],
                         table.split("## Command")[0])
        self.assertFalse((self.out / "runs" / "muon-lr0.02-s1" / "checkpoints").exists())

    def test_a_short_sweep_chooses_the_rate_and_does_not_count_as_a_run(self):
        status, _, errors = self.reproduce(*SMALL, "--lrs", "auto", *RATES, "--sweep-fraction", "0.25")
        self.assertEqual(status, 0, errors)
        calls = [call.split()[0] for call in self.calls()]
        self.assertEqual(sum(call.endswith("-sweep") for call in calls), 6)
        self.assertEqual({call for call in calls if not call.endswith("-sweep")},
                         {"adamw-lr0.001-s1", "adamw-lr0.001-s2", "muon-lr0.02-s1", "muon-lr0.02-s2"})
        self.assertEqual(self.metrics("muon-lr0.02-sweep")[-1]["step"], 10)
        self.assertNotIn("first seed", (self.out / "table.md").read_text(encoding="utf-8"))
        with open(self.out / "results.csv", encoding="utf-8") as file:
            self.assertEqual(len(list(csv.DictReader(file))), 4)

    def test_runs_side_by_side_are_the_same_runs(self):
        self.assertEqual(self.reproduce(*CHOSEN, "--jobs", "3")[0], 0)
        self.assertEqual(self.table()["Muon"][2], "20.25 ± 0.35")
        self.assertEqual(len(self.calls()), 4)

    def test_several_processes_are_started_by_mpirun(self):
        status, _, errors = self.reproduce("--optimizers", "muon", "--seeds", "1", "--lrs", "0.02", "--processes", "2",
                                           "--mpirun", str(self.folder / "mpirun"))
        self.assertEqual(status, 0, errors)
        self.assertEqual(self.metrics("muon-lr0.02-s1")[0]["processes"], 2)
        (self.folder / "mpirun").rename(self.folder / "my mpirun")
        status, _, errors = self.reproduce("--optimizers", "muon", "--seeds", "1", "--lrs", "0.02", "--processes", "2",
                                           "--mpirun", f"'{self.folder}/my mpirun'", "--out", str(self.folder / "new"))
        self.assertEqual(status, 0, errors)
        status, _, errors = self.reproduce("--processes", "2", "--mpirun", "no-such-mpirun", "--resume")
        self.assertEqual((status, "openmpi-bin" in errors), (2, True))

    @unittest.skipUnless(HAS_MATPLOTLIB, "matplotlib is missing")
    def test_pictures_are_drawn_of_what_is_there(self):
        status, _, errors = self.reproduce(*SMALL, "--figures", "tokens,seconds,rates,width", "--widths", "64,128",
                                           FAKE_DIVERGE="adamw-lr0.002-s1")
        self.assertEqual(status, 0, errors)
        for name in ("perplexity-tokens", "perplexity-seconds", "learning-rates", "optimizer-width"):
            self.assertEqual((self.out / f"{name}.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        widths = json.loads((self.out / "widths.json").read_text(encoding="utf-8"))
        self.assertEqual([widths[width]["ms"]["muon"] for width in ("64", "128")], [0.4096, 1.6384])

class Interrupted(ReproduceCase):
    def test_a_killed_training_goes_on_from_its_checkpoint(self):
        status, _, errors = self.reproduce(*CHOSEN, FAKE_KILL="muon-lr0.02-s1:23")
        self.assertEqual(status, 0, errors)
        self.assertEqual([call for call in self.calls() if call.startswith("muon-lr0.02-s1")],
                         ["muon-lr0.02-s1 0", "muon-lr0.02-s1 20"])
        steps = [line["step"] for line in self.metrics("muon-lr0.02-s1") if line["kind"] == "step"]
        self.assertEqual(steps, list(range(1, 41)))
        self.assertEqual(self.table()["Muon"][2], "20.25 ± 0.35")

    def test_the_script_killed_goes_on_where_it_was(self):
        self.interrupt(signal.SIGKILL)

    def test_the_script_told_to_stop_lets_the_training_checkpoint(self):
        self.interrupt(signal.SIGTERM)
        self.assertEqual(self.stopped, 143)

    def interrupt(self, number: int) -> None:
        command = [sys.executable, str(SCRIPTS / "reproduce.py"), *self.arguments(*CHOSEN)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   env=os.environ | {"FAKE_SLEEP": "0.1"})
        metrics = self.out / "runs" / "adamw-lr0.001-s1" / "metrics.jsonl"
        until = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") > 12):
            self.assertLess(time.monotonic(), until)
            self.assertIsNone(process.poll())
            time.sleep(0.02)
        process.send_signal(number)
        self.stopped = process.wait()
        status, _, errors = self.reproduce(*CHOSEN, "--resume")
        self.assertEqual(status, 0, errors)
        first, second = [call for call in self.calls() if call.startswith("adamw-lr0.001-s1")]
        self.assertEqual(first, "adamw-lr0.001-s1 0")
        self.assertGreaterEqual(int(second.split()[1]), 11)  # it was told, once, to write a checkpoint
        steps = [line["step"] for line in self.metrics("adamw-lr0.001-s1") if line["kind"] == "step"]
        self.assertEqual(steps, list(range(1, 41)))

    def test_a_run_killed_before_its_first_checkpoint_begins_anew(self):
        status, _, errors = self.reproduce(*CHOSEN, FAKE_KILL="muon-lr0.02-s2:3")
        self.assertEqual(status, 0, errors)
        self.assertEqual(self.calls().count("muon-lr0.02-s2 0"), 2)
        self.assertIn("'muon-lr0.02-s2' was stopped at step 3 and has no checkpoint; it begins anew", errors)
        self.assertEqual(self.table()["Muon"][2], "20.25 ± 0.35")

    def cut(self, name: str) -> str:
        """Leaves 60 % of a run's metrics.jsonl, returns its path."""
        path = self.out / "runs" / name / "metrics.jsonl"
        data = path.read_bytes()
        path.write_bytes(data[:len(data) * 6 // 10])
        return str(path)

    def test_a_damaged_result_is_named_and_not_trained_anew(self):
        self.assertEqual(self.reproduce(*CHOSEN)[0], 0)
        before, path = self.calls(), self.cut("muon-lr0.02-s2")
        left = Path(path).read_bytes()
        for more in (("--resume",), ("--resume", "--seeds", "3"), ("--dry-run",)):
            status, _, errors = self.reproduce(*CHOSEN, *more)
            self.assertEqual(status, 3, errors)
            for words in (f"'{path}' is damaged", "breaks off after step 2", f"remove '{os.path.dirname(path)}'"):
                self.assertIn(words, errors)
            self.assertEqual((self.calls(), Path(path).read_bytes()), (before, left))
        shutil.rmtree(os.path.dirname(path))  # as the message says
        self.assertEqual(self.reproduce(*CHOSEN, "--resume")[0], 0)
        self.assertEqual(self.calls()[len(before):], ["muon-lr0.02-s2 0"])
        self.assertEqual(self.table()["Muon"][2], "20.25 ± 0.35")

    def test_a_damaged_diverged_run_is_named_too(self):
        self.assertEqual(self.reproduce(*CHOSEN, FAKE_DIVERGE="muon-*-s2")[0], 0)
        path = self.cut("muon-lr0.02-s2")
        status, _, errors = self.reproduce(*CHOSEN, "--resume")
        self.assertEqual((status, f"'{path}' is damaged" in errors), (3, True), errors)

    def forget_ends(self) -> None:
        """Makes the records those of an older version, which did not note that a run ended."""
        for path in self.out.glob("records/*.json"):
            values = json.loads(path.read_text(encoding="utf-8"))
            del values["ended"]
            path.write_text(json.dumps(values), encoding="utf-8")

    def test_results_of_an_older_version_are_read_and_guarded_from_then_on(self):
        self.assertEqual(self.reproduce(*CHOSEN)[0], 0)
        self.forget_ends()
        (self.out / "records" / "adamw-lr0.001-s1.json").unlink()
        before = self.calls()
        self.assertEqual(self.reproduce(*CHOSEN, "--resume")[0], 0)
        self.assertEqual(self.calls(), before)
        for name in ("muon-lr0.02-s2", "adamw-lr0.001-s1"):
            path = self.cut(name)
            status, _, errors = self.reproduce(*CHOSEN, "--resume")
            self.assertEqual((status, f"'{path}' is damaged" in errors), (3, True), errors)

    def test_a_run_that_an_older_version_left_without_a_checkpoint_begins_anew(self):
        self.assertEqual(self.reproduce(*CHOSEN)[0], 0)
        self.forget_ends()
        (self.out / "runs" / "muon-lr0.02-s2" / "metrics.jsonl").write_text(
            '{"kind": "run"}\n{"kind": "step", "step": 1}\n{"kind": "st', encoding="utf-8")
        before = len(self.calls())
        status, _, errors = self.reproduce(*CHOSEN, "--resume")
        self.assertEqual(status, 0, errors)
        self.assertEqual(self.calls()[before:], ["muon-lr0.02-s2 0"])
        self.assertIn("'muon-lr0.02-s2' was stopped at step 1", errors)

    def test_lost_lines_of_a_result_are_reported(self):
        self.assertEqual(self.reproduce(*CHOSEN)[0], 0)
        self.assertNotIn("half-written", (self.out / "table.md").read_text(encoding="utf-8"))
        path = self.out / "runs" / "muon-lr0.02-s2" / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")
        lines[3] = lines[3][:20]
        path.write_text("\n".join(lines), encoding="utf-8")
        self.assertEqual(self.reproduce(*CHOSEN, "--resume")[0], 0)
        self.assertIn("muon-lr0.02-s2 (1).", (self.out / "table.md").read_text(encoding="utf-8"))

    def test_a_run_without_its_end_is_not_a_result(self):
        self.assertEqual(self.reproduce(*CHOSEN)[0], 0)
        path = self.out / "runs" / "muon-lr0.02-s2" / "metrics.jsonl"
        text = path.read_text(encoding="utf-8")
        path.write_text(text[:text.index('"kind": "end"')], encoding="utf-8")
        status, _, errors = self.reproduce(*CHOSEN, "--report")
        self.assertEqual(status, 0, errors)
        self.assertEqual(self.table()["Muon"][2:4], ["20.00 (1 to come)", "1"])
        self.assertIn("still to come", (self.out / "table.md").read_text(encoding="utf-8"))
        self.assertIn(f"'{path}' is damaged", errors)

    def test_a_report_names_the_command_that_made_the_runs(self):
        self.assertEqual(self.reproduce(*CHOSEN, "--jobs", "2")[0], 0)
        made = (self.out / "table.md").read_text(encoding="utf-8").split("## Command")[1]
        self.assertEqual(self.reproduce(*CHOSEN, "--report")[0], 0)
        self.assertEqual((self.out / "table.md").read_text(encoding="utf-8").split("## Command")[1], made)
        self.assertIn("--jobs 2", made)

    def test_a_grid_in_use_is_refused(self):
        from reproduce.runs import Lock

        lock = Lock(self.out)
        try:
            status, _, errors = self.reproduce(*CHOSEN)
        finally:
            lock.release()
        self.assertEqual(status, 2)
        self.assertIn(f"in use by process {os.getpid()}", errors)
        self.assertEqual(self.calls(), [])

    def test_half_written_notes_are_named_before_anything_is_trained(self):
        self.assertEqual(self.reproduce(*CHOSEN)[0], 0)
        (self.out / "widths.json").write_text('{"128": {"muon": 1.5}}', encoding="utf-8")
        before = self.calls()
        for name in ("bench.json", "widths.json", "records/muon-lr0.02-s1.json", "configs/muon-lr0.02-s2.json"):
            path = self.out / name
            whole = path.read_text(encoding="utf-8")
            path.write_text(whole[:10], encoding="utf-8")
            for more in (("--resume", "--seeds", "3"), ("--resume", "--optimizers", "msgd"), ("--dry-run",)):
                with self.subTest(name=name, more=more):
                    status, _, errors = self.reproduce(*CHOSEN, *more)
                    self.assertEqual(status, 3, errors)
                    self.assertIn(f"'{path}' is half-written", errors)
                    self.assertEqual(self.calls(), before)
            path.write_text(whole, encoding="utf-8")


class Refused(ReproduceCase):
    def test_changed_settings_name_the_difference(self):
        self.assertEqual(self.reproduce(*CHOSEN)[0], 0)
        before = self.calls()
        status, _, errors = self.reproduce(*CHOSEN, "--resume", "--set", "model.layers=5")
        self.assertEqual(status, 2)
        for words in ("'adamw-lr0.001-s1'", "model.layers was 6, now 5"):
            self.assertIn(words, errors)
        self.assertEqual(self.calls(), before)
        # Threads and the cadence of checkpoints change no result.
        status, _, errors = self.reproduce(*CHOSEN, "--resume", "--threads", "1", "--set", "checkpoint.every=7")
        self.assertEqual(status, 0, errors)

    def test_unknown_names_are_refused_with_the_valid_ones(self):
        for arguments, words in (
                (("--table", "gpt3"), ("'gpt3'", "fair-gpt2", "llama-large")),
                (("--optimizers", "adam"), ("'adam'", "adamw", "low_rank_msgd")),
                (("--ranks", "sixty"), ("'sixty'", "1/8")),
                (("--ranks", "0"), ("'0'", "from 1")),
                (("--ranks", "3/2"), ("'3/2'",)),
                (("--ranks", "300"), ("rank 300", "width 256")),
                (("--sketches", "rows"), ("'rows'", "columns, columns_authors, gaussian, power")),
                (("--figures", "pie"), ("'pie'", "tokens")),
                (("--widths", "128,wide"), ("'wide'", "--widths")),
                (("--lrs", "moun=0.1"), ("'moun'", "muon")),
                (("--lrs", "muon=fast"), ("'muon=fast'",)),
                (("--lrs", "-1"), ("'-1'",)),
                (("--lrs", "0.01,0.01001,0.02"), ("0.01 and 0.01001", "three digits")),
                (("--budget", "soon"), ("'soon'", "20m")),
                (("--scale", "2"), ("'2'",)),
                (("--set", "training.tokens=1e6", "--scale", "0.5"), ("--scale", "--set training.tokens")),
                (("--train", "nothing_*.bin", "--validation", "nothing_*.bin"), ("'nothing_*.bin'", "prepare_text")),
                (("--polaron", "no-such-program"), ("'no-such-program'", "--polaron"))):
            with self.subTest(arguments=arguments):
                arguments = [f"{arguments[0]}={arguments[1]}"] if arguments[1] == "-1" else arguments
                status, output, errors = self.reproduce(*arguments)
                self.assertEqual((status, output), (2, ""), errors)
                for word in words:
                    self.assertIn(word, errors)
                self.assertEqual(self.calls(), [])

    def test_a_dry_run_starts_nothing(self):
        status, output, errors = self.reproduce(*SMALL, "--dry-run")
        self.assertEqual(status, 0, errors)
        self.assertIn("adamw-lr0.001-s1", output)
        self.assertIn("8 runs of 2 methods", errors)
        self.assertFalse(self.out.exists())


class Failing(ReproduceCase):
    def test_a_diverged_run_is_a_row_that_says_so(self):
        status, _, errors = self.reproduce(*SMALL, FAKE_DIVERGE="adamw-*")
        self.assertEqual(status, 0, errors)
        self.assertEqual(self.table()["AdamW"][1:4], ["-", "**diverged** at every rate", "0"])
        text = (self.out / "table.md").read_text(encoding="utf-8")
        self.assertIn("AdamW, lr 0.002, seed 1: the loss is not finite at step 20\n", text)
        self.assertIn("0.0005: diverged", text)
        self.assertEqual(self.reproduce(*SMALL, "--resume")[0], 0)
        self.assertEqual(sum(call.startswith("adamw") for call in self.calls()), 3)  # a diverged run is not repeated
        with open(self.out / "sweep.csv", encoding="utf-8") as file:
            diverged = [row for row in csv.DictReader(file) if row["state"] == "diverged"]
        self.assertEqual([(row["perplexity"], row["steps"]) for row in diverged], [("", "20")] * 3)

    def test_a_first_rate_that_diverges_stops_nothing(self):
        status, _, errors = self.reproduce(*SMALL, "--lrs", "muon=1,2", "adamw=0.001,1", FAKE_DIVERGE_ABOVE="0.5")
        self.assertEqual(status, 0, errors)
        rows = self.table()
        self.assertEqual((rows["Muon"][2], rows["AdamW"][2]), ("**diverged** at every rate", "30.25 ± 0.35"))

    def test_a_diverged_seed_is_counted_beside_the_others(self):
        self.assertEqual(self.reproduce(*CHOSEN, FAKE_DIVERGE="muon-*-s2")[0], 0)
        self.assertEqual(self.table()["Muon"][2:4], ["20.00 (1 of 2 **diverged**)", "1"])

    def test_a_perplexity_above_the_uniform_one_is_a_divergence(self):
        self.assertEqual(self.reproduce(*SMALL, FAKE_BAD="muon-lr0.04-s1")[0], 0)
        text = (self.out / "table.md").read_text(encoding="utf-8")
        self.assertIn("Muon, lr 0.04, seed 1: perplexity 8,192, above the uniform 4,096", text)

    def test_a_best_rate_at_the_end_of_its_grid_is_pointed_out(self):
        self.assertEqual(self.reproduce(*SMALL, "--lrs", RATES[0], "muon=0.005,0.01")[0], 0)
        self.assertEqual(self.table()["Muon"][1], "0.01 (highest tried)")
        self.assertIn("perhaps better beyond: Muon (0.01, the highest)",
                      (self.out / "table.md").read_text(encoding="utf-8"))

    def test_bad_data_ends_the_grid_with_the_last_lines(self):
        status, _, errors = self.reproduce(*SMALL, FAKE_FAIL="muon-lr0.02-s1:3")
        self.assertEqual(status, 3)
        for words in ("'muon-lr0.02-s1' ended with exit code 3", "error: there is no luck today", "It was: "):
            self.assertIn(words, errors)
        self.assertEqual(len(self.calls()), 2)

    def test_a_run_that_crashes_again_and_again_is_left_out(self):
        status, _, errors = self.reproduce(*CHOSEN, FAKE_FAIL="muon-lr0.02-s2:5")
        self.assertEqual(status, 1, errors)
        self.assertEqual(self.calls().count("muon-lr0.02-s2 0"), 3)
        self.assertEqual(self.table()["Muon"][2], "20.00 (1 failed)")
        self.assertIn("It is left out", errors)
        self.assertEqual(self.table()["AdamW"][3], "2")


class Texts(ReproduceCase):
    def test_a_text_becomes_shards_once(self):
        text = self.folder / "book.txt"
        text.write_text("".join(f"All work and no play, line {line}.\n" for line in range(3000)), encoding="utf-8")
        arguments = ("--optimizers", "muon", "--seeds", "1", "--lrs", "0.02", "--text", str(text), "--tokenizer",
                     "bytes")
        status, _, errors = self.reproduce(*arguments)
        self.assertEqual(status, 0, errors)
        shards = sorted(path.name for path in (self.out / "data").glob("*.bin"))
        self.assertEqual(shards, ["train_000000.bin", "validation_000000.bin"])
        made = (self.out / "data" / "train_000000.bin").stat().st_mtime_ns
        self.assertEqual(self.reproduce(*arguments, "--resume")[0], 0)
        self.assertEqual((self.out / "data" / "train_000000.bin").stat().st_mtime_ns, made)
        status, _, errors = self.reproduce(*arguments[:-2], "--resume", "--train-bpe", "300")
        self.assertEqual((status, "now asked for" in errors), (2, True))

    def test_a_text_may_be_held_out(self):
        for name, word in (("book", "play"), ("other", "work")):
            (self.folder / f"{name}.txt").write_text(word * 1000, encoding="utf-8")
        status, _, errors = self.reproduce(
            "--optimizers", "muon", "--seeds", "1", "--lrs", "0.02", "--text", str(self.folder / "book.txt"),
            "--validation-text", str(self.folder / "other.txt"), "--tokenizer", "bytes")
        self.assertEqual(status, 0, errors)
        tokens = (self.out / "data" / "validation_000000.bin").read_bytes()[1024:]
        self.assertEqual(bytes(tokens[2::2]), b"work" * 1000)  # behind the separator

    def test_a_text_that_is_not_there_is_named(self):
        status, _, errors = self.reproduce("--text", "no-such-book.txt")
        self.assertEqual((status, "no-such-book.txt" in errors), (2, True))
        self.assertEqual(self.calls(), [])

    def test_a_folder_that_reads_as_a_pattern_is_refused_before_shards_are_made(self):
        (self.folder / "book.txt").write_text("All work and no play.\n" * 3000, encoding="utf-8")
        for name in ("a[1]", "a*", "a?", "{a,b}"):
            out = self.folder / name
            status, _, errors = self.reproduce("--text", str(self.folder / "book.txt"), "--out", str(out))
            self.assertEqual((status, f"--out: '{out}'" in errors, out.exists()), (2, True, False), errors)
        # Shards that are elsewhere are no reason.
        status, _, errors = self.reproduce("--optimizers", "muon", "--seeds", "1", "--lrs", "0.02", "--out",
                                           str(self.folder / "a[1]"))
        self.assertEqual(status, 0, errors)

    def test_shards_are_not_half_made(self):
        text = self.folder / "book.txt"
        text.write_bytes(b"\xff\xfe nothing that is UTF-8 \xff\n" * 10)
        status, _, errors = self.reproduce("--text", str(text))
        self.assertNotEqual(status, 0)
        self.assertIn("prepare_text.py", errors)
        self.assertFalse((self.out / "data").exists())
        shutil.rmtree(self.out)


if __name__ == "__main__":
    unittest.main()
