"""Norm, head and the way attention and MLP share a block, against what each family's config says."""

from __future__ import annotations

import pytest
import torch
from memedit.model.architecture import find_architecture
from memedit.model.head import HeadLayout, describe_head
from tests.families import FAMILIES, each_family, family_model

PARALLEL = ("gptj", "codegen", "gpt_neox", "falcon", "falcon_new", "phi", "cohere")
BIASED_HEADS = ("gptj", "codegen", "phi")
CAPS = {"gemma2": 30.0}
SCALES = {"cohere": 0.0625}
NORMS = {
    "gpt2": "transformer.ln_f", "bloom": "transformer.ln_f", "mpt": "transformer.norm_f", "llama": "model.norm",
    "opt": "model.decoder.final_layer_norm", "gpt_neox": "gpt_neox.final_layer_norm", "olmo": "model.norm",
    "phi": "model.final_layernorm",
}  # fmt: skip


def around(family: str, *, measure: bool = True) -> HeadLayout:
    model = family_model(family)
    return describe_head(model, find_architecture(model), measure=measure)


@pytest.mark.parametrize("family", each_family(FAMILIES))
def test_what_is_measured_is_what_the_family_does(family: str) -> None:
    found = around(family)
    assert found.parallel == (family in PARALLEL)
    assert found.head_bias == (family in BIASED_HEADS)
    assert (found.scale, found.cap) == (SCALES.get(family, 1.0), CAPS.get(family))
    assert found.norm == NORMS.get(family, found.norm) and found.norm is not None
    model = family_model(family)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert found.tied == (head.weight.data_ptr() == embedding.weight.data_ptr())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tying_is_seen_without_weights(family: str) -> None:
    model = family_model(family)
    with torch.device("meta"):
        empty = type(model)(model.config)
    found = describe_head(empty, find_architecture(empty), measure=False)
    assert found.tied == around(family).tied == (family == "gpt2")
    assert (found.scale, found.cap, found.parallel) == (None, None, None)
