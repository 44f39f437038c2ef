"""Run one command in a forked process with a fault in it, and judge its output, its words, and what it leaves."""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import pickle
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.torture.commands import PREPARED, Command, Folders, build_model, place_before
from tests.torture.faults import REMOVALS, Fault, Operation, Watch

LIMIT = 10.0
"""Seconds that a run may take; an undisturbed one takes well under one."""
Tree = dict[str, str]
"""Path -> digest of the bytes, or "" for a folder. Times, process numbers and random names are left out."""
ASIDE = ".memedit-RANDOM/"
_RANDOM = (
    (re.compile(r"\.memedit-[0-9a-f]{12}(?=-old|/|$)"), ".memedit-RANDOM"),
    (re.compile(r"\.[\w-]+\.\d+\.tmp$"), ".HOST.PROCESS.tmp"),
)
_SECONDS = re.compile(rb'("timings":\s*)\{[^{}]*\}|(>seconds</\w+>\s*<[^>]*>)[^<]*')


@dataclass(frozen=True)
class Ran:
    """How a run ended."""

    code: int
    """Exit code; below 0: the signal that killed it."""
    said: str
    """Its standard error."""
    operations: tuple[Operation, ...]
    """Empty after a kill."""
    struck: Operation | None
    late: bool = False
    modules: tuple[str, ...] = ()


