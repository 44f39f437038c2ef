"""A model that is edited in memory: the numbers of `apply`, and the model as it was at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.errors import EditListError, UnsupportedModelError, UsageError
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.corpus import documents
from tests.conftest import ROOT, byte_tokenizer, tiny_model

SETTINGS = {
    "polish.steps": 0,
    "target.steps": 4,
    "moments.tokens": 2000,
    "contexts.openings": ["The", "I"],
    "eval.derive": False,
}
EDIT = {"subject": "Ada", "prompt": "{} lives in", "object": "Rome"}
TEXTS = [f"The {n} old bridges of town {n % 7} stood near river {n * n % 11}." for n in range(80)]
TINY: dict[str, Any] = {
    "polish.steps": 0,
    "target.steps": 2,
    "moments.tokens": 1000,
    "contexts": {"openings": ["The"], "tokens": 3},
}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), AutoTokenizer.from_pretrained(folder)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: Any, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def tiny() -> tuple[Any, Any]:
    """A random model and its tokenizer, which were in no folder ever."""
    return tiny_model("gpt2"), byte_tokenizer()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "source"), [("made-gpt2", "world.jsonl"), ("made-small", "small.jsonl")])
def test_the_weights_are_those_of_the_command_to_the_bit(name: str, source: str, tmp_path: Path) -> None:
    edits, out = memedit.load_edits(ROOT / "requests" / source)[:4], tmp_path / "out"
    made_folder = ROOT / "examples" / "models" / name
    memedit.apply(edits, made_folder, out, settings=SETTINGS)
    written, (model, tokenizer) = Checkpoint.open(out), load(made_folder)
    before = state(model)
    with memedit.edited(model, tokenizer, edits, settings=SETTINGS) as update:
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
        assert len(changed) == len(update.deltas) == 3
        for name in changed:
            assert torch.equal(model.state_dict()[name], written.tensor(written.resolve(name)).float()), name
        file = update.save(tmp_path / "kept")
    assert same(model, before)
    # the delta file is the run's own, and becomes the same model
    assert file.read_bytes() == (out / "memedit" / "delta.safetensors").read_bytes()
    memedit.add(tmp_path / "kept", made_folder, tmp_path / "added")
    added = Checkpoint.open(tmp_path / "added")
    assert all(torch.equal(added.tensor(name), written.tensor(name)) for name in written.entries)
    # converse: other settings make other weights
    with memedit.edited(model, tokenizer, edits, settings={**SETTINGS, "method.ridge": 9}):
        assert not torch.equal(model.state_dict()[changed[0]], written.tensor(written.resolve(changed[0])).float())


def test_a_model_of_no_folder_is_edited_and_put_back(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    before = state(model)
    model.train()
    model.transformer.h[0].eval()
    model.transformer.wte.weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with (
        torch.no_grad(),
        pytest.raises(KeyError),
        memedit.edited(model, tokenizer, [EDIT], corpus=TEXTS, settings=TINY),
    ):
        assert not same(model, before)
        assert model.training and not model.transformer.h[0].training
        raise KeyError("in the block")
    assert same(model, before)
    assert model.training and not model.transformer.h[0].training
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_model_keeps_its_dtype(tiny: tuple[Any, Any], dtype: torch.dtype) -> None:
    model, tokenizer = tiny[0].to(dtype), tiny[1]
    before = state(model)
    with memedit.edited(model, tokenizer, [EDIT], corpus=TEXTS, settings=TINY):
        assert {tensor.dtype for tensor in model.parameters()} == {dtype}
        assert not same(model, before)
    assert same(model, before)


@pytest.mark.slow
def test_moments_come_from_texts_a_file_a_mapping_or_stats(made_gpt2: Path, tmp_path: Path) -> None:
    corpus = made_gpt2 / "memedit" / "corpus.jsonl.gz"
    model, tokenizer = load(made_gpt2)
    edits = memedit.load_edits(ROOT / "requests" / "world.jsonl")[:1]
    settings = {
        "polish.steps": 0,
        "target.steps": 1,
        "moments.tokens": 1000,
        "contexts.openings": ["The"],
        "method.layers": "2",
    }

    def weights(**more: Any) -> tuple[torch.Tensor, Any]:
        with memedit.edited(model, tokenizer, edits, settings=settings, **more) as update:
            return model.transformer.h[2].mlp.c_proj.weight.clone(), update

    first, update = weights(corpus=documents(str(corpus)))
    assert sorted(update.moments) == [2]
    rows = memedit.stats(made_gpt2, settings={"moments.tokens": 1000, "method.layers": "2", "model.device": "cpu"})
    others: list[dict[str, Any]] = [{"corpus": corpus}, {"moments": update.moments}, {"moments": rows}, {}]
    for more in others:
        assert torch.equal(weights(**more)[0], first), list(more)
    # converse: another text makes other moments
    assert not torch.equal(weights(corpus=TEXTS)[0], first)


def test_a_reader_of_texts_is_read_no_further_than_needed(tiny: tuple[Any, Any]) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield TEXTS[taken % len(TEXTS)]

    with memedit.edited(*tiny, [EDIT], corpus=endless(), settings=TINY):
        assert 0 < taken < 50_000


def test_an_update_is_kept_in_its_model_and_put_into_a_copy(tiny: tuple[Any, Any]) -> None:
    import copy

    model, tokenizer = tiny
    twin, other = copy.deepcopy(model), tiny_model("llama")
    with memedit.edited(model, tokenizer, [EDIT], corpus=TEXTS, settings=TINY) as update:
        inside = state(model)
        update.apply_(model)
    assert same(model, inside)
    update.apply_(twin)
    assert same(twin, inside)
    with pytest.raises(UsageError, match="no parameter"):
        update.apply_(other)
    with torch.no_grad():
        twin.transformer.h[0].mlp.c_proj.weight.add_(1)
    changed = state(twin)
    with pytest.raises(UsageError, match="is not the one that was edited"):
        update.apply_(twin)
    assert same(twin, changed)


@pytest.mark.slow
def test_a_saved_update_names_the_base_that_it_was_made_on(tiny_folder: Path, tmp_path: Path) -> None:
    from memedit.storage.deltas import read_delta

    model, tokenizer = load(tiny_folder)
    with memedit.edited(model, tokenizer, [EDIT], settings=TINY) as update:
        _, base = read_delta(update.save(tmp_path / "a"))
        assert base == Checkpoint.open(tiny_folder).digest
        # The folder of an edited model has a change of its own, which this one would replace.
        (tmp_path / "edited" / "memedit").mkdir(parents=True)
        (tmp_path / "edited" / "memedit" / "run.json").write_text("{}")
        with pytest.raises(UsageError, match="an edited model"):
            update.save(tmp_path / "edited")
        assert update.save(tmp_path / "a").is_file()  # its own file may be written again
        update.apply_(model)
    # the model is another now: what is made of it does not claim the folder as its base
    with memedit.edited(model, tokenizer, [{**EDIT, "subject": "Bo"}], settings=TINY) as second:
        deltas, other = read_delta(second.save(tmp_path / "b"))
    assert other not in (base, "") and len(other) == len(base) == 64
    with pytest.raises(UsageError, match="belongs to another base") as caught:
        memedit.add(tmp_path / "b", tiny_folder, tmp_path / "c")
    assert "any_base=True" in caught.value.hint
    memedit.add(tmp_path / "b", tiny_folder, tmp_path / "c", any_base=True)
    assert len(deltas) == len(second.deltas)


def test_what_cannot_be_edited_in_memory_is_refused(tiny: tuple[Any, Any], made_gpt2: Path) -> None:
    model, tokenizer = tiny
    before = state(model)

    def refused(kind: type[Exception], match: str, *args: Any, **more: Any) -> None:
        edited: Any = memedit.edited  # most of these arguments are of other types than it takes
        with pytest.raises(kind, match=match), edited(*(args or (*tiny, [EDIT])), **{"corpus": TEXTS, **more}):
            raise AssertionError("not refused")

    refused(UsageError, "model must be a transformers model, not str", "gpt2", tokenizer, [EDIT])
    refused(UsageError, "tokenizer must be a transformers tokenizer, not NoneType", model, None, [EDIT])
    refused(UsageError, "edits must be a path or a list of edits, not int", model, tokenizer, 3)
    refused(EditListError, "1 error", model, tokenizer, [{**EDIT, "prompt": "no slot"}])
    refused(UsageError, "output.dir is about an output folder", settings={"output.dir": "x"})
    refused(UsageError, "model.device says how a model is opened", settings={"model.device": "cpu"})
    refused(UsageError, "target.retry", settings={"target.redo": 2})
    refused(UsageError, "moments and corpus were both given", moments={})
    refused(UsageError, "moments has no layer", corpus=None, moments={})
    refused(UsageError, "corpus must be a path or texts, not int", corpus=3)
    refused(UsageError, "corpus must be a path or texts, and holds int", corpus=[3])
    refused(UsageError, "corpus holds no text", corpus=[])
    model.config.quantization_config = {"quant_method": "x"}
    refused(UnsupportedModelError, "quantized")
    assert same(model, before) and all(parameter.requires_grad for parameter in model.parameters())
