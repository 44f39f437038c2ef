"""Ctrl-C, a request to terminate and a closed terminal leave a run that goes on; a closed pipe ends it quietly."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from memedit.cli import app
from memedit.errors import UsageError
from tests.conftest import ROOT
from tests.helpers.program import FEW, begin

LIMIT = 120.0  # seconds until the first artifact of the run must be there


@pytest.mark.parametrize(
    ("number", "times", "code", "fresh"),
    [(signal.SIGINT, 2, 130, True), (signal.SIGTERM, 2, 143, False), (signal.SIGHUP, 1, 129, False)],
)
def test_a_signal_ends_a_run_that_can_go_on(
    made_small: Path, tmp_path: Path, number: int, times: int, code: int, fresh: bool
) -> None:
    out, cache, said = tmp_path / "out", tmp_path / "cache", tmp_path / "said"
    edits = ROOT / "requests" / "small.jsonl"
    knobs = [
        "--limit",
        "8",
        "--set",
        "moments.tokens=1000",
        "--set",
        "polish.steps=0",
        "--set",
        "target.steps=200",
        "--set",
        "target.stop=0",
    ]
    running = begin("apply", edits, "-m", made_small, "-o", out, "-q", *knobs, cache=cache, said=said, fresh=fresh)
    start = time.monotonic()
    try:
        while not list(cache.glob("runs/*/before-*.json")):
            assert running.is_alive() and time.monotonic() - start < LIMIT, said.read_text()
            time.sleep(0.05)
        for _ in range(times):
            assert running.pid is not None
            os.kill(running.pid, number)
        running.join(LIMIT)
    finally:
        running.kill()
    assert running.exitcode == code, said.read_text()
    assert "run the same command again to continue" in said.read_text() and "Traceback" not in said.read_text()
    assert not out.exists()
    assert list(cache.glob("runs/*/contexts-*.json"))


def test_a_second_signal_does_not_disturb_what_the_first_one_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(app.time, "monotonic", lambda: now[0])
    stop = app._Stop()
    with pytest.raises(app._StoppedBySignal):
        stop(signal.SIGINT, None)
    now[0] += app.CLEANING / 2
    stop(signal.SIGINT, None)
    stop(signal.SIGTERM, None)
    # The converse: a run that has not ended by then can be stopped again.
    now[0] += app.CLEANING
    with pytest.raises(app._StoppedBySignal) as stopped:
        stop(signal.SIGTERM, None)
    assert stopped.value.number == signal.SIGTERM


@pytest.fixture
def handlers() -> Generator[None]:
    """Puts the handlers of signals back after the test."""
    were = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in were.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_run_under_nohup_outlives_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["memedit", "--version"])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with pytest.raises(SystemExit):
        app.main()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert isinstance(signal.getsignal(signal.SIGTERM), app._Stop)


ERRORS = (
    (MemoryError(), 5), (UsageError("a", "b"), 2), (OSError(errno.ENOSPC, "full"), 5), (TypeError("a"), 1),
    (OSError(errno.ENAMETOOLONG, "long"), 2),
)  # fmt: skip


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("error", "code"), ERRORS)
@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_an_error_is_told_ends_a_run_as_any_signal(
    error: Exception, code: int, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if number is not None and text.startswith("error: "):
            signal.raise_signal(number)

    def fail() -> int:
        raise error

    monkeypatch.setattr(app, "_say", say)
    if number is not None:
        signal.signal(number, signal.SIG_DFL)  # a shell starts what runs in its background with SIGINT ignored
    with pytest.raises(SystemExit) as ended:
        app._run(fail)
    if number is None:
        assert ended.value.code == code and said[1].startswith("hint: ")
    else:
        assert ended.value.code == 128 + number and said[1].startswith("interrupted; ")


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("imported", [False, True])
def test_torch_is_not_imported_to_tell_an_error(imported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("CUDA error: out of memory")

    if not imported:
        monkeypatch.delitem(sys.modules, "torch")
        monkeypatch.setitem(sys.modules, "memedit.model.memory", None)  # to import it is an error
    with pytest.raises(SystemExit) as ended:
        app._run(fail)
    assert ended.value.code == (5 if imported else 1)


@pytest.mark.parametrize(
    ("command", "closed", "code"),
    [
        (["help", "settings"], ["stdout"], 1),
        (["check", "nowhere.jsonl"], ["stderr"], 2),
        (["check", "nowhere.jsonl"], ["stdout", "stderr"], 2),
        (["apply"], ["stdout"], 1),
        (["apply"], ["stderr"], 1),
    ],
)
def test_a_closed_pipe_ends_a_command_without_noise(
    command: list[str], closed: list[str], code: int, made_small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if command == ["apply"]:
        edits = str(ROOT / "requests" / "small.jsonl")
        command = ["apply", edits, "-m", str(made_small), "-o", str(out), "--limit", "2", *FEW]
    reading, writing = os.pipe()
    os.close(reading)
    stdout, stderr = (writing if name in closed else subprocess.PIPE for name in ("stdout", "stderr"))
    environment = {**os.environ, "MEMEDIT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "memedit", *command], cwd=ROOT, env=environment, text=True, check=False,
        stdout=stdout, stderr=stderr,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == code
    for heard in (done.stdout, done.stderr):
        assert "Traceback" not in (heard or "") and "Exception" not in (heard or "") and "error:" not in (heard or "")
    if str(out) in command:  # the output was written before its path was printed, or the run ended before it
        assert {one.name for one in tmp_path.iterdir()} - {"cache"} == ({"out"} if "stdout" in closed else set())
        assert "stderr" in closed or (out / "model.safetensors").is_file()