@dataclass
class Row:
    """One line of the table."""

    command: str
    operations: int = 0
    kills: int = 0
    errors: int = 0
    signals: int = 0
    lost: int = 0
    partial: int = 0
    unexpected: int = 0
    left_over: int = 0
    faults: list[str] = field(default_factory=list)
    """One line for each thing that is wrong."""

    def wrong(self, kind: str, line: str) -> None:
        """Count one thing that is wrong: lost, partial, unexpected or left_over."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.faults.append(f"{self.command}: {kind.replace('_', ' ')}: {line}")


def tree(folder: Path) -> Tree:
    """Read a folder: every path in it, and the digest of each file."""
    found: Tree = {}
    for root, folders, names in os.walk(folder):
        here = Path(root)
        for name in sorted(folders):
            found[_plain(here / name, folder)] = ""
        for name in sorted(names):
            file, plain = here / name, _plain(here / name, folder)
            # What lies in a lock, or is half written beside its place, decides nothing: it is removed by its name.
            found[plain] = "" if plain.endswith(("lock", ".tmp")) else sha256(content(file)).hexdigest()
    return {name: digest for name, digest in found.items() if ASIDE not in name}


def content(file: Path) -> bytes:
    """The bytes of a file, without the seconds that a run took."""
    return _SECONDS.sub(rb"\1\2", file.read_bytes())


def _plain(path: Path, folder: Path) -> str:
    text = str(path.relative_to(folder))
    for pattern, replacement in _RANDOM:
        text = pattern.sub(replacement, text)
    return text


class Runner:
    """Forks a process for each run. It must have started no thread that a run needs."""

    def __init__(self, root: Path) -> None:
        self.folders = Folders(root / "watched", root / "told")
        self.before = root / "before"
        """Copies of the caches: cold, and warm."""
        for folder in (self.folders.given, self.folders.told, self.before / "cold"):
            folder.mkdir(parents=True)
        os.environ |= {
            "MEMEDIT_CACHE": str(self.folders.cache), "TMPDIR": str(self.folders.temporary), "COLUMNS": "160",
            "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        for name in ("MEMEDIT_DEBUG", "MEMEDIT_DEVICE", "MEMEDIT_DTYPE", "MEMEDIT_SEED"):
            os.environ.pop(name, None)

    def prepare(self, commands: Sequence[Command]) -> None:
        """Make the models that these commands read, and load every module that they need into this process."""
        import typer
        from memedit.cli import app
        from transformers.utils import logging

        importlib.import_module("memedit.api")  # each of the first runs would import it, and this process after it
        logging.disable_progress_bar()
        parsed = typer.main.get_command(app.app)
        typer.main.get_command = lambda _app: parsed  # it takes a tenth of a second, and is the same every time
        build_model(self.folders)
        named = {"edited", "other", *(command.before for command in commands)}
        for name, line in PREPARED:
            if name not in named:
                continue
            self.reset(None)
            done = self.run((*line(self.folders), "-o", str(self.folders.out)))
            assert done.code == 0, done.said
            self.folders.out.rename(self.folders.given / name)
            self.load(done)
            if name == "edited":
                shutil.copytree(self.folders.cache, self.before / "warm")
        self.given = tree(self.folders.given)

    def load(self, done: Ran) -> None:
        """Load the modules that a run needed, so that the runs after it find them here."""
        for module in done.modules:
            if module not in sys.modules:
                with suppress(Exception):
                    importlib.import_module(module)
        gc.collect()
        gc.freeze()  # a collection in a forked process would otherwise copy every page

    def reset(self, command: Command | None) -> None:
        """Put everything but what is given back to what it is before a command."""
        for folder in (self.folders.work, self.folders.cache, self.folders.temporary):
            shutil.rmtree(folder, ignore_errors=True)
        warm = self.before / "warm"
        kept = warm if warm.is_dir() and (command is None or command.warm) else self.before / "cold"
        shutil.copytree(kept, self.folders.cache)
        self.folders.work.mkdir()
        self.folders.temporary.mkdir()
        if command is not None:
            place_before(command, self.folders)

    def run(self, line: tuple[str, ...], fault: Fault | None = None, *, exchange: bool = True) -> Ran:
        """Run a command line as `memedit` does, in a forked process."""
        told = self.folders.told
        for file in told.iterdir():
            file.unlink()
        process = os.fork()
        if process == 0:
            self._in_child(line, fault, exchange)
        status, late = self._wait(process)
        code = -9 if status is None else os.waitstatus_to_exitcode(status)
        said = (told / "stderr").read_text(errors="replace") if (told / "stderr").is_file() else ""
        record: Mapping[str, Any] = {"operations": (), "struck": None, "modules": ()}
        if (told / "record").is_file():
            record = pickle.loads((told / "record").read_bytes())
        return Ran(code, said, record["operations"], record["struck"], late, record["modules"])

    def _wait(self, process: int) -> tuple[int | None, bool]:
        begun = time.monotonic()
        while True:
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                return status, False
            # A busy machine is no hang: what counts is the processor time of the run, or a long wait without any.
            waited = time.monotonic() - begun
            if waited > LIMIT and (waited > 6 * LIMIT or _seconds(process) > LIMIT):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                return None, True
            time.sleep(0.005)

    def _in_child(self, line: tuple[str, ...], fault: Fault | None, exchange: bool) -> None:
        """Run the program, and end this process with its exit code."""
        code = 99
        told = self.folders.told
        watch = Watch(self.folders.root, fault, exchange=exchange)
        try:
            for number, name in ((1, "stdout"), (2, "stderr")):
                file = os.open(told / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, number)
                os.close(file)
            from memedit.cli import app

            sys.argv = ["memedit", *line]
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # nohup and a shell's `&` hand them on ignored, and memedit leaves an ignored one so.
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            watch.install()
            try:
                app.main()
            except SystemExit as end:
                code = int(end.code or 0)
        except BaseException:  # noqa: BLE001 - the judge reads it
            import traceback

            traceback.print_exc()
        finally:
            watch.on = False
            with suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            record = {"operations": tuple(watch.operations), "struck": watch.struck, "modules": tuple(sys.modules)}
            (told / "record").write_bytes(pickle.dumps(record))
            os._exit(code)


def _seconds(process: int) -> float:
    """The processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Judge:
    """One command, what it does undisturbed, and what is wrong with a disturbed run of it."""

    def __init__(self, runner: Runner, command: Command) -> None:
        self.runner, self.command, self.row = runner, command, Row(command.name)
        folders = runner.folders
        self.line = command.arguments(folders)
        runner.reset(command)
        self.old = tree(folders.work)
        done = self._run(None)
        assert done.code == 0, f"{command.name}: {done.said}"
        runner.load(done)
        self.operations = done.operations
        self.row.operations = len(self.operations)
        self.new, self.cache = tree(folders.work), tree(folders.cache)
        assert self.new != self.old or command.kind == "none"
        self._sound: set[str] = set()
        """Digests of states from which an undisturbed run was seen to give the same bytes."""

    def _run(self, fault: Fault | None) -> Ran:
        return self.runner.run(self.line, fault, exchange=self.command.exchange)

    def strike(self, fault: Fault) -> None:
        """Run the command with a fault, and judge it."""
        self.runner.reset(self.command)
        ran = self._run(fault)
        operation = ran.struck or self.operations[fault.at - 1]
        where = f"{fault} ({operation.kind} {operation.path})"
        if fault.kills:
            self.row.kills += 1
            if ran.code != -signal.SIGKILL:
                self.row.wrong("unexpected", f"{where}: the process ended with {ran.code}")
        elif fault.error is None:
            self.row.signals += 1
        else:
            self.row.errors += 1
        if ran.late:
            self.row.wrong("unexpected", f"{where}: the run hangs")
        if tree(self.runner.folders.given) != self.runner.given:
            self.row.wrong("lost", f"{where}: what was given has changed")
        self._judge_output(where, killed=fault.kills)
        if not fault.kills and not ran.late:
            self._judge_words(ran, fault, operation, where)
            if not hinders_removal(operation, fault):
                self._judge_left(where, done=ran.code == 0)
        self._judge_next(where)

    def _judge_output(self, where: str, *, killed: bool) -> None:
        """OUT is absent, as it was, or as an undisturbed run makes it."""
        now = tree(self.runner.folders.work)
        for kind, line in output_faults(self.command, self.old, self.new, now, killed=killed):
            self.row.wrong(kind, f"{where}: {line}")

    def _judge_words(self, ran: Ran, fault: Fault, operation: Operation, where: str) -> None:
        found = word_faults(ran.code, ran.said, fault, operation) if fault.error else stop_faults(ran, fault)
        for line in found:
            self.row.wrong("unexpected", f"{where}: {line}")
        if ran.code == 0 and out_of(tree(self.runner.folders.work)) != out_of(self.new) and not self._without_card(ran):
            self.row.wrong("unexpected", f"{where}: exit code 0, and OUT is not what an undisturbed run writes")

    @staticmethod
    def _without_card(ran: Ran) -> bool:
        return "warning: the model card of the base" in ran.said

    def _judge_left(self, where: str, *, done: bool) -> None:
        folders = self.runner.folders
        allowed = out_of(self.old).keys() | out_of(self.new).keys()
        left = [name for name in tree(folders.work) if name not in allowed]
        left += [f"TMPDIR/{name}" for name in tree(folders.temporary)]
        # The finished part of a run that failed is kept in the cache, for the next one; all else is swept.
        left += [
            f"cache/{name}" for name in tree(folders.cache)
            if name not in self.cache and (done or not name.startswith(("runs", "traces")) or name.endswith("tmp"))
        ]  # fmt: skip
        if left:
            self.row.wrong("left_over", f"{where}: {', '.join(left[:3])}")

    def _judge_next(self, where: str) -> None:
        """An undisturbed run succeeds, gives the same bytes, and leaves nothing of the other."""
        folders = self.runner.folders
        state = json.dumps([tree(folders.work), tree(folders.cache), tree(folders.temporary)], sort_keys=True)
        key = sha256(state.encode()).hexdigest()
        if key in self._sound:
            return
        if self.command.before is None and folders.out.exists():
            shutil.rmtree(folders.out) if folders.out.is_dir() else folders.out.unlink()
        done = self._run(None)
        if done.code != 0:
            self.row.wrong("lost", f"{where}: the next run ends with {done.code}: {done.said.strip()}")
            return
        now, cache = tree(folders.work), tree(folders.cache)
        left = [
            *(name for name in now if name not in self.new),
            *(f"cache/{name}" for name in cache if name not in self.cache),
            *(f"TMPDIR/{name}" for name in tree(folders.temporary)),
        ]
        other = [name for name, digest in {**self.new, **self.cache}.items() if {**now, **cache}.get(name) != digest]
        if left:
            self.row.wrong("left_over", f"{where}: after the next run: {', '.join(left[:3])}")
        if other:
            self.row.wrong("lost", f"{where}: the next run gives other bytes: {', '.join(other[:3])}")
        if not left and not other:
            self._sound.add(key)


