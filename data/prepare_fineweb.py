#!/usr/bin/env python3
"""Fetches FineWeb or FineWeb-Edu from the Hugging Face hub and makes token shards that polaron trains on.

  fineweb, fineweb-edu                  the text, streamed (no copy is kept), tokenized here; needs huggingface_hub,
                                        pyarrow, and tiktoken or tokenizers
  fineweb10B-gpt2, fineweb100B-gpt2,    ready-made shards of GPT-2 tokens (kjj0/...); needs huggingface_hub
  finewebedu10B-gpt2

GPT-2's vocabulary is fetched too (openai-community/gpt2) unless --vocab names its folder.

examples:
  # the first billion tokens, ready-made: validation and 10 shards of 100 million tokens (run again to go on)
  prepare_fineweb.py fineweb10B-gpt2 --shards 10 --output data/fineweb
  # two billion tokens of the 10BT sample of FineWeb-Edu with another tokenizer
  prepare_fineweb.py fineweb-edu --subset sample-10BT --tokens 2000000000 --tokenizer llama/tokenizer.json \\
      --output data/fineweb-edu
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator

from documents import Chunk, Reading, Split
from pipeline import Encoded, Job, default_processes, encode_all
from shards import (
    DATA,
    DEFAULT_SHARD_TOKENS,
    USAGE,
    Output,
    PrepareError,
    Progress,
    check_free,
    check_shard,
    existing_files,
    existing_shards,
    replace_file,
    run_script,
    summary,
    vocabulary_text,
)
from vocabularies import Gpt2Encoder, make_encoder, missing

TEXT_SETS = {"fineweb": "HuggingFaceFW/fineweb", "fineweb-edu": "HuggingFaceFW/fineweb-edu"}
SHARD_SETS = {name: f"kjj0/{name}" for name in ("fineweb10B-gpt2", "fineweb100B-gpt2", "finewebedu10B-gpt2")}
GPT2_REPOSITORY = "openai-community/gpt2"
ROWS = 500  # documents of one chunk
FILE_SIZE = 1000  # of each parquet file, in units of the progress bar


class HubSource:
    """The Hugging Face hub, or a server that speaks its protocol (--endpoint, or HF_ENDPOINT)."""

    def __init__(self, endpoint: str | None, revision: str | None):
        try:
            import huggingface_hub
        except ImportError:
            raise missing("huggingface_hub", "fetching from the Hugging Face hub") from None
        self._hub = huggingface_hub
        self._api = huggingface_hub.HfApi(endpoint=endpoint)
        self._endpoint = endpoint
        self._revision = revision

    def files(self, repository: str, folder: str = "") -> list[str]:
        """Paths of all files of a dataset repository under a folder, sorted."""
        entries = self._call(
            repository,
            lambda: list(
                self._api.list_repo_tree(
                    repository, folder or None, recursive=True, repo_type="dataset", revision=self._revision
                )
            ),
        )
        return sorted(entry.path for entry in entries if isinstance(entry, self._hub.hf_api.RepoFile))

    def open(self, repository: str, path: str):
        """A file of a dataset repository, read over the network by ranges."""
        system = self._hub.HfFileSystem(endpoint=self._endpoint)
        return self._call(
            repository, lambda: system.open(f"datasets/{repository}/{path}", "rb", revision=self._revision)
        )

    def fetch(self, repository: str, path: str, folder: str, kind: str = "dataset") -> str:
        """Downloads a file into `folder`, going on where an earlier download broke off; its path there."""
        return self._call(
            repository,
            lambda: self._hub.hf_hub_download(
                repository,
                path,
                repo_type=kind,
                revision=self._revision if kind == "dataset" else None,
                endpoint=self._endpoint,
                local_dir=folder,
            ),
        )

    @staticmethod
    def _call(repository: str, action):
        try:
            return action()
        except Exception as error:  # of huggingface_hub and of the HTTP client it uses, which changes with its version
            raise PrepareError(DATA, f"{repository}: cannot be fetched: {type(error).__name__}: {error}") from None


class FolderSource:
    """A folder that stands in for the hub: ROOT/OWNER/NAME/... holds the files of the repository OWNER/NAME."""

    def __init__(self, root: str):
        self._root = root
        if not os.path.isdir(root):
            raise PrepareError(USAGE, f"--source-dir {root}: no such folder.")

    def files(self, repository: str, folder: str = "") -> list[str]:
        top = os.path.join(self._root, repository)
        found = []
        for where, _folders, names in os.walk(os.path.join(top, folder)):
            found += [os.path.relpath(os.path.join(where, name), top) for name in names]
        return sorted(found)

    def open(self, repository: str, path: str):
        return open(os.path.join(self._root, repository, path), "rb")

    def fetch(self, repository: str, path: str, folder: str, kind: str = "dataset") -> str:
        target = os.path.join(folder, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        source = os.path.join(self._root, repository, path)
        if not os.path.isfile(source):
            raise PrepareError(DATA, f"{source}: no such file.")
        return shutil.copyfile(source, target)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\nexamples:")[0],
        epilog="examples:" + __doc__.split("examples:")[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("dataset", choices=[*TEXT_SETS, *SHARD_SETS], help="which data")
    add("--output", required=True, metavar="DIR", help="folder for the shards; made if it is not there")
    add("--vocab", metavar="DIR", help="folder of GPT-2's encoder.json and vocab.bpe (default: fetched)")
    add("--source-dir", metavar="DIR", help="read from DIR/OWNER/NAME/... instead of the hub")
    add("--endpoint", metavar="URL", help="another server than https://huggingface.co (default: $HF_ENDPOINT)")
    add("--revision", metavar="REV", help="branch, tag or commit of the data set (default: main)")
    add("--force", action="store_true", help="replace shards that are there already")
    ready = parser.add_argument_group("ready-made shards")
    ready.add_argument(
        "--shards", type=int, metavar="N", help="training shards of 100 million tokens each (default: all)"
    )
    text = parser.add_argument_group("text")
    text.add_argument(
        "--subset",
        default="sample-10BT",
        metavar="NAME",
        help="sample-10BT, sample-100BT, sample-350BT, a crawl such as CC-MAIN-2024-10, or default, which is all of "
        "them (default %(default)s)",
    )
    text.add_argument("--tokens", type=int, metavar="N", help="stop after N training tokens (default: all)")
    text.add_argument(
        "--validation-tokens",
        type=int,
        default=10_000_000,
        metavar="N",
        help="the first documents, until they make N tokens, are held out (default %(default)s)",
    )
    text.add_argument(
        "--tokenizer", default="gpt2", metavar="NAME", help="gpt2, bytes, or the path of a tokenizer.json"
    )
    text.add_argument("--separator", metavar="TOKEN", help="with a tokenizer.json: the token that opens each document")
    text.add_argument(
        "--shard-tokens", type=int, default=DEFAULT_SHARD_TOKENS, metavar="N", help="(default %(default)s)"
    )
    text.add_argument(
        "--processes", type=int, default=default_processes(), metavar="N", help="(default %(default)s here)"
    )
    parsed = parser.parse_args(arguments)
    if parsed.source_dir and parsed.endpoint:
        parser.error("--source-dir and --endpoint exclude each other")
    for name in ("shards", "tokens", "processes"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: at least 1")
    if parsed.validation_tokens < 0:
        parser.error("--validation-tokens: at least 0")
    return parsed


def gpt2_encoder(source, vocab: str | None, output: str) -> Gpt2Encoder:
    if vocab:
        return Gpt2Encoder(vocab)
    folder = output.rstrip("/") + ".gpt2-vocabulary"
    try:
        for name in ("vocab.json", "merges.txt"):
            source.fetch(GPT2_REPOSITORY, name, folder, kind="model")
        return Gpt2Encoder(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def subset_folder(subset: str) -> str:
    """Where the repositories keep a subset: sample-10BT is sample/10BT, a crawl is data/CRAWL, default is data."""
    if subset == "default":
        return "data"
    return subset.replace("-", "/", 1) if subset.startswith("sample-") else f"data/{subset}"


def parquet_chunks(source, repository: str, paths: list[str]) -> Iterator[Chunk]:
    """The column `text` of parquet files, streamed; the size of a file is FILE_SIZE whatever it holds."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise missing("pyarrow", "reading FineWeb's text") from None
    for path in paths:
        name = f"{repository}/{path}"
        try:
            with source.open(repository, path) as stream:
                file = pyarrow.parquet.ParquetFile(stream)
                rows = max(1, file.metadata.num_rows)
                done = told = 0  # rows, and what of the file's size their chunks have been given
                for batch in file.iter_batches(batch_size=ROWS, columns=["text"]):
                    texts = [text or "" for text in batch.column("text").to_pylist()]
                    first, done = done + 1, done + len(texts)
                    size = FILE_SIZE * done // rows
                    yield Chunk("texts", name, first, texts, size - told, found=True)
                    told = size
        except PrepareError:
            raise
        except Exception as error:  # of pyarrow for the format, of the HTTP client for the connection
            raise PrepareError(DATA, f"{name}: cannot be read as parquet with a column 'text': {error}") from None


