"""Where every family keeps its down-projections, what each adds to the stream, and which blocks are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from memedit.errors import UnsupportedModelError
from memedit.model.architecture import Architecture, find_architecture, spans
from memedit.model.probe import prove
from tests.families import (
    COMPOSITES,
    FAMILIES,
    MIXTURES,
    NEWER,
    OTHERS,
    POST_NORM,
    POST_NORM_SCALED,
    SCALED,
    each_family,
    family_model,
)
from torch import nn

GAINS = {"granite_scaled": 0.5, "granitemoeshared": 0.22, "gemma4": SCALED, "gemma4_text": SCALED}
REASONS = {
    "gemma3n_text": r"the block of layer 0 gives \(4, 1, 5, 32\) instead of one vector for each token",
    "gemma4_per_layer": "the MLP of block 2 does not add to the residual stream through its norm",
    "gemma4_experts": "the MLP of block 2 does not add to the residual stream through its norm",
    # transformers 5.24 runs these layers for the last token alone, 5.17 for all.
    "gemma4_shared_keys": r"the down-projection of layer 2 gives \(1, 1, 32\) instead of one vector for each token|"
    "the MLP of block 2 does not add to the residual stream through its norm",
}
EDITABLE = {"qwen3_moe": [0, 1], "qwen2_moe": [0], "mixtral": [], "gpt_oss": []}


def proved(family: str) -> Architecture:
    model = family_model(family)
    return prove(model, find_architecture(model))


@pytest.mark.parametrize(
    "family",
    each_family([*FAMILIES, *OTHERS, *NEWER, *COMPOSITES, *(name for name in MIXTURES if EDITABLE.get(name) != [])]),
)
def test_every_editable_block_is_proved_with_its_gain(family: str) -> None:
    architecture = proved(family)
    assert architecture.editable == EDITABLE.get(family, [0, 1, 2, 3])
    assert {architecture.gains[layer] for layer in architecture.editable} == {GAINS.get(family, 1.0)}
    assert all(architecture.mlp_widths[layer] for layer in architecture.editable)


@pytest.mark.parametrize("family", each_family([*FAMILIES, *NEWER, *COMPOSITES]))
def test_a_norm_behind_the_down_projection_is_found_where_there_is_one_and_without_weights_too(family: str) -> None:
    model = family_model(family)
    architecture = find_architecture(model)
    assert [bool(norm) for norm in architecture.norms] == [family in (*POST_NORM, *POST_NORM_SCALED)] * 4
    with torch.device("meta"):
        assert find_architecture(type(model)(model.config)) == architecture


@pytest.mark.slow
@pytest.mark.parametrize("family", POST_NORM)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_is_proved_and_refused_where_it_is_no_rms_norm(family: str, dtype: torch.dtype) -> None:
    model = family_model(family).to(dtype)
    architecture = find_architecture(model)
    assert prove(model, architecture).editable == [0, 1, 2, 3]
    path, _, name = architecture.norms[1].rpartition(".")
    setattr(model.get_submodule(path), name, nn.LayerNorm(architecture.width, dtype=dtype))
    if dtype == torch.float32:
        found = prove(model, architecture)
        assert found.editable == [0, 2, 3]
        assert "no RMS norm" in found.refusals[1]


def test_a_norm_that_is_not_seen_is_refused() -> None:
    model = family_model("olmo2")
    with pytest.raises(UnsupportedModelError, match="one to one"):
        prove(model, replace(find_architecture(model), norms=("",) * 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_behind_the_norm_is_a_gain_and_anything_else_is_refused(dtype: torch.dtype) -> None:
    model = family_model("olmo2").to(dtype)
    model.get_submodule("model.layers.1").register_forward_hook(lambda _module, _args, output: output * 0.25)
    model.get_submodule("model.layers.2").register_forward_hook(lambda _module, _args, output: output.tanh())
    found = prove(model, find_architecture(model))
    assert found.editable == [0, 1, 3] and found.gains == (1.0, 0.25, 1.0, 1.0)
    assert "through its norm" in found.refusals[2]


@pytest.mark.parametrize(("family", "reason"), REASONS.items())
def test_a_block_with_more_behind_its_mlp_is_refused_in_words(family: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        proved(family)
    assert "memedit edits decoder models" in caught.value.hint


def test_a_forward_that_fails_is_a_refusal_with_its_reason() -> None:
    model = family_model("llama")
    architecture = find_architecture(model)
    model.get_submodule("model.layers.2").register_forward_pre_hook(lambda _module, _args: {}["images"])
    for step in (lambda: prove(model, architecture), lambda: find_architecture(model)):
        with pytest.raises(
            UnsupportedModelError, match=r"a forward of text alone fails in transformers [\d.]+: 'images'"
        ):
            step()


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_routed_experts_are_refused_in_words(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="mixture of routed experts"):
        proved(family)


def test_a_mixture_is_refused_layer_by_layer() -> None:
    architecture = proved("qwen3_moe")
    architecture.require([0, 1])
    with pytest.raises(UnsupportedModelError, match="layer 2 cannot be edited: its MLP is a mixture") as caught:
        architecture.require([1, 2])
    assert "--layers 0-1" in caught.value.hint
    gated = proved("qwen2_moe")
    with pytest.raises(UnsupportedModelError, match="a gate that differs from token to token"):
        gated.require([3])
    # Dense layers and shared experts have widths of their own.
    assert proved("deepseek_v3").mlp_widths == (64, 64, 16, 16)


@pytest.mark.parametrize("family", ["gpt2", "granite_scaled", "deepseek_v3"])
def test_structure_is_found_without_weights(family: str) -> None:
    with torch.device("meta"):
        there = find_architecture(type(family_model(family))(family_model(family).config))
    assert there == find_architecture(family_model(family))


def test_a_gain_is_measured_in_half_precision_too() -> None:
    model = family_model("granite_scaled").to(torch.bfloat16)
    assert set(prove(model, find_architecture(model)).gains) == {0.5}


def test_what_leaks_to_other_tokens_is_refused() -> None:
    model = family_model("llama")
    architecture = find_architecture(model)
    block = model.get_submodule("model.layers.1")
    # A block that hands every token half of what its neighbor has.
    block.register_forward_hook(lambda _m, _a, output: output + 0.5 * output.roll(1, 1))
    found = prove(model, architecture)
    assert found.editable == [0, 2, 3]
    assert "does not add" in found.refusals[1]


def test_layers_are_written_as_they_are_read() -> None:
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
