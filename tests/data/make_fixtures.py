#!/usr/bin/env python3
"""Makes the fixtures of vocabulary_test.cpp: needs the packages tokenizers and tiktoken, and GPT-2's two files.

  python3 tests/data/make_fixtures.py GPT2_FOLDER

fixtures/small_bpe.json        a byte-level BPE of 600 entries, as data/prepare_text.py writes one
fixtures/small_encodings.json  texts and their ids under it, from tokenizers
fixtures/gpt2_encodings.json   the same texts and their ids under GPT-2's vocabulary, from tiktoken
"""

from __future__ import annotations

import glob
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = os.path.join(HERE, "fixtures")
sys.path.insert(0, os.path.join(HERE, "..", "..", "data"))

import vocabularies  # noqa: E402

# What pre-tokenizers and UTF-8 decoders get wrong. No characters newer than Unicode 14, the engines' common ground.
TEXTS = [
    "",
    " ",
    "a",
    "Hello world",
    "Hello, world! It's 2024.",
    "I'll say we've won; they're here, isn't it? I'd I'm 'tis 'S 'LL don'T",
    "''s ''' 's's 'lll",
    "  leading and trailing  ",
    "many      spaces   between",
    "tab\tnewline\nreturn\r\nboth \n\n\n mixed \t \n x",
    "\n\n\n",
    "   \n   \n  end",
    "trailing newline \n",
    "numbers 1 12 123 1234567890 3.14159 1e-5 0xff",
    "superscript x² ½ Ⅷ ٣٤٥ १२३",
    "naïve café résumé Zürich smörgåsbord",
    "combining e\u0301 a\u0308 n\u0303o",
    "北京大学 日本語テキスト 한국어",
    "Привет мир Γειά σου שלום عالم",
    "🙂 👩‍👩‍👧 🏳️‍🌈 🇩🇪 text🙂text",
    "non\u00a0breaking\u00a0 \u00a0spaces \u2003em\u2003 \u3000wide\u3000",
    "next\u0085line \u0085 x \u2028 y \u2029 z",
    "mongolian\u180eseparator \u180e \u180e\u180ex \u200b zero\u200bwidth \ufeff mark",
    "control \x00 \x01\x02 \x1f \x7f \x0b\x0c end",
    "punctuation!?... --- ___ *** (){}[]<> #$%^&@ `code` “quotes” ‘single’ — dash",
    "camelCase snake_case kebab-case HTTP2Server x86_64",
    "for (int i = 0; i < n; ++i) {\n    sum += a[i] * b[i];  // dot\n\t}\n",
    "the the the the thethethe",
    "<|endoftext|> is text here, <|endoftext|>",
    "max\U0010ffff plane\U0001d400 \ue000 \ufffd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                                                                ",
    "abababababababab cdcdcdcdcd \n" * 3,
]


def training_text() -> list[str]:
    """This project's own sources, and the texts, so that some merges have other scripts in them."""
    root = os.path.join(HERE, "..", "..")
    paths = sorted(glob.glob(os.path.join(root, "src", "*", "*.h")) + glob.glob(os.path.join(root, "data", "*.py")))
    return [open(path, encoding="utf-8").read() for path in paths] + TEXTS * 3


def write(name: str, value) -> None:
    path = os.path.join(FIXTURES, name)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")
    print(path, os.path.getsize(path))


def main(gpt2_folder: str) -> None:
    import tiktoken
    import tokenizers

    os.makedirs(FIXTURES, exist_ok=True)
    text = vocabularies.train_byte_pairs(iter(training_text()), 600)
    small = vocabularies.TokenizerJsonEncoder(text, "the fixture", "small")
    write("small_bpe.json", small.vocabulary())
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    ids = [tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]
    write("small_encodings.json", [{"text": t, "ids": i} for t, i in zip(TEXTS, ids, strict=True)])

    gpt2 = vocabularies.Gpt2Encoder(gpt2_folder)
    ranks = {token: token_id for token_id, token in enumerate(gpt2.tables.tokens) if token is not None}
    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=vocabularies.GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens=gpt2.tables.special,
        explicit_n_vocab=50257,
    )
    write("gpt2_encodings.json", [{"text": t, "ids": encoding.encode_ordinary(t)} for t in TEXTS])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
