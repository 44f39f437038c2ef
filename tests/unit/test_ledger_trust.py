"""A ledger is data: it gives a run its deciding settings, and no privilege, place or flag."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.config.resolve import resolve
from memedit.editing.ledger import BaseIdentity, Ledger, LedgerEntry, Mode, Provenance, deciding_settings
from memedit.editing.ledger_files import ledger_files, read_ledger
from memedit.editing.run import EditRun
from memedit.editing.start import RunStart, start_run
from memedit.edits.edit import EditRequest
from memedit.errors import MemeditError, StorageError, UsageError
from memedit.progress import NoProgress
from memedit.storage.checkpoint import Checkpoint
from tests.helpers.own_code import bring_code

OLD = EditRequest(id="e1", subject="Ada", prompt="{} lives in", object="Rome", origin="old:1")
NEW = EditRequest(id="e2", subject="Bo", prompt="{} lives in", object="Oslo", origin="new:1")


def write_ledger(folder: Path, first: Path, width: int, **changes: Any) -> Path:
    """A ledger of one edit of the model `first`; `changes` replace parts of its provenance, `knobs` are added."""
    recipe = resolve([("flag", {})])[0]
    knobs = {**deciding_settings(recipe), **changes.pop("knobs", {})}
    identity = BaseIdentity(path=str(first), digest=Checkpoint.open(first).digest)
    provenance = Provenance(base=identity, contexts=("",), knobs=knobs, layers=(1,), moments="m")
    entry = LedgerEntry(edit=OLD, digest=OLD.digest, found="searched", on="0", group="g", loss=0, steps=1)
    ledger = Ledger(provenance.model_copy(update=changes), (entry,), torch.ones(1, width))
    (folder / "memedit").mkdir(exist_ok=True)
    for name, data in ledger_files(ledger).items():
        (folder / name).write_bytes(b"".join(data))
    return folder


@pytest.fixture
def edited(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "edited"
    shutil.copytree(tiny_folder, folder)
    return write_ledger(folder, tiny_folder, 32)


def start(model: Path, settings: dict[str, Any] | None = None, **more: Any) -> RunStart:
    recipe, sources = resolve([("flag", {"model.path": str(model), **(settings or {})})])
    return start_run([NEW], recipe, sources=sources, **more)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.trust_remote_code", True), ("model.path", "/tmp"), ("model.device", "cuda"), ("model.revision", "x"),
        ("output.overwrite", True), ("output.dir", "/tmp/x"), ("output.link", "hard"), ("memory", "1GB"),
        ("chunk", 1), ("eval.unrelated", "/etc/passwd"), ("target.retry", 9), ("target.redo", 9),
        ("method.unheard", 1), ("chatter", 1), ("seed.of", 1),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_a_ledgers_is_refused_by_name(
    edited: Path, tiny_folder: Path, name: str, value: Any
) -> None:
    assert read_ledger(edited) is not None
    write_ledger(edited, tiny_folder, 32, knobs={name: value})
    with pytest.raises(StorageError, match=name.replace(".", r"\.")) as caught:
        read_ledger(edited)
    assert caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"), [("method.ridge", -1), ("seed", "x"), ("contexts.tokens", 0), ("model.dtype", "int8")]
)
def test_a_value_that_a_setting_cannot_have_is_refused(
    edited: Path, tiny_folder: Path, name: str, value: object
) -> None:
    write_ledger(edited, tiny_folder, 32, knobs={name: value})
    with pytest.raises(StorageError, match=name.replace(".", r"\.")):
        read_ledger(edited)


@pytest.mark.parametrize("changes", [{"layers": ()}, {"layers": (2, 1)}, {"layers": (-1,)}, {"contexts": ()},
                                     {"contexts": ("I was. ",)}])  # fmt: skip
def test_layers_and_contexts_that_no_run_writes_are_refused(
    edited: Path, tiny_folder: Path, changes: dict[str, Any]
) -> None:
    write_ledger(edited, tiny_folder, 32, **changes)
    with pytest.raises(StorageError, match=next(iter(changes))):
        read_ledger(edited)


def test_a_ledger_without_layers_is_refused(edited: Path) -> None:
    ledger = read_ledger(edited)
    assert ledger is not None
    knobs = {name: value for name, value in ledger.about.knobs.items() if name != "method.layers"}
    for name, data in ledger_files(replace(ledger, about=ledger.about.model_copy(update={"knobs": knobs}))).items():
        (edited / name).write_bytes(b"".join(data))
    with pytest.raises(StorageError, match=r"lacks the setting method\.layers"):
        read_ledger(edited)


def test_contexts_that_the_model_cannot_read_are_refused(edited: Path, tiny_folder: Path) -> None:
    write_ledger(edited, tiny_folder, 32, contexts=("", "I was. "))
    job = EditRun(start(edited, mode="on top"), (), NoProgress())
    assert job.history.ledger is not None
    assert job.encode(job.history.ledger.about.contexts).texts == ("", "I was. ")
    with pytest.raises(UsageError, match=f"and this model takes {job.lm.architecture.positions:,}") as caught:
        job.encode(["", "I was. " * 1000])
    assert "ledger" in caught.value.hint


@pytest.mark.parametrize("mode", ["on top", "re-solve", None])
def test_no_run_executes_a_models_code_because_a_ledger_says_so(
    edited: Path, tiny_folder: Path, tmp_path: Path, mode: Mode | None
) -> None:
    mark = tmp_path / "ran"
    bring_code(edited, mark)
    write_ledger(edited, tiny_folder, 32, knobs={"model.trust_remote_code": True})
    with pytest.raises(MemeditError):
        EditRun(start(edited, mode=mode), (), NoProgress())
    assert not mark.exists()


def test_no_output_is_replaced_because_a_ledger_says_so(edited: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    write_ledger(edited, tiny_folder, 32, knobs={"output.overwrite": True})
    for run in (lambda: memedit.apply([NEW], edited, out), lambda: memedit.forget(["e1"], edited, out)):
        with pytest.raises(StorageError, match=r"output\.overwrite"):
            run()
    assert (out / "mine.txt").read_text() == "mine"


def test_trust_goes_with_the_folders_that_a_person_named(edited: Path, tiny_folder: Path, tmp_path: Path) -> None:
    asked = {"model.trust_remote_code": True}
    assert start(edited, asked, mode="on top").recipe.model.trust_remote_code
    assert start(edited, asked, base=str(tiny_folder)).recipe.model.trust_remote_code
    assert not start(edited, asked).recipe.model.trust_remote_code
    hostile = tmp_path / "hostile"
    shutil.copytree(tiny_folder, hostile)
    bring_code(hostile, tmp_path / "ran")
    write_ledger(edited, hostile, 32)
    with pytest.raises(UsageError, match="Python code") as caught:
        start(edited, asked)
    assert f"--base {hostile}" in caught.value.hint
    assert start(edited, asked, base=str(hostile)).recipe.model.trust_remote_code
    assert not (tmp_path / "ran").exists()


def test_a_base_with_a_hub_name_is_never_fetched(
    edited: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append(options)
        assert options.get("local_files_only"), "the hub was asked"
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    base = BaseIdentity(path="someone/model", revision="main", digest=Checkpoint.open(tiny_folder).digest)
    write_ledger(edited, tiny_folder, 32, base=base)
    job = EditRun(start(edited), (), NoProgress())
    assert job.recipe.model.path == "someone/model" and job.folder == tiny_folder
    assert asked


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (torch.tensor([[1.0] * 31 + [torch.nan]]), "row 1 of ledger.safetensors .*not finite"),
        (torch.tensor([[1.0] * 31 + [-torch.inf]]), "row 1 of ledger.safetensors .*not finite"),
        (torch.tensor([[1.0] * 31 + [1e30]]), r"row 1 of ledger.safetensors .*not below 1e\+08"),
        (torch.ones(1, 0), "no numbers"),
    ],
)
def test_rows_that_are_not_finite_or_absurd_are_refused_when_read(
    edited: Path, targets: torch.Tensor, says: str
) -> None:
    ledger = read_ledger(edited)
    assert ledger is not None
    for name, data in ledger_files(replace(ledger, targets=targets)).items():
        (edited / name).write_bytes(b"".join(data))
    with pytest.raises(StorageError, match=says):
        read_ledger(edited)


def test_rows_of_another_width_than_the_models_are_refused_before_the_search(edited: Path, tiny_folder: Path) -> None:
    write_ledger(edited, tiny_folder, 33)
    for mode in ("on top", "re-solve"):
        with pytest.raises(StorageError, match=r"ledger\.safetensors.* 33 .* 32"):
            EditRun(start(edited, mode=mode), (), NoProgress())
    write_ledger(edited, tiny_folder, 32)
    for mode in ("on top", "re-solve"):
        assert len(EditRun(start(edited, mode=mode), (), NoProgress()).requests) == 2
