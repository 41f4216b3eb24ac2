"""data/vocabularies.py: what tokenizers make of text, and what vocabulary.json says of them.

What needs tokenizers or tiktoken is skipped, and says so, where the package is not there.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import unittest

from data_case import ROOT, Case, needs, sentence, split_documents  # first: it makes the scripts importable

import shards
import vocabularies


STAND_IN = """# of tokenizers: a byte-level BPE without merges
import types
import vocabularies

class Tokenizer:
    def __init__(self, vocabulary):
        self.ids = {byte: vocabulary[text] for text, byte in vocabularies.printable_bytes().items()}
    def encode_batch_fast(self, texts, add_special_tokens):
        return [types.SimpleNamespace(ids=[self.ids[byte] for byte in text.encode()]) for text in texts]

models = types.SimpleNamespace(BPE=lambda vocab, merges: vocab)
pre_tokenizers = types.SimpleNamespace(ByteLevel=lambda add_prefix_space: None)
"""


class Vocabularies(Case):
    def test_bytes_need_the_standard_library_alone(self):
        source = self.write("in.txt", "naïve\n" * 50)
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); import prepare_text as p;"
            "p.prepare(p.parse_arguments([sys.argv[2], '--output', sys.argv[3], '--processes', '2']))"
        )
        subprocess.run(  # -S: without the folder that packages are installed in
            [sys.executable, "-S", "-c", code, os.path.join(ROOT, "data"), source, self.path("out")],
            check=True,
            capture_output=True,
        )
        vocabulary = self.vocabulary(self.path("out"))
        self.assertEqual((vocabulary["kind"], vocabulary["size"], vocabulary["separator"]), ("bytes", 257, 256))

    def test_printable_characters_are_a_bijection(self):
        characters = vocabularies.printable_bytes()
        self.assertEqual(sorted(characters.values()), list(range(256)))
        self.assertEqual((characters["A"], characters["Ġ"], characters["Ċ"]), (65, 32, 10))

    def reference_encode(self, vocabulary: dict, text: str, tokenizer) -> list[int]:
        """Byte-pair encoding as docs/formats.md describes the file, on the pieces that `tokenizers` splits."""
        tokens = {base64.b64decode(t): i for i, t in enumerate(vocabulary["tokens"]) if t is not None}
        merges = {tuple(pair): rank for rank, pair in enumerate(vocabulary["merges"])}
        byte_of = vocabularies.printable_bytes()
        ids = []
        for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text):
            symbols = [tokens[bytes([byte_of[c]])] for c in piece]
            while True:
                ranked = [
                    (merges.get(pair, 1 << 30), i) for i, pair in enumerate(zip(symbols, symbols[1:], strict=False))
                ]
                if not ranked or min(ranked)[0] == 1 << 30:
                    break
                at = min(ranked)[1]
                merged = b"".join(base64.b64decode(vocabulary["tokens"][s]) for s in symbols[at : at + 2])
                symbols[at : at + 2] = [tokens[merged]]
            ids += symbols
        return ids

    @needs("tokenizers")
    def test_a_trained_bpe_describes_itself(self):
        import tokenizers

        texts = [sentence(i, 200) for i in range(60)]
        output = self.prepare(self.json_lines("in.jsonl", texts), "--train-bpe", "400")
        vocabulary = self.vocabulary(output)
        self.assertEqual(vocabulary["kind"], "byte_level_bpe")
        self.assertEqual(vocabulary["separator"], vocabulary["size"] - 1)
        self.assertEqual(vocabulary["special_tokens"], {"<|endoftext|>": vocabulary["separator"]})
        self.assertTrue(257 < vocabulary["size"] <= 400)
        tokenizer = tokenizers.Tokenizer.from_file(os.path.join(output, "tokenizer.json"))
        encoded = split_documents(self.ids(output, "train"), vocabulary["separator"])
        decoded = [
            b"".join(base64.b64decode(vocabulary["tokens"][i]) for i in document).decode() for document in encoded
        ]
        self.assertTrue(set(decoded) <= set(texts))
        for text, document in zip(decoded[:5], encoded, strict=False):
            self.assertEqual(self.reference_encode(vocabulary, text, tokenizer), document)

    @needs("tokenizers")
    def test_the_bpe_is_trained_on_the_training_part_alone(self):
        train = self.json_lines("train.jsonl", ["aaaa bbbb " * 50] * 3)
        held_out = self.json_lines("val.jsonl", ["zzzz " * 500])
        output = self.prepare(train, "--validation-input", held_out, "--train-bpe", "300")
        tokens = {base64.b64decode(t) for t in self.vocabulary(output)["tokens"] if t}
        self.assertIn(b"aaaa", tokens)
        self.assertNotIn(b"zz", tokens)

    @needs("tokenizers")
    def test_the_name_of_a_special_token_in_a_text_is_text(self):
        source = self.json_lines("in.jsonl", [sentence(i) + "<|endoftext|>" for i in range(20)])
        output = self.prepare(source, "--train-bpe", "300", "--validation-fraction", "0")
        separator = self.vocabulary(output)["separator"]
        self.assertEqual(self.ids(output, "train").count(separator), 20)

    def tokenizer_json(self, **changes) -> str:
        """A tokenizer.json whose parts a test may change."""
        import tokenizers

        output = self.prepare(self.write("t.txt", sentence(1, 500)), "--train-bpe", "280", "--force")
        with open(os.path.join(output, "tokenizer.json"), encoding="utf-8") as file:
            content = json.load(file)
        content.update(changes)
        path = self.write("tokenizer.json", json.dumps(content))
        tokenizers.Tokenizer.from_file(path)  # still valid
        return path

    @needs("tokenizers")
    def test_a_tokenizer_json_keeps_its_own_pattern(self):
        split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\D+"}, "behavior": "Isolated", "invert": False}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        path = self.tokenizer_json(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]})
        vocabulary = vocabularies.make_encoder(path).vocabulary()
        self.assertEqual((vocabulary["kind"], vocabulary["pattern"]), ("byte_level_bpe", r"\p{N}{1,3}|\D+"))

    @needs("tokenizers")
    def test_what_the_program_cannot_run_is_opaque(self):
        level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        word = {"id": 279, "content": "<|endoftext|>", "special": True}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        plain = {"id": 280, "content": "    ", "special": False}
        for change in (
            {"normalizer": {"type": "NFC"}},
            {"pre_tokenizer": level},
            {"pre_tokenizer": {"type": "Whitespace"}},
            {"added_tokens": [{**word, **flags}, {**plain, **flags}]},
        ):
            encoder = vocabularies.make_encoder(self.tokenizer_json(**change))
            vocabulary = encoder.vocabulary()
            self.assertEqual(vocabulary["kind"], "opaque", change)
            self.assertEqual(vocabulary["size"], encoder.size)
            self.assertNotIn("tokens", vocabulary)

    @needs("tokenizers")
    def test_a_separator_is_found_or_named(self):
        path = self.tokenizer_json()
        self.assertEqual(vocabularies.make_encoder(path).separator, vocabularies.make_encoder(path).size - 1)
        with self.assertRaises(shards.PrepareError) as caught:
            vocabularies.make_encoder(path, separator="<none>")
        self.assertIn("<|endoftext|>", str(caught.exception))

    def test_gpt2_reaches_processes_however_they_are_started(self):
        tokens = {character: i for i, character in enumerate(vocabularies.printable_bytes())}
        self.write("gpt2/vocab.json", json.dumps({**tokens, "<|endoftext|>": 256}))
        self.write("gpt2/merges.txt", "")
        self.write("packages/tiktoken.py", "raise ImportError\n")
        self.write("packages/tokenizers.py", STAND_IN)
        source = self.json_lines("in.jsonl", [sentence(i) for i in range(20)])
        code = (
            "import multiprocessing, runpy, sys; multiprocessing.set_start_method(sys.argv[1]);"
            "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        results = []
        for method, processes in (("spawn", "1"), ("spawn", "2"), ("forkserver", "2")):
            output = self.path("out-" + method + processes)
            done = subprocess.run(
                [sys.executable, "-c", code, method, os.path.join(ROOT, "data", "prepare_text.py"), source]
                + ["--tokenizer", "gpt2", "--vocab", self.path("gpt2"), "--processes", processes, "--output", output],
                env={**os.environ, "PYTHONPATH": f"{self.path('packages')}:{os.path.join(ROOT, 'data')}"},
                capture_output=True,
                text=True,
                check=False,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            results.append((self.ids(output, "train"), self.ids(output, "validation")))
        self.assertEqual(results[0][0].count(256) + results[0][1].count(256), 20)
        self.assertEqual(results[1:], results[:1] * 2)

    @unittest.skipUnless(os.environ.get("POLARON_TEST_DATA"), "needs POLARON_TEST_DATA, a folder with gpt2/ in it")
    @needs("tiktoken", "tokenizers")
    def test_gpt2_is_the_same_through_either_package(self):
        encoder = vocabularies.make_encoder("gpt2", os.path.join(os.environ["POLARON_TEST_DATA"], "gpt2"))
        self.assertEqual((encoder.size, encoder.separator, encoder.width), (50257, 50256, 2))
        text = ("Hello world, don't  panic!\n\n\tnaïve 北京 🙂 \u180e 1234567 <|endoftext|>" * 3).encode()
        encoder.prepare()
        expected = encoder.encode(text)
        self.assertEqual(shards.pack([15496, 995], 2), expected[:4])
        encoder._encode = encoder._with_tokenizers()
        self.assertEqual(encoder.encode(text), expected)


if __name__ == "__main__":
    unittest.main()
