"""The fault harness sees every fault that it is there to find, and counts no sound outcome as one."""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Callable

import pytest
from tests.torture.__main__ import every, plan, table
from tests.torture.commands import COMMANDS, Command, Folders
from tests.torture.faults import READ_ONLY, Fault, Operation, Watch
from tests.torture.runs import Ran, Row, hinders_removal, output_faults, stop_faults, tree, word_faults

NOTHING: Callable[[Folders], tuple[str, ...]] = lambda _folders: ()  # noqa: E731
FOLDER = Command("apply", NOTHING, before="old")
OLD = {"out": "", "out/a": "1", "out/b": "1"}
NEW = {"out": "", "out/a": "2", "out/b": "2"}
SAID = "error: cannot write out: no space left on device\nhint: free some space\n"
WRITES, READS = Operation("write", "work/out", True), Operation("open to read", "given/model", False)


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (OLD, []),
        (NEW, []),
        ({**NEW, ".out.memedit-RANDOM": ""}, []),
        ({}, ["lost"]),
        ({"out": "", "out/a": "2"}, ["partial"]),
        ({**NEW, "out/a": "1"}, ["partial"]),
        ({**NEW, "out/a": "half"}, ["partial"]),
        ({**NEW, "out/c": "3"}, ["partial"]),
    ],
)
def test_an_output_is_old_or_new_or_a_fault(now: dict[str, str], found: list[str]) -> None:
    assert [kind for kind, _ in output_faults(FOLDER, OLD, NEW, now, killed=True)] == found


def test_an_output_that_was_not_there_may_be_absent_and_no_other() -> None:
    assert output_faults(FOLDER, {}, NEW, {}, killed=False) == []
    # Between two renames the old one is beside it, under a name from which the next run puts it back.
    twice = Command("apply", NOTHING, before="old", exchange=False)
    aside = {".out.memedit-RANDOM-old": ""}
    assert output_faults(twice, OLD, NEW, aside, killed=True) == []
    for command, now, killed in ((twice, {}, True), (twice, aside, False), (FOLDER, aside, True)):
        assert [kind for kind, _ in output_faults(command, OLD, NEW, now, killed=killed)] == ["lost"]


@pytest.mark.parametrize(
    ("code", "said", "error", "operation", "sound"),
    [
        (5, SAID, errno.ENOSPC, WRITES, True),
        (1, SAID, errno.EIO, WRITES, True),
        (2, SAID, errno.EIO, READS, True),
        (0, "", errno.EIO, READS, True),
        (1, SAID, errno.ENOSPC, WRITES, False),
        (2, SAID, errno.EIO, WRITES, False),
        (4, SAID, errno.EIO, READS, False),
        (1, "error: unexpected OSError: no\nhint: a defect\n", errno.EIO, READS, False),
        (1, "Traceback (most recent call last):\n", errno.EIO, READS, False),
        (1, "error: no\n", errno.EIO, READS, False),
        (1, f"{SAID}{SAID}", errno.EIO, READS, False),
        (0, SAID, errno.EIO, READS, False),
        (99, "", errno.EIO, READS, False),
    ],
)
def test_an_error_has_its_exit_code_and_two_lines(
    code: int, said: str, error: int, operation: Operation, sound: bool
) -> None:
    assert (word_faults(code, said, Fault(1, error), operation) == []) is sound


def test_something_may_stay_only_where_its_removal_is_hindered() -> None:
    aside = "work/.out.memedit-0123456789ab/a"
    may = [Operation("os.remove", aside, True), Operation("os.scandir", aside, False),
           Operation("fcntl.flock", "work/.out.memedit-lock", False)]  # fmt: skip
    assert all(hinders_removal(one, Fault(1, errno.EIO)) for one in may)
    assert hinders_removal(WRITES, Fault(1, READ_ONLY, lasting=True))
    for one in (WRITES, READS, Operation("write", aside, True), Operation("os.rename", aside, True)):
        assert not hinders_removal(one, Fault(1, errno.EIO))


def test_a_watch_counts_below_its_root_only_and_strikes_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("watched")
    watch = Watch(root, Fault(2, errno.EIO))
    watch.on = True  # the operations are reported by hand: an audit hook could not be removed again
    watch.happens("os.stat", root.parent / "elsewhere", writes=False)
    watch.happens("os.mkdir", root / "work", writes=True)
    with pytest.raises(OSError, match="work/a"):
        watch.happens("os.mkdir", root / "work" / "a", writes=True)
    watch.happens("os.mkdir", root / "work" / "a", writes=True)
    assert [one.path for one in watch.operations] == ["work", "work/a", "work/a"]
    assert watch.struck == Operation("os.mkdir", "work/a", True)


