#!/usr/bin/env python3
"""Turns text into token shards that polaron trains on.

Inputs are text files, JSON lines (.jsonl, one object with a "text" a line), either also as .gz or .xz, and folders of
them.
The output folder gets train_000000.bin ..., validation_000000.bin ... and vocabulary.json.

examples:
  # bytes as tokens: needs nothing but Python
  prepare_text.py book.txt --output data/book
  # Python sources, a tenth of the files held out
  prepare_text.py /usr/lib/python3 --extensions .py --validation-fraction 0.1 --output data/python
  # GPT-2's tokens; its encoder.json and vocab.bpe are in the folder gpt2/
  prepare_text.py docs.jsonl.xz --tokenizer gpt2 --vocab gpt2 --output data/docs
  # a byte-level BPE of 4,096 entries, trained on the training part; validation documents given
  prepare_text.py train.jsonl.xz --validation-input val.jsonl.xz --train-bpe 4096 --output data/docs-bpe
  # one large file of stories with a marker between them
  prepare_text.py stories.txt --document-marker '<|endoftext|>' --output data/stories
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from documents import (
    DEFAULT_EXTENSIONS,
    Chunk,
    Reading,
    Skipped,
    Split,
    check_fraction,
    choose_split,
    chunks,
    documents,
    find_inputs,
    without_held_out,
)
from pipeline import Job, default_processes, encode_all
from shards import (
    DATA,
    DEFAULT_SHARD_TOKENS,
    Output,
    PrepareError,
    Progress,
    check_free,
    run_script,
    summary,
)
from vocabularies import Encoder, TokenizerJsonEncoder, make_encoder, train_byte_pairs


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\nexamples:")[0],
        epilog="examples:" + __doc__.split("examples:")[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="text file, .jsonl file, or folder (searched to any depth)")
    add("--output", required=True, metavar="DIR", help="folder for the shards; made if it is not there")
    add(
        "--tokenizer",
        metavar="NAME",
        help="'bytes' (the default), 'gpt2' (with --vocab), or the path of a Hugging Face tokenizer.json",
    )
    add("--vocab", metavar="DIR", help="with --tokenizer gpt2: the folder of encoder.json and vocab.bpe")
    add(
        "--train-bpe",
        type=int,
        metavar="SIZE",
        help="train a byte-level BPE of SIZE entries on the training part, use it",
    )
    add(
        "--train-bpe-bytes",
        type=int,
        default=500_000_000,
        metavar="N",
        help="train it on the first N bytes of the training part at most (default %(default)s)",
    )
    add("--separator", metavar="TOKEN", help="with a tokenizer.json: the token that opens each document")
    add(
        "--validation-fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="hold out this fraction of the documents, chosen by a hash of their text; of a single document, its last "
        "part (default %(default)s)",
    )
    add(
        "--validation-input",
        nargs="+",
        metavar="INPUT",
        help="hold out these files instead; of the inputs none but those that are among them",
    )
    add(
        "--extensions",
        default=DEFAULT_EXTENSIONS,
        metavar="LIST",
        help="which files of a folder to read, also with .gz or .xz behind (default %(default)s)",
    )
    add("--text-key", default="text", metavar="KEY", help="key of the text in a .jsonl file (default %(default)s)")
    add("--document-marker", metavar="TEXT", help="cut text files into documents wherever TEXT is")
    add(
        "--shard-tokens",
        type=int,
        default=DEFAULT_SHARD_TOKENS,
        metavar="N",
        help="tokens of one shard (default %(default)s)",
    )
    add(
        "--processes",
        type=int,
        default=default_processes(),
        metavar="N",
        help="(default: one a core, %(default)s here)",
    )
    add("--force", action="store_true", help="replace shards that are there already")
    parsed = parser.parse_args(arguments)
    if parsed.processes < 1:
        parser.error("--processes: at least 1")
    if parsed.document_marker == "":
        parser.error("--document-marker: an empty text")
    if parsed.train_bpe is not None and (parsed.tokenizer or parsed.vocab):
        parser.error("--train-bpe makes a tokenizer of its own: leave out --tokenizer and --vocab")
    if parsed.vocab and parsed.tokenizer != "gpt2":
        parser.error("--vocab goes with --tokenizer gpt2")
    return parsed


def training_texts(pieces, reading: Reading, split: Split, limit: int, progress: Progress):
    """The training part's documents as strings, until they make `limit` bytes."""
    left = limit
    for chunk in pieces:
        for _name, text in documents(chunk, reading, Skipped()):
            text = split.parts(text)[0]
            if text:
                yield text.decode("utf-8")
                left -= len(text)
        progress.update(chunk.size)
        if left <= 0:
            return


