"""Tests of data/prepare_fineweb.py, with a local folder, and a local server over it, in place of the hub.

Run with: python3 -m unittest discover -s tests/python
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import unittest
from unittest import mock

from data_case import Case, needs, sentence, split_documents  # first: it makes the scripts importable
from hub_server import serve

import prepare_fineweb
import shards
import vocabularies


class FineWeb(Case):
    """A folder with the hub's layout stands in for it; through the real client where that is installed."""

    def setUp(self):
        super().setUp()
        self.hub = self.place("hub")
        self.write_shards()

    def write_shards(self) -> None:
        for name, first, count in (("val_000000", 0, 50), ("train_000001", 100, 80), ("train_000002", 300, 70)):
            content = shards.header(2, count) + shards.pack(list(range(first, first + count)), 2)
            self.write(f"hub/kjj0/fineweb10B-gpt2/fineweb_{name}.bin", content)
        self.write("hub/kjj0/fineweb10B-gpt2/README.md", "not a shard")
        # A whole, if tiny, vocabulary in the form of GPT-2's.
        tokens = {character: i for i, character in enumerate(vocabularies.printable_bytes())}
        tokens.update({"he": 256, "Ġthe": 257, "Ġt": 258, "<|endoftext|>": 259})
        merges = "#version: 0.2\nh e\nĠ t\nĠt he\n"
        self.write("hub/openai-community/gpt2/vocab.json", json.dumps(tokens))
        self.write("hub/openai-community/gpt2/merges.txt", merges)

    def write_parquet(self) -> list[str]:
        import pyarrow
        import pyarrow.parquet

        texts = [sentence(i) for i in range(300)]
        for name, start in (("000_00000", 0), ("000_00001", 150)):
            part = texts[start : start + 150]
            table = pyarrow.table({"id": [str(i) for i in range(150)], "text": part, "token_count": [1] * 150})
            pyarrow.parquet.write_table(
                table, self.path(f"hub/HuggingFaceFW/fineweb-edu/sample/10BT/{name}.parquet"), row_group_size=40
            )
        self.write("hub/HuggingFaceFW/fineweb-edu/data/CC-MAIN-2024-10/README.md", "another subset")
        return texts

    def fetch(self, *arguments: str) -> str:
        output = self.path("out")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            prepare_fineweb.main(["--output", output, *arguments])
        return output

    def check_shards(self, *source: str) -> None:
        output = self.fetch("fineweb10B-gpt2", "--shards", "1", *source)
        self.assertEqual(
            sorted(os.listdir(output)), ["source.json", "train_000001.bin", "validation_000000.bin", "vocabulary.json"]
        )
        self.assertEqual(self.ids(output, "train"), list(range(100, 180)))
        self.assertEqual(self.ids(output, "validation"), list(range(50)))
        vocabulary = self.vocabulary(output)
        self.assertEqual(
            (vocabulary["kind"], vocabulary["size"], vocabulary["separator"]), ("byte_level_bpe", 260, 259)
        )
        # A second run keeps what is whole, mends what is not, and fetches the rest.
        before = os.stat(os.path.join(output, "train_000001.bin")).st_mtime_ns
        self.write("out/validation_000000.bin", b"half")
        self.fetch("fineweb10B-gpt2", *source)
        self.assertEqual(os.stat(os.path.join(output, "train_000001.bin")).st_mtime_ns, before)
        self.assertEqual(self.ids(output, "train"), [*range(100, 180), *range(300, 370)])
        self.assertEqual(self.ids(output, "validation"), list(range(50)))

    def check_text(self, *source: str) -> None:
        texts = self.write_parquet()
        output = self.fetch(
            "fineweb-edu", "--tokenizer", "bytes", "--validation-tokens", "3000", "--tokens", "20000", *source
        )
        held_out = self.ids(output, "validation")
        train = self.ids(output, "train")
        self.assertEqual(len(train), 20000)
        documents_held_out = split_documents(held_out, 256)
        self.assertEqual([bytes(d).decode() for d in documents_held_out], texts[: len(documents_held_out)])
        self.assertTrue(3000 <= len(held_out) < 3000 + max(len(t.encode()) + 1 for t in texts))
        expected = b"".join(t.encode() for t in texts[len(documents_held_out) :])
        self.assertTrue(expected.startswith(bytes(t for t in train if t != 256)))

    def test_ready_made_shards_from_a_folder(self):
        self.check_shards("--source-dir", self.hub)

    @needs("huggingface_hub")
    def test_ready_made_shards_through_the_hub_client(self):
        self.check_shards("--endpoint", serve(self, self.hub))

    @needs("pyarrow")
    def test_text_from_a_folder(self):
        self.check_text("--source-dir", self.hub)

    @needs("huggingface_hub", "pyarrow")
    def test_text_streamed_through_the_hub_client(self):
        with mock.patch.dict(os.environ, {"HF_HOME": self.place("cache")}):
            self.check_text("--endpoint", serve(self, self.hub))

    @needs("pyarrow")
    def test_all_text_without_a_limit(self):
        texts = self.write_parquet()
        output = self.fetch(
            "fineweb-edu",
            "--tokenizer",
            "bytes",
            "--validation-tokens",
            "1000",
            "--source-dir",
            self.hub,
            "--processes",
            "2",
        )
        got = self.texts(output, "train") | self.texts(output, "validation")
        self.assertEqual(got, {text.encode() for text in texts})

    def test_progress_comes_to_the_whole_of_a_file_however_many_rows_it_has(self):
        for rows in (1, 700, 600_000):
            batches = [["text"] * min(500, rows - start) for start in range(0, rows, 500)]
            columns = [mock.Mock(**{"column.return_value.to_pylist.return_value": batch}) for batch in batches]
            stand_in = mock.Mock()
            stand_in.parquet.ParquetFile.return_value.metadata.num_rows = rows
            stand_in.parquet.ParquetFile.return_value.iter_batches.return_value = columns
            with mock.patch.dict(sys.modules, {"pyarrow": stand_in, "pyarrow.parquet": stand_in.parquet}):
                chunks = list(prepare_fineweb.parquet_chunks(mock.MagicMock(), "owner/name", ["a.parquet"]))
            self.assertEqual(sum(chunk.size for chunk in chunks), prepare_fineweb.FILE_SIZE)
            half = sum(chunk.size for chunk in chunks[: len(chunks) // 2])
            self.assertAlmostEqual(
                half / prepare_fineweb.FILE_SIZE, 500 * (len(chunks) // 2) / rows, delta=1 / prepare_fineweb.FILE_SIZE
            )
            self.assertEqual([chunk.first for chunk in chunks[:2]], [1, 501][: len(chunks)])

    @needs("pyarrow")
    def test_a_file_that_is_not_parquet_is_named(self):
        self.write("hub/HuggingFaceFW/fineweb/sample/10BT/000_00000.parquet", "no parquet")
        message = self.fails(
            3, "fineweb", "--tokenizer", "bytes", "--source-dir", self.hub, script="prepare_fineweb.py"
        )
        self.assertIn("HuggingFaceFW/fineweb/sample/10BT/000_00000.parquet", message)

    def test_errors(self):
        script = "prepare_fineweb.py"
        self.assertIn("no such folder", self.fails(2, "fineweb", "--source-dir", self.path("none"), script=script))
        self.assertIn("no parquet file", self.fails(3, "fineweb", "--source-dir", self.hub, script=script))
        message = self.fails(2, "fineweb10B-gpt2", "--shards", "3", "--source-dir", self.hub, script=script)
        self.assertIn("holds 2", message)
        with open(self.path("hub/kjj0/fineweb10B-gpt2/fineweb_train_000001.bin"), "ab") as file:
            file.write(b"x")
        message = self.fails(3, "fineweb10B-gpt2", "--source-dir", self.hub, script=script)
        self.assertIn("fineweb_train_000001.bin", message)

    def test_shards_of_another_origin_are_not_mixed_in(self):
        output = self.prepare(self.write("in.txt", "line\n" * 100))
        before = sorted(os.listdir(output))
        self.assertIn(
            "--force", self.fails(2, "fineweb10B-gpt2", "--source-dir", self.hub, script="prepare_fineweb.py")
        )
        self.assertEqual(sorted(os.listdir(output)), before)
        self.fetch("fineweb10B-gpt2", "--source-dir", self.hub, "--force")
        self.assertEqual(self.ids(output, "train"), [*range(100, 180), *range(300, 370)])

    def test_shards_that_replaced_fetched_ones_are_not_taken_for_them(self):
        output = self.fetch("fineweb10B-gpt2", "--source-dir", self.hub)
        self.prepare(self.write("in.txt", "line\n" * 100), "--force")
        before = sorted(os.listdir(output))
        self.assertNotIn("source.json", before)
        self.assertIn(
            "--force", self.fails(2, "fineweb10B-gpt2", "--source-dir", self.hub, script="prepare_fineweb.py")
        )
        self.assertEqual(sorted(os.listdir(output)), before)

    def test_fewer_shards_than_are_there_are_refused_or_the_others_removed(self):
        output = self.fetch("fineweb10B-gpt2", "--source-dir", self.hub)
        before = sorted(os.listdir(output))
        self.fetch("fineweb10B-gpt2", "--source-dir", self.hub, "--output", output + "//")
        fewer = ["fineweb10B-gpt2", "--shards", "1", "--source-dir", self.hub]
        message = self.fails(2, *fewer, script="prepare_fineweb.py")
        self.assertIn("train_000002.bin: fetched earlier", message)
        self.assertIn("--force", message)
        self.assertEqual(sorted(os.listdir(output)), before)
        self.fetch(*fewer, "--force")
        self.assertEqual(
            sorted(os.listdir(output)), ["source.json", "train_000001.bin", "validation_000000.bin", "vocabulary.json"]
        )
        self.assertEqual(self.ids(output, "train"), list(range(100, 180)))

    @needs("huggingface_hub")
    def test_a_repository_that_is_not_there_is_named(self):
        message = self.fails(3, "finewebedu10B-gpt2", "--endpoint", serve(self, self.hub), script="prepare_fineweb.py")
        self.assertIn("kjj0/finewebedu10B-gpt2", message)


if __name__ == "__main__":
    unittest.main()
