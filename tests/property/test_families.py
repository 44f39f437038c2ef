"""The engine gives the logits of whole forwards on every family, whatever its positions, windows and padding."""

from __future__ import annotations

import pytest
import torch
from memedit.forward.generation import JOINED, ends, generate
from memedit.forward.perturbed import ChangedRow, WholeForward
from memedit.forward.suffix import Suffix, choose_search_engine
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from tests.conftest import byte_tokenizer
from tests.families import EVERY, FAMILIES, POST_NORM, each_family, family_model
from torch import Tensor

SAME = 5e-6  # relative, on logits: float32 sums in another order (3e-7 to 6e-7 were seen)
LAYER = 1
NO_KEPT_VALUES = ("lfm2", "qwen3_5_text", "qwen3_5")
"""Layers of convolutions or of linear attention: whole forwards are run."""


def ids(count: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(2, 258, (count,), generator=generator).tolist())


def rows() -> list[ChangedRow]:
    """Three contexts of two prompts and their bare subjects: beginnings in common, many lengths, windows overrun."""
    contexts = [(), ids(9, 1), ids(6, 2)]
    prompts = [(ids(3, 3), ids(4, 4)), (ids(5, 5), ids(2, 6))]
    made: list[ChangedRow] = []
    for head, tail in prompts:
        made += [ChangedRow(context + head + tail, len(context + head) - 1, 2) for context in contexts]
        made.append(ChangedRow(head, len(head) - 1, 1))
    return made


def open_family(name: str) -> LanguageModel:
    model = family_model(name)
    return LanguageModel(model, byte_tokenizer(), find_architecture(model))


def gap(found: list[Tensor], wanted: list[Tensor]) -> float:
    pairs = zip(found, wanted, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


@pytest.mark.parametrize("family", each_family(FAMILIES))
def test_the_engine_equals_whole_forwards(family: str) -> None:
    lm, given = open_family(family), rows()
    which = range(len(given))
    whole = WholeForward(lm, LAYER, given)
    change = torch.randn(whole.start.shape) * whole.start.std()
    with torch.no_grad():
        wanted = whole.logits(change, which)
        assert gap(whole.logits(change * 0, which), wanted) > 1e-3
        for worth in (0, 1 << 30):
            engine = Suffix(lm, LAYER, given, columns=4, worth=worth)
            assert torch.allclose(engine.start, whole.start, atol=1e-4 * float(whole.start.abs().max()))
            assert gap(engine.logits(change, which), wanted) < SAME
    assert choose_search_engine(lm, LAYER, given, 4)[0] is Suffix


@pytest.mark.parametrize("family", each_family(FAMILIES))
def test_a_longer_neighbor_moves_nothing_beyond_rounding(family: str) -> None:
    lm, given = open_family(family), rows()
    alone = Suffix(lm, LAYER, given[:4], columns=4)
    beside = Suffix(
        lm, LAYER, [*given[:4], *(ChangedRow(ids(40 + n, n), 5, 2) for n in range(4))], columns=4, worth=1 << 30
    )
    assert len(beside.launches) == 1
    change = torch.randn(4, lm.architecture.width) * alone.start.std()
    with torch.no_grad():
        assert gap(beside.logits(change, range(4)), alone.logits(change, range(4))) < SAME


@pytest.mark.parametrize("family", ["gpt2", "mistral", "bloom", "gptj"])
def test_rows_taken_out_leave_the_others_as_they_were(family: str) -> None:
    lm, given = open_family(family), rows()
    engine = Suffix(lm, LAYER, given, columns=4)
    change = torch.randn(len(given), lm.architecture.width)
    with torch.no_grad():
        all_of_them = engine.logits(change, range(len(given)))
        for launch in engine.launches:
            places = list(range(0, len(launch.rows), 2))
            kept = launch.keep(places)
            assert kept.rows == [launch.rows[place] for place in places]
            found = kept.logits(change[kept.rows])
            assert gap([found], [torch.cat([all_of_them[row] for row in kept.rows])]) < SAME


@pytest.mark.parametrize("family", POST_NORM)
def test_gradients_go_through_the_norm_as_in_whole_forwards(family: str) -> None:
    lm, given = open_family(family), rows()
    found: list[Tensor] = []
    for engine in (WholeForward, Suffix):
        change = torch.zeros(len(given), lm.architecture.width, requires_grad=True)
        logits = engine(lm, LAYER, given, shared=3).logits(change, range(len(given)))
        torch.stack([row.log_softmax(-1)[:, 5].sum() for row in logits]).sum().backward()
        assert change.grad is not None
        found.append(change.grad)
    assert gap([found[0]], [found[1]]) < 10 * SAME


@pytest.mark.parametrize("family", POST_NORM)
def test_a_change_along_what_the_norm_is_given_moves_nothing(family: str) -> None:
    lm, given = open_family(family), rows()
    engine = Suffix(lm, LAYER, given)
    with torch.no_grad():
        longer, as_it_was = (engine.logits(part * engine.start, range(len(given))) for part in (3.0, 0.0))
    assert gap(longer, as_it_was) < 1e-3  # the norm's epsilon counts a little


@pytest.mark.parametrize("family", each_family(EVERY))
def test_prompts_of_all_lengths_are_written_on_together_as_alone(family: str) -> None:
    lm, asked = open_family(family), [ids(count, count) for count in (3, 5, 9, 12, 14)]
    alone: list[tuple[int, ...]] = []
    for prompt in asked:
        row = list(prompt)
        while len(row) < len(prompt) + 6:
            with torch.no_grad():
                row.append(int(lm.model(torch.tensor([row])).logits[0, -1].argmax()))
        stop = next((n for n in range(len(prompt), len(row)) if row[n] in ends(lm)), len(row))
        alone.append(tuple(row[len(prompt) : stop]))
    assert generate(lm, asked, 6) == alone
    assert (JOINED in lm.proofs) is (family not in NO_KEPT_VALUES)
