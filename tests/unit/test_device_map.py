"""A model whose blocks a library has put hooks around, as accelerate does to spread it over devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memedit.config.recipe import ModelKnobs
from memedit.errors import UsageError
from memedit.forward.keys import Sweep, WholeSweep
from memedit.forward.passes import replaced
from memedit.forward.perturbed import ChangedRow, WholeForward
from memedit.forward.suffix import Suffix
from memedit.model import load as module
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel, load, open_model
from memedit.model.probe import prove
from tests.conftest import ROOT, byte_tokenizer, tiny_model

SAME = 1e-5  # relative: float32 in another order
LLAMA = ROOT / "examples" / "models" / "made-llama"


@pytest.fixture(params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    import accelerate

    model: Any = tiny_model(request.param).requires_grad_(False)
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    return LanguageModel(model, byte_tokenizer(), prove(model, find_architecture(model)))


def test_the_engines_run_through_its_hooks_and_leave_them(lm: LanguageModel) -> None:
    blocks = list(lm.model.get_submodule(lm.architecture.blocks).children())
    hooked = [block.__dict__["forward"] for block in blocks]
    rows = [ChangedRow(tuple(range(4 + n, 11 + n)), 3, 2) for n in range(3)]
    change = torch.randn(3, lm.architecture.width)
    with torch.no_grad():
        pairs = zip(
            Suffix(lm, 1, rows).logits(change, range(3)),
            WholeForward(lm, 1, rows).logits(change, range(3)),
            strict=True,
        )
        assert all(float((one - other).norm() / other.norm()) < SAME for one, other in pairs)
        heads = [[row.ids[:4], (7, 8, *row.ids[:4])] for row in rows]
        one, other = (dict_of(sweep(lm, heads).keys(2)) for sweep in (Sweep, WholeSweep))
        assert float((one - other).norm() / other.norm()) < SAME
    assert [block.__dict__["forward"] for block in blocks] == hooked


def dict_of(parts: Any) -> torch.Tensor:
    return torch.cat([part for _, part in parts])


def test_a_forward_is_put_back_as_it_was() -> None:
    linear = torch.nn.Linear(2, 2)
    with replaced(linear, lambda x: x):
        assert linear(1) == 1
    assert "forward" not in linear.__dict__
    linear.forward = mine = lambda x: x + 1  # type: ignore[method-assign,assignment]
    with replaced(linear, lambda x: x):
        assert linear(1) == 1
    assert linear.__dict__["forward"] is mine and linear(1) == 2


@pytest.mark.slow
def test_a_map_opens_the_model_and_edits_prove_on_it() -> None:
    plain, spread = (load(LLAMA, ModelKnobs(device="cpu", device_map=how)) for how in (None, "auto"))
    ids = torch.arange(5)[None]
    assert torch.equal(plain.model(input_ids=ids).logits, spread.model(input_ids=ids).logits)
    assert plain.architecture == spread.architecture


def test_weights_are_read_straight_to_a_gpu_where_transformers_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    gpu, numbered = torch.device("cuda"), torch.device("cuda", 1)
    assert module._straight_to(gpu) == {"device_map": {"": torch.device("cuda", 3)}}
    assert module._straight_to(numbered) == {"device_map": {"": numbered}}
    assert module._straight_to(torch.device("cpu")) == module._straight_to(torch.device("mps")) == {}
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    assert module._straight_to(gpu) == {}


@pytest.mark.slow
def test_weights_that_are_read_straight_to_a_device_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load(LLAMA, ModelKnobs(device="cpu"))
    monkeypatch.setattr(module, "_straight_to", lambda device: {"device_map": {"": device}})
    straight = load(LLAMA, ModelKnobs(device="cpu"))
    pairs = zip(plain.model.state_dict().items(), straight.model.state_dict().items(), strict=True)
    assert all(one == other and torch.equal(left, right) for (one, left), (other, right) in pairs)
    # No hooks around the blocks, which a model on one device does not need.
    assert not any("forward" in part.__dict__ for part in straight.model.modules())


def test_without_accelerate_a_map_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="needs 'accelerate'") as caught:
        open_model(LLAMA, ModelKnobs(device="cpu", device_map="auto"))
    assert "memedit[multi-gpu]" in caught.value.hint
