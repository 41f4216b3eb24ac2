"""Tests of shards, inputs and errors of the data preparation scripts. Run with: python3 -m unittest discover -s tests/python

What needs tokenizers, tiktoken, pyarrow or huggingface_hub is skipped, and says so, where the package is not there.
"""

from __future__ import annotations

import gzip
import itertools
import lzma
import os
import signal
import subprocess
import sys
import unittest
from unittest import mock

from data_case import ROOT, Case, sentence, split_documents  # first: it makes the scripts importable

import documents
import pipeline
import shards
import vocabularies


class DyingEncoder(vocabularies.ByteEncoder):
    def encode(self, text: bytes) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""


class Shards(Case):
    def test_header_is_the_documented_one(self):
        with shards.Output(self.path("out"), 2) as output:
            output.train.write(shards.pack([1, 2, 65535], 2))
            output.commit()
        with open(self.path("out", "train_000000.bin"), "rb") as file:
            content = file.read()
        self.assertEqual(len(content), 1024 + 6)
        self.assertEqual(content[:12], b"\x88\xd8\x34\x01" + b"\x01\0\0\0" + b"\x03\0\0\0")  # 20240520, 1, 3
        self.assertEqual(content[12:1024], bytes(1012))
        self.assertEqual(content[1024:], b"\x01\0\x02\0\xff\xff")

    def test_wide_tokens_have_the_other_header(self):
        with shards.Output(self.path("out"), 4) as output:
            output.train.write(shards.pack([1, 128000], 4))
            output.commit()
        with open(self.path("out", "train_000000.bin"), "rb") as file:
            content = file.read()
        self.assertEqual(content[:12], b"\xa1\xd9\x34\x01" + b"\x07\0\0\0" + b"\x02\0\0\0")  # 20240801, 7, 2
        self.assertEqual(content[1024:], b"\x01\0\0\0" + (128000).to_bytes(4, "little"))

    def test_width_follows_the_vocabulary(self):
        self.assertEqual([shards.token_bytes(n) for n in (257, 65535, 65536, 128256)], [2, 2, 4, 4])

    def test_documents_run_over_the_ends_of_shards(self):
        tokens = list(range(1000))
        with shards.Output(self.path("out"), 2, shard_tokens=300) as output:
            for i in range(0, 1000, 70):
                output.train.write(shards.pack(tokens[i : i + 70], 2))
            output.commit()
        counts = [shards.check_shard(self.path("out", f"train_{i:06d}.bin"))[1] for i in range(4)]
        self.assertEqual(counts, [300, 300, 300, 100])
        self.assertEqual(self.ids(self.path("out"), "train"), tokens)

    def test_nothing_is_left_of_an_output_that_was_not_committed(self):
        with self.assertRaises(RuntimeError):
            with shards.Output(self.path("new", "out"), 2) as output:
                output.train.write(b"\0\0")
                output.add_file("vocabulary.json", "{}")
                raise RuntimeError
        self.assertEqual(os.listdir(self.place("new")), [])

    def test_check_tells_a_damaged_shard(self):
        good = shards.header(2, 3) + bytes(6)
        for content in (b"", good[:1000], good[:-1], good + b"x", b"\0" + good[1:]):
            with self.assertRaises(shards.PrepareError):
                shards.check_shard(self.write("bad.bin", content))
        self.assertEqual(shards.check_shard(self.write("good.bin", good)), (2, 3))


