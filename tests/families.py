"""Tiny random models of many families, built from configs: what the engine must hold for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

COMMON: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPT: dict[str, Any] = {
    "vocab_size": 258, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256, "n_inner": 64,
    "initializer_range": 0.2, "attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
NO_HEAD_DIM = {name: value for name, value in COMMON.items() if name != "head_dim"}
WINDOW: dict[str, Any] = {"sliding_window": 6}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT),
    "gpt_neo": (
        "gpt_neo",
        {
            "vocab_size": 258, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "intermediate_size": 64,
            "attention_types": [[["global", "local"], 2]], "window_size": 4, "max_position_embeddings": 256,
            "initializer_range": 0.2,
        },
    ),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}),
    "codegen": ("codegen", {**GPT, "rotary_dim": 4}),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_neox": ("gpt_neox", COMMON),
    "gpt_neox_sequential": ("gpt_neox", {**COMMON, "use_parallel_residual": False}),
    "opt": ("opt", {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "bloom": ("bloom", {"vocab_size": 258, "hidden_size": 32, "n_layer": 4, "n_head": 4, "initializer_range": 0.2}),
    "mpt": ("mpt", {"vocab_size": 258, "d_model": 32, "n_layers": 4, "n_heads": 4, "expansion_ratio": 2,
                    "max_seq_len": 256, "initializer_range": 0.2}),
    "falcon": ("falcon", {**NO_HEAD_DIM, "alibi": False, "new_decoder_architecture": False, "multi_query": True}),
    "falcon_alibi": ("falcon", {**NO_HEAD_DIM, "alibi": True, "parallel_attn": False, "multi_query": False}),
    "falcon_new": ("falcon", {**NO_HEAD_DIM, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "phi": ("phi", COMMON),
    "phi3": ("phi3", COMMON),
    "llama": ("llama", COMMON),
    "mistral": ("mistral", {**COMMON, **WINDOW}),
    "qwen2": ("qwen2", COMMON),
    "qwen2_window": ("qwen2", {**COMMON, **WINDOW, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": ("qwen3", COMMON),
    "gemma": ("gemma", COMMON),
    "gemma2": ("gemma2", {**COMMON, **WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3_text": ("gemma3_text", {**COMMON, **WINDOW, "query_pre_attn_scalar": 8}),
    "olmo": ("olmo", COMMON),
    "olmo2": ("olmo2", COMMON),
    "olmo3": ("olmo3", {**COMMON, **WINDOW}),
    "exaone4": ("exaone4", {**COMMON, **WINDOW, "sliding_window_pattern": 4}),
    "stablelm": ("stablelm", COMMON),
    "starcoder2": ("starcoder2", {**COMMON, **WINDOW}),
    "smollm3": ("smollm3", COMMON),
    "cohere": ("cohere", COMMON),
    "granite": ("granite", COMMON),
    "granite_scaled": ("granite", {**COMMON, "residual_multiplier": 0.5, "attention_multiplier": 0.2}),
    "nemotron": ("nemotron", COMMON),
    "glm4": ("glm4", COMMON),
}  # fmt: skip

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("apertus", COMMON),
    "arcee": ("arcee", COMMON),
    "cohere2": ("cohere2", {**COMMON, **WINDOW}),
    "ernie4_5": ("ernie4_5", COMMON),
    "glm": ("glm", COMMON),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", COMMON),
    "lfm2": ("lfm2", {**COMMON, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False}),
    "seed_oss": ("seed_oss", COMMON),
    "xglm": ("xglm", {**COMMON, "d_model": 32, "ffn_dim": 64, "num_layers": 4, "attention_heads": 4}),
}  # fmt: skip
"""More dense families, for the tests that take each through everything."""
EXPERTS: dict[str, Any] = {
    **COMMON, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v3": ("deepseek_v3", {**EXPERTS, **LATENT, "first_k_dense_replace": 2}),
    "glm4_moe": ("glm4_moe", {**EXPERTS, "first_k_dense_replace": 1}),
    "llama4_text": ("llama4_text", {**EXPERTS, "intermediate_size_mlp": 64}),
    "granitemoeshared": (
        "granitemoeshared", {**EXPERTS, "shared_intermediate_size": 32, "residual_multiplier": 0.22}
    ),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "mlp_only_layers": [0, 1]}),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 32, "mlp_only_layers": [0]}),
    "mixtral": ("mixtral", EXPERTS),
    "gpt_oss": ("gpt_oss", {**EXPERTS, **WINDOW}),
}  # fmt: skip
"""Mixtures of experts: their dense layers and their shared experts can be edited."""
LINEAR_ATTENTION: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "mrope_interleaved": True,
        "mrope_section": [1, 1, 2],
    },
}  # fmt: skip
GEMMA4: dict[str, Any] = {
    **COMMON, **WINDOW, "pad_token_id": 0, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "global_head_dim": 8,
}  # fmt: skip
SCALED = 0.375
"""The scale of every block's output in the Gemma 4 models here; that of the released ones differs from one too."""
PER_LAYER: dict[str, Any] = {
    **COMMON, "pad_token_id": 0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 258,
    "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"] * 2, "global_head_dim": 8,
}  # fmt: skip
NEWER: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5_text": ("qwen3_5_text", {**COMMON, **LINEAR_ATTENTION}),
    "gemma4_text": ("gemma4_text", GEMMA4),
}
"""Text models of families that are also released with other towers."""
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3n_text": ("gemma3n_text", {**PER_LAYER, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4}),
    "gemma4_per_layer": ("gemma4_text", PER_LAYER),
    "gemma4_experts": (
        "gemma4_text",
        {**GEMMA4, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    ),
    "gemma4_shared_keys": ("gemma4_text", {**PER_LAYER, "num_kv_shared_layers": 2}),
}
"""Families with more in a block behind the MLP: no change of the down-projection's output is added to the stream."""
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
    "image_size": 8,
}  # fmt: skip
QWEN_VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
}  # fmt: skip
IMAGES: dict[str, Any] = {
    "image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253,
}  # fmt: skip
MROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
COMPOSITES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3", {
        "text_config": {"model_type": "gemma3_text", **COMMON, **WINDOW, "query_pre_attn_scalar": 8},
        "vision_config": {"model_type": "siglip_vision_model", **VISION}, "mm_tokens_per_image": 4,
        "image_token_index": 250, "boi_token_index": 251, "eoi_token_index": 252,
    }),
    "gemma4": ("gemma4", {
        "text_config": {"model_type": "gemma4_text", **GEMMA4}, "audio_config": None, "image_token_id": 250,
        "vision_config": {"model_type": "gemma4_vision", **VISION, "head_dim": 8, "num_key_value_heads": 2},
        "boi_token_id": 251, "eoi_token_id": 252,
    }),
    "llava": ("llava", {
        "text_config": {"model_type": "llama", **COMMON}, "image_token_index": 250, "image_seq_length": 4,
        "vision_config": {"model_type": "clip_vision_model", **VISION, "projection_dim": 16},
    }),
    "mistral3": ("mistral3", {
        "text_config": {"model_type": "mistral", **COMMON}, "image_token_index": 250,
        "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 8},
    }),
    "qwen2_vl": ("qwen2_vl", {
        "text_config": {**COMMON, **MROPE}, **IMAGES,
        "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
                          "patch_size": 4},
    }),
    "qwen2_5_vl": ("qwen2_5_vl", {
        "text_config": {**COMMON, **MROPE}, **IMAGES,
        "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [1], "window_size": 16},
    }),
    "qwen3_5": ("qwen3_5", {
        "text_config": {**COMMON, **LINEAR_ATTENTION}, **IMAGES,
        "vision_config": {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": []},
    }),
}  # fmt: skip
"""A language model beside a vision tower; the checkpoint names its tensors otherwise than the model in memory."""
EVERY = {**FAMILIES, **OTHERS, **MIXTURES, **NEWER, **REFUSED, **COMPOSITES}


