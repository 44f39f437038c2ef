"""Kill every writing command at its file operations, or make these fail, and print what was lost.

python -m tests.torture                     1,000 kills, 1,000 errors and 200 signals, over all commands
python -m tests.torture --every -c "apply --overwrite"     one kill or error at every operation of one command

One process has loaded everything; each run is a fork of it. What an operation is, and which fail how, is in `faults`;
what counts as lost, partial, unexpected and left over is in `runs`. Exits 1 if there is any of them.
"""

from __future__ import annotations

import argparse
import math
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.torture.commands import COMMANDS
from tests.torture.faults import FULL, READ_ONLY, Fault, Operation
from tests.torture.runs import Judge, Row, Runner

COLUMNS = ("operations", "kills", "errors", "signals", "lost", "partial", "unexpected", "left over")


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def plan(operations: Sequence[Operation], kills: int, errors: int, signals: int, rng: random.Random) -> Iterator[Fault]:
    """Choose faults, spread over the run.

    A kill at a reading operation leaves what one at the next writing one leaves, so kills go to those that write, if
    there are enough of them. A quarter of the errors in writing lasts: a full disk, or a read-only one.
    """
    every = range(1, len(operations) + 1)
    writing = [at for at in every if operations[at - 1].writes]
    for at in _spread(writing if len(writing) >= kills else every, kills, rng):
        yield Fault(at)
    for at in _spread(every, errors, rng):
        lasting = operations[at - 1].writes and rng.random() < 0.25
        yield Fault(at, rng.choice((FULL, READ_ONLY) if lasting else operations[at - 1].errors), lasting)
    for number, at in enumerate(_spread(every, signals, rng)):
        yield Fault(at, signal=SIGNALS[number % len(SIGNALS)], twice=rng.random() < 0.5)


def _spread(numbers: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """`count` of the numbers: one from each of `count` equal parts of them."""
    return [numbers[min(len(numbers) - 1, int((part + rng.random()) * len(numbers) / count))] for part in range(count)]


def every(operations: Sequence[Operation], rng: random.Random) -> Iterator[Fault]:
    """A kill or an error, in turn, at every operation that writes, and an error wherever a path is first read.

    A kill at an operation that reads leaves what a kill at the next one that writes leaves, and a path that cannot be
    read stays so.
    """
    seen: set[tuple[str, str]] = set()
    for at, operation in enumerate(operations, 1):
        if operation.writes or (operation.kind, operation.path) not in seen:
            seen.add((operation.kind, operation.path))
            kill = operation.writes and at % 2
            yield Fault(at, None if kill else rng.choice(operation.errors))


def table(rows: Sequence[Row]) -> str:
    """The rows, and their sum."""
    total = Row("all")
    for name in (name.replace(" ", "_") for name in COLUMNS):
        setattr(total, name, sum(getattr(row, name) for row in rows))
    width = max(len("command"), *(len(row.command) for row in [*rows, total]))
    lines = [f"{'command':<{width}}  " + "  ".join(COLUMNS)]
    for row in [*rows, total]:
        numbers = (f"{getattr(row, name.replace(' ', '_')):>{len(name)},}" for name in COLUMNS)
        lines.append(f"{row.command:<{width}}  " + "  ".join(numbers))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the faults that the arguments ask for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("-c", "--command", action="append", help="only this command; repeatable")
    parser.add_argument("--kills", type=int, default=1000, help="kills at least, over all commands")
    parser.add_argument("--errors", type=int, default=1000, help="errors at least, over all commands")
    parser.add_argument("--signals", type=int, default=200, help="other signals at least: Ctrl-C, SIGTERM, SIGHUP")
    parser.add_argument("--every", action="store_true", help="a kill or an error at every operation instead")
    parser.add_argument("--operations", action="store_true", help="only list the operations of each command")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    commands = [one for one in COMMANDS if not asked.command or one.name in asked.command]
    if not commands:
        parser.error(f"no such command; there are: {', '.join(one.name for one in COMMANDS)}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        runner = Runner(Path(folder).resolve())
        runner.prepare(commands)
        for command in commands:
            begun, rng, judge = time.monotonic(), random.Random(f"{asked.seed} {command.name}"), Judge(runner, command)
            if asked.operations:
                print(*(f"{command.name}: {n} {one.kind} {one.path}" for n, one in enumerate(judge.operations, 1)),
                      sep="\n")  # fmt: skip
                continue
            weight = command.weight / sum(one.weight for one in commands)
            kills, errors, signals = (math.ceil(n * weight) for n in (asked.kills, asked.errors, asked.signals))
            some = plan(judge.operations, kills, errors, signals, rng)
            faults = every(judge.operations, rng) if asked.every else some
            for number, fault in enumerate(faults, 1):
                seen = len(judge.row.faults)
                judge.strike(fault)
                print(*judge.row.faults[seen:], sep="\n", end="\n" if judge.row.faults[seen:] else "", file=sys.stderr)
                if number % 25 == 0:
                    print(f"{command.name}: {number:,} faults, {time.monotonic() - begun:.0f} s", file=sys.stderr)
            rows.append(judge.row)
            print(f"{command.name}: done, {time.monotonic() - begun:.0f} s", file=sys.stderr)
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)  # a run that is stopped has told this
    if rows:
        print(table(rows))
    return int(any(row.faults for row in rows))


if __name__ == "__main__":
    sys.exit(main())