def stop_faults(ran: Ran, fault: Fault) -> list[str]:
    """What is wrong with the exit code and the words of a run that got a signal."""
    lines = ran.said.strip().splitlines()
    if ran.code != 128 + fault.signal:
        return [f"exit code {ran.code}, not {128 + fault.signal}: {ran.said.strip()}"]
    if not lines or not lines[-1].startswith("interrupted; ") or "Traceback" in ran.said or "ignored" in ran.said:
        return [f"it does not say that it was interrupted: {ran.said.strip()}"]
    return []


def hinders_removal(operation: Operation, fault: Fault) -> bool:
    """Whether something may stay after the error, for the next run to sweep.

    It may where the removal itself fails (looking into a folder that is removed is part of it), where the disk is
    read-only, and where a lock cannot be taken: its file can be another's.
    """
    removing = not operation.writes and operation.kind != "safe_open" and ".memedit-" in operation.path
    removing |= not operation.writes and operation.path.startswith(("cache/runs", "cache/traces"))
    return operation.kind in (*REMOVALS, "fcntl.flock") or removing or fault.error == errno.EROFS


def out_of(work: Tree) -> Tree:
    """OUT alone, without what lies beside it."""
    return {name: digest for name, digest in work.items() if name == "out" or name.startswith("out/")}


