"""What a terminal and a pipe show of a run: notes, phases, rates, time left, colors, and the log of it all."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from memedit.cli import app
from memedit.cli.terminal import RunLog, Terminal
from memedit.errors import UsageError
from memedit.results.units import rate_text
from memedit.show import progress as shown
from memedit.show.progress import PhaseCount, TerminalProgress
from rich.console import Console
from tests.conftest import ROOT
from tests.helpers.in_process import run_main

MADE = "examples/models/made-gpt2"


def progress(*, tty: bool = False, **knobs: bool) -> tuple[TerminalProgress, io.StringIO, list[str]]:
    stream, lines = io.StringIO(), list[str]()
    console = Console(file=stream, force_terminal=tty, width=80, color_system=None)
    return TerminalProgress(console, log=lines.append, **knobs), stream, lines


def at(seconds: float, total: int | None, done: int, under_way: float = 0.0, told: str = "") -> str:
    return PhaseCount("targets", total, "edits", done, under_way, told, time.monotonic() - seconds).line()


def test_a_slow_rate_is_seconds_for_one() -> None:
    assert rate_text(2, 26, "edits") == "13 s/edit"
    assert "0 edits/s" not in {rate_text(1, seconds, "edits") for seconds in (1.1, 2, 100, 4000)}
    assert rate_text(10, 5, "edits") == "2.0 edits/s"


def test_the_time_left_is_known_before_the_first_edit_is_found() -> None:
    line = at(10, 20, 0, 5.0, "step 10 of 40, mean loss 1.25")
    assert line == "0 of 20 edits, 2.0 s/edit, 30 s left, step 10 of 40, mean loss 1.25"
    assert "left" not in at(10, None, 5) and "left" not in at(10, 20, 0) and "left" not in at(10, 20, 20)


def test_quiet_hides_notes_but_no_warning_verbose_shows_details_and_the_log_has_all() -> None:
    for quiet, verbose, expected in (
        (True, False, ["warning: lost"]),
        (False, False, ["note", "warning: lost"]),
        (False, True, ["note", "warning: lost", "detail"]),
    ):
        tell, stream, lines = progress(quiet=quiet, verbose=verbose)
        tell.note("note")
        tell.warn("lost")
        tell.detail("detail")
        assert stream.getvalue().splitlines() == expected
        assert lines == ["note", "warning: lost", "detail"]


def test_a_pipe_gets_a_line_soon_and_then_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: clock[0])
    tell, stream, _ = progress()
    with tell.phase("targets", 60, "edits") as advance:
        for second in range(1, 61):
            clock[0] = float(second)
            advance(1, 0.5, "step 3 of 40")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 + 1
    assert lines[0] == "targets: 5 of 60 edits, 1.1 edits/s, 50 s left, step 3 of 40"
    assert lines[1].startswith("targets: 35 of 60 edits")
    assert lines[2] == "targets: 60 edits in 60.0 s, 1.0 edits/s"


def test_a_bar_fits_80_columns_and_can_be_switched_off() -> None:
    tell, stream, _ = progress(tty=True)
    with tell.phase("targets", 1000, "edits") as advance:
        advance(256, 1.5, "step 12 of 40, mean loss 0.83")
        time.sleep(0.3)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    rows = [row.rstrip() for row in re.split(r"[\r\n]", plain) if "step" in row]
    assert rows and max(map(len, rows)) <= 80
    assert re.match(r"targets .{10} 0:00:00 256 of 1,000 edits, 1 s left, step 12 of 40, mean", rows[-1])
    assert "\u2026" not in plain
    for knobs in ({"bars": False}, {"quiet": True}):
        tell, stream, _ = progress(tty=True, **knobs)
        with tell.phase("targets", 10, "edits") as advance:
            advance(1)
        assert "\u2501" not in stream.getvalue()


@pytest.mark.parametrize(("color", "expected"), [("always", True), ("never", False), ("auto", False)])
def test_color_is_as_asked(color: str, expected: bool, capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(color=color).console().print("[red]x[/]")  # type: ignore[arg-type]
    assert ("\x1b[" in capsys.readouterr().out) == expected


def test_no_color_of_the_environment_holds_unless_color_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    Terminal().console().print("[red]x[/]")
    assert "\x1b[" not in capsys.readouterr().out
    Terminal(color="always").console().print("[red]x[/]")
    assert "\x1b[" in capsys.readouterr().out


def test_a_log_is_continued_and_another_file_is_left_alone(tmp_path: Path) -> None:
    file, other = tmp_path / "run.log", tmp_path / "edits.jsonl"
    for n in range(2):
        RunLog(str(file)).line(f"line {n}\nsecond")
    lines = file.read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["line 0", "second", "line 1", "second"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]", line) for line in lines)
    other.write_text('{"subject": "x"}\n')
    for path in (other, tmp_path, tmp_path / "none" / "run.log"):
        with pytest.raises(UsageError, match="log"):
            RunLog(str(path))
    assert other.read_text() == '{"subject": "x"}\n'


def test_a_log_has_the_command_and_how_it_ended(tmp_path: Path) -> None:
    file = tmp_path / "run.log"
    assert run_main(["check", "requests/none.yaml", "-q", "--log", str(file)]).code == 2
    edits = str(ROOT / "requests" / "capitals.yaml")
    assert run_main(["check", edits, "--log", str(file)]).code == 0
    said = [line.split(" ", 1)[1] for line in file.read_text().splitlines()]
    assert said[0].startswith("memedit check requests/none.yaml -q")
    assert said[1].startswith("error: ") and said[2].startswith("hint: ")
    assert said[-1] == "done"


@pytest.mark.parametrize(("name", "written"), [("bad\udcff", "bad\\udcff"), ("\u00e9", "\u00e9")])
def test_a_log_takes_a_path_that_is_not_utf8(name: str, written: str, tmp_path: Path) -> None:
    edits, file = tmp_path / f"{name}.yaml", tmp_path / "run.log"
    edits.write_bytes((ROOT / "requests" / "capitals.yaml").read_bytes())
    assert run_main(["check", str(edits), "--log", str(file)]).code == 0
    said = file.read_text(encoding="utf-8").splitlines()
    assert f"memedit check {tmp_path}/{written}.yaml --log" in said[0] and said[-1].endswith(" done")


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "said"),
    [(["inspect", MADE], "loading"), (["log", MADE], "reading"), (["push", MADE, "me/gpt2", "--dry-run"], "reading")],
)
def test_the_first_word_comes_before_torch(words: list[str], said: str) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['memedit', *{words}]\n"
        "class Seen:\n"
        "    def __getattr__(self, name): return getattr(sys.__stderr__, name)\n"
        "    def write(self, text):\n"
        "        heavy = {'torch', 'transformers', 'rich.console'} & set(sys.modules)\n"
        "        sys.__stderr__.write(f'{text}{sorted(heavy)}')\n"
        "        sys.__stderr__.flush()\n"
        "        import os\n"
        "        os._exit(0)\n"
        "sys.stderr = Seen()\n"
        "from memedit.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stderr == f"{said} made-gpt2 ...[]"


@pytest.mark.process
def test_what_is_imported_is_left_out_of_garbage_collection_and_later_objects_are_not() -> None:
    code = (
        "import gc, sys, weakref\n"
        "from memedit.cli.terminal import Terminal\n"
        "assert gc.get_freeze_count() == 0\n"
        "Terminal().loading('made-gpt2')\n"
        "frozen = gc.get_freeze_count()\n"
        "assert 'transformers' in sys.modules and gc.isenabled() and frozen > 100_000, frozen\n"
        "class Ring: pass\n"
        "ring = Ring()\n"
        "ring.self, seen = ring, weakref.ref(ring)\n"
        "Terminal().loading('made-gpt2')\n"
        "del ring\n"
        "gc.collect()\n"
        "assert seen() is None\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("examples/models/made-gpt2", "made-gpt2"), ("examples/models/../models/made-gpt2/", "made-gpt2"),
        ("owner/name", "owner/name"), ("x" * 5000, "x" * 100), ("a\0b", "ab"), ("~nobody-of-this-name/x", None),
    ],
)  # fmt: skip
def test_the_first_word_names_the_model_and_never_fails(
    name: str, said: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    Terminal().loading(name)
    assert capsys.readouterr().err == f"loading {said or name} ...\n"
    Terminal(quiet=True).loading(name)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("errors", ["strict", "surrogateescape", "replace"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_stdout_takes_every_character_and_what_it_can_encode_is_unchanged(
    encoding: str, errors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, newline="\n")
    text = "a\u00e9\u20ac\U0001f600\udcff\ud800\n"
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(app, "_run", lambda _command: sys.exit(print(text, end="")))
    with pytest.raises(SystemExit):
        app.main()
    out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    written = out.buffer.getvalue()
    if errors == "replace":  # the user's own wish
        assert written == text.encode(encoding, "replace")
        return
    # What is escaped is escaped as in JSON, and no character that can be encoded is.
    assert json.loads(f'"{written.decode(encoding).strip()}"') == text.strip()
    kept = [one for one in text if one.encode(encoding, "ignore")]
    assert [one for one in kept if one.encode(encoding) not in written] == []


def test_memory_of_a_gpu_may_grow_in_place_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def environment(**given: str) -> dict[str, str]:
        with monkeypatch.context() as patch:
            for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
                patch.delenv(name, raising=False)
            for name, value in given.items():
                patch.setenv(name, value)
            patch.setattr(app, "_run", lambda _command: sys.exit(0))
            patch.setattr(sys, "platform", "linux")
            with pytest.raises(SystemExit):
                app.main()
            return {name: value for name, value in os.environ.items() if name.endswith("ALLOC_CONF")}

    assert environment() == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        mine = {name: "max_split_size_mb:64"}
        assert environment(**mine) == mine