class Inputs(Case):
    def test_every_document_lands_whole_on_one_side(self):
        texts = [sentence(i) for i in range(200)]
        output = self.prepare(self.json_lines("in.jsonl", texts), "--validation-fraction", "0.2", "--processes", "1")
        train, validation = self.texts(output, "train"), self.texts(output, "validation")
        self.assertEqual(train | validation, {text.encode() for text in texts})
        self.assertFalse(train & validation)
        self.assertTrue(15 <= len(validation) <= 70, len(validation))

    def test_order_and_split_do_not_depend_on_processes(self):
        texts = [sentence(i, 2000) for i in range(150)]  # several chunks
        source = self.json_lines("in.jsonl", texts)
        results = []
        for processes in ("1", "3"):
            output = self.prepare(source, "--processes", processes, "--force")
            results.append((self.ids(output, "train"), self.ids(output, "validation")))
        self.assertEqual(results[0], results[1])
        order = [bytes(ids).decode() for ids in split_documents(results[0][0], 256)]
        self.assertEqual(order, [text for text in texts if text in set(order)])

    def test_copies_of_a_document_fall_on_the_same_side(self):
        texts = [sentence(i) for i in range(50)] * 3
        output = self.prepare(self.json_lines("in.jsonl", texts), "--validation-fraction", "0.3")
        self.assertFalse(self.texts(output, "train") & self.texts(output, "validation"))

    def test_compressed_inputs_give_the_same_tokens(self):
        texts = [sentence(i) for i in range(40)]
        expected = None
        for name, opener in (("a.jsonl", open), ("a.jsonl.xz", lzma.open), ("a.jsonl.gz", gzip.open)):
            output = self.prepare(self.json_lines(name, texts, opener), "--force")
            got = self.ids(output, "train"), self.ids(output, "validation")
            expected = expected or got
            self.assertEqual(got, expected, name)

    def test_folders_are_walked_by_extension(self):
        for name, text in (
            ("src/b.py", "b = 1\n"),
            ("src/deep/er/a.py", "a = 1\n"),
            ("src/notes.md", "notes\n"),
            ("src/image.png", b"\x89PNG\0"),
            ("src/.hidden/c.py", "hidden\n"),
        ):
            self.write(name, text)
        with gzip.open(self.path("src/zipped.py.gz"), "wb") as file:
            file.write(b"zipped\n")
        output = self.prepare(self.place("src"), "--extensions", ".py", "--validation-fraction", "0")
        self.assertEqual(self.texts(output, "train"), {b"b = 1\n", b"a = 1\n", b"zipped\n"})
        output = self.prepare(self.place("src"), "--validation-fraction", "0", "--force")
        self.assertEqual(self.texts(output, "train"), {b"notes\n"})

    def test_validation_inputs_are_held_out_and_nothing_else(self):
        train = self.json_lines("train.jsonl", [sentence(i) for i in range(30)])
        held_out = self.json_lines("val.jsonl", [sentence(i) for i in range(100, 105)])
        output = self.prepare(train, "--validation-input", held_out)
        self.assertEqual(self.texts(output, "train"), {sentence(i).encode() for i in range(30)})
        self.assertEqual(self.texts(output, "validation"), {sentence(i).encode() for i in range(100, 105)})

    def test_a_file_below_an_input_that_is_held_out_is_not_trained_on(self):
        for name in ("a", "b", "c"):
            self.write(f"in/{name}.txt", f"text {name}\n")
        os.symlink(self.place("in"), os.path.join(self.folder, "link"))
        for held_out in (self.path("in", "b.txt"), os.path.join(self.folder, "link", "b.txt")):
            output = self.prepare(self.place("in"), "--validation-input", held_out, "--force")
            self.assertEqual(self.texts(output, "train"), {b"text a\n", b"text c\n"})
            self.assertEqual(self.texts(output, "validation"), {b"text b\n"})
        self.assertIn("1 files that --validation-input holds out", self.told)

    def test_of_a_single_document_the_tail_is_held_out_at_a_line_end(self):
        text = "".join(sentence(i) for i in range(100))
        output = self.prepare(self.write("book.txt", text), "--validation-fraction", "0.1")
        (train,), (tail,) = self.texts(output, "train"), self.texts(output, "validation")
        self.assertEqual(train + tail, text.encode())
        self.assertTrue(train.endswith(b"\n"))
        self.assertTrue(0.08 < len(tail) / len(text.encode()) < 0.13)

    def test_a_line_end_far_before_the_tail_does_not_move_it(self):
        for line in ("lorem ipsum dolor " * 2000, "北京" * 6000):
            with self.subTest(line=line[:2]):
                text = ("My Book\n" + line).encode()
                output = self.prepare(self.write("book.txt", text), "--force")
                (train,), (tail,) = self.texts(output, "train"), self.texts(output, "validation")
                self.assertEqual(train + tail, text)
                self.assertAlmostEqual(len(tail) / len(text), 0.05, delta=0.001)
                tail.decode()

    def test_a_tail_never_cuts_a_character(self):
        text = "北京" * 500
        output = self.prepare(self.write("line.txt", text), "--validation-fraction", "0.1")
        for split in ("train", "validation"):
            (part,) = self.texts(output, split)
            self.assertEqual(len(part) % 3, 0)
            part.decode()

    def test_few_documents_still_leave_one_for_validation(self):
        for count in (2, 3, 5):
            texts = [sentence(i) for i in range(count)]
            output = self.prepare(self.json_lines("in.jsonl", texts), "--validation-fraction", "0.001", "--force")
            self.assertEqual(len(self.texts(output, "validation")), 1)
            self.assertEqual(len(self.texts(output, "train")), count - 1)

    def test_a_marker_cuts_text_files_wherever_blocks_end(self):
        texts = [sentence(i, 3 + i % 50) for i in range(100)]
        source = self.write("stories.txt", "<|endoftext|>\n".join(texts))
        for block in (7, 64, 1 << 20):
            with mock.patch.object(documents, "CHUNK_BYTES", block):
                output = self.prepare(
                    source,
                    "--document-marker",
                    "<|endoftext|>",
                    "--validation-fraction",
                    "0",
                    "--force",
                    "--processes",
                    "1",
                )
            self.assertEqual(
                [bytes(ids) for ids in split_documents(self.ids(output, "train"), 256)],
                [text.strip().encode() for text in texts],
            )

    def test_half_a_surrogate_pair_is_replaced(self):
        source = self.write("in.jsonl", '{"text": "a\\ud800b"}\n{"text": "other"}\n')
        output = self.prepare(source, "--validation-fraction", "0")
        self.assertEqual(self.texts(output, "train"), {b"a?b", b"other"})

    def test_a_folder_may_hold_files_that_are_not_text(self):
        self.write("src/good.txt", "good\n")
        self.write("src/latin1.txt", "caf\xe9\n".encode("latin-1"))
        self.write("src/binary.txt", b"a\0b")
        output = self.prepare(self.place("src"), "--validation-fraction", "0")
        self.assertEqual(self.texts(output, "train"), {b"good\n"})