def deal(output: Output, encoded: Encoded, validation_tokens: int, tokens: int | None) -> bool:
    """Writes the documents of a chunk: first to the held-out part until that has its tokens, then to training until
    that has its own. False when there is nothing left to do."""
    for document in encoded.train.packed:
        writer = output.validation if output.validation.tokens < validation_tokens else output.train
        if writer is output.train and tokens is not None:
            document = document[: (tokens - writer.tokens) * output.width]
        writer.write(document)
        writer.documents += 1
        if tokens is not None and output.train.tokens >= tokens:
            return False
    return True


def prepare_text_set(arguments, source) -> Output:
    started = time.monotonic()
    check_free(arguments.output, arguments.force)
    repository = TEXT_SETS[arguments.dataset]
    folder = subset_folder(arguments.subset)
    paths = [path for path in source.files(repository, folder) if path.endswith(".parquet")]
    if not paths:
        raise PrepareError(DATA, f"{repository}: no parquet file under '{folder}' (--subset {arguments.subset}).")
    if arguments.tokenizer == "gpt2":
        encoder = gpt2_encoder(source, arguments.vocab, arguments.output)
    else:
        encoder = make_encoder(arguments.tokenizer, arguments.vocab, arguments.separator)

    with Output(arguments.output, encoder.width, arguments.shard_tokens, arguments.force) as output:
        # With --tokens, progress is in tokens; without, in thousandths of a file.
        wanted = arguments.tokens + arguments.validation_tokens if arguments.tokens else FILE_SIZE * len(paths)
        progress = Progress(wanted, "tokenizing", "tokens" if arguments.tokens else "")
        job = Job(encoder, Reading(), Split())
        encoding = encode_all(parquet_chunks(source, repository, paths), job, arguments.processes)
        try:
            for encoded in encoding:
                before = output.train.tokens + output.validation.tokens
                more = deal(output, encoded, arguments.validation_tokens, arguments.tokens)
                written = output.train.tokens + output.validation.tokens - before
                progress.update(written if arguments.tokens else encoded.size)
                if not more:
                    break
        finally:
            encoding.close()
        progress.close()
        if not output.train.tokens:
            raise PrepareError(
                DATA,
                f"{repository}: its {output.validation.tokens} tokens all went into the held-out part. Ask for fewer "
                "--validation-tokens.",
            )
        if arguments.tokens and output.train.tokens < arguments.tokens:
            print(f"{folder} holds {output.train.tokens:,} training tokens in all.", file=sys.stderr)
        output.add_vocabulary(encoder.vocabulary())
        output.commit()
    print(f"{repository}, {folder}: tokenizer {encoder.name}, {encoder.size} entries")
    print(summary(output, time.monotonic() - started))
    return output


