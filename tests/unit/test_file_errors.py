"""A file operation that the system refuses is one line with the file's name and its own exit code, never a defect."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import memedit
import pytest
from memedit.cli.app import main
from memedit.config.recipe import ModelKnobs
from memedit.config.resolve import resolve
from memedit.editing.moment_cache import run_stats
from memedit.errors import (
    ResourceError,
    StorageError,
    UnsupportedModelError,
    UsageError,
    file_error,
    is_file_error,
    nearest_path_hint,
)
from memedit.model.config import foreign_errors
from memedit.model.load import load, open_tokenizer
from memedit.storage.artifacts import Store
from memedit.storage.cache import cache_dir
from memedit.storage.locks import _host, exclusive, locked_if_free, remove_folder

KNOBS = ModelKnobs(device="cpu")


def refuse(monkeypatch: pytest.MonkeyPatch, function: str, name: str, number: int) -> None:
    """Let a function of `os` fail for every path that ends in `name`."""
    real = getattr(os, function)

    def refusing(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, function, refusing)


def test_a_misspelled_path_names_the_nearest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "capitals.yaml").write_text("[]")
    (tmp_path / "gpt2-edited").mkdir()
    wrong = str(tmp_path / "capitls.yaml")
    for ask in (lambda: memedit.check(wrong), lambda: memedit.log(str(tmp_path / "gpt2-edted"))):
        with pytest.raises(UsageError) as caught:
            ask()
        assert caught.value.hint.startswith(f"did you mean {tmp_path}/"), caught.value
    monkeypatch.chdir(tmp_path)
    assert nearest_path_hint("capitls.yaml", "") == "did you mean capitals.yaml?"
    assert nearest_path_hint("capitals.yaml", "as it is") == "as it is"  # it is there, and of another kind
    for other in (str(tmp_path / "zzz"), "/no/such/folder/x", "a\0b", "x" * 5000, "~nobody-of-this-name/x", "", "/"):
        assert nearest_path_hint(other, "check the path") == "check the path"
    (tmp_path / "two\nlines").write_text("")
    assert nearest_path_hint("two lines", "check") == "check"


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(errno.EACCES, StorageError, 1), (errno.EIO, StorageError, 1), (errno.EROFS, StorageError, 1),
     (errno.ENOSPC, ResourceError, 5), (errno.EDQUOT, ResourceError, 5)],
)  # fmt: skip
def test_a_system_error_names_its_file_and_has_the_exit_code_of_its_cause(
    number: int, kind: type[Exception], code: int
) -> None:
    found = file_error(OSError(number, os.strerror(number), "some/file"))
    assert type(found) is kind and found.exit_code == code
    assert found.message == f"cannot read or write some/file: {os.strerror(number).lower()}" and found.hint
    assert file_error(OSError(number, os.strerror(number)), "read it").message.startswith("cannot read it: ")


def test_network_errors_are_no_file_errors() -> None:
    assert is_file_error(PermissionError(errno.EACCES, "no"))
    for other in (ConnectionRefusedError(errno.ECONNREFUSED, "no"), BrokenPipeError(errno.EPIPE, "no"), OSError("no")):
        assert not is_file_error(other)
    assert not is_file_error(ValueError("no"))


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 1), (errno.ENOSPC, 5)])
def test_the_program_reports_a_refused_operation_in_two_lines(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    refuse(monkeypatch, "stat", "config.json", number)
    monkeypatch.setattr(sys, "argv", ["memedit", "inspect", str(tiny_folder)])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == code, said
    lines = [line.split(":")[0] for line in said.splitlines() if not line.startswith("loading ")]
    assert lines == ["error", "hint"]
    assert str(tiny_folder / "config.json") in said and "unexpected" not in said


def test_the_python_functions_raise_it_as_an_error_of_memedit(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "stat", "config.json", errno.EACCES)
    with pytest.raises(StorageError, match=r"config\.json"):
        memedit.inspect(tiny_folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_file_that_cannot_be_read_is_the_reason_why_a_model_cannot_be_opened(
    name: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "stat", name, errno.EIO)
    # This is how transformers looks for its files: one that cannot be looked up seems not to be there.
    assert not os.path.isfile(tiny_folder / name)  # noqa: PTH113
    with pytest.raises(StorageError, match=name), foreign_errors("it failed", "try again", folder=tiny_folder):
        raise ValueError("not there")


@pytest.mark.parametrize(
    "opened",
    [lambda folder: load(folder, KNOBS), lambda folder: open_tokenizer(folder, KNOBS)],
    ids=["all", "tokenizer"],
)
def test_a_file_that_transformers_goes_on_without_is_an_error(
    opened: Callable[[Path], object], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tiny_folder)
    refuse(monkeypatch, "stat", "tokenizer_config.json", errno.EACCES)
    with pytest.raises(StorageError, match=r"tokenizer_config\.json"):
        opened(tiny_folder)


def test_an_error_of_another_library_stays_where_every_file_can_be_read(tiny_folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="it failed"), foreign_errors("it failed", "", folder=tiny_folder):
        raise ValueError("not there")


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, ResourceError), (errno.EROFS, StorageError)])
def test_a_lock_that_cannot_be_made_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    refuse(monkeypatch, "open", "a.lock", number)
    with pytest.raises(kind, match="cannot lock"), exclusive(tmp_path / "a.lock", tmp_path, print):
        pass


def test_a_full_disk_does_not_keep_a_lock_from_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "write", full)
    with exclusive(tmp_path / "a.lock", tmp_path, print):
        assert (tmp_path / "a.lock").read_bytes() == b""
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_fails_after_it_was_taken_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [0], os.fstat

    def fails_once(handle: int) -> os.stat_result:
        calls[0] += 1
        if calls[0] == 1:
            raise OSError(errno.EIO, "input/output error")
        return real(handle)

    monkeypatch.setattr(os, "fstat", fails_once)
    with pytest.raises(StorageError, match="cannot lock"), exclusive(tmp_path / "a.lock", tmp_path, print):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_after_a_lock_was_taken_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def interrupted(_handle: int) -> NoReturn:
        monkeypatch.setattr(os, "fstat", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fstat", interrupted)
    with pytest.raises(KeyboardInterrupt), exclusive(tmp_path / "a.lock", tmp_path, print):
        pass
    monkeypatch.setattr(os, "fstat", interrupted)
    with pytest.raises(KeyboardInterrupt), locked_if_free(tmp_path / "a.lock"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_while_another_holds_a_lock_leaves_its_file(tmp_path: Path) -> None:
    def interrupted(_text: str) -> NoReturn:
        raise KeyboardInterrupt

    with exclusive(tmp_path / "a.lock", tmp_path, print):
        with pytest.raises(KeyboardInterrupt), exclusive(tmp_path / "a.lock", tmp_path, interrupted):
            pass
        with locked_if_free(tmp_path / "a.lock") as held:
            assert not held
        assert (tmp_path / "a.lock").exists()


def test_a_lock_that_cannot_be_used_is_not_free_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fstat

    def fails_once(_handle: int) -> NoReturn:
        monkeypatch.setattr(os, "fstat", real)
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fstat", fails_once)
    with locked_if_free(tmp_path / "a.lock") as held:
        assert not held
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_removed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)

    def fails(_handle: int) -> NoReturn:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", fails)
        remove_folder(folder)
    remove_folder(folder)
    assert not folder.exists()
    remove_folder(folder)


def test_an_import_removes_what_a_killed_one_left(tiny_folder: Path, tmp_path: Path) -> None:
    import numpy as np

    width = 128 if "gpt2" in tiny_folder.name else 88
    file = tmp_path / "moment.npz"
    arrays: dict[str, Any] = {"mom2.mom2": np.eye(width), "mom2.count": np.array(10)}
    np.savez(file, **arrays)
    recipe = resolve([("flag", {"model.path": str(tiny_folder), "method.layers": "1"})])[0]
    run_stats(recipe, import_file=str(file))
    moments = cache_dir() / "moments"
    (kept,) = moments.iterdir()
    left = moments / f".{kept.name}.{_host()}.999999999.tmp"
    left.write_bytes(b"half")
    run_stats(recipe, import_file=str(file))
    assert list(moments.iterdir()) == [kept]
    assert Store(moments).inputs(kept)
