"""What is kept is found by all that it depends on, is whole or not there, and belongs to one process at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from memedit.errors import ResourceError, StorageError
from memedit.storage import locks
from memedit.storage.artifacts import (
    READ_BLOCK,
    Store,
    digest_file,
    digest_of,
    telling,
    write_whole,
    writing,
)
from memedit.storage.cache import cache_dir
from memedit.storage.header import encode, saved
from memedit.storage.locks import temporary
from safetensors.torch import save, save_file

HOLDS = """
import sys, time
from pathlib import Path
from memedit.storage.artifacts import Store
with Store(Path(sys.argv[1])).locked(print):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def counted(calls: list[int]) -> Callable[[], dict[str, torch.Tensor]]:
    """A maker whose every call is noted, and gives another tensor."""

    def make() -> dict[str, torch.Tensor]:
        calls.append(len(calls))
        return {"rows": torch.full((2, 3), float(len(calls)), dtype=torch.float64)}

    return make


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMEDIT_CACHE", str(tmp_path / "cache"))
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("MEMEDIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "memedit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "memedit"


def test_a_digest_does_not_follow_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


@pytest.mark.parametrize("size", [0, 5, READ_BLOCK, READ_BLOCK + 1])
def test_a_file_s_digest_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    (tmp_path / "file").write_bytes(data)
    assert digest_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    store, calls = Store(tmp_path / "run"), list[int]()
    first = store.recall("targets", {"seed": 1, "layers": (1, 2)}, counted(calls))
    again = Store(tmp_path / "run").recall("targets", {"layers": [1, 2], "seed": 1}, counted(calls))
    assert len(calls) == 1
    assert torch.equal(first["rows"], again["rows"]) and again["rows"].dtype == torch.float64


def test_another_input_makes_another_artifact(tmp_path: Path) -> None:
    store, calls = Store(tmp_path / "run"), list[int]()
    for seed in (1, 2, 1, 2):
        store.recall("targets", {"seed": seed}, counted(calls))
    assert len(calls) == 2
    assert len(list(store.folder.iterdir())) == 2


def test_a_name_that_collides_is_told_apart_by_its_inputs(tmp_path: Path) -> None:
    store, calls = Store(tmp_path / "run"), list[int]()
    store.recall("targets", {"seed": 1}, counted(calls))
    store.file("targets", {"seed": 1}).rename(store.file("targets", {"seed": 2}))
    assert store.find("targets", {"seed": 2}) is None
    assert not store.holds("targets", {"seed": 2})
    store.recall("targets", {"seed": 2}, counted(calls))
    assert len(calls) == 2


@pytest.mark.parametrize("kept", [0, 4, 30, -1])
def test_a_damaged_artifact_is_made_again(tmp_path: Path, kept: int) -> None:
    store, calls = Store(tmp_path / "run"), list[int]()
    store.recall("targets", {"seed": 1}, counted(calls))
    file = store.file("targets", {"seed": 1})
    file.write_bytes(file.read_bytes()[:kept])
    assert float(store.recall("targets", {"seed": 1}, counted(calls))["rows"][0, 0]) == 2
    assert store.holds("targets", {"seed": 1})


def test_a_plain_value_is_kept_like_a_tensor(tmp_path: Path) -> None:
    store, values = Store(tmp_path / "run"), iter([["été", "雪"], ["other"], ["third"]])
    assert store.recall_json("contexts", {"seed": 1}, lambda: next(values)) == ["été", "雪"]
    assert store.recall_json("contexts", {"seed": 1}, lambda: next(values)) == ["été", "雪"]
    assert store.recall_json("contexts", {"seed": 2}, lambda: next(values)) == ["other"]
    file = store.file("contexts", {"seed": 1}, "json")
    file.write_bytes(file.read_bytes()[:-3])
    assert store.recall_json("contexts", {"seed": 1}, lambda: next(values)) == ["third"]


KINDS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool, torch.complex64,
)  # fmt: skip