def prepare_shard_set(arguments, source) -> None:
    """Fetches ready-made shards one by one; those that are there and whole are kept, so that a second run goes on."""
    started = time.monotonic()
    repository = SHARD_SETS[arguments.dataset]
    folder = arguments.output
    origin = os.path.join(folder, "source.json")  # tells shards of this set from others of the same name
    description = json.dumps({"repository": repository, "revision": arguments.revision}) + "\n"
    ours = os.path.isfile(origin) and read_text(origin) == description
    if not ours:
        check_free(folder, arguments.force)

    pattern = re.compile(r"[a-z]+_(train|val)_(\d{6})\.bin")
    found = [match for match in map(pattern.fullmatch, source.files(repository)) if match]
    train = [match for match in found if match[1] == "train"]
    if not train:
        raise PrepareError(DATA, f"{repository}: holds no shard with a name like fineweb_train_000001.bin.")
    if arguments.shards is not None and arguments.shards > len(train):
        raise PrepareError(USAGE, f"--shards {arguments.shards}: {repository} holds {len(train)}.")
    chosen = {}  # by the name that each gets here
    for match in [match for match in found if match[1] == "val"] + train[: arguments.shards]:
        split = "train" if match[1] == "train" else "validation"
        chosen[f"{split}_{match[2]}.bin"] = split, match[0]

    replaced = existing_files(folder)
    if ours:  # only what is too much: whoever trains on train_*.bin would read it too
        replaced = [path for path in existing_shards(folder) if os.path.basename(path) not in chosen]
        if replaced and not arguments.force:
            raise PrepareError(
                USAGE,
                f"{replaced[0]}: fetched earlier, and more than is asked for now ({len(replaced)} in all). Ask for "
                "more --shards, choose another --output folder, or have what is there replaced with --force.",
            )
    downloads = os.path.join(folder, ".downloads")
    os.makedirs(downloads, exist_ok=True)
    for path in replaced:
        os.remove(path)
    replace_file(origin, description)
    vocabulary = os.path.join(folder, "vocabulary.json")
    if not os.path.exists(vocabulary):
        replace_file(vocabulary, vocabulary_text(gpt2_encoder(source, arguments.vocab, folder).vocabulary()))
    tokens = {"train": 0, "validation": 0}
    for number, (name, (split, path)) in enumerate(chosen.items(), 1):
        target = os.path.join(folder, name)
        if arguments.force or not is_whole(target):
            print(f"{number} of {len(chosen)}: {repository}/{path}", file=sys.stderr, flush=True)
            fetched = source.fetch(repository, path, downloads)
            check_shard(fetched)
            os.replace(fetched, target)
        tokens[split] += check_shard(target)[1]
    shutil.rmtree(downloads, ignore_errors=True)
    for split, count in tokens.items():
        print(f"{split:<11}{count:>16,} tokens")
    print(f"written to {folder} in {time.monotonic() - started:.1f} s")


def read_text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def is_whole(path: str) -> bool:
    try:
        check_shard(path)
        return True
    except (PrepareError, OSError):
        return False


def main(arguments=None) -> None:
    parsed = parse_arguments(arguments)
    source = FolderSource(parsed.source_dir) if parsed.source_dir else HubSource(parsed.endpoint, parsed.revision)
    if parsed.dataset in TEXT_SETS:
        prepare_text_set(parsed, source)
    else:
        prepare_shard_set(parsed, source)


if __name__ == "__main__":
    run_script(main)