IN_THE_FAST_TIER = ("gpt2", "llama", "olmo2", "llava")
"""One of each kind: learned positions, rotary ones and gates, norms behind, a vision tower beside."""


def each_family(names: Iterable[str]) -> list[Any]:
    """Test parameters: the families named, those outside the fast tier marked `slow`."""
    return [pytest.param(name, marks=() if name in IN_THE_FAST_TIER else pytest.mark.slow) for name in names]


def family_model(name: str, *, seed: int = 3) -> Any:
    """A random model of four blocks, width 32, in float32, with weights large enough that every part of it matters."""
    kind, knobs = EVERY[name]
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[kind](**knobs)
    auto = AutoModelForImageTextToText if name in COMPOSITES else AutoModelForCausalLM
    model = auto.from_config(config).float().eval().requires_grad_(False)
    # Norms begin at one (Gemma's at zero) and biases at zero: moved, they must be carried through like the rest.
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    for part, buffer in model.named_buffers():
        if part.endswith("layer_scalar"):
            buffer.fill_(SCALED)
    return model


POST_NORM = ("gemma2", "gemma3_text", "gemma3", "olmo2", "olmo3", "exaone4", "glm4")
"""A norm stands between the down-projection and the residual stream."""
POST_NORM_SCALED = ("gemma4_text", "gemma4")
"""Besides, each block scales the stream behind that norm."""
