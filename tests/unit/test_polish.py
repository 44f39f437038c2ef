"""Polish: the engine gives what the changed weights give, what must stay is made fairly, and the steps keep it."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from memedit.config.recipe import ModelKnobs, PolishKnobs, Recipe
from memedit.editing import polish, preserve
from memedit.editing import solve_edits as solving
from memedit.editing.plan import Edit, check_edits
from memedit.editing.preserve import choose_preserved, preserved_prompts
from memedit.editing.rounding import Rounding
from memedit.editing.solve import Update
from memedit.editing.solve_edits import solve_edits
from memedit.edits.edit import EditRequest, Neighbor
from memedit.evaluation.other_subjects import names_beside
from memedit.forward.adapted import AdaptedRows, ReadRow, choose_adapted_rows, products_of
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel, ModelSource
from memedit.model.tokens import Prompt
from memedit.model.weights import applied
from memedit.numerics.moments import Moment
from memedit.numerics.solvers import decomposed, factor_metric
from memedit.progress import Advance, ignore_advance
from tests.conftest import byte_tokenizer, tiny_model

SAME = 1e-4  # on log-probabilities: float32 sums in another order
LAYERS = (1, 2)


@pytest.fixture(params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    model: Any = tiny_model(request.param).requires_grad_(False)
    return LanguageModel(model, byte_tokenizer(), find_architecture(model))


def rows() -> list[ReadRow]:
    """Rows of many lengths: some share a prefix, some have none, some are read at several tokens."""
    draw = torch.Generator().manual_seed(2)
    prefix = tuple(torch.randint(2, 258, (6,), generator=draw).tolist())
    made: list[ReadRow] = []
    for own in (2, 3, 3, 7, 9):
        tail = tuple(torch.randint(2, 258, (own,), generator=draw).tolist())
        made += [ReadRow(prefix + tail, 6, 6, min(2, own)), ReadRow(prefix[:3] + tail, 3, 4), ReadRow(tail, 0, 0)]
    return made


def changes(lm: LanguageModel) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    width = lm.architecture.width
    return {
        n: (
            torch.randn(width, 3, generator=draw) * 0.3,
            torch.randn(3, lm.architecture.mlp_widths[n], generator=draw) * 0.3,
        )
        for n in LAYERS
    }


def measured(engine: AdaptedRows, factors: Any, *, at_subject: bool = False) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for launch in engine.launches(range(len(engine.rows))):
        with engine.log_probs(launch, factors, at_subject=at_subject) as log_probs:
            parts = log_probs.split([engine.rows[n].reads for n in launch])
        found |= dict(zip(launch, parts, strict=True))
    return [found[n] for n in range(len(engine.rows))]


@pytest.mark.parametrize("tokens", [40, 1000])
@pytest.mark.parametrize("shortest_first", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_rows_under_changes_are_those_of_a_model_that_holds_them(
    lm: LanguageModel, whole: bool, shortest_first: bool, tokens: int
) -> None:
    factors = changes(lm)
    weights = {n: lm.weight(n) + left @ right for n, (left, right) in factors.items()}
    asked = sorted(rows(), key=lambda row: row.shared) if shortest_first else rows()
    with torch.no_grad():
        found = measured(AdaptedRows(lm, asked, tokens=tokens, whole=whole), factors)
        base = measured(AdaptedRows(lm, asked, tokens=tokens, whole=whole), {})
        with applied(lm, weights):
            for row, one, without in zip(asked, found, base, strict=True):
                wanted = lm.model(torch.tensor([row.ids])).logits[0, -row.reads :].log_softmax(-1)
                assert torch.allclose(one, wanted, atol=SAME)
                assert not torch.allclose(without, wanted, atol=100 * SAME)


def test_at_the_subject_alone_another_token_is_not_changed(lm: LanguageModel) -> None:
    factors = changes(lm)
    last = [ReadRow(row.ids, row.shared, len(row.ids) - 1) for row in rows()]
    with torch.no_grad():
        fast = measured(AdaptedRows(lm, last, tokens=40), factors, at_subject=True)
        plain = measured(AdaptedRows(lm, last, tokens=40, whole=True), factors, at_subject=True)
        everywhere = measured(AdaptedRows(lm, last, tokens=40), factors)
    for one, other, more in zip(fast, plain, everywhere, strict=True):
        assert torch.allclose(one, other, atol=SAME)
        assert not torch.allclose(one, more, atol=100 * SAME)


def test_gradients_are_those_of_whole_forwards_where_nothing_is_shared(lm: LanguageModel) -> None:
    alone = [ReadRow(row.ids, 0, row.at, row.reads) for row in rows()]
    found: list[torch.Tensor] = []
    for whole in (False, True):
        factors = {n: (left.clone().requires_grad_(), right) for n, (left, right) in changes(lm).items()}
        torch.cat(measured(AdaptedRows(lm, alone, tokens=40, whole=whole), factors))[:, 5].sum().backward()
        grads = [left.grad for left, _ in factors.values()]
        found.append(torch.cat([grad for grad in grads if grad is not None]))
    assert float((found[0] - found[1]).norm() / found[1].norm()) < SAME


def test_the_engine_is_proved_or_whole_forwards_are_used(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, reason = choose_adapted_rows(lm, rows(), changes(lm), tokens=40, few=range(6))
    assert not engine.whole
    assert "proved" in reason
    real = AdaptedRows._shared

    def wrong(*args: Any) -> Any:
        mask, logits = real(*args)
        return mask, lambda: logits() * 1.1

    monkeypatch.setattr(AdaptedRows, "_shared", wrong)
    engine, reason = choose_adapted_rows(lm, rows(), changes(lm), tokens=40, few=range(6))
    assert engine.whole
    assert reason.startswith("whole forwards")


def test_products_in_bfloat16_change_what_is_said_by_rounding_alone(lm: LanguageModel) -> None:
    factors = {n: (left.requires_grad_(), right) for n, (left, right) in changes(lm).items()}
    exact = measured(AdaptedRows(lm, rows(), tokens=40), factors)
    found = measured(AdaptedRows(lm, rows(), tokens=40, products=torch.bfloat16), factors)
    assert all(one.dtype == torch.float32 for one in found)
    assert 0 < max(float((a - b).detach().abs().max()) for a, b in zip(exact, found, strict=True)) < 0.1
    torch.cat(found)[:, 5].sum().backward()
    assert all(left.grad is not None and left.grad.dtype == torch.float32 for left, _ in factors.values())


def test_a_model_in_its_own_dtype_runs_as_it_is(lm: LanguageModel) -> None:
    def multiplied(products: torch.dtype | None) -> bool:
        engine = AdaptedRows(lm, rows(), tokens=40, products=products)
        with engine._multiplying():
            return torch.is_autocast_enabled("cpu")

    assert multiplied(torch.bfloat16) and not multiplied(None)
    lm.model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    assert not multiplied(torch.bfloat16) and not multiplied(None)
    assert products_of(lm) == torch.bfloat16


def test_products_are_in_bfloat16_only_where_a_cpu_is_fast_at_it_and_no_dtype_is_chosen(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def machine(**has: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)

    def chosen(dtype: Literal["auto", "float32"]) -> LanguageModel:
        return replace(lm, source=ModelSource(Path("model"), ModelKnobs(dtype=dtype)))

    machine(avx512_bf16=True)
    assert products_of(chosen("auto")) == products_of(lm) == torch.bfloat16
    assert products_of(chosen("float32")) == torch.float32
    machine(avx512_bf16=False)
    assert products_of(chosen("auto")) == torch.float32
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert products_of(chosen("auto")) == torch.float32


SHARE = preserve.MOST_OF


@pytest.fixture(autouse=True)
def nothing_left_to_score_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lists here are so short that polish takes all that can be asked."""
    monkeypatch.setattr(preserve, "MOST_OF", 1.0)


