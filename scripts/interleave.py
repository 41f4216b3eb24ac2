#!/usr/bin/env python3
"""Runs several benchmarks in turns on one machine, so that a change of the machine's speed meets all of them alike.

    python3 scripts/interleave.py [--slice SECONDS] -- COMMAND... --- COMMAND... [--- COMMAND...]

Starts every command, stops all but one (SIGSTOP to its process group), and hands the processor on every SLICE seconds
until all have ended. A step that a turn cuts in two looks slow; take a slice of several steps and a statistic that does
not see a few slow ones (the median). What the commands print is shown when they have ended, each under its own heading.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile


def split_commands(words: list[str]) -> list[list[str]]:
    commands: list[list[str]] = [[]]
    for word in words:
        if word == "---":
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", type=float, default=8.0, metavar="SECONDS", help="seconds a turn (default 8)")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND --- COMMAND")
    arguments = parser.parse_args()
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    commands = split_commands(words)
    if not all(commands) or arguments.slice <= 0:
        parser.error("give at least one command, commands separated by ---, and a slice above zero")

    running = []
    for command in commands:
        output = tempfile.TemporaryFile()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        os.killpg(process.pid, signal.SIGSTOP)
        running.append((command, process, output))
    waiting = [process for _, process, _ in running]
    try:
        while waiting:
            for process in list(waiting):
                os.killpg(process.pid, signal.SIGCONT)
                try:
                    process.wait(arguments.slice)
                    waiting.remove(process)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGSTOP)
    finally:
        for process in waiting:
            os.killpg(process.pid, signal.SIGKILL)
    for command, process, output in running:
        output.seek(0)
        print(f"## {shlex.join(command)}   (exit {process.returncode})", flush=True)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return max(abs(process.returncode) for _, process, _ in running)


if __name__ == "__main__":
    sys.exit(main())