@pytest.mark.parametrize("shape", [(), (0, 3), (1, 5), (5, 1), (3, 4)])
def test_a_file_made_in_parts_is_the_one_that_safetensors_makes(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    draw = lambda kind: torch.randint(0, 2, shape, generator=generator).to(kind)  # noqa: E731
    tensors = {f"{'cab'[n % 3]}.{n}": draw(kind) for n, kind in enumerate((*KINDS, *KINDS[::-1]))}
    tensors["turned"] = torch.arange(5.0)[None].T.contiguous()  # one column, whose strides torch leaves as they are
    assert saved(tensors, {}) == save(tensors)
    assert len(list(encode(tensors, {}))) == 1 + len(tensors)


def test_the_same_tensors_are_the_same_bytes(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    on = {"model": "abc", "seed": 1}
    for store in (one, two):
        store.keep("targets", on, {"b": torch.ones(2), "a": torch.zeros(3)})
    assert one.file("targets", on).read_bytes() == two.file("targets", on).read_bytes()


def test_what_is_dropped_and_removed_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.keep("partial", {}, {"a": torch.ones(1)})
    store.drop("partial", {})
    store.drop("partial", {})
    assert not store.holds("partial", {})
    store.remove()
    assert not store.folder.exists()


def test_the_artifacts_that_agree_are_found_the_newest_first(tmp_path: Path) -> None:
    store, tensors = Store(tmp_path / "moments"), {"a": torch.ones(1)}
    for age, on in enumerate([{"model": "x", "tokens": 2}, {"model": "x", "tokens": 1}, {"model": "y", "imported": 1}]):
        store.keep("moment", on, tensors)
        os.utime(store.file("moment", on), (age, age))
    assert store.like("moment", {"model": "x"}) == [{"model": "x", "tokens": 1}, {"model": "x", "tokens": 2}]
    assert store.like("moment", {"model": "y", "imported": 1}) == [{"model": "y", "imported": 1}]
    assert store.like("moment", {"model": "z"}) == []


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run" / "kept"
    write_whole(file, b"old")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="no space left") as caught:
        write_whole(file, b"new")
    assert "free some space" in caught.value.hint
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in file.parent.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(errno.ENOSPC, ResourceError, 5), (errno.EDQUOT, ResourceError, 5), (errno.EACCES, StorageError, 1)],
)
def test_a_system_error_is_told_in_words(number: int, kind: type[Exception], code: int) -> None:
    with pytest.raises(kind, match="cannot write there") as caught, telling("write there"):
        raise OSError(number, os.strerror(number))
    assert getattr(caught.value, "exit_code", None) == code
    assert "Errno" not in str(caught.value)


@pytest.mark.process
def test_a_second_process_says_who_holds_the_folder_and_waits(tmp_path: Path) -> None:
    folder, notes = tmp_path / "run", list[str]()
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(folder), "1"], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with Store(folder).locked(notes.append):
            assert first.wait(timeout=30) == 0
    assert len(notes) == 1 and f"process {first.pid} on " in notes[0]


@pytest.mark.process
def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    folder, notes = tmp_path / "run", list[str]()
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(folder), "60"], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        first.kill()
        first.wait(timeout=30)
    with Store(folder).locked(notes.append):
        pass
    assert not notes