def request(number: int, subject: str, relation: str, prompt: str, **more: Any) -> EditRequest:
    return EditRequest(
        id=str(number),
        subject=subject,
        relation=relation,
        prompt=prompt,
        object=f"o{number}",
        origin=f"a:{number}",
        **more,
    )


LIST = [
    request(1, "Ada", "city", "{} lives in", wordings=("The home of {} is",), paraphrases=("Ada dwells in",)),
    request(2, "Bo", "trade", "The trade of {} is", neighborhood=(Neighbor(prompt="The trade of Cy is"),)),
    request(3, "Bo", "city", "{} lives in"),
]


def edits_of(lm: LanguageModel) -> list[Edit]:
    edits, findings = check_edits(LIST, lm.tokenizer, Recipe(), None)
    assert not findings
    return edits


def texts(lm: LanguageModel, knobs: PolishKnobs, seed: int = 0) -> list[str]:
    """The preserved prompts where the model names Cy and Di beside the subjects of each relation."""
    names = {"city": ["Cy", "Di"], "trade": ["Cy", "Di"]}
    found = preserved_prompts(lm, choose_preserved(LIST, names, knobs, seed).all, chat=False)
    return [str(lm.tokenizer.decode(list(prompt.ids))) for prompt in found]


def test_what_must_stay_are_other_relations_and_other_subjects(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = PolishKnobs(steps=1, siblings=100, others=100)
    others = {template.replace("{}", name) for name in ("Cy", "Di")
              for template in ("{} lives in", "The trade of {} is")}  # fmt: skip
    # Bo is edited in both relations, Ada in one; no paraphrase is there, and no edit's own prompt.
    assert set(texts(lm, every)) == {"The trade of Ada is"} | others
    with monkeypatch.context() as patch:
        # Of one sibling nothing, of two others one; and the two of the prompt that has another wording.
        patch.setattr(preserve, "MOST_OF", SHARE)
        for seed in range(4):
            found = set(texts(lm, every, seed))
            assert {"Cy lives in", "Di lives in"} < found < others and len(found) == 3
    few = PolishKnobs(steps=1, siblings=0, others=1)
    assert set(texts(lm, few)) == others  # a short list has as many others as a long one
    monkeypatch.setattr(preserve, "LEAST_CHOSEN", 1)
    assert len(texts(lm, few)) == len(LIST)
    assert set(texts(lm, few)) <= others
    assert texts(lm, few) == texts(lm, few)
    assert {tuple(texts(lm, few, seed)) for seed in range(6)} != {tuple(texts(lm, few))}


def test_a_single_prompt_that_the_user_names_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three quarters of one question are none; of the list's own, none is asked then."""
    monkeypatch.setattr(preserve, "MOST_OF", SHARE)
    knobs = PolishKnobs(keep=("{} eats",))
    assert choose_preserved(LIST[:1], {}, knobs, 0).siblings == [("{} eats", "Ada")]
    assert len(choose_preserved(LIST, {}, knobs, 0).siblings) == 3  # of Ada's trade, and what she and Bo eat
    assert not choose_preserved(LIST, {}, PolishKnobs(), 0).siblings


@contextmanager
def phase(_name: str, _total: int | None = None, _unit: str = "") -> Generator[Advance]:
    yield ignore_advance


def solved(lm: LanguageModel, **knobs: Any) -> Update:
    """The edits of LIST, to targets far from where they start."""
    return solved_by(lm, Recipe(polish=PolishKnobs(**knobs)))


def solved_by(lm: LanguageModel, recipe: Recipe) -> Update:
    edits = edits_of(lm)
    prompts = [[edit.prompt, edit.prompt] for edit in edits]
    wanted = torch.randn(len(edits), lm.architecture.width, generator=torch.Generator().manual_seed(3)) * 2
    draw = torch.Generator().manual_seed(4)

    def factor(layer: int) -> Any:
        states = torch.randn(2000, lm.architecture.mlp_widths[layer], generator=draw).double()
        parts = decomposed(Moment(states.T @ states, 2000), "moment")
        return factor_metric(parts, recipe.method.kind, float(len(states[0])), 0.05)

    stored = {n: lm.weight(n).clone() for n in LAYERS}
    return solve_edits(
        lm, edits, prompts, wanted, torch.zeros(len(edits), dtype=torch.bool), factor, stored, recipe,
        preserve=lambda some: choose_preserved(some, names_beside(lm, some, 0), recipe.polish, 0),
        rounding=Rounding(), whole=False, phase=phase,
    )  # fmt: skip


@pytest.mark.slow
def test_polish_lowers_the_loss_of_the_edits_and_leaves_the_model_alone(lm: LanguageModel) -> None:
    before = {n: lm.weight(n).clone() for n in LAYERS}
    update = solved(lm, steps=30, siblings=4, others=4)
    assert update.polish
    assert update.polish.preserved > 0
    assert update.polish.loss_after < update.polish.loss_before
    assert all(torch.equal(before[n], lm.weight(n)) for n in LAYERS)
    for n in LAYERS:
        assert torch.allclose(update.weights[n], before[n] + update.deltas[n].dense().float(), atol=1e-5)


def test_edits_are_asked_in_chat_unless_their_prompts_are_or_none_shall_be(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[Any]] = []
    one = (edits_of(lm)[0].prompt, (5, 6))
    monkeypatch.setattr(solving, "preserved_prompts", lambda *_args, **_more: [one[0]])
    monkeypatch.setattr(solving, "spoken_edits", lambda _lm, _edits: [one])
    monkeypatch.setattr(solving, "polish", lambda *_args, spoken, **_more: given.append(spoken))
    for chat, share in ((False, 0.25), (True, 0.25), (False, 0.0)):
        solved_by(lm, Recipe(chat=chat, polish=PolishKnobs(steps=1, spoken=share)))
    assert given == [[one], [], []]


@pytest.mark.slow
def test_the_same_polish_has_the_same_bits(lm: LanguageModel) -> None:
    one, other = (solved(lm, steps=3, siblings=4, others=4) for _ in range(2))
    assert all(torch.equal(one.weights[n], other.weights[n]) for n in LAYERS)


def test_what_the_base_says_is_kept_or_asked_again_and_the_same(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = solved(lm, steps=3, siblings=4, others=4)
    monkeypatch.setattr("memedit.editing.polish.KEPT_BYTES", 0)
    asked = solved(lm, steps=3, siblings=4, others=4)
    assert kept.polish and asked.polish
    assert kept.polish.divergence_after > 0
    assert asked.polish.divergence_after == pytest.approx(kept.polish.divergence_after, rel=1e-3)
    for n in LAYERS:
        assert torch.allclose(kept.weights[n], asked.weights[n], rtol=0, atol=1e-4)


def test_without_steps_it_is_the_closed_form(lm: LanguageModel) -> None:
    found = [solved(lm, steps=0), solved(lm, steps=3, siblings=0, others=0)]  # none, or nothing that must stay
    assert all(update.polish is None and update.keys == {} for update in found)
    assert all(torch.equal(found[0].weights[n], found[1].weights[n]) for n in LAYERS)


def test_a_shortened_prompt_keeps_its_subject_and_both_its_ends() -> None:
    long = Prompt(ids=tuple(range(30)), subject_from=14, subject_at=16)
    for seed in range(20):
        short = polish.shortened(long, 0.5, random.Random(seed))
        assert short.ids[short.subject_from : short.subject_at + 1] == (14, 15, 16)
        # What is further from the subject than a prompt goes stays as well.
        assert short.ids[:6] == tuple(range(6)) and short.ids[-1] == 29
        assert list(short.ids) == sorted(set(short.ids)) and len(short.ids) < 30
    assert polish.shortened(long, 0.0, random.Random(1)) == long
    gone = sum(30 - len(polish.shortened(long, 0.25, random.Random(seed)).ids) for seed in range(200))
    assert gone / 200 == pytest.approx(0.25 * (8 + 12), rel=0.1)
    bare = Prompt(ids=(1, 2), subject_from=0, subject_at=1)
    assert polish.shortened(bare, 0.9, random.Random(1)) == bare


def test_half_of_the_rows_of_an_edit_are_shortened_and_no_removal_is(lm: LanguageModel) -> None:
    removal = EditRequest(id="4", subject="Eve", prompt="The home of {} is", object_old="Rome", remove=True)
    bare = EditRequest(id="5", prompt="It is known that the sky is", object="red")
    edits, _ = check_edits([*LIST, removal, bare], lm.tokenizer, Recipe(), None)
    asked = [[edit.prompt, edit.prompt] for edit in edits]
    counts = {}
    for share in (0.0, 0.4):
        made = polish._Rows.of(edits, asked, [], [], shorten=share, draw=random.Random(0))
        counts[share] = [len(rows) for rows in made.of_edit]
        for edit, rows in zip(edits, made.of_edit, strict=True):
            assert [made.rows[n].ids for n in rows[:2]] == [edit.prompt.ids + edit.target[:-1]] * 2
            assert all(made.targets[n] == edit.target for n in rows)
            ends = [made.rows[n].ids[made.rows[n].at] for n in rows]
            assert set(ends) == {edit.prompt.ids[edit.prompt.subject_at]}
    assert counts == {0.0: [2] * 5, 0.4: [4, 4, 4, 2, 2]}


@pytest.mark.parametrize(("own", "at_least", "at_most"), [(0.0, 1, 90), (0.5, 180, 270), (1.0, 400, 400)])
def test_an_edit_is_asked_by_its_own_prompt_in_a_share_of_the_steps(own: float, at_least: int, at_most: int) -> None:
    steps: Any = SimpleNamespace(knobs=PolishKnobs(own=own), draw=random.Random(1))
    asked = [polish._Steps._asked(steps, range(8, 18)) for _ in range(400)]
    assert set(asked) <= set(range(8, 18))
    assert at_least <= asked.count(8) <= at_most


@pytest.mark.parametrize(
    ("sizes", "most", "drawn"),
    [
        ((4, 90, 0), 12, (4, 8, 0)),
        ((50, 90, 70), 12, (4, 4, 4)),
        ((0, 5, 0), 12, (0, 5, 0)),
        ((9, 2, 2), 12, (8, 2, 2)),
    ],
)
def test_a_step_asks_for_as_much_of_each_kind(sizes: tuple[int, ...], most: int, drawn: tuple[int, ...]) -> None:
    ends = [0, *accumulate(sizes)]
    kinds = [range(*pair) for pair in pairwise(ends)]
    steps: Any = SimpleNamespace(made=SimpleNamespace(kinds=kinds), draw=random.Random(1))
    found = polish._Steps._drawn(steps, most)
    assert len(set(found)) == len(found)
    assert tuple(sum(n in kind for n in found) for kind in kinds) == drawn


@pytest.mark.slow
def test_a_prompt_that_must_stay_weighs_no_more_where_there_are_few(lm: LanguageModel) -> None:
    """Or 81 prompts would weigh as much as 1,000 edits; where there are enough, their number changes no weight."""
    there = solved(lm, steps=1, siblings=4, others=4).polish
    assert there
    each = there.preserved / len(edits_of(lm))  # all of them in every step
    few, quarter, full = (
        solved(lm, steps=3, siblings=4, others=4, ratio=ratio, preserve=weight)
        for ratio, weight in ((4 * each, 1.0), (each, 0.25), (each, 1.0))
    )
    assert all(torch.equal(few.weights[n], quarter.weights[n]) for n in LAYERS)
    assert not any(torch.equal(few.weights[n], full.weights[n]) for n in LAYERS)


@pytest.mark.slow
def test_more_weight_on_what_must_stay_keeps_more_of_it(lm: LanguageModel) -> None:
    light, heavy = (solved(lm, steps=30, siblings=4, others=4, preserve=weight).polish for weight in (0.0, 5.0))
    assert light and heavy
    assert heavy.divergence_after < light.divergence_after
    assert light.loss_after < heavy.loss_after


@pytest.mark.slow
def test_the_lead_keeps_more_of_what_is_said_first(lm: LanguageModel) -> None:
    """KL alone leaves many answers that are nearly as likely as they were, but no longer the first."""
    requests = [edit.request for edit in edits_of(lm)]
    knobs = PolishKnobs(steps=30, siblings=8, keep=("{} eats", "{} likes", "The friends of {} are", "{}", "{} has a"))
    asked = preserved_prompts(lm, choose_preserved(requests, names_beside(lm, requests, 0), knobs, 0).all, chat=False)

    def first() -> list[int]:
        return [int(lm.model(torch.tensor([prompt.ids])).logits[0, -1].argmax()) for prompt in asked]

    before, kept = first(), list[int]()
    for lead in (0.0, 3.0):
        with applied(lm, solved_by(lm, Recipe(polish=knobs.model_copy(update={"lead": lead}))).weights):
            kept.append(sum(was == now for was, now in zip(before, first(), strict=True)))
    assert kept[0] < kept[1]
