"""Moments: packed as the family packs, one pass for all layers, gone on with to the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.config.recipe import MethodKnobs, ModelKnobs
from memedit.config.resolve import resolve
from memedit.editing import moment_cache as measure_module
from memedit.editing import moments as statistics
from memedit.editing.moment_cache import MomentPlan, digest_of_texts, factor_of, moments_for, plan_moments, run_stats
from memedit.editing.moments import Moments, ahead, measure
from memedit.errors import UsageError
from memedit.forward.packing import packed
from memedit.forward.passes import Site, capture, run
from memedit.model.load import LanguageModel, load
from memedit.numerics.moments import Moment
from memedit.progress import NoProgress
from memedit.storage.cache import cache_dir
from memedit.storage.moment_import import read_npz
from tests.conftest import byte_tokenizer

TEXTS = [f"Document {n} tells of {n * n} things." for n in range(80)]


@pytest.fixture
def lm(tiny_folder: Path) -> LanguageModel:
    return load(tiny_folder, ModelKnobs(device="cpu"))


@pytest.mark.parametrize(("bos", "opening"), [(True, [0]), (False, [1])])
def test_documents_are_parted_as_the_family_parts_them(bos: bool, opening: list[int]) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    rows = list(packed(["ab", "c"], tokenizer, 4))
    a, b, c = (tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "abc")
    assert [list(row) for row in rows] == [[*opening, a, b, *opening], [c]]


def test_the_moment_is_that_of_every_token(lm: LanguageModel) -> None:
    rows = list(packed(TEXTS, lm.tokenizer, 32))
    tokens = 1000
    found = measure(lm, rows, [0, 2], tokens)
    seen: dict[int, list[torch.Tensor]] = {0: [], 2: []}
    left = tokens
    for row in rows:
        ids = torch.tensor([row[:left]])
        left -= ids.numel()
        with capture(lm, [Site(0, "mlp.in"), Site(2, "mlp.in")], lambda site, x: seen[site.layer].append(x.clone())):
            run(lm, ids)
        if not left:
            break
    for layer, parts in seen.items():
        wanted = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).double()
        assert found[layer].count == len(wanted) == tokens
        exact = wanted.T @ wanted
        assert float((found[layer].total - exact).norm() / exact.norm()) < 1e-5


def test_a_measurement_gone_on_with_has_the_same_bits(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "TOKENS_PER_LAUNCH", 128)
    monkeypatch.setattr(statistics, "LAUNCHES_SUMMED", 3)
    monkeypatch.setattr(statistics, "KEEP_SECONDS", 0)
    kept: list[Moments] = []
    rows = list(packed(TEXTS, lm.tokenizer, 32))
    whole = measure(lm, rows, [1], 1500, keep=kept.append)
    assert len(kept) > 2
    for begun in kept:
        again = measure(lm, rows, [1], 1500, begun=begun)
        assert again[1].count == whole[1].count == 1500
        assert torch.equal(again[1].total, whole[1].total)


@pytest.mark.parametrize(("launch_takes", "kept_at"), [(1, []), (20, [768]), (40, [384, 768, 1152])])
def test_sums_are_kept_by_time_and_not_by_launches(
    launch_takes: float, kept_at: list[int], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "TOKENS_PER_LAUNCH", 128)
    monkeypatch.setattr(statistics, "LAUNCHES_SUMMED", 3)
    now = 1000.0
    monkeypatch.setattr(statistics, "monotonic", lambda: now)
    kept: list[int] = []

    def advance(*_: Any, **__: Any) -> None:
        nonlocal now
        now += launch_takes

    def keep(moments: Moments) -> None:
        nonlocal now
        kept.append(moments[1].count)
        now += 1000  # a slow disk does not make the next call come sooner

    measure(lm, packed(TEXTS, lm.tokenizer, 32), [1], 1408, keep=keep, advance=advance)
    assert kept == kept_at


def test_the_cache_is_by_what_feeds_the_layer(lm: LanguageModel, tiny_folder: Path) -> None:
    recipe = resolve([("flag", {"model.path": str(tiny_folder), "moments.tokens": 2000})])[0]
    plan = plan_moments(lm, tiny_folder, [0, 2], recipe)
    assert plan.missing == [0, 2]
    first = moments_for(lm, plan, NoProgress(), lambda *_, **__: None)
    assert plan_moments(lm, tiny_folder, [0, 2], recipe).missing == []
    assert torch.equal(moments_for(lm, plan, NoProgress(), lambda *_, **__: None)[2].total, first[2].total)
    # A change of layer 0's down-projection moves what layer 2 sees, and not what layer 0 does.
    with torch.no_grad():
        lm.weight(0).add_(1)
    assert plan_moments(lm, tiny_folder, [0, 2], recipe).missing == [2]


def test_what_was_measured_once_is_found_where_no_text_is_named(
    lm: LanguageModel, tmp_path: Path, tiny_folder: Path
) -> None:
    recipe = resolve([("flag", {"model.path": str(tmp_path)})])[0]
    assert plan_moments(lm, tmp_path, [0], recipe).missing == [0]
    named = resolve([("flag", {"moments.tokens": 500})])[0]
    moments_for(lm, plan_moments(lm, tiny_folder, [0], named), NoProgress(), lambda *_, **__: None)
    assert plan_moments(lm, tmp_path, [0], recipe).missing == []


def test_of_several_that_serve_those_of_the_tokens_asked_for_are_taken(
    lm: LanguageModel, tmp_path: Path, tiny_folder: Path
) -> None:
    def planned(tokens: int, folder: Path = tmp_path, solved_with: str | None = None) -> MomentPlan:
        recipe = resolve([("flag", {"moments.tokens": tokens})])[0]
        return plan_moments(lm, folder, [0, 1], recipe, solved_with)

    for tokens in (500, 300):
        moments_for(lm, planned(tokens, tiny_folder), NoProgress(), lambda *_, **__: None)
    few, many = planned(300), planned(500)
    assert [plan.on[0]["tokens"] for plan in (few, many, planned(400))] == [300, 500, 300]
    # A re-solve takes those of the ledger's edits, whatever is newer, and no others.
    then = digest_of_texts(many.on)
    assert then != digest_of_texts(few.on)
    assert planned(300, solved_with=then).on == many.on
    assert planned(300, solved_with="of a text that is gone").missing == [0, 1]


def test_a_moment_of_another_tool_is_taken(tiny_folder: Path, tmp_path: Path, lm: LanguageModel) -> None:
    import numpy as np

    width = lm.architecture.mlp_width
    total = np.eye(width, dtype=np.float32) * 50
    file = tmp_path / "mom2.npz"
    parts: dict[str, Any] = {"mom2.mom2": total, "mom2.count": np.array(100), "sample_size": np.array(100)}
    np.savez(file, **parts)
    recipe = resolve([("flag", {"model.path": str(tiny_folder), "method.layers": "1", "model.device": "cpu"})])[0]
    (row,) = run_stats(recipe, import_file=str(file))
    assert (row.state, row.tokens) == ("imported", 100)
    found = moments_for(lm, plan_moments(lm, tiny_folder, [1], recipe), NoProgress(), lambda *_, **__: None)[1]
    assert found.count == 100
    assert torch.equal(found.mean, torch.eye(width, dtype=torch.float64) / 2)
    with pytest.raises(UsageError, match="no file of second moments"):
        np.savez(file, other=total)
        run_stats(recipe, import_file=str(file))


SUM: Any = [[2.0, 1.0], [1.0, 3.0]]


@pytest.mark.parametrize("count", [1, 100.0, [7]])
@pytest.mark.parametrize("kind", ["float32", "float64", "int64"])
def test_a_file_of_a_sum_and_its_count_is_read(count: Any, kind: str, tmp_path: Path) -> None:
    import numpy as np

    parts: dict[str, Any] = {"mom2.mom2": np.array(SUM, dtype=kind), "mom2.count": np.array(count)}
    parts["mom2.mom2"][0, 1] *= 1 + 1e-6 * (kind != "int64")  # rounding
    np.savez(tmp_path / "a.npz", **parts)
    total, found = read_npz(tmp_path / "a.npz")
    assert found == np.array(count).item() and type(found) is int
    assert total.dtype == torch.float64 and torch.allclose(total, torch.tensor(SUM, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        *(({"count": count}, "its count is") for count in (0, -5, [1, 2], float("nan"), "x", 1e300, 1j, True, [])),
        ({"mom2": [["a", "b"], ["c", "d"]]}, "not real numbers"),
        ({"mom2": [[2, 1j], [-1j, 2]]}, "complex128, not real numbers"),
        ({"mom2": [[2, float("nan")], [float("nan"), 2]]}, "NaN or infinity"),
        ({"mom2": [[float("inf"), 1], [1, 2]]}, "NaN or infinity"),
        ({"mom2": [[-2, 0], [0, 2]]}, "negative number on the diagonal"),
        ({"mom2": [[2, 1], [-1, 2]]}, "not symmetric"),
        ({"mom2": [[2, 1, 1], [1, 2, 1]]}, "not square"),
        ({"mom2": [2, 1]}, "not square"),
    ],
)
def test_a_sum_or_a_count_that_cannot_be_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    import numpy as np

    whole = {"mom2": SUM, "count": 100, **changes}
    parts: dict[str, Any] = {f"mom2.{name}": np.array(value) for name, value in whole.items()}
    np.savez(tmp_path / "a.npz", **parts)
    with pytest.raises(UsageError, match=f"no file of second moments: .*{says}") as caught:
        read_npz(tmp_path / "a.npz")
    assert caught.value.hint and "\n" not in caught.value.message


def test_a_file_of_another_kind_is_no_file_of_moments(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "plain.npy", np.eye(2))
    parts: dict[str, Any] = {"mom2.mom2": np.eye(2), "mom2.count": np.array(3)}
    np.savez(tmp_path / "cut.npz", **parts)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-9])
    for name in ("empty.npz", "plain.npy", "cut.npz", "none.npz"):
        with pytest.raises(UsageError, match="no file of second moments"):
            read_npz(tmp_path / name)


def test_moments_are_positive_semidefinite(lm: LanguageModel) -> None:
    found: Moment = measure(lm, packed(TEXTS, lm.tokenizer, 32), [0], 1000)[0]
    assert float(torch.linalg.eigvalsh(found.mean).min()) > -1e-9


def test_the_factor_is_kept_beside_its_moment(lm: LanguageModel, tiny_folder: Path, monkeypatch: Any) -> None:
    recipe = resolve([("flag", {"model.path": str(tiny_folder), "moments.tokens": 2000})])[0]
    plan = plan_moments(lm, tiny_folder, [1], recipe)
    moment = moments_for(lm, plan, NoProgress(), lambda *_, **__: None)[1]
    made = factor_of(plan, 1, MethodKnobs(ridge=2.0))
    space = factor_of(plan, 1, MethodKnobs.model_validate({"name": "alphaedit", "null_space": 0.1})).basis
    monkeypatch.setattr(measure_module, "decomposed", lambda *_: pytest.fail("factored again"))
    found = factor_of(plan, 1, MethodKnobs(ridge=3.0))
    wider = factor_of(plan, 1, MethodKnobs.model_validate({"name": "alphaedit", "null_space": 0.5})).basis
    assert space is not None and wider is not None
    assert wider.shape[1] > space.shape[1] and torch.equal(wider[:, : space.shape[1]], space)
    assert torch.equal(found.lower, made.lower)
    assert (found.shift, found.dead) == (made.shift, made.dead)
    assert (made.ridge, found.ridge) == (2.0 * len(made.lower), 3.0 * len(made.lower))
    shifted = moment.mean + made.shift * moment.mean.diagonal().mean() * torch.eye(len(moment.mean))
    assert torch.allclose(made.lower @ made.lower.T, shifted, rtol=1e-9, atol=0)


def test_what_is_made_ahead_comes_in_order_and_ends() -> None:
    made: list[int] = []

    def count() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    assert list(ahead(iter(range(50)), 3)) == list(range(50))
    for number in ahead(count(), 3):
        if number == 5:
            break
    assert 6 <= len(made) < 20
    with pytest.raises(UnicodeDecodeError):
        list(ahead(b"\xff".decode(part) for part in ("latin-1", "utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["moment", "factor"])
def test_a_flipped_bit_in_the_cache_is_named_set_aside_and_changes_no_output(
    kind: str, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edits = [{"subject": "Ada", "prompt": "{} lives in", "object": "Rome"}]
    settings = {"polish.steps": 0, "target.steps": 1, "moments.tokens": 300, "contexts.tokens": 3, "method.layers": "1"}

    def written(name: str) -> bytes:
        memedit.apply(edits, tiny_folder, tmp_path / name, settings=settings)
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = written("first")
    (kept,) = (one for one in memedit.list_cache() if one.kind == kind)
    file = cache_dir() / kept.name
    good = file.read_bytes()
    file.write_bytes(good[:-5] + bytes([good[-5] ^ 16]) + good[-4:])
    if kind == "moment":  # while its factor is whole, nobody reads the moment but the check before the run
        (one,) = memedit.list_cache(["factor"])
        (cache_dir() / one.name).unlink()
    caplog.clear()
    assert written("second") == first
    (aside,) = memedit.list_cache(["damaged"])
    assert aside.name == f"{kept.name}.damaged"
    named = [record.message for record in caplog.records if str(file) in record.message]
    assert len(named) == 1 and "damaged" in named[0] and "made again" in named[0]
    assert file.read_bytes() == good
