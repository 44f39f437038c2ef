"""A change that is carried apart: what it is exported to, summed with and taken back from is what was promised."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.changes.commands import run_add, run_diff, run_export, run_revert
from memedit.changes.delta_file import DeltaFile, sum_deltas
from memedit.config.recipe import ModelKnobs
from memedit.config.resolve import resolve
from memedit.errors import MemeditError, StorageError, UsageError
from memedit.model.config import read_config
from memedit.numerics.delta import Delta, rounded
from memedit.progress import NoProgress
from memedit.results.changes import Outcome
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.deltas import delta_bytes, originals_bytes, read_delta
from memedit.storage.records import base_of
from safetensors.torch import load_file
from tests.conftest import ROOT
from tests.helpers.own_code import bring_code

EDITS = ROOT / "requests" / "world.jsonl"
LOGITS = 1e-5  # the bar, for float32 weights and factors; computed in float64 they leave their own rounding alone
SUMS = 5e-6  # of the largest logit: float32 sums in another order; base + change itself is 2e-6 of it from float64
CUT = 1e-2  # what a change cut to one direction is at least off by


def recipe(model: Path | str, out: Path, **knobs: Any) -> Any:
    flags = {"model.path": str(model), "output.dir": str(out), **{f"output.{name}": on for name, on in knobs.items()}}
    return resolve([("flag", flags)])[0]


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def same(one: Path, two: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    return files(one) == files(two) and all(filecmp.cmp(one / name, two / name, False) for name in files(one))


@pytest.fixture(scope="module")
def edited(made_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A shipped model, and eight of its facts edited, the originals kept."""
    out = tmp_path_factory.mktemp("edited") / "out"
    knobs = {"polish.steps": 0, "target.steps": 4, "moments.tokens": 4000, "output.keep_originals": True,
             "contexts.openings": ["The"], "eval.derive": False}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMEDIT_CACHE", str(out.parent / "cache"))
        memedit.apply(memedit.load_edits(EDITS)[:8], made_folder, out, settings=knobs)
        yield made_folder, out


def made_change(base: Path, file: Path, seed: int, scale: float = 0.1) -> dict[str, Delta]:
    """A delta file of a change of two layers of a tiny model, of rank three."""
    draw, checkpoint = torch.Generator().manual_seed(seed), Checkpoint.open(base)
    gpt2 = "transformer.h.1.mlp.c_proj.weight" in checkpoint.entries
    path = "transformer.h.{}.mlp.c_proj.weight" if gpt2 else "model.layers.{}.mlp.down_proj.weight"
    inner = 128 if gpt2 else 88
    deltas = {
        path.format(layer): Delta(
            scale * torch.randn(32, 3, generator=draw), torch.randn(3, inner, generator=draw).contiguous()
        )
        for layer in (1, 2)
    }
    file.write_bytes(delta_bytes(deltas, checkpoint.digest, {"method": "made"}))
    return deltas


def expected(base: Path, name: str, change: torch.Tensor) -> torch.Tensor:
    """round(W + change), oriented as stored."""
    stored = Checkpoint.open(base).tensor(name)
    turned = stored if "down_proj" in name else stored.T
    made = rounded(turned, Delta(change))
    return made if "down_proj" in name else made.T


def test_a_checkpoint_from_the_change_is_what_apply_wrote(edited: tuple[Path, Path], tmp_path: Path) -> None:
    base, out = edited
    outcome = run_export(out, "full", recipe(base, tmp_path / "full"))
    assert same(out, tmp_path / "full")
    assert [one.parameter for one in outcome.tensors] == list(DeltaFile.open(out).deltas)
    # From the delta file alone there are no records, but the weights are the same bytes.
    shutil.copy(out / "memedit" / "delta.safetensors", tmp_path / "alone.safetensors")
    run_export(tmp_path / "alone.safetensors", "full", recipe(base, tmp_path / "again"))
    assert filecmp.cmp(out / "model.safetensors", tmp_path / "again" / "model.safetensors", False)
    assert filecmp.cmp(base / "README.md", tmp_path / "again" / "memedit" / "base_README.md", False)
    assert not (tmp_path / "again" / "memedit" / "results.jsonl").exists()


