"""The suffix engine gives the logits of whole forwards, and is refused where it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memedit.forward.perturbed import ChangedRow, WholeForward
from memedit.forward.suffix import Suffix, choose_search_engine
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from tests.conftest import byte_tokenizer, tiny_model

SAME = 1e-5  # relative, on logits: float32 sums in another order


@pytest.fixture(params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    model: Any = tiny_model(request.param).requires_grad_(False)
    return LanguageModel(model, byte_tokenizer(), find_architecture(model))


def rows() -> list[ChangedRow]:
    """Rows of many lengths, their change anywhere from the first to the last token."""
    generator = torch.Generator().manual_seed(2)
    made: list[ChangedRow] = []
    for length in (3, 5, 8, 8, 13, 13, 13, 21):
        ids = tuple(torch.randint(2, 258, (length,), generator=generator).tolist())
        for at in {0, length // 2, length - 1}:
            made.append(ChangedRow(ids, at, min(2, length - at)))
    return made


def test_suffixes_equal_whole_forwards(lm: LanguageModel) -> None:
    whole, suffix = WholeForward(lm, 1, rows()), Suffix(lm, 1, rows())
    assert torch.allclose(whole.start, suffix.start, atol=1e-4)
    change = torch.randn(len(rows()), lm.architecture.width) * 3
    which = [n for n in range(len(rows())) if n % 4 != 1]
    with torch.no_grad():
        pairs = zip(whole.logits(change[which], which), suffix.logits(change[which], which), strict=True)
        for one, other in pairs:
            assert float((one - other).abs().max() / one.abs().max()) < SAME


def test_gradients_equal_those_of_whole_forwards(lm: LanguageModel) -> None:
    found: list[torch.Tensor] = []
    for engine in (WholeForward, Suffix):
        change = torch.zeros(len(rows()), lm.architecture.width, requires_grad=True)
        logits = engine(lm, 1, rows()).logits(change, range(len(rows())))
        torch.stack([row.log_softmax(-1)[:, 5].sum() for row in logits]).sum().backward()
        assert change.grad is not None
        found.append(change.grad)
    assert float((found[0] - found[1]).norm() / found[0].norm()) < SAME


def test_the_probe_takes_suffixes_where_they_agree(lm: LanguageModel) -> None:
    engine, reason = choose_search_engine(lm, 1, rows())
    assert engine is Suffix
    assert "proved" in reason


def test_the_probe_refuses_a_model_that_forgets_its_prefix(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from memedit.forward import partial as splice

    real = splice.Kept.update

    def forgetful(self: Any, *given: Any, **more: Any) -> Any:
        self.kept = {layer: (keys * 0, values * 0) for layer, (keys, values) in self.kept.items()}
        return real(self, *given, **more)

    monkeypatch.setattr(splice.Kept, "update", forgetful)
    engine, reason = choose_search_engine(lm, 1, rows())
    assert engine is WholeForward
    assert "differ" in reason