def trained_encoder(arguments, pieces, reading: Reading, split: Split, size: int) -> TokenizerJsonEncoder:
    progress = Progress(size, "training the BPE")
    texts = training_texts(pieces, reading, split, arguments.train_bpe_bytes, progress)
    tokenizer = train_byte_pairs(texts, arguments.train_bpe)
    progress.close()
    encoder = TokenizerJsonEncoder(tokenizer, "the trained BPE", f"bpe-{arguments.train_bpe}")
    if encoder.size < arguments.train_bpe:
        print(f"The text has no more than {encoder.size} entries of a BPE in it.", file=sys.stderr)
    return encoder


def write(output: Output, pieces, job: Job, processes: int, progress: Progress, only: str = "") -> Skipped:
    """Encodes the chunks into the output; `only` sends every document to that split."""
    skipped = Skipped()
    for encoded in encode_all(pieces, job, processes):
        for split, part in (("train", encoded.train), ("validation", encoded.validation)):
            writer = getattr(output, only or split)
            writer.write(b"".join(part.packed))
            writer.documents += len(part.packed)
            writer.text_bytes += part.text_bytes
        skipped.empty += encoded.skipped.empty
        skipped.not_text += encoded.skipped.not_text
        progress.update(encoded.size)
    return skipped


def report_skipped(skipped: Skipped) -> None:
    if skipped.empty:
        print(f"left out {skipped.empty} empty documents", file=sys.stderr)
    if skipped.not_text:
        print(
            f"left out {len(skipped.not_text)} files that are not UTF-8 text, e.g. {skipped.not_text[0]}",
            file=sys.stderr,
        )


def prepare(arguments: argparse.Namespace) -> Output:
    started = time.monotonic()
    check_fraction(arguments.validation_fraction)
    check_free(arguments.output, arguments.force)  # before any work
    reading = Reading(arguments.text_key)
    inputs = find_inputs(arguments.inputs, arguments.extensions)
    held_out = find_inputs(arguments.validation_input or [], arguments.extensions)
    inputs, left_out = without_held_out(inputs, held_out)
    if left_out:
        print(f"left out of training {left_out} files that --validation-input holds out", file=sys.stderr)
    size = sum(entry.size for entry in inputs)

    def pieces(entries) -> Iterator[Chunk]:
        return chunks(entries, arguments.document_marker)

    if arguments.validation_input:
        split = Split()
    else:
        split, remark = choose_split(pieces(inputs), reading, arguments.validation_fraction)
        if remark:
            print(remark, file=sys.stderr)

    encoder: Encoder
    if arguments.train_bpe is not None:
        encoder = trained_encoder(arguments, pieces(inputs), reading, split, size)
    else:
        encoder = make_encoder(arguments.tokenizer or "bytes", arguments.vocab, arguments.separator)

    with Output(arguments.output, encoder.width, arguments.shard_tokens, arguments.force) as output:
        progress = Progress(size + sum(entry.size for entry in held_out), "tokenizing")
        job = Job(encoder, reading, split)
        report_skipped(write(output, pieces(inputs), job, arguments.processes, progress))
        if held_out:
            job = Job(encoder, reading, Split())
            report_skipped(write(output, pieces(held_out), job, arguments.processes, progress, only="validation"))
        progress.close()
        for writer, wanted in (
            (output.train, True),
            (output.validation, bool(held_out or arguments.validation_fraction)),
        ):
            if wanted and not writer.tokens:
                raise PrepareError(DATA, f"the inputs hold no text for {writer.split}.")
        output.add_vocabulary(encoder.vocabulary())
        if isinstance(encoder, TokenizerJsonEncoder):
            output.add_file("tokenizer.json", encoder.text)
        output.commit()
    print(f"tokenizer  {encoder.name}, {encoder.size} entries, {encoder.width} bytes a token")
    print(summary(output, time.monotonic() - started))
    return output


if __name__ == "__main__":
    run_script(lambda: prepare(parse_arguments()))
