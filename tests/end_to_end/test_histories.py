"""What a re-solve gives follows from the edits in force and their targets: no order, batch or detour changes a byte."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.config.resolve import resolve
from memedit.editing.ledger import History, Ledger, LedgerEntry, extend_ledger
from memedit.editing.ledger_files import read_ledger
from memedit.editing.ledger_update import groups_of, provenance_of
from memedit.editing.moment_cache import factor_of
from memedit.editing.plan import encode_contexts
from memedit.editing.run import EditRun
from memedit.editing.solve import solve
from memedit.editing.start import RunStart
from memedit.editing.target_search import SearchEngine
from memedit.editing.targets import Targets
from memedit.edits.edit import EditRequest
from memedit.edits.read import write_lines
from memedit.forward.suffix import Suffix
from memedit.progress import NoProgress
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.deltas import delta_bytes
from tests.helpers.killed import Moment, call

# A search of one edit at a time gives its target the same bytes whoever else is in the list.
UNSCORED = {"polish.steps": 0, "eval.derive": False, "eval.tokens": 2}
SETTINGS = {"target.steps": 4, "chunk": 1, "moments.tokens": 2000, "contexts.openings": ["The"], **UNSCORED}
MORE = {"chunk": 1, **UNSCORED}
"""The same for a later run, which keeps what is in the ledger."""
NAMES = ["Ada", "Bo Lund", "Cyril of Ware", "Dot", "Eva Marsh", "Finn"]
TOWNS = ["Rome", "Oslo town", "Bonn", "Lyon"]


def edit(number: int, town: int | None = None, name: str = "") -> EditRequest:
    return EditRequest(
        id=name or f"e{number}", subject=NAMES[number], prompt="{} lives in",
        object=TOWNS[number % 4 if town is None else town], origin=f"list:{number}",
    )  # fmt: skip


def through(folder: Path, base: Path, batches: Sequence[Sequence[EditRequest]], **more: Any) -> Path:
    """Batch after batch from the base; the last output."""
    model = base
    for number, batch in enumerate(batches):
        out = folder / str(number)
        memedit.apply(batch, model, out, settings=SETTINGS if model == base else MORE, **(more if number else {}))
        model = out
    return model


def weights(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "memedit/delta.safetensors")}


@pytest.mark.parametrize("tiny_folder", ["gpt2"], indirect=True)
def test_the_history_of_a_model_changes_no_byte(tiny_folder: Path, tmp_path: Path) -> None:
    wanted = weights(through(tmp_path / "at once", tiny_folder, [[edit(n) for n in range(6)]]))
    orders = [[[5, 0], [3, 1], [2, 4]], [[1], [4, 2, 0, 3], [5]]]
    for number, batches in enumerate(orders):
        found = through(tmp_path / str(number), tiny_folder, [[edit(n) for n in batch] for batch in batches])
        assert weights(found) == wanted
    # A detour: e2 said something else in between, and e0 twice over.
    detour = [[edit(2, 3, "x"), edit(0)], [edit(2), edit(1), edit(3)], [edit(0), edit(4), edit(5)]]
    assert weights(through(tmp_path / "detour", tiny_folder, detour)) == wanted
    # The converse: on top the earlier weights count.
    on_top = through(tmp_path / "top", tiny_folder, [[edit(n) for n in batch] for batch in orders[0]], mode="on top")
    assert weights(on_top) != wanted
    # And a re-solve of what was found on top finds it again on the base.
    back = tmp_path / "back"
    report = memedit.apply([edit(0)], on_top, back, settings=MORE)
    assert report.ledger is not None and (report.ledger.kept, report.ledger.searched, report.ledger.twins) == (2, 4, 1)
    assert weights(back) == wanted


def test_what_is_forgotten_was_never_there_and_nothing_left_is_the_base(tiny_folder: Path, tmp_path: Path) -> None:
    wanted = weights(through(tmp_path / "never", tiny_folder, [[edit(n) for n in (0, 2, 3)]]))
    edited = through(tmp_path / "all", tiny_folder, [[edit(0), edit(1)], [edit(2), edit(3)]])
    report = memedit.forget(["e1"], edited, tmp_path / "less", settings=MORE)
    assert report.ledger is not None and (report.ledger.kept, report.ledger.searched) == (3, 0)
    assert weights(tmp_path / "less") == wanted
    memedit.forget(["e0", "e1", "e2", "e3"], edited, tmp_path / "none")
    assert Checkpoint.open(tmp_path / "none").digest == Checkpoint.open(tiny_folder).digest
    assert (tmp_path / "none" / "README.md").read_bytes() == (tiny_folder / "README.md").read_bytes()
    assert read_ledger(tmp_path / "none") is None


@pytest.mark.parametrize("tiny_folder", ["gpt2"], indirect=True)
def test_a_model_can_be_gone_on_with_in_its_own_folder(tiny_folder: Path, tmp_path: Path) -> None:
    edited = through(tmp_path / "a", tiny_folder, [[edit(0)]])
    memedit.apply([edit(1)], edited, edited, settings={**MORE, "output.overwrite": True})
    assert weights(edited) == weights(through(tmp_path / "b", tiny_folder, [[edit(0), edit(1)]]))


@pytest.mark.parametrize("tiny_folder", ["gpt2"], indirect=True)
def test_edits_of_one_subject_are_searched_together_whenever_they_came(tiny_folder: Path, tmp_path: Path) -> None:
    second = edit(0).model_copy(update={"id": "more", "prompt": "{} works in", "object": "Bonn"})
    report = memedit.apply([edit(0), edit(1)], tiny_folder, tmp_path / "a", settings=SETTINGS)
    assert report.ledger is None
    report = memedit.apply([second], tmp_path / "a", tmp_path / "b", settings=MORE)
    assert report.ledger is not None
    assert (report.ledger.kept, report.ledger.searched, report.ledger.joint) == (1, 2, 2)
    ledger = read_ledger(tmp_path / "b")
    assert ledger is not None and [one.found for one in ledger.entries] == ["joint", "searched", "joint"]
    memedit.apply([edit(0), edit(1), second], tiny_folder, tmp_path / "c", settings=SETTINGS)
    assert weights(tmp_path / "b") == weights(tmp_path / "c")
    # Taken apart again, the first is searched alone.
    report = memedit.forget(["more"], tmp_path / "b", tmp_path / "d", settings=MORE)
    assert weights(tmp_path / "d") == weights(tmp_path / "a")
    # On top, those of the subject are no longer held: they are asked for again, with the new one.
    report = memedit.apply([second], tmp_path / "a", tmp_path / "e", mode="on top", settings=MORE)
    assert report.ledger is not None and (report.ledger.kept, report.ledger.joint) == (1, 2)


@pytest.mark.parametrize("way", ["re-solve", "on top"])
def test_a_killed_run_on_an_edited_model_continues_and_writes_the_same_bytes(
    made_small: Path, small_edits: list[EditRequest], tmp_path: Path, way: str
) -> None:
    memedit.apply(small_edits[:2], made_small, tmp_path / "a", settings={**SETTINGS, "chunk": 256})
    more = tmp_path / "more.jsonl"
    more.write_text(write_lines(small_edits[2:4]))

    def apply(at: Moment | None = None) -> subprocess.CompletedProcess[str]:
        return call(tmp_path / "cache", "apply", more, tmp_path / "a", tmp_path / "b", at=at, mode=way)

    found: list[dict[str, bytes]] = []
    for phases in ((), ("targets", "solve", "after")):
        for phase in phases:
            killed = apply(Moment(phase, "ends"))
            assert killed.returncode == -signal.SIGKILL, killed.stderr
            assert not (tmp_path / "b").exists()
        done = apply()
        assert done.returncode == 0, done.stderr
        files = {str(file.relative_to(tmp_path / "b")): file for file in (tmp_path / "b").rglob("*") if file.is_file()}
        run = {**json.loads(files.pop("memedit/run.json").read_text()), "timings": None}
        found.append({**{name: file.read_bytes() for name, file in files.items()}, "run": json.dumps(run).encode()})
        shutil.rmtree(tmp_path / "b")
    assert found[0] == found[1]


def kept_ledger(job: EditRun, contexts: list[str], order: list[int], wanted: torch.Tensor) -> Ledger:
    """A ledger of all edits of a job, entered in ten batches of this order, with these targets (E, D)."""
    edits = job.plan.edits
    groups = groups_of(edits, joint=job.recipe.joint)
    about = provenance_of(History(), job.recipe, job.base.digest, job.plan.layers, contexts, {})
    ledger: Ledger | None = None
    for at in range(0, len(order), 50):
        some = order[at : at + 50]
        entries = [
            LedgerEntry(edit=edits[n].request, digest=edits[n].request.digest, found="joint", on=job.base.digest,
                  group=groups[n], loss=0.0, steps=1)
            for n in some
        ]  # fmt: skip
        ledger = extend_ledger(ledger, about, entries, wanted[some], [])
    assert ledger is not None
    return ledger


def test_500_edits_in_10_batches_of_any_order_give_one_delta(made_small: Path, small_edits: list[EditRequest]) -> None:
    requests = small_edits[:500]
    recipe = resolve([("flag", {"model.path": str(made_small), "moments.tokens": 4000, "polish.steps": 3})])[0]
    first = EditRun(RunStart(tuple(requests), recipe), (), NoProgress())
    contexts, moments = ["", "The old bridge stood there. "], first.moments()
    wanted = torch.randn(500, first.lm.architecture.width, generator=torch.Generator().manual_seed(3)) * 2
    found: list[bytes] = []
    for seed in range(3):
        order = torch.randperm(500, generator=torch.Generator().manual_seed(seed)).tolist()
        ledger = kept_ledger(first, contexts, order, wanted)
        history = History(ledger, "re-solve", tuple(ledger.active))
        job = EditRun(
            RunStart(tuple(ledger.entries[n].edit for n in ledger.active), recipe, history=history), (), NoProgress()
        )
        assert len(job.kept) == 500
        targets = Targets(ledger.targets, ledger.targets, *torch.zeros(3, 500).unbind())
        update = job.update(job.encode(contexts), moments, targets, SearchEngine(Suffix, ""))
        found.append(delta_bytes({str(n): delta for n, delta in update.deltas.items()}, job.base.digest, {}))
    assert found[0] == found[1] == found[2]
    # The converse: in the order of a list, what its change is made of stands in that order.
    prompts = encode_contexts(first.plan.edits, contexts, first.lm.tokenizer, chat=False).prompts

    def in_order(few: list[int]) -> bytes:
        mine, method = [prompts[n] for n in few], recipe.method
        made = solve(first.lm, mine, wanted[few], lambda n: factor_of(moments, n, method), first.stored, method)
        return delta_bytes({str(n): delta for n, delta in made.deltas.items()}, first.base.digest, {})

    assert in_order(list(range(60))) != in_order(list(range(60))[::-1])


@pytest.mark.parametrize("tiny_folder", ["gpt2"], indirect=True)
def test_a_ledger_tells_of_the_first_model_however_many_runs_lie_between(tiny_folder: Path, tmp_path: Path) -> None:
    batches = [[edit(0)], [edit(1)], [edit(2)]]
    ledgers = [
        read_ledger(through(tmp_path / way[:2], tiny_folder, batches, mode=way)) for way in ("re-solve", "on top")
    ]
    bases = {one.about.base.digest for one in ledgers if one is not None}
    assert bases == {Checkpoint.open(tiny_folder).digest}
    solved, on_top = ledgers
    assert solved is not None and {one.on for one in solved.entries} == bases
    assert on_top is not None and len({one.on for one in on_top.entries}) == 3