def test_the_inputs_stand_in_the_header(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.keep("targets", {"seed": 1, "layers": (1, 2)}, {"a": torch.ones(1)})
    file = store.file("targets", {"seed": 1, "layers": (1, 2)})
    assert store.inputs(file) == {"seed": 1, "layers": [1, 2]}
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    assert json.loads(header["__metadata__"]["on"]) == {"layers": [1, 2], "seed": 1}


@pytest.mark.parametrize("text", ["{}", "[]", "null", '"on"', "{"])
def test_a_file_that_holds_something_else_is_made_again(tmp_path: Path, text: str) -> None:
    store, values = Store(tmp_path / "run"), iter([["first"], ["second"]])
    store.recall_json("contexts", {}, lambda: next(values))
    store.file("contexts", {}, "json").write_text(text)
    assert store.recall_json("contexts", {}, lambda: next(values)) == ["second"]


def flipped(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("at", [-1, -9, -48])
def test_one_flipped_bit_is_named_set_aside_and_made_again(at: int, tmp_path: Path) -> None:
    warnings, calls = list[str](), list[int]()
    store = Store(tmp_path / "moments", warnings.append)
    store.recall("moment", {"seed": 1}, counted(calls))
    file = store.file("moment", {"seed": 1})
    flipped(file, at)
    assert store.find("moment", {"seed": 1}) is None
    assert len(warnings) == 1 and str(file) in warnings[0] and "damaged" in warnings[0]
    assert [entry.name for entry in store.folder.iterdir()] == [f"{file.name}.damaged"]
    assert float(store.recall("moment", {"seed": 1}, counted(calls))["rows"][0, 0]) == 2
    assert float(store.recall("moment", {"seed": 1}, counted(calls))["rows"][0, 0]) == 2
    assert len(calls) == 2 and len(warnings) == 1


def test_no_flipped_bit_gives_other_numbers(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path / "run", lambda _text: None), {"a": torch.arange(3.0), "n": torch.tensor(7)}
    store.keep("factor", {"seed": 1}, wanted)
    file = store.file("factor", {"seed": 1})
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole)
        flipped(file, at)
        found = store.find("factor", {"seed": 1})
        same = found is not None and found.keys() == wanted.keys()
        assert found is None or (same and all(torch.equal(found[name], wanted[name]) for name in wanted)), at


def test_a_changed_plain_value_is_made_again(tmp_path: Path) -> None:
    warnings, values = list[str](), iter([{"loss": 0.125}, {"loss": 0.5}])
    store = Store(tmp_path / "run", warnings.append)
    store.recall_json("before", {}, lambda: next(values))
    file = store.file("before", {}, "json")
    file.write_text(file.read_text().replace("0.125", "0.126"))
    assert store.recall_json("before", {}, lambda: next(values)) == {"loss": 0.5}
    assert len(warnings) == 1 and str(file) in warnings[0]


def test_an_artifact_of_version_0_1_is_read_as_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.folder.mkdir()
    save_file({"a": torch.ones(2)}, store.file("moment", {"seed": 1}), {"on": '{"seed": 1}'})
    store.file("before", {}, "json").write_text('{"on": {}, "value": [1.5]}')
    found = store.find("moment", {"seed": 1})
    assert found is not None and torch.equal(found["a"], torch.ones(2))
    assert store.find_json("before", {}) == [1.5]


@pytest.mark.process
def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "moments")
    store.folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait(timeout=60)
    host = locks._host()
    files = {
        f".moment.safetensors.{host}.{dead.pid}.tmp": 0.0,  # dead, of this machine
        f".moment.safetensors.{host}.{os.getpid()}.tmp": 0.0,  # alive
        f".other.safetensors.elsewhere.{dead.pid}.tmp": 0.0,  # of another machine, and young
        ".third.safetensors.1234.tmp": 2 * locks.DAY,  # of version 0.1, and old
        "mine.tmp": 2 * locks.DAY,
    }
    for name, age in files.items():
        (store.folder / name).write_bytes(b"")
        os.utime(store.folder / name, (time.time() - age, time.time() - age))
    with store.locked(lambda _text: None):
        pass
    left = sorted(file.name for file in store.folder.iterdir())
    assert left == sorted([list(files)[1], list(files)[2], "mine.tmp"])
    assert sorted(file.name for file in tmp_path.iterdir() if file.name != "cache") == ["moments"]


def test_a_file_that_appeared_is_kept_where_it_may_not_be_replaced(tmp_path: Path) -> None:
    file = tmp_path / "dense.safetensors"
    with pytest.raises(StorageError, match="exists"), writing(file, replace=False) as stream:
        stream.write(b"ours")
        file.write_bytes(b"theirs")
    assert file.read_bytes() == b"theirs"
    file.unlink()
    with writing(file, replace=False) as stream:
        stream.write(b"ours")
    assert file.read_bytes() == b"ours"
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "cache"] == [file.name]


def test_kept_tensors_are_aligned_whatever_the_length_of_the_header(tmp_path: Path) -> None:
    store, starts = Store(tmp_path / "moments"), set[int]()
    for length in range(0, 64, 8):
        on = {"text": "x" * length}
        store.keep("moment", on, {"a": torch.ones(3, 3, dtype=torch.float64)})
        starts.add((8 + int.from_bytes(store.file("moment", on).read_bytes()[:8], "little")) % 64)
        found = store.find("moment", on)
        assert found is not None and found["a"].data_ptr() % 64 == 0
    assert len(starts) > 1  # the converse: in the files they begin at other places


def test_writing_a_file_removes_what_a_killed_writer_left_of_it(tmp_path: Path) -> None:
    file = tmp_path / "delta.safetensors"
    dead = subprocess_id()
    left = temporary(file).with_name(temporary(file).name.replace(str(os.getpid()), str(dead)))
    other = left.with_name(left.name.replace("delta", "other"))
    alive = temporary(file).with_name(temporary(file).name.replace(str(os.getpid()), str(os.getppid())))
    for one in (left, other, alive):
        one.write_bytes(b"part")
    write_whole(file, b"whole")
    assert file.read_bytes() == b"whole"
    assert (left.exists(), other.exists(), alive.exists()) == (False, True, True)


def subprocess_id() -> int:
    """The number of a process that has ended."""
    process = os.fork()
    if not process:
        os._exit(0)
    os.waitpid(process, 0)
    return process
