"""A folder of traces is written as a whole, by one process at a time, and replaces only traces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from memedit.errors import StorageError, UsageError
from memedit.storage import output
from memedit.storage.output import folder_aside
from memedit.tracing.files import TRACES, check_folder, write_traces
from tests.helpers.tracings import a_tracing


def write(out: Path, figures: dict[str, bytes] | None = None) -> list[str]:
    found, notes = a_tracing(), list[str]()
    facts = [one.fact for one in found.facts]
    write_traces(out, facts, {"a/mlp": torch.ones(2)}, found.average, figures or {}, notes.append)
    return notes


def held(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_new_traces_replace_the_old_ones_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, {"trace.html": b"x", "figures/average.png": b"x"})
    assert held(out) == ["average.json", "figures/average.png", "trace.html", "trace.jsonl", "trace.safetensors"]
    write(out, {"trace.html": b"y"})
    assert held(out) == ["average.json", "trace.html", "trace.jsonl", "trace.safetensors"]  # no old figure beside them
    assert held(tmp_path) == sorted(f"out/{name}" for name in held(out))  # nothing is left beside it


@pytest.mark.parametrize("name", ["notes.txt", "figures/notes.txt", "config.json", "more/x"])
def test_a_folder_that_holds_more_than_traces_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, {"figures/a.svg": b"x"})
    check_folder(None, out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    with pytest.raises(UsageError, match="no trace"):
        check_folder(None, out)
    with pytest.raises(UsageError, match="no trace"):
        write(out)
    assert (out / name).read_text() == "mine"


def test_a_folder_inside_the_model_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    for out in (tiny_folder, tiny_folder / "traces", tiny_folder.parent):
        with pytest.raises(UsageError, match="overlap"):
            check_folder(tiny_folder, out)
    check_folder(tiny_folder, tmp_path / "traces")


def test_a_failed_write_leaves_the_old_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write(out, {"trace.html": b"old"})

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "_swap", fail)
    with pytest.raises(Exception, match="no space"):
        write(out, {"trace.html": b"new"})
    assert (out / "trace.html").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir() if file.name != "cache"] == ["out"]


def test_two_processes_take_turns_and_what_another_made_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    asides: set[str] = set()
    for _ in range(2):
        with folder_aside(None, out, overwrite=True, force=False, note=lambda _text: None, own=TRACES) as aside:
            asides.add(aside.name)
            assert (tmp_path / ".out.memedit-lock").is_file()
            (aside / "trace.jsonl").write_text("x")
    assert len(asides) == 2  # no process writes into another's folder
    with (
        pytest.raises(StorageError, match="made by another program"),
        folder_aside(None, out, overwrite=True, force=False, note=lambda _text: None, own=TRACES) as aside,
    ):
        (aside / "trace.jsonl").write_text("y")
        (out / "config.json").write_text("{}")
        (out / "model.safetensors").write_text("another program's")
    assert held(out) == ["config.json", "model.safetensors", "trace.jsonl"]
