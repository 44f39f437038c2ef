"""The output is the input byte for byte, but for the byte ranges of the edited tensors."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from memedit.errors import MemeditError, StorageError, UnsupportedModelError, UsageError
from memedit.storage import output, writer
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.machine import container_memory
from memedit.storage.records import records
from memedit.storage.shards import plan_shards, verify_shards
from memedit.storage.tensorfile import read_header
from memedit.storage.writer import check_output, verify, write_checkpoint, write_files
from safetensors.torch import load_file, save_file
from tests.malformed.checkpoints import HEADERS, INDEXES, Header

CARD = {"README.md": b"# edited\n", "memedit/run.json": b"{}"}


def folder(path: Path, *, sharded: bool = False, prefix: str = "transformer.") -> Path:
    """A checkpoint of three tensors, with files beside it."""
    path.mkdir(parents=True)
    tensors = {
        f"{prefix}h.{n}.mlp.c_proj.weight": torch.randn(6, 4, generator=torch.Generator().manual_seed(n)).half()
        for n in range(3)
    }
    if sharded:
        files = {name: f"model-0000{n + 1}-of-00003.safetensors" for n, name in enumerate(tensors)}
        for name, file in files.items():
            save_file({name: tensors[name]}, path / file, {"format": "pt"})
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    else:
        save_file(tensors, path / "model.safetensors", {"format": "pt", "note": "kept"})
    (path / "config.json").write_text("{}")
    (path / "chat_template.jinja").write_text("{{ x }}")
    (path / "README.md").write_text("# base\n")
    (path / "original").mkdir()
    (path / "original" / "params.json").write_text("[]")
    return path


def edited(base: Checkpoint, number: int = 1) -> dict[str, torch.Tensor]:
    name = base.resolve(f"transformer.h.{number}.mlp.c_proj.weight")
    return {name: base.tensor(name) + 1}


@pytest.mark.parametrize("sharded", [False, True])
def test_only_edited_bytes_differ(tmp_path: Path, sharded: bool) -> None:
    source = folder(tmp_path / "base", sharded=sharded)
    base, out = Checkpoint.open(source), tmp_path / "out"
    weights = edited(base)
    write_checkpoint(base, out, weights, CARD)
    verify(out, weights, base)
    names = {str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()}
    differ = {name for name in names if not filecmp.cmp(source / name, out / name, shallow=False)}
    assert differ == {"README.md", "model-00002-of-00003.safetensors" if sharded else "model.safetensors"}
    assert (out / "memedit" / "base_README.md").read_text() == "# base\n"
    found = {name: part for file in out.glob("*.safetensors") for name, part in load_file(file).items()}
    for name in base.entries:
        assert torch.equal(found[name], weights.get(name, base.tensor(name)))


def test_a_byte_changed_elsewhere_is_found(tmp_path: Path) -> None:
    base, out = Checkpoint.open(folder(tmp_path / "base")), tmp_path / "out"
    weights = edited(base)
    write_checkpoint(base, out, weights, CARD)
    untouched = next(entry for name, entry in base.entries.items() if name not in weights)
    with (out / "model.safetensors").open("r+b") as stream:
        stream.seek(untouched.start)
        byte = stream.read(1)
        stream.seek(untouched.start)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(StorageError, match="outside the edited"):
        verify(out, weights, base)


def test_a_checkpoint_without_the_prefix_is_resolved(tmp_path: Path) -> None:
    base = Checkpoint.open(folder(tmp_path / "base", prefix=""))
    assert base.resolve("transformer.h.1.mlp.c_proj.weight") == "h.1.mlp.c_proj.weight"
    with pytest.raises(UnsupportedModelError):
        base.resolve("transformer.h.9.mlp.c_proj.weight")


def test_a_snapshot_of_links_is_copied_from_what_they_point_to(tmp_path: Path) -> None:
    blobs = folder(tmp_path / "blobs")
    (blobs / "original" / "params.json").rename(blobs / "params.json")
    (blobs / "original").rmdir()
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    before = (blobs / "model.safetensors").read_bytes()
    base, out = Checkpoint.open(snapshot), tmp_path / "out"
    write_checkpoint(base, out, edited(base), CARD, link="hard")
    assert (blobs / "model.safetensors").read_bytes() == before
    assert not any(file.is_symlink() for file in out.rglob("*"))
    assert (out / "config.json").samefile(blobs / "config.json")
    assert not (out / "model.safetensors").samefile(blobs / "model.safetensors")


@pytest.mark.parametrize("max_shard", [None, 100])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_nothing_that_is_not_finite_is_written(tmp_path: Path, value: float, max_shard: int | None) -> None:
    base, out = Checkpoint.open(folder(tmp_path / "base")), tmp_path / "out"
    weights = edited(base)
    name = next(iter(weights))
    weights[name][0, 0] = value
    with pytest.raises(StorageError, match=f"{re.escape(name)} would hold NaN or infinity as "):
        write_checkpoint(base, out, weights, CARD, max_shard=max_shard)
    assert {path.name for path in tmp_path.iterdir()} == {base.folder.name}


def test_an_output_that_is_not_empty_is_refused_and_replaced_when_asked(tmp_path: Path) -> None:
    base, out = Checkpoint.open(folder(tmp_path / "base")), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        write_checkpoint(base, out, edited(base), CARD)
    assert (out / "mine.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="neither a model nor an adapter") as caught:
        write_checkpoint(base, out, edited(base), CARD, overwrite=True)
    assert "--force" in caught.value.hint and (out / "mine.txt").read_text() == "mine"
    write_checkpoint(base, out, edited(base), CARD, force=True)
    assert not (out / "mine.txt").exists()
    (out / "more.txt").write_text("mine")
    write_checkpoint(base, out, edited(base), CARD, overwrite=True)
    assert not (out / "more.txt").exists() and (out / "config.json").is_file()
    assert (
        sorted(file.name for file in tmp_path.iterdir()) == ["base", "cache", "out"]
        or not (tmp_path / "cache").exists()
    )


@pytest.mark.parametrize("where", [".", "inside", ".."])
def test_an_output_that_overlaps_the_source_is_refused(tmp_path: Path, where: str) -> None:
    source = folder(tmp_path / "base")
    with pytest.raises(UsageError, match="overlap"):
        check_output(source, source / where, overwrite=True)


@pytest.mark.parametrize("cut", [4, 60, -5])
def test_a_damaged_file_is_refused(tmp_path: Path, cut: int) -> None:
    source = folder(tmp_path / "base")
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(StorageError, match="damaged"):
        Checkpoint.open(source)


def test_a_pickle_is_refused_with_a_way_out(tmp_path: Path) -> None:
    source = folder(tmp_path / "base")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(MemeditError, match="pickle") as caught:
        Checkpoint.open(source)
    assert "save_pretrained" in caught.value.hint


def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "base", sharded=True)
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StorageError, match="outside its folder"):
        Checkpoint.open(source)


def test_integers_are_not_edited(tmp_path: Path) -> None:
    source = tmp_path / "base"
    source.mkdir()
    save_file({"w": torch.zeros(2, 2, dtype=torch.int8)}, source / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="I8"):
        Checkpoint.open(source).tensor("w")


def test_headers_tell_what_the_library_reads(tmp_path: Path) -> None:
    source = folder(tmp_path / "base")
    known = load_file(source / "model.safetensors")
    for name, entry in read_header(source / "model.safetensors").items():
        assert torch.equal(entry.read(), known[name])


def test_the_digest_follows_weights_and_not_the_card(tmp_path: Path) -> None:
    source = folder(tmp_path / "base")
    first = Checkpoint.open(source).digest
    (source / "README.md").write_text("# another\n")
    assert Checkpoint.open(source).digest == first
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    (copy / "config.json").write_text("[]")
    assert Checkpoint.open(copy).digest != first


def test_one_file_goes_before_an_index(tmp_path: Path) -> None:
    source = folder(tmp_path / "base")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "stale.safetensors"}}))
    assert {entry.file.name for entry in Checkpoint.open(source).entries.values()} == {"model.safetensors"}


@pytest.mark.parametrize("text", ['{"weight_map": {"a": 5}}', '{"weight_map": []}', "[]", "{"])
def test_a_damaged_index_is_refused(tmp_path: Path, text: str) -> None:
    source = folder(tmp_path / "base", sharded=True)
    (source / "model.safetensors.index.json").write_text(text)
    with pytest.raises(StorageError, match="damaged"):
        Checkpoint.open(source)


def test_a_byte_changed_in_a_shard_without_edits_is_found(tmp_path: Path) -> None:
    base, out = Checkpoint.open(folder(tmp_path / "base", sharded=True)), tmp_path / "out"
    weights = edited(base)
    write_checkpoint(base, out, weights, CARD)
    file = out / "model-00003-of-00003.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StorageError, match="outside the edited"):
        verify(out, weights, base)


def raw(path: Path, header: dict[str, object], size: int) -> Path:
    """A folder whose one weight file has this header and `size` bytes of zeros."""
    path.mkdir()
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


@pytest.mark.parametrize(
    ("shape", "offsets"), [([-2, -4], [0, 16]), ([2, 4], [0.0, 16.0]), (["2", 4], [0, 16]), ([2, 3], [0, 16])]
)
def test_a_header_of_odd_numbers_is_refused(tmp_path: Path, shape: list[int], offsets: list[int]) -> None:
    with pytest.raises(StorageError, match="damaged"):
        Checkpoint.open(raw(tmp_path / "base", {"a": {"dtype": "F16", "shape": shape, "data_offsets": offsets}}, 16))


def test_tensors_of_a_new_dtype_or_no_size_are_copied(tmp_path: Path) -> None:
    header: dict[str, object] = {
        "a": {"dtype": "F8_E5M2", "shape": [16], "data_offsets": [0, 16]},
        "z": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]},
    }
    base = Checkpoint.open(raw(tmp_path / "base", header, 16))
    assert set(base.entries) == {"a", "z"}
    with pytest.raises(UnsupportedModelError, match="F8_E5M2"):
        base.tensor("a")


def test_files_are_left_out_where_asked(tmp_path: Path) -> None:
    base, out = Checkpoint.open(folder(tmp_path / "base")), tmp_path / "out"
    write_checkpoint(
        base, out, edited(base), {"README.md": b"# back\n", "memedit/base_README.md": None, "config.json": None}
    )
    assert (out / "README.md").read_text() == "# back\n"
    assert not (out / "memedit").exists() and not (out / "config.json").exists()
    assert (out / "chat_template.jinja").is_file()


def test_a_file_in_parts_is_made_while_it_is_written(tmp_path: Path) -> None:
    base, out = Checkpoint.open(folder(tmp_path / "base")), tmp_path / "out"
    asked: list[int] = []

    def parts(stop: int) -> Iterator[bytes | memoryview]:
        for number in range(stop):
            assert list(tmp_path.glob("*/memedit/rows.jsonl"))
            asked.append(number)
            yield memoryview(b"%d\n" % number)
        if stop < 5:
            raise ValueError("row 3")

    files = {"memedit/rows.jsonl": parts(5)}
    assert not asked
    write_checkpoint(base, out, {}, files)
    assert (out / "memedit" / "rows.jsonl").read_bytes() == b"0\n1\n2\n3\n4\n"
    # A part that cannot be made leaves the output as it was.
    with pytest.raises(ValueError, match="row 3"):
        write_checkpoint(base, out, {}, {"memedit/rows.jsonl": parts(3)}, overwrite=True)
    assert (out / "memedit" / "rows.jsonl").read_bytes() == b"0\n1\n2\n3\n4\n"
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_dir()) == ["base", "out"]


def test_a_folder_of_files_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    out, files = tmp_path / "out", {"a.json": b"{}", "deep/b.bin": b"1"}
    write_files(out, files)
    assert {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()} == files
    with pytest.raises(UsageError, match="not empty"):
        write_files(out, {"a.json": b"[]"})

    def full() -> Iterator[bytes]:
        yield b"["
        raise OSError(28, "No space left on device")

    with pytest.raises(MemeditError, match="no space"):
        write_files(out, {"a.json": full()}, force=True)
    assert (out / "a.json").read_bytes() == b"{}"
    assert [file.name for file in tmp_path.iterdir() if file.name != "cache"] == ["out"]


@pytest.mark.parametrize("sharded", [False, True])
def test_shards_of_a_size_hold_every_tensor_as_it_was(tmp_path: Path, sharded: bool) -> None:
    # Three tensors of 48 bytes: two fit into 100, the edited one among them.
    base, out = Checkpoint.open(folder(tmp_path / "base", sharded=sharded)), tmp_path / "out"
    weights = edited(base)
    write_checkpoint(base, out, weights, CARD, max_shard=100)
    names = sorted(file.name for file in out.glob("*.safetensors*"))
    assert names == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)] + ["model.safetensors.index.json"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 3 * 48 and sorted(index["weight_map"]) == sorted(base.entries)
    for file in out.glob("*.safetensors"):
        for name, part in load_file(file).items():
            assert index["weight_map"][name] == file.name
            assert torch.equal(part, weights.get(name, base.tensor(name)))
    assert (out / "chat_template.jinja").read_text() == "{{ x }}"
    assert list(Checkpoint.open(out).entries) == sorted(base.entries)


def test_shards_become_one_file_where_all_fits(tmp_path: Path) -> None:
    base, out = Checkpoint.open(folder(tmp_path / "base", sharded=True)), tmp_path / "out"
    write_checkpoint(base, out, edited(base), CARD, max_shard=1000, link="hard")
    assert [file.name for file in out.glob("*.safetensors*")] == ["model.safetensors"]
    assert load_file(out / "model.safetensors").keys() == base.entries.keys()
    assert (out / "config.json").samefile(tmp_path / "base" / "config.json")


def test_a_tensor_larger_than_a_shard_has_one_alone(tmp_path: Path) -> None:
    base = Checkpoint.open(folder(tmp_path / "base"))
    assert [len(shard) for shard in plan_shards(base.entries, 1)] == [1, 1, 1]
    assert [len(shard) for shard in plan_shards(base.entries, 96)] == [2, 1]


def test_tensors_of_several_dtypes_begin_on_their_boundaries(tmp_path: Path) -> None:
    source, out = tmp_path / "base", tmp_path / "out"
    source.mkdir()
    parts = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(2), "c": torch.ones(5, dtype=torch.float16)}
    for name, part in parts.items():
        save_file({name: part}, source / f"{name}.safetensors", {"format": "pt"})
    where = {name: f"{name}.safetensors" for name in parts}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"mine": 1}, "weight_map": where}))
    write_checkpoint(Checkpoint.open(source), out, {}, {}, max_shard=100)
    for entry in read_header(out / "model.safetensors").values():
        assert entry.start % parts[entry.name].element_size() == 0
        assert torch.equal(load_file(out / "model.safetensors")[entry.name], parts[entry.name])


def test_a_byte_changed_in_a_new_shard_is_found(tmp_path: Path) -> None:
    base, out = Checkpoint.open(folder(tmp_path / "base")), tmp_path / "out"
    weights = edited(base)
    write_checkpoint(base, out, weights, CARD, max_shard=60)
    verify_shards(out, weights, base)
    file = out / "model-00003-of-00003.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StorageError, match="does not hold"):
        verify_shards(out, weights, base)


def test_an_untouched_shard_is_the_same_file_where_hard_links_are_asked(tmp_path: Path) -> None:
    source, out = folder(tmp_path / "base", sharded=True), tmp_path / "out"
    base = Checkpoint.open(source)
    write_checkpoint(base, out, edited(base), CARD, link="hard")
    same = [(out / file.name).samefile(file) for file in base.files]
    assert same == [True, False, True]


@pytest.mark.parametrize("case", HEADERS, ids=lambda case: case.name)
def test_a_malformed_header_is_refused_in_one_line(case: Header, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(case.data)
    with pytest.raises(StorageError) as caught:
        Checkpoint.open(tmp_path)
    assert str(tmp_path) in caught.value.message and caught.value.hint
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("name", INDEXES)
def test_a_malformed_index_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(INDEXES[name])
    with pytest.raises(StorageError) as caught:
        Checkpoint.open(tmp_path)
    assert str(tmp_path) in caught.value.message and caught.value.hint
    assert caught.value.message.isprintable() and len(caught.value.message) < 6000


def test_an_index_without_metadata_is_read_and_written(tmp_path: Path) -> None:
    source, out = folder(tmp_path / "base", sharded=True), tmp_path / "out"
    index = json.loads((source / "model.safetensors.index.json").read_text())
    for metadata in ({}, {"metadata": None}, {"metadata": ["x"]}):
        (source / "model.safetensors.index.json").write_text(
            json.dumps({**metadata, "weight_map": index["weight_map"]})
        )
        write_checkpoint(Checkpoint.open(source), out, {}, {}, max_shard=60, overwrite=True)
        assert len(Checkpoint.open(out).entries) == 3


@pytest.mark.parametrize("kind", ["link out", "link to a folder", "link to nothing", "pipe"])
def test_what_is_no_file_of_the_model_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    source, out = folder(tmp_path / "base"), tmp_path / "out"
    (tmp_path / "id_rsa").write_text("secret")
    odd = source / "LICENSE.txt"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        targets = {"link out": "../id_rsa", "link to a folder": "..", "link to nothing": "none"}
        odd.symlink_to(targets[kind], target_is_directory=kind == "link to a folder")
    with pytest.raises(StorageError, match="LICENSE") as caught:
        write_checkpoint(Checkpoint.open(source), out, {}, CARD)
    assert caught.value.message.isprintable()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base", "id_rsa"]


def test_a_record_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("secret")
    edited_model = folder(tmp_path / "edited")
    (edited_model / "memedit").mkdir()
    (edited_model / "memedit" / "edits.jsonl").symlink_to("../../id_rsa")
    with pytest.raises(StorageError, match=r"edits\.jsonl"):
        records(edited_model)


def test_a_link_inside_the_folder_is_copied_as_the_file_it_leads_to(tmp_path: Path) -> None:
    source, out = folder(tmp_path / "base"), tmp_path / "out"
    (source / "LICENSE.txt").symlink_to("config.json")
    write_checkpoint(Checkpoint.open(source), out, {}, CARD)
    assert (out / "LICENSE.txt").read_text() == "{}" and not (out / "LICENSE.txt").is_symlink()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_model_that_changes_during_a_run_is_refused(
    name: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = folder(tmp_path / "base"), tmp_path / "out"
    base = Checkpoint.open(source)
    assert base.digest

    def change(_folder: Path) -> None:
        data = (source / name).read_bytes()
        (source / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(source / name, (1, 1))

    if when == "before":
        change(source)
    else:
        real = writer._sync
        monkeypatch.setattr(writer, "_sync", lambda at: (real(at), change(at)))
    with pytest.raises(StorageError, match=r"differs|changed while") as caught:
        write_checkpoint(base, out, edited(base), CARD)
    assert name in caught.value.message
    assert [file.name for file in tmp_path.iterdir()] == ["base"]


def test_an_output_that_appears_during_a_run_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, out = Checkpoint.open(folder(tmp_path / "base")), tmp_path / "out"
    real = writer._sync

    def appear(at: Path) -> None:
        real(at)
        out.mkdir()
        (out / "mine.txt").write_text("mine")

    monkeypatch.setattr(writer, "_sync", appear)
    with pytest.raises(StorageError, match="another program") as caught:
        write_checkpoint(base, out, edited(base), CARD)
    assert str(out) in caught.value.message
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base", "out"]
    monkeypatch.setattr(writer, "_sync", lambda at: (real(at), shutil.rmtree(out), out.mkdir()))
    write_checkpoint(base, out, edited(base), CARD, force=True)
    assert (out / "config.json").is_file()


@pytest.mark.parametrize("exchange", [True, False])
def test_an_output_is_never_absent_while_it_is_replaced(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = Checkpoint.open(folder(tmp_path / "base")), tmp_path / "out"
    write_checkpoint(base, out, {}, CARD)
    if exchange:
        real, seen = output._exchange, list[bool]()
        monkeypatch.setattr(output, "_rename_twice", lambda *_: seen.append(False))
        monkeypatch.setattr(output, "_exchange", lambda one, two: seen.append(real(one, two)) or seen[-1])
        write_checkpoint(base, out, edited(base), CARD, overwrite=True)
        assert seen == [True]
    else:
        monkeypatch.setattr(output, "_exchange", lambda *_: False)
        write_checkpoint(base, out, edited(base), CARD, overwrite=True)
    verify(out, edited(base), base)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base", "out"]


def test_what_a_kill_left_beside_the_output_is_removed_or_put_back(tmp_path: Path) -> None:
    base, out = Checkpoint.open(folder(tmp_path / "base")), tmp_path / "out"
    write_checkpoint(base, out, {}, CARD)
    out.rename(tmp_path / ".out.memedit-0123abcd-old")  # a kill between two renames
    for left in (".out.memedit-0123abcd", ".out.memedit-4321", ".out.memedit-revert-0123456789abcdef"):
        (tmp_path / left).mkdir()
    (tmp_path / ".out.memedit-notes.d").mkdir()
    (tmp_path / ".other.memedit-4321").mkdir()
    with pytest.raises(UsageError, match="not empty"):
        write_checkpoint(base, out, {}, CARD)
    verify(out, {}, base)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [".other.memedit-4321", ".out.memedit-notes.d", "base", "out"]


@pytest.mark.parametrize("name", ["x" * 240, "x" * 256, "a\0b", "a\udc80b", "a\ud800b"])
def test_a_name_that_cannot_be_written_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name") as caught:
        check_output(None, tmp_path / name, overwrite=False)
    assert caught.value.message.isprintable() and caught.value.hint
    check_output(None, tmp_path / ("é" * 110), overwrite=False)


def test_a_place_where_no_folder_can_be_made_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        check_output(None, tmp_path / "file" / "out", overwrite=False)
    with pytest.raises(UsageError, match="mount point"):
        check_output(None, Path("/proc"), overwrite=True, force=True)
    monkeypatch.setattr(os, "access", lambda *_: False)  # what a disk mounted read-only answers, also to root
    with pytest.raises(UsageError, match="cannot be written to"):
        check_output(None, tmp_path / "out", overwrite=False)


def test_free_memory_honours_a_container_s_limit(tmp_path: Path) -> None:
    own = tmp_path / "root" / "pod" / "box"
    own.mkdir(parents=True)
    member = tmp_path / "membership"
    member.write_text("0::/pod/box\n")
    assert container_memory(tmp_path / "root", member) is None
    for group, limit, used, cached in ((own, "max", 5, 0), (own.parent, "1000", 400, 50)):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    assert container_memory(tmp_path / "root", member) == 650
    (own / "memory.max").write_text("100\n")
    assert container_memory(tmp_path / "root", member) == 95
    (own / "memory.max").write_text("1\n")
    assert container_memory(tmp_path / "root", member) == 0
    member.write_text("3:memory:/pod\n")
    assert container_memory(tmp_path / "root", member) is None