def logits(model: Any, dtype: torch.dtype) -> torch.Tensor:
    with torch.no_grad():
        return model.to(dtype)(input_ids=torch.arange(5, 45).reshape(2, 20)).logits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_base_and_adapter_are_base_and_change_in_float32(
    edited: tuple[Path, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    base, out = edited
    outcome = run_export(out, "lora", recipe(base, tmp_path / "lora"))
    run_export(out, "lora", recipe(base, tmp_path / "cut"), rank=1)

    def opened(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    model, before = opened(base), logits(opened(base), dtype)
    for name, delta in DeltaFile.open(out).deltas.items():
        model.get_parameter(name).data += (delta.dense().T if "gpt2" in base.name else delta.dense()).float()
    wanted = logits(model, dtype)
    apart: dict[str, float] = {}
    for name in ("lora", "cut"):
        adapted = peft.PeftModel.from_pretrained(opened(base), tmp_path / name).eval()
        apart[name] = float((logits(adapted, dtype) - wanted).abs().max())
    distance, largest = float((logits(opened(out), dtype) - wanted).abs().max()), float(wanted.abs().max())
    print(
        f"\n{base.name} in {dtype}: adapter {apart['lora']:.1e} off, "
        f"rounded checkpoint {distance:.1e}, logits to {largest:.0f}"
    )
    assert apart["lora"] <= (LOGITS if dtype == torch.float64 else SUMS * largest)
    assert apart["cut"] > CUT and float((before - wanted).abs().max()) > CUT
    assert apart["lora"] < distance
    # What is told of the distance is what the checkpoint's dtype swallowed.
    for one in outcome.tensors:
        assert one.distance == pytest.approx(one.rounding_loss, rel=1e-3)


def test_a_rank_is_uniform_and_what_it_loses_is_told(edited: tuple[Path, Path], tmp_path: Path) -> None:
    base, out = edited
    outcome = run_export(out, "lora", recipe(base, tmp_path / "lora"), rank=2)
    assert outcome.rank == 2 and all(one.rank == 2 for one in outcome.tensors)
    for one, delta in zip(outcome.tensors, DeltaFile.open(out).deltas.values(), strict=True):
        energy = torch.linalg.svdvals(delta.dense()).square()
        assert one.lost == pytest.approx(float(energy[2:].sum() / energy.sum()), rel=1e-6)
        assert one.distance == pytest.approx(one.lost**0.5, rel=1e-3)


def test_dense_changes_lie_as_the_checkpoint_has_them(edited: tuple[Path, Path], tmp_path: Path) -> None:
    base, out = edited
    run_export(out, "dense", recipe(base, tmp_path / "change.safetensors"))
    found, known = load_file(tmp_path / "change.safetensors"), DeltaFile.open(out).deltas
    were, now = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert found.keys() == known.keys()
    for name, change in found.items():
        dense = known[name].dense().float()
        assert torch.equal(change, dense.T if "gpt2" in base.name else dense)
        # A change in float32 and its factors' product are rounded alike but where a tie lies between them.
        assert float((rounded(were[name], Delta(change)) != now[name]).double().mean()) < 1e-3


@pytest.mark.parametrize("how", ["originals", "base", "given"])
def test_a_revert_gives_the_bytes_of_the_base(edited: tuple[Path, Path], tmp_path: Path, how: str) -> None:
    base, out = edited
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    if how != "originals":
        (copy / "memedit" / "originals.safetensors").unlink()
    outcome = run_revert(copy, recipe(base if how == "given" else "", tmp_path / "back"))
    assert (outcome.origin, outcome.exact) == ("originals" if how == "originals" else "base", True)
    assert same(base, tmp_path / "back")
    assert not same(base, out)


def test_without_base_and_originals_a_revert_is_near_and_says_so(edited: tuple[Path, Path], tmp_path: Path) -> None:
    base, out = edited
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "memedit" / "originals.safetensors").unlink()
    record = json.loads((copy / "memedit" / "run.json").read_text())
    record["recipe"]["model"]["path"] = "./gone"
    (copy / "memedit" / "ledger.safetensors").unlink()  # it names the base's folder too
    (copy / "memedit" / "run.json").write_text(json.dumps(record))
    outcome = run_revert(copy, recipe("", tmp_path / "back"))
    assert (outcome.origin, outcome.exact) == ("subtraction", False)
    assert files(base) == files(tmp_path / "back")
    differ = [name for name in files(base) if not filecmp.cmp(base / name, tmp_path / "back" / name, False)]
    assert differ == ["model.safetensors"]
    edit = {one.name: one.norm for one in run_diff(str(base), str(copy)).tensors}
    for one in run_diff(str(base), str(tmp_path / "back")).tensors:
        assert one.norm is not None and one.norm < 1e-2 * (edit[one.name] or 0)


def test_the_base_is_found_from_another_folder(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run names its base as it was typed, and the ledger names the folder."""
    knobs = {"polish.steps": 0, "target.steps": 1, "moments.tokens": 600, "eval.derive": False}
    monkeypatch.setenv("MEMEDIT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_folder, tmp_path / "base")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    memedit.apply(memedit.load_edits(EDITS)[:1], "base", tmp_path / "out", settings=knobs)
    monkeypatch.chdir(tmp_path / "other")
    outcome = run_revert(tmp_path / "out", recipe("", tmp_path / "back"))
    assert (outcome.origin, outcome.exact) == ("base", True)
    # What is there now and cannot be opened is not the base.
    (tmp_path / "base" / "model.safetensors").unlink()
    assert run_revert(tmp_path / "out", recipe("", tmp_path / "near")).origin == "subtraction"
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        run_revert(tmp_path / "out", recipe(tmp_path / "base", tmp_path / "far"))


def test_a_folder_cannot_make_a_revert_run_its_code(tiny_folder: Path, tmp_path: Path) -> None:
    made_change(tiny_folder, tmp_path / "1.safetensors", 1)
    out, mark = tmp_path / "out", tmp_path / "ran"
    run_add([tmp_path / "1.safetensors"], recipe(tiny_folder, out))
    record = json.loads((out / "memedit" / "run.json").read_text())
    record["recipe"]["model"] |= {"path": "./gone", "trust_remote_code": True}
    (out / "memedit" / "run.json").write_text(json.dumps(record))
    assert base_of(out)[0] == ModelKnobs(path="./gone")
    run_revert(out, recipe("", tmp_path / "sound"))
    bring_code(out, mark)
    with pytest.raises(MemeditError, match="needs Python code") as caught:
        run_revert(out, recipe("", tmp_path / "back"))
    assert "-m MODEL" in caught.value.hint
    assert run_revert(out, recipe(tiny_folder, tmp_path / "named")).origin == "base"
    assert not mark.exists() and not (tmp_path / "back").exists()
    # It is this code that would run if a person asked for it.
    assert read_config(out, trust_remote_code=True)["auto_map"]


@pytest.mark.parametrize("damage", ["no change", "unknown name", "another shape", "turned originals", "integers"])
def test_what_does_not_fit_the_edited_model_is_refused(tiny_folder: Path, tmp_path: Path, damage: str) -> None:
    made_change(tiny_folder, tmp_path / "1.safetensors", 1)
    out, digest = tmp_path / "out", Checkpoint.open(tiny_folder).digest
    run_add([tmp_path / "1.safetensors"], recipe(tiny_folder, out, keep_originals=True))
    delta, kept = out / "memedit" / "delta.safetensors", out / "memedit" / "originals.safetensors"
    deltas, tensors = read_delta(delta)[0], load_file(kept)
    some = next(iter(deltas.values()))
    if damage == "no change":
        delta.write_bytes(delta_bytes({}, digest, {"method": "made"}))
    elif damage == "unknown name":
        other = Delta(some.dense())
        delta.write_bytes(delta_bytes({**deltas, "nope.weight": other}, digest, {"method": "made"}))
    elif damage == "another shape":
        name, one = next(iter(deltas.items()))
        wrong = Delta(torch.ones(5, 1), torch.ones(1, one.shape[1]))
        delta.write_bytes(delta_bytes({**deltas, name: wrong}, digest, {"method": "made"}))
    elif damage == "turned originals":
        kept.write_bytes(originals_bytes({name: one.T for name, one in tensors.items()}, digest))
    else:
        kept.write_bytes(originals_bytes({name: one.int() for name, one in tensors.items()}, digest))
    with pytest.raises(StorageError):
        run_revert(out, recipe("", tmp_path / "back"))
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("place", [".", "sub"])
def test_what_is_read_is_not_replaced(tiny_folder: Path, tmp_path: Path, place: str) -> None:
    made_change(tiny_folder, tmp_path / "1.safetensors", 1)
    change, base = tmp_path / "change", tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    run_add([tmp_path / "1.safetensors"], recipe(base, change))
    before = files(change)
    with pytest.raises(UsageError, match="overlap"):
        run_add([change], recipe(base, change / place, overwrite=True))
    for kind in ("full", "lora"):
        with pytest.raises(UsageError, match="overlap"):
            run_export(change, kind, recipe(base, change / place, overwrite=True))
    for file in (base / "model.safetensors", change / "model.safetensors", change / "memedit" / "delta.safetensors"):
        with pytest.raises(UsageError, match="overlap"):
            run_export(change, "dense", recipe(base, file, overwrite=True))
    assert files(change) == before and same(base, tiny_folder)
    run_export(change, "dense", recipe(base, tmp_path / "dense.safetensors"))


def test_a_revert_of_a_second_edit_gives_the_first(tiny_folder: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        made_change(tiny_folder, tmp_path / f"{seed}.safetensors", seed)
    first, second = tmp_path / "first", tmp_path / "second"
    run_add([tmp_path / "1.safetensors"], recipe(tiny_folder, first))
    run_add([tmp_path / "2.safetensors"], recipe(first, second, keep_originals=True), any_base=True)
    assert run_revert(second, recipe(first, tmp_path / "back")).exact
    assert same(first, tmp_path / "back")
    assert run_revert(first, recipe("", tmp_path / "base")).exact
    assert same(tiny_folder, tmp_path / "base")


def test_a_sum_is_rounded_once_and_has_no_order(tiny_folder: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    one, two = (made_change(tiny_folder, path, seed) for seed, path in enumerate(paths, 1))
    run_add(paths, recipe(tiny_folder, tmp_path / "ab"))
    run_add(paths[::-1], recipe(tiny_folder, tmp_path / "ba"))
    for name in ("model.safetensors", "memedit/delta.safetensors"):
        assert filecmp.cmp(tmp_path / "ab" / name, tmp_path / "ba" / name, False)
    found, twice = Checkpoint.open(tmp_path / "ab"), 0
    for name in found.entries:
        if name not in one:
            assert torch.equal(found.tensor(name), Checkpoint.open(tiny_folder).tensor(name))
            continue
        assert torch.equal(found.tensor(name), expected(tiny_folder, name, one[name].dense() + two[name].dense()))
        again = expected(tiny_folder, name, one[name].dense())
        turned = (again if "down_proj" in name else again.T).double() + two[name].dense()
        twice += int((turned.half() != (found.tensor(name) if "down_proj" in name else found.tensor(name).T)).sum())
    assert twice > 0  # one after the other is rounded twice, and differs
    # The sum can be carried on as any change: its own delta file gives its bytes, and it is taken back.
    run_export(tmp_path / "ab", "full", recipe(tiny_folder, tmp_path / "full"))
    assert same(tmp_path / "ab", tmp_path / "full")
    assert run_revert(tmp_path / "ab", recipe("", tmp_path / "back")).exact
    assert same(tiny_folder, tmp_path / "back")


def test_a_change_of_another_base_is_refused_unless_asked_for(tiny_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    (other / "generation_config.json").write_text("{}")
    made_change(other, tmp_path / "a.safetensors", 1)
    for to in ("full", "lora", "dense"):
        with pytest.raises(UsageError, match="another base") as caught:
            run_export(tmp_path / "a.safetensors", to, recipe(tiny_folder, tmp_path / "out"))  # type: ignore[arg-type]
        assert "--any-base" in caught.value.hint
    with pytest.raises(UsageError, match="another base"):
        run_add([tmp_path / "a.safetensors"], recipe(tiny_folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    run_add([tmp_path / "a.safetensors"], recipe(tiny_folder, tmp_path / "out"), any_base=True)
    assert (tmp_path / "out" / "config.json").is_file()
    with pytest.raises(UsageError, match="is not the base"):
        run_revert(tmp_path / "out", recipe(other, tmp_path / "back"))


@pytest.mark.parametrize(
    ("deltas", "says"),
    [
        ({"lm_head.weight": Delta(torch.ones(258, 32))}, "is not a down-projection"),
        ({"NAME": Delta(torch.ones(32, 7))}, "32 x 7"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(
    tiny_folder: Path, tmp_path: Path, deltas: dict[str, Delta], says: str
) -> None:
    name = next(iter(made_change(tiny_folder, tmp_path / "a.safetensors", 1)))
    named = {name if key == "NAME" else key: delta for key, delta in deltas.items()}
    (tmp_path / "a.safetensors").write_bytes(delta_bytes(named, Checkpoint.open(tiny_folder).digest, {}))
    with pytest.raises(UsageError, match=says):
        run_add([tmp_path / "a.safetensors"], recipe(tiny_folder, tmp_path / "out"), any_base=True)


@pytest.mark.parametrize("to", ["add", "full", "lora", "dense", "revert"])
def test_a_change_too_large_to_be_one_is_refused_whatever_is_made_of_it(
    edited: tuple[Path, Path], tmp_path: Path, to: str
) -> None:
    base, out = edited
    copy, made = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(out, copy)
    (copy / "memedit" / "originals.safetensors").unlink()
    record = json.loads((copy / "memedit" / "run.json").read_text())
    record["recipe"]["model"]["path"] = "./gone"
    (copy / "memedit" / "ledger.safetensors").unlink()
    (copy / "memedit" / "run.json").write_text(json.dumps(record))
    file = copy / "memedit" / "delta.safetensors"
    deltas, digest = read_delta(file)
    name = sorted(deltas)[0]
    deltas[name].left[0, 0] = 1e9  # finite, as is the weight that it gives
    file.write_bytes(delta_bytes(deltas, digest, {}))
    with pytest.raises(StorageError, match=f"the change of .*{re.escape(name)} has the norm") as caught:
        match to:
            case "add":
                run_add([file], recipe(base, made))
            case "revert":
                run_revert(copy, recipe("", made))
            case _:
                run_export(file, to, recipe(base, made))  # type: ignore[arg-type]
    assert "damaged" in caught.value.hint and not made.exists()


def test_a_change_named_twice_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    made_change(tiny_folder, tmp_path / "a.safetensors", 1)
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(UsageError, match="count twice"):
        sum_deltas([DeltaFile.open(tmp_path / "a.safetensors"), DeltaFile.open(tmp_path / "b.safetensors")])


def run(
    arguments: list[object], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    from memedit.cli.app import main

    monkeypatch.setattr(sys, "argv", ["memedit", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    return int(caught.value.code or 0), said.out, said.err


def test_the_commands_end_to_end(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: object) -> tuple[int, str, str]:
        return run(list(arguments), monkeypatch, capfd)

    made_change(tiny_folder, tmp_path / "a.safetensors", 1)
    a, out, base = tmp_path / "a.safetensors", tmp_path / "out", tiny_folder
    assert call("apply", "--delta", a, "-m", base, "-o", out, "-q", "--keep-originals") == (0, f"{out}\n", "")
    code, said, _ = call("export", out, "--to", "lora", "-m", base, "-o", tmp_path / "lora", "--rank", 2, "--json")
    record = json.loads(said)
    assert code == 0 and record["rank"] == 2 and record["limits"]
    llama = "llama" in json.loads((base / "config.json").read_text())["model_type"]
    line = f"vllm serve {base} --enable-lora --max-lora-rank 8 --lora-modules edits={tmp_path / 'lora'}"
    assert record["serve"] == (line if llama else None)
    assert Outcome(**{key: value for key, value in record.items() if key not in ("serve", "limits")}).kind == "lora"
    code, said, _ = call("revert", out, "-o", tmp_path / "back")
    assert code == 0 and "to the bit" in said and said.endswith(f"{tmp_path / 'back'}\n")
    assert call("diff", base, tmp_path / "back", "--exit-code", "-q") == (0, "", "")
    code, said, error = call("diff", base, out, "--exit-code", "-q")
    assert code == 3 and "error: " in error and "hint: " in error
    names = said.splitlines()
    assert len([name for name in names if name.endswith(".weight")]) == 2 and "README.md" in names
    code, said, _ = call("diff", base, out, "--json")
    assert code == 0 and len(json.loads(said)["tensors"]) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["apply", "-m", "BASE", "-o", "OUT"], "no edit list"),
        (["apply", "EDITS", "--delta", "A", "-m", "BASE", "-o", "OUT"], "EDITS cannot be used with --delta"),
        (["apply", "--delta", "A", "-m", "BASE", "-o", "OUT", "--layers", "1"], "--layers cannot be used with --delta"),
        (["apply", "EDITS", "--any-base", "-m", "BASE", "-o", "OUT"], "--any-base only works with --delta"),
        (["apply", "--delta", "BASE", "-m", "BASE", "-o", "OUT"], "holds no change"),
        (["apply", "--delta", "A", "-m", "BASE"], "no output"),
        (["export", "A", "--to", "full", "-o", "OUT"], "no model was given"),
        (["export", "A", "--to", "full", "-m", "BASE", "-o", "BASE"], "overlap"),
        (["export", "A", "--to", "dense", "-m", "BASE", "-o", "BASE"], "is a folder"),
        (["export", "A", "--to", "dense", "-m", "BASE", "-o", "A"], "exists"),
        (["export", "A", "--to", "full", "--dtype", "bfloat16", "-m", "BASE", "-o", "OUT"], "has none"),
        (["revert", "BASE", "-o", "OUT"], "no edited model"),
        (["diff", "BASE", "OUT"], "no model folder"),
    ],
)
def test_a_command_that_cannot_start_says_why(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    made_change(tiny_folder, tmp_path / "a.safetensors", 1)
    places = {"BASE": tiny_folder, "OUT": tmp_path / "out", "A": tmp_path / "a.safetensors", "EDITS": EDITS}
    code, out, error = run([places.get(word, word) for word in arguments], monkeypatch, capfd)
    assert (code, out) == (2, "")
    assert says in error and [line.split(":")[0] for line in error.splitlines()[-2:]] == ["error", "hint"]
    assert not (tmp_path / "out").exists()


class Warnings(NoProgress):
    """Progress that keeps what it is warned of."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("to", ["lora", "add"])
def test_a_base_card_that_cannot_be_read_is_told(to: str, tiny_folder: Path, tmp_path: Path) -> None:
    base, file, progress = tmp_path / "base", tmp_path / "delta.safetensors", Warnings()
    shutil.copytree(tiny_folder, base)
    (base / "README.md").write_text("---\nlicense: [\n---\ntext\n")
    made_change(base, file, 0)
    if to == "lora":
        run_export(file, "lora", recipe(base, tmp_path / "out"), progress=progress)
    else:
        run_add([file], recipe(base, tmp_path / "out"), progress=progress)
    assert [line for line in progress.lines if "README.md" in line]