def test_what_cannot_be_read_stays_so_and_a_full_disk_stays_full(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("watched")

    def refused(fault: Fault, *operations: tuple[str, str, bool]) -> list[bool]:
        watch, found = Watch(root, fault), list[bool]()
        watch.on = True
        for kind, path, writes in operations:
            try:
                watch.happens(kind, root / path, writes=writes)
                found.append(False)
            except OSError:
                found.append(True)
        return found

    looked = [("os.stat", "given/model", False), ("open to read", "given/model/a", False), ("read", "given/b", False)]
    assert refused(Fault(1, errno.EACCES), *looked) == [True, True, False]
    opened = [("open to read", "given/a", False), ("os.stat", "given/a", False), ("read", "given/a", False)]
    assert refused(Fault(1, errno.EACCES), *opened) == [True, False, True]
    wrote = [("write", "work/a", True), ("os.mkdir", "work/b", True), ("os.remove", "work/a", True)]
    assert refused(Fault(1, errno.ENOSPC, lasting=True), *wrote) == [True, True, False]
    assert refused(Fault(1, READ_ONLY, lasting=True), *wrote) == [True, True, True]
    assert refused(Fault(1, errno.ENOSPC), *wrote) == [True, False, False]
    elsewhere = [("write", "work/a", True), ("write", "cache/b", True)]
    assert refused(Fault(1, READ_ONLY, lasting=True), *elsewhere) == [True, False]


def test_a_signal_comes_once_or_twice(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _process, number: sent.append(number))
    for twice in (False, True):
        watch = Watch(tmp_path_factory.mktemp("watched"), Fault(2, signal=signal.SIGTERM, twice=twice))
        watch.on = True
        for name in "abcd":
            watch.happens("os.mkdir", f"{watch.root}{name}", writes=True)
    assert sent == [signal.SIGTERM] * 3


@pytest.mark.parametrize(
    ("code", "said", "sound"),
    [(143, "interrupted; finished work is kept\n", True), (0, "interrupted; \n", False), (143, "", False),
     (130, "interrupted; \n", False), (143, "Traceback\ninterrupted; \n", False)],
)  # fmt: skip
def test_a_signal_ends_a_run_in_words_and_with_its_exit_code(code: int, said: str, sound: bool) -> None:
    assert (stop_faults(Ran(code, said, (), None), Fault(1, signal=signal.SIGTERM)) == []) is sound


def test_a_plan_has_as_many_faults_as_asked_and_the_same_every_time() -> None:
    operations = [Operation("write" if n % 3 == 0 else "read", f"work/{n}", n % 3 == 0) for n in range(60)]
    first, again = (list(plan(operations, 10, 30, 6, random.Random(1))) for _ in range(2))
    assert first == again
    assert sum(one.kills for one in first) == 10 and len(first) == 46
    assert all(operations[one.at - 1].writes for one in first if one.kills or one.lasting)
    assert len({one.at for one in first if one.error is not None}) == 30
    assert {one.signal for one in first if one.error is None} == {
        signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    }  # fmt: skip
    visited = list(every(operations, random.Random(1)))
    assert [one.at for one in visited] == list(range(1, 61))
    assert {one.kills for one in visited if operations[one.at - 1].writes} == {True, False}


def test_the_table_sums_its_rows() -> None:
    one, two = Row("apply", 10, 3, 4), Row("stats", 5, 1, 1)
    one.wrong("left_over", "a file")
    lines = table([one, two]).splitlines()
    assert lines[-1].split() == ["all", "15", "4", "5", "0", "0", "0", "0", "1"]
    assert len({len(line) for line in lines}) == 1
    assert one.faults == ["apply: left over: a file"]


def test_names_of_processes_times_and_half_written_files_are_left_out_of_a_state(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    states = []
    for name, seconds in ((".out.memedit-0123456789ab", 1), (".out.memedit-ba9876543210", 2)):
        folder = tmp_path_factory.mktemp("state")
        for inner in (name, f"{name}-old", "out"):
            (folder / inner).mkdir()
            (folder / inner / "run.json").write_text(f'{{"timings": {{"load": {seconds}}}, "edits": 3}}')
        (folder / name / "half").write_text(str(seconds))
        (folder / f".a.json.host.{seconds}.tmp").write_text(str(seconds))
        states.append(tree(folder))
    assert states[0] == states[1]
    assert {".out.memedit-RANDOM", ".out.memedit-RANDOM-old/run.json", ".a.json.HOST.PROCESS.tmp"} < states[0].keys()
    # The converse: what a run says, and what is kept of an old output, counts.
    for inner in ("out", f"{name}-old"):
        (folder / inner / "run.json").write_text('{"timings": {"load": 2}, "edits": 4}')
        assert tree(folder) != states[0]
        (folder / inner / "run.json").write_text('{"timings": {"load": 2}, "edits": 3}')
    assert tree(folder) == states[0]


def test_every_command_has_another_name() -> None:
    assert len({one.name for one in COMMANDS}) == len(COMMANDS)
