"""Turns chunks of documents into tokens on several processes, in the order of the chunks. Standard library only."""

from __future__ import annotations

import collections
import multiprocessing
import os
import queue
import signal
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from documents import Chunk, Reading, Skipped, Split, documents
from shards import DATA, PrepareError
from vocabularies import Encoder


@dataclass
class Part:
    """What one chunk gives to one side of the split."""

    packed: list = field(default_factory=list)  # one document each, separator included
    text_bytes: int = 0

    def add(self, encoder: Encoder, name: str, text: bytes) -> None:
        if not text:
            return
        try:
            self.packed.append(encoder.document(text))
        except Exception as error:  # tiktoken and tokenizers raise what they like, e.g. for a regex out of stack
            raise PrepareError(DATA, f"{name}: the tokenizer failed: {error}") from None
        self.text_bytes += len(text)


@dataclass
class Encoded:
    """What one chunk became."""

    train: Part
    validation: Part
    skipped: Skipped
    size: int  # of the chunk, for the progress bar


@dataclass
class Job:
    """What every worker knows."""

    encoder: Encoder
    reading: Reading
    split: Split

    def run(self, chunk: Chunk) -> Encoded:
        encoded = Encoded(Part(), Part(), Skipped(), chunk.size)
        for name, text in documents(chunk, self.reading, encoded.skipped):
            train, validation = self.split.parts(text)
            encoded.train.add(self.encoder, name, train)
            encoded.validation.add(self.encoder, name, validation)
        return encoded


def default_processes() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(connection, job: Job) -> None:
    """A worker process: answers each chunk with what it became, or with the exception, until the connection ends."""
    for each in (signal.SIGINT, signal.SIGHUP):  # the main process tells the workers when to stop
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        job.encoder.prepare()
        while True:
            chunk = connection.recv()
            try:
                answer = job.run(chunk)
            except (PrepareError, OSError) as error:
                answer = error
            except Exception:  # a bug: its traceback would be lost on the way
                answer = RuntimeError(traceback.format_exc())
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the main process has gone
        pass


class Workers:
    """Worker processes, each with a pipe of its own, so that one that is stopped or dies cannot block another. (The
    standard library's pools share queues among their workers, and hang when one is killed while it holds a lock.)"""

    def __init__(self, processes: int, job: Job):
        self._processes = []
        self._idle: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(processes):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=_work, args=(theirs, job), daemon=True)
            process.start()
            theirs.close()  # before the next one starts: no other process may hold it, or its end would go unnoticed
            self._processes.append(process)
            self._idle.put(ours)

    def run(self, chunk: Chunk) -> Encoded:
        """Has an idle worker do a chunk; called by as many threads as there are workers."""
        connection = self._idle.get()
        try:
            connection.send(chunk)
            answer = connection.recv()
        except (EOFError, OSError):
            answer = PrepareError(DATA, "a worker process died, most likely for want of memory. Try fewer --processes.")
        finally:
            self._idle.put(connection)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        for process in self._processes:
            process.kill()  # SIGTERM would be lost on one that still has the main process's handler, just after its fork
        for process in self._processes:
            process.join()


def encode_all(chunks: Iterable[Chunk], job: Job, processes: int) -> Iterator[Encoded]:
    """The chunks, encoded, in their order. Reads ahead of what was taken by a few chunks a process only."""
    job.encoder.prepare()  # here too: a missing package is reported once, before any process starts
    if processes == 1:
        yield from map(job.run, chunks)
        return
    workers = Workers(processes, job)
    threads = ThreadPoolExecutor(processes)
    waiting: collections.deque = collections.deque()
    try:
        for chunk in chunks:
            waiting.append(threads.submit(workers.run, chunk))
            if len(waiting) > 3 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also after an error, an interruption, or when nobody wants the rest: work under way is not waited for
        workers.stop()
        threads.shutdown(cancel_futures=True)