def output_faults(command: Command, old: Tree, new: Tree, now: Tree, *, killed: bool) -> list[tuple[str, str]]:
    """What is wrong with OUT: "lost" or "partial", and how."""
    was, made, found = out_of(old), out_of(new), out_of(now)
    if found in (was, made):
        return []
    if not found:
        aside = [name for name in now if name.endswith("-old")]
        if not was or (killed and not command.exchange and aside):
            return []
        return [("lost", "OUT was there, and is gone")]
    if command.kind == "folder" and _same_but_card(found, made):
        return []
    strange = [name for name in found if found[name] not in (was.get(name), made.get(name))]
    missing = [name for name in made if name not in found]
    return [("partial", f"OUT is neither old nor new: {', '.join([*strange, *missing][:3]) or 'a mixture'}")]


def _same_but_card(found: Tree, made: Tree) -> bool:
    """Whether only the card, and the note of it in the run's record, differ: a base's card may be unreadable."""
    return found.keys() == made.keys() and all(
        found[name] == made[name] or name in ("out/README.md", "out/memedit/run.json") for name in made
    )


def word_faults(code: int, said: str, fault: Fault, operation: Operation) -> list[str]:
    """What is wrong with the exit code and the words of a run in which an operation failed."""
    lines = said.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    found = [f"it prints {word!r}: {said.strip()}" for word in ("Traceback", "unexpected ", "Exception ignored")
             if word in said]  # fmt: skip
    if code == 0:
        return [*found, *(f"exit code 0, and {line}" for line in errors)]
    allowed = {5} if fault.error in (errno.ENOSPC, errno.EDQUOT) else {1} if operation.writes else {1, 2}
    if code not in allowed:
        found.append(f"exit code {code}, not {' or '.join(map(str, sorted(allowed)))}: {said.strip()}")
    if not found and (len(errors), len(hints)) != (1, 1):
        found.append(f"{len(errors)} error lines and {len(hints)} hint lines: {said.strip()}")
    return found
