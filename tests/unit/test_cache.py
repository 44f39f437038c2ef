"""The cache is listed and cleaned: by kind, age and size; what a run uses stays, and so do foreign files."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.cli.app import app
from memedit.editing.moment_cache import moment_store
from memedit.errors import StorageError, UsageError
from memedit.results.cache import CacheEntry
from memedit.show.cache import cache_table
from memedit.storage import cache
from memedit.storage.artifacts import Store
from memedit.storage.cache import age_in_seconds, cache_dir, kept_entries, remove_entries, size_in_bytes, trim_cache
from rich.console import Console
from typer.testing import CliRunner

DAY = 86400


@pytest.fixture
def kept() -> dict[str, Path]:
    """Entries of every kind, each a day older than the one before, and files that are not memedit's."""
    moments = moment_store("gpt2")
    for name, size in (("moment-3", 3000), ("spectrum-3", 2000), ("partial", 1000)):
        moments.keep(name, {"seed": 1}, {"a": torch.zeros(size // 4)})
    run = Store(cache_dir() / "runs" / ("a" * 16), model="llama")
    run.keep_json("contexts", {}, ["x"])
    run.keep("targets-0", {}, {"a": torch.zeros(100)})
    run.keep("targets-1", {}, {"a": torch.zeros(100)})
    Store(cache_dir() / "traces" / ("b" * 16), model="llama").keep("fact", {}, {"a": torch.zeros(9)})
    folder = cache_dir() / "moments"
    (folder / "moment-4-00000000.safetensors.damaged").write_bytes(bytes(500))
    (folder / ".moment-4-00000000.safetensors.elsewhere.1.tmp").write_bytes(bytes(400))
    paths = {
        "moment": moments.file("moment-3", {"seed": 1}), "factor": moments.file("spectrum-3", {"seed": 1}),
        "partial": moments.file("partial", {"seed": 1}), "run": run.folder,
        "trace": cache_dir() / "traces" / ("b" * 16),
        "damaged": folder / "moment-4-00000000.safetensors.damaged",
        "temporary": folder / ".moment-4-00000000.safetensors.elsewhere.1.tmp",
    }  # fmt: skip
    for days, path in enumerate(paths.values(), 2):
        then = time.time() - days * DAY
        for file in path.iterdir() if path.is_dir() else [path]:
            os.utime(file, (then, then))
    for name in ("mine.txt", "moments/mine.safetensors", "runs/mine/x", "runs/cccccccccccccccc.txt", "traces/notes"):
        (cache_dir() / name).parent.mkdir(exist_ok=True)
        (cache_dir() / name).write_text("mine")
    (cache_dir() / "runs" / ("d" * 16)).symlink_to(cache_dir() / "runs" / "mine")
    return paths


def mine_is_there() -> bool:
    names = ("mine.txt", "moments/mine.safetensors", "runs/mine/x", "runs/cccccccccccccccc.txt", "traces/notes")
    return all((cache_dir() / name).read_text() == "mine" for name in names)


def test_every_kind_is_listed_with_its_model_size_and_age(kept: dict[str, Path]) -> None:
    found = {one.kind: one for one in kept_entries()}
    assert found.keys() == kept.keys() and len(kept_entries()) == len(kept)
    for days, (kind, path) in enumerate(kept.items(), 2):
        size = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
        assert found[kind].bytes == size
        assert found[kind].used == pytest.approx(time.time() - days * DAY, abs=60)
        assert cache_dir() / found[kind].name == path
    assert [found[kind].model for kind in ("moment", "factor", "partial", "run", "trace", "damaged")] == [
        "gpt2", "gpt2", "gpt2", "llama", "llama", None
    ]  # fmt: skip
    assert (found["moment"].layer, found["factor"].layer, found["run"].holds) == (3, 3, "contexts, 2 targets")
    assert [one.kind for one in kept_entries(["run"])] == ["run"]
    assert [one.bytes for one in kept_entries()] == sorted((one.bytes for one in kept_entries()), reverse=True)


def test_cleaning_goes_by_kind_by_age_and_by_both(kept: dict[str, Path]) -> None:
    assert {one.kind for one in remove_entries(kinds=["run", "damaged"]).removed} == {"run", "damaged"}
    assert not kept["run"].exists() and not kept["damaged"].exists() and kept["trace"].exists()
    assert not remove_entries(kinds=["moment"], older_than=2.5 * DAY).removed
    assert {one.kind for one in remove_entries(older_than=3.5 * DAY).removed} == {"partial", "trace", "temporary"}
    assert {one.kind for one in kept_entries()} == {"moment", "factor"}
    assert len(remove_entries().removed) == 2 and not kept_entries()
    assert mine_is_there()


def test_down_to_a_size_the_least_recently_used_go_first(kept: dict[str, Path]) -> None:
    total = sum(one.bytes for one in kept_entries())
    sizes = {one.kind: one.bytes for one in kept_entries()}
    assert not remove_entries(to_size=total).removed
    done = remove_entries(to_size=total - sizes["temporary"] - 1)
    assert [one.kind for one in done.removed] == ["temporary", "damaged"]
    assert done.bytes == total - done.freed == sum(one.bytes for one in kept_entries())
    moment_store().find("partial", {"seed": 1})  # the oldest but two; now it was just used
    done = remove_entries(to_size=1)
    assert [one.kind for one in done.removed] == ["trace", "run", "factor", "moment", "partial"]


def test_a_dry_run_removes_nothing_and_says_the_same(kept: dict[str, Path]) -> None:
    planned = remove_entries(older_than=3.5 * DAY, dry_run=True)
    assert planned.dry_run and len(kept_entries()) == len(kept)
    done = remove_entries(older_than=3.5 * DAY)
    assert done == planned.model_copy(update={"dry_run": False})


def test_what_a_run_uses_stays(kept: dict[str, Path]) -> None:
    moments, run = moment_store(), Store(kept["run"])
    with moments.using("moment-3", {"seed": 1}), run.locked(lambda _text: None):
        done = remove_entries()
        assert {one.kind for one in done.in_use} == {"moment", "run"}
        assert {one.kind for one in kept_entries()} == {"moment", "run"}
    with moments.locked(lambda _text: None):  # a run measures: nothing beside what it writes is removed either
        assert {one.kind for one in remove_entries().in_use} == {"moment"}
    assert {one.kind for one in kept_entries()} == {"moment"}
    assert len(remove_entries().removed) == 1


def test_a_lock_is_not_left_and_not_taken_from_its_holder(kept: dict[str, Path]) -> None:
    remove_entries(dry_run=True)
    assert not list(cache_dir().rglob("*.lock"))
    with Store(kept["run"]).locked(lambda _text: None):
        remove_entries(dry_run=True)
        assert [file.name for file in cache_dir().rglob("*.lock")] == [f"{kept['run'].name}.lock"]


def test_the_limit_is_kept_and_said_in_one_line(kept: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    notes = list[str]()
    trim_cache(notes.append)
    monkeypatch.setenv("MEMEDIT_CACHE_LIMIT", "1GB")
    trim_cache(notes.append)
    assert not notes and len(kept_entries()) == len(kept)
    monkeypatch.setenv("MEMEDIT_CACHE_LIMIT", "4kB")
    with moment_store().using("factor-3", {"seed": 1}):
        trim_cache(notes.append)
    assert len(notes) == 1 and "\n" not in notes[0] and "over its limit of 4.0 kB" in notes[0]
    assert 0 < sum(one.bytes for one in kept_entries()) <= 4000


def test_a_limit_that_is_no_size_is_refused_before_the_work(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMEDIT_CACHE_LIMIT", "much")
    for call in (
        lambda: memedit.stats(tiny_folder, settings={"moments.tokens": 50}),
        lambda: memedit.trace([{"subject": "Ada", "prompt": "{} is", "object": "x"}], tiny_folder),
    ):
        with pytest.raises(UsageError, match="MEMEDIT_CACHE_LIMIT"):
            call()
    assert not kept_entries()


def test_stats_keep_the_models_name_and_end_within_the_limit(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"moments.tokens": 50, "method.layers": "1-2"}
    memedit.stats(tiny_folder, settings=settings)
    assert {(one.kind, one.model, one.layer) for one in kept_entries()} == {
        ("moment", str(tiny_folder), 1), ("moment", str(tiny_folder), 2)
    }  # fmt: skip
    before = max(one.used for one in kept_entries())
    monkeypatch.setenv("MEMEDIT_CACHE_LIMIT", str(kept_entries()[0].bytes))
    memedit.stats(tiny_folder, settings=settings)
    assert len(kept_entries()) == 1
    assert kept_entries()[0].used >= before


def test_a_use_is_recorded_and_a_look_is_not(kept: dict[str, Path]) -> None:
    before = {one.name: one.used for one in kept_entries()}
    assert {one.name: one.used for one in kept_entries()} == pytest.approx(before, abs=1e-3)
    moment_store().find("moment-3", {"seed": 1})
    used = {one.kind: one.used for one in kept_entries()}
    assert used["moment"] == pytest.approx(time.time(), abs=60)
    assert kept["moment"].stat().st_mtime < time.time() - DAY  # the order in which artifacts were made stays


@pytest.mark.parametrize("text", ["", "d", "3", "3y", "-1d", "1e9d", "\x1b[2J", "9999999d", "9" * 400 + "GB"])
def test_an_age_or_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        age_in_seconds(text, "--older-than")
    assert "\x1b" not in caught.value.message and caught.value.hint
    if text not in ("3",):
        with pytest.raises(UsageError):
            size_in_bytes(text, "--to-size")


def test_ages_and_sizes_are_read() -> None:
    assert [age_in_seconds(text, "") for text in ("30m", "12h", "30d", "2w", "0.5 d")] == [
        1800, 43200, 30 * DAY, 14 * DAY, 43200
    ]  # fmt: skip
    assert size_in_bytes("20GB", "") == 20 * 10**9


def test_the_layers_of_one_model_are_one_row() -> None:
    known: dict[str, Any] = {"model": "/models/deep/SmolLM2-135M-Instruct", "bytes": 10**6, "used": time.time()}
    entries = [CacheEntry(kind="moment", name=f"m{n}", layer=n % 30, **known) for n in range(60)]
    entries += [CacheEntry(kind="run", name="r", holds="before, contexts, plan, 2 targets", **known)]
    console = Console(width=80, record=True)
    console.print(cache_table(entries))
    rows = [line.split() for line in console.export_text().splitlines()]
    name = "SmolLM2-135M-Instruct"
    assert ["moment", name, "layers", "0-29", "60", "60.0", "MB", "1", "min", "ago"] in rows
    assert [row[:2] for row in rows if row[:1] in (["moment"], ["run"])] == [["moment", name], ["run", name]]
    assert len([row for row in rows if row]) == 5  # the head, a line, a row, and one whose contents take two lines


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["cache", *arguments], catch_exceptions=True)


def test_the_commands_print_json_for_programs(kept: dict[str, Path]) -> None:
    assert run("dir").stdout.strip() == str(cache_dir())
    rows = json.loads(run("ls", "--json").stdout)
    assert {row["kind"] for row in rows} == set(kept)
    text = run("ls").stdout
    assert all(kind in text for kind in kept) and "7 entries" in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines()[:-1])  # a terminal of 80 columns shows it whole
    done = json.loads(run("clean", "--kind", "run", "--dry-run", "--json").stdout)
    assert [one["kind"] for one in done["removed"]] == ["run"] and kept["run"].exists()
    assert "removed 1 of 7 entries" in run("clean", "--kind", "run").stdout
    assert run("clean", "--all", "-q").stdout == "" and not kept_entries()
    assert "keeps nothing" in run("ls").stdout and run("ls", "--json").stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [["clean"], ["clean", "--all", "--kind", "run"], ["clean", "--kind", "x"], ["ls", "--kind", "x"],
     ["clean", "--older-than", "x"], ["clean", "--to-size", "x"], ["clean", "--all", "--json", "-q"]],
)  # fmt: skip
def test_a_cleaning_that_is_not_clear_is_refused(arguments: list[str], kept: dict[str, Path]) -> None:
    assert isinstance(run(*arguments).exception, UsageError)
    assert len(kept_entries()) == len(kept)


def test_python_lists_and_cleans_too(kept: dict[str, Path]) -> None:
    assert {one.kind for one in memedit.list_cache()} == set(kept)
    with pytest.raises(UsageError):
        memedit.clean_cache()
    with pytest.raises(UsageError):
        memedit.clean_cache(everything=True, kinds=["run"])
    with pytest.raises(UsageError):
        memedit.clean_cache(kinds=["runs"])  # type: ignore[list-item]
    assert [one.kind for one in memedit.clean_cache(kinds=["run"], older_than="1d", dry_run=True).removed] == ["run"]
    assert len(memedit.clean_cache(everything=True).removed) == len(kept)


def test_a_model_name_cannot_write_to_the_terminal() -> None:
    moment_store("\x1b[2Jgpt2").keep("moment-1", {}, {"a": torch.zeros(1)})
    assert [one.model for one in kept_entries()] == ["gpt2"]


def test_headers_that_are_damaged_are_listed_without_a_model() -> None:
    folder = cache_dir() / "moments"
    folder.mkdir(parents=True)
    for n, data in enumerate((b"", b"\xff" * 99, (10**9).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"[]")):
        (folder / f"moment-{n}-00000000.safetensors").write_bytes(data)
    assert [one.model for one in kept_entries()] == [None] * 4


@pytest.mark.slow
def test_the_state_of_a_refused_run_is_removed_and_that_of_a_failed_one_stays(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memedit.editing.run import EditRun

    edits = [{"subject": "Ada", "prompt": "{} lives in", "object": "Rome"}]
    settings = {"polish.steps": 0, "target.steps": 1, "moments.tokens": 50, "contexts.tokens": 3, "method.layers": "1"}

    def raised(error: Exception) -> list[str]:
        def update(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(EditRun, "update", update)
        with pytest.raises(type(error)):
            memedit.apply(edits, tiny_folder, tmp_path / "out", settings=settings)
        return [one.kind for one in kept_entries(["run"])]

    assert raised(UsageError("two edits have nearly the same key")) == []
    assert raised(StorageError("the disk is gone")) == ["run"]
    assert not (tmp_path / "out").exists()


def test_the_moments_of_a_run_that_goes_on_are_in_use(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memedit.editing.run import EditRun

    seen: list[set[str]] = []
    real = EditRun.write

    def write(self: EditRun, *more: Any) -> None:
        done = remove_entries()
        seen.append({one.kind for one in done.in_use})
        real(self, *more)

    monkeypatch.setattr(EditRun, "write", write)
    edits = [{"subject": "Ada", "prompt": "{} lives in", "object": "Rome"}]
    settings = {"polish.steps": 0, "target.steps": 1, "moments.tokens": 50, "contexts.tokens": 3, "method.layers": "1"}
    memedit.apply(edits, tiny_folder, tmp_path / "out", settings=settings)
    assert seen == [{"moment", "run"}]
    assert {one.kind for one in kept_entries()} == {"moment"}
    assert len(remove_entries().removed) == 1  # and afterwards it is free


def test_no_file_locks_means_no_error(kept: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from memedit.storage import locks

    monkeypatch.setattr(locks, "fcntl", None)
    with ExitStack() as stack:
        stack.enter_context(moment_store().using("moment-3", {"seed": 1}))
        assert len(remove_entries().removed) == len(kept)
    assert mine_is_there()


def test_a_cache_that_is_a_file_or_missing_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path / "none", tmp_path / "file"):
        monkeypatch.setenv("MEMEDIT_CACHE", str(place))
        assert not kept_entries() and not remove_entries().removed
        place.write_text("x")
        assert not cache.kept_entries() and not remove_entries().removed