class Errors(Case):
    def test_a_missing_input_is_named(self):
        self.assertIn("nowhere.txt", self.fails(3, self.path("nowhere.txt")))

    def test_a_bad_line_is_numbered(self):
        source = self.write("in.jsonl", '{"text": "good"}\n\n{"text": bad}\n')
        self.assertIn("in.jsonl, line 3: not valid JSON", self.fails(3, source))
        source = self.write("in.jsonl", '{"text": "good"}\n{"body": "text", "id": 3}\n')
        message = self.fails(3, source)
        self.assertIn("line 2: has no key 'text' (keys: body, id)", message)
        self.assertIn("--text-key", message)
        source = self.write("in.jsonl", "[1]\n")
        self.assertIn("line 1", self.fails(3, source))

    def test_a_truncated_archive_is_named(self):
        whole = self.json_lines("in.jsonl.xz", [sentence(i) for i in range(500)], lzma.open)
        with open(whole, "rb") as file:
            content = file.read()
        for damaged in (content[: len(content) // 2], content[:40] + b"\xff\xff\xff\xff" + content[44:], b"not xz"):
            self.assertIn("in.jsonl.xz: cannot be decompressed", self.fails(3, self.write("in.jsonl.xz", damaged)))

    def test_a_named_file_that_is_not_text_is_refused_with_the_offset(self):
        self.assertIn("is not UTF-8 at offset 3", self.fails(3, self.write("in.txt", b"abc\xff")))
        self.assertIn("has a zero byte at offset 1", self.fails(3, self.write("in.txt", b"a\0b")))

    def test_nothing_is_overwritten_without_force(self):
        source = self.write("in.txt", "line\n" * 100)
        self.prepare(source)
        before = {name: os.stat(self.path("out", name)).st_mtime_ns for name in os.listdir(self.place("out"))}
        self.assertIn("--force", self.fails(2, source))
        after = {name: os.stat(self.path("out", name)).st_mtime_ns for name in os.listdir(self.place("out"))}
        self.assertEqual(before, after)

    def test_force_leaves_no_shard_of_the_earlier_run(self):
        source = self.write("in.txt", sentence(1, 300))
        self.assertGreater(len(os.listdir(self.prepare(source, "--shard-tokens", "100"))), 5)
        output = self.prepare(source, "--force")
        self.assertEqual(sorted(os.listdir(output)), ["train_000000.bin", "validation_000000.bin", "vocabulary.json"])

    def test_a_failed_run_leaves_earlier_shards_alone(self):
        self.prepare(self.write("good.txt", "line\n" * 100))
        before = sorted(os.listdir(self.place("out")))
        self.fails(
            3, self.write("bad.jsonl", '{"text": "a"}\n{"text": "b"}\nbad\n'), "--force", "--validation-fraction", "0"
        )
        self.assertEqual(sorted(os.listdir(self.place("out"))), before)

    def test_a_write_that_fails_leaves_nothing_behind(self):
        source = self.write("in.txt", "line\n" * 100_000)
        code = (
            "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000));"
            "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        script = os.path.join(ROOT, "data", "prepare_text.py")
        done = subprocess.run(
            [sys.executable, "-c", code, script, source, "--output", self.path("out", "deep")],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.path.join(ROOT, "data")},
            check=False,
        )
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("File too large", done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(os.listdir(self.place("out")), [])

    def test_a_terminated_run_leaves_nothing_behind(self):
        good = self.json_lines("in.jsonl", [sentence(i) for i in range(5)])
        script = os.path.join(ROOT, "data", "prepare_text.py")
        arguments = [good, "--output", self.path("out", "deep")]
        code = (
            "import sys, time, runpy; sys.path.insert(0, sys.argv[1]); import pipeline;"
            "run = pipeline.Job.run\n"
            "def slow(*a):\n print('working', flush=True); time.sleep(60); return run(*a)\n"
            "pipeline.Job.run = slow; sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        for processes, number in itertools.product(("1", "2"), (signal.SIGTERM, signal.SIGHUP)):
            with subprocess.Popen(
                [sys.executable, "-c", code, os.path.join(ROOT, "data"), script, *arguments, "--processes", processes],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            ) as running:
                self.assertEqual(running.stdout.readline(), "working\n")
                if number == signal.SIGHUP:
                    os.killpg(running.pid, number)  # a terminal that goes tells all of them, a shell once more
                os.kill(running.pid, number)
                _, errors = running.communicate(timeout=30)
            self.assertEqual(running.returncode, 130, errors)
            self.assertNotIn("Traceback", errors)
            self.assertEqual(os.listdir(self.place("out")), [])

    def test_nohup_is_heeded(self):
        source = self.write("in.txt", "line\n" * 100)
        code = (
            "import sys, runpy; sys.path.insert(0, sys.argv[1]); import pipeline;"
            "run = pipeline.Job.run\n"
            "def wait(*a):\n print('working', flush=True); sys.stdin.readline(); return run(*a)\n"
            "pipeline.Job.run = wait; sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        script = os.path.join(ROOT, "data", "prepare_text.py")
        with subprocess.Popen(
            ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", code, os.path.join(ROOT, "data"), script]
            + [source, "--output", self.path("out"), "--processes", "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            self.assertEqual(running.stdout.readline(), "working\n")
            running.send_signal(signal.SIGHUP)
            _, errors = running.communicate("\n", timeout=30)
        self.assertEqual(running.returncode, 0, errors)

    def test_what_killed_runs_left_is_removed_and_nothing_else(self):
        source = self.write("in.txt", "line\n" * 100)
        with subprocess.Popen([sys.executable, "-c", ""]) as gone:
            pass
        code = (
            "import os, signal, sys; sys.path.insert(0, sys.argv[1]); import shards\n"
            "output = shards.Output(sys.argv[2], 2); output.train.write(bytes(200))\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", code, os.path.join(ROOT, "data"), self.path("out")], check=False)
        left = os.listdir(self.place("out"))
        self.assertEqual(len(left), 1)
        this = left[0].rsplit("-", 1)[0]  # up to the process
        kept = [f"{this}-{os.getppid()}", f".train_000000.bin.partial-elsewhere.example-{gone.pid}", ".notes"]
        for name in [*kept, f"{this}-{gone.pid}", f"{this}-{os.getpid()}"]:
            self.write(f"out/{name}", "")
        self.prepare(source)
        self.assertEqual({name for name in os.listdir(self.place("out")) if name.startswith(".")}, set(kept))

    def test_a_worker_that_is_killed_is_an_error_and_no_hang(self):
        pieces = [documents.Chunk("texts", "test", i, ["text"], 4) for i in range(20)]
        job = pipeline.Job(DyingEncoder(), documents.Reading(), documents.Split())
        with self.assertRaisesRegex(shards.PrepareError, "worker process died"):
            list(pipeline.encode_all(pieces, job, 3))

    def test_usage_errors(self):
        source = self.write("in.txt", "text\n")
        self.assertIn("--vocab", self.fails(2, source, "--tokenizer", "gpt2"))
        self.assertIn("neither", self.fails(2, source, "--tokenizer", "no-such"))
        self.assertIn("--validation-fraction", self.fails(2, source, "--validation-fraction", "1.5"))
        self.assertIn("--shard-tokens", self.fails(2, source, "--shard-tokens", "0"))
        self.assertIn("--train-bpe", self.fails(2, source, "--train-bpe", "1000", "--tokenizer", "bytes"))
        self.assertIn("encoder.json", self.fails(3, source, "--tokenizer", "gpt2", "--vocab", self.folder))

    def test_inputs_that_are_all_held_out_are_an_error(self):
        source = self.write("in/a.txt", "text\n")
        self.assertIn("nothing is left to train on", self.fails(3, self.place("in"), "--validation-input", source))

    def test_empty_inputs_are_an_error(self):
        self.assertIn("no document", self.fails(3, self.write("in.txt", "")))
        self.assertIn("no file ends in", self.fails(3, self.place("src")))

    def test_without_its_package_a_tokenizer_is_a_usage_error(self):
        source = self.write("in.txt", "text\n")
        blocker = self.write("block/tokenizers.py", "raise ImportError\n")
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(blocker)}
        with mock.patch.dict(os.environ, environment):
            self.assertIn("pip install tokenizers", self.fails(2, source, "--train-bpe", "300"))


if __name__ == "__main__":
    unittest.main()
