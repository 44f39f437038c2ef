"""Hostile model folders: what is changed in a sound one, and words of the one line that refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Change = Callable[[Path], None]


class FolderCase(NamedTuple):
    """One hostile folder."""

    name: str
    change: Change
    says: str
    code: int = 4


def config(**values: Any) -> Change:
    """Set values in config.json."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def without(name: str) -> Change:
    """Take a value out of config.json."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != name}))

    return change


def text(file: str, content: str | bytes) -> Change:
    """Write a file."""

    def change(folder: Path) -> None:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def tokenizer(**values: Any) -> Change:
    """Set values in tokenizer.json."""

    def change(folder: Path) -> None:
        file = folder / "tokenizer.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def folder_instead(name: str) -> Change:
    """Put a folder in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


NESTED = '{"a":' * 100_000

CONFIGS = [
    FolderCase("a list", text("config.json", "[]"), "holds a list where a JSON object belongs"),
    FolderCase("null", text("config.json", "null"), "holds null where a JSON object belongs"),
    FolderCase("a number", text("config.json", "7"), "holds a number or truth value"),
    FolderCase("a text", text("config.json", '"gpt2"'), "holds text"),
    FolderCase("nothing", text("config.json", ""), "is not valid JSON", 2),
    FolderCase("cut short", text("config.json", '{"model_type": '), "is not valid JSON", 2),
    FolderCase("not UTF-8", text("config.json", b'{"a": "\xe7"}'), "is not valid JSON", 2),
    FolderCase("nested without end", text("config.json", NESTED), "is not valid JSON", 2),
    FolderCase("a folder", folder_instead("config.json"), "holds no config.json", 2),
    FolderCase("too large", text("config.json", b" " * (17 << 20)), "which no model's config has"),
    FolderCase("an object without a type", text("config.json", "{}"), "cannot be opened"),
    FolderCase("no type", without("model_type"), "cannot be opened"),
    FolderCase("a type nobody knows", config(model_type="llamma"), "cannot be opened"),
    FolderCase("a type that is a list", config(model_type=["llama"]), "cannot be opened"),
    FolderCase("a type that is null", config(model_type=None), "cannot be opened"),
    FolderCase("a type that is an object", config(model_type={"a": 1}), "cannot be opened"),
    FolderCase("a type of another kind", config(model_type="vit"), "cannot be opened"),
    FolderCase("a billion layers", config(num_hidden_layers=10**9), "num_hidden_layers = 1000000000"),
    FolderCase("layers as text", config(num_hidden_layers="4"), 'num_hidden_layers = "4"'),
    FolderCase("layers as a float", config(num_hidden_layers=4.0), "num_hidden_layers = 4.0"),
    FolderCase("layers as true", config(num_hidden_layers=True), "num_hidden_layers = true"),
    FolderCase("no layers", config(num_hidden_layers=0), "num_hidden_layers = 0"),
    FolderCase("fewer layers than none", config(num_hidden_layers=-4), "num_hidden_layers = -4"),
    FolderCase("layers as an object", config(num_hidden_layers={}), ""),
    FolderCase("no heads", config(num_attention_heads=0), "num_attention_heads = 0"),
    FolderCase("heads as text", config(num_attention_heads="many"), 'num_attention_heads = "many"'),
    FolderCase("heads that do not divide", config(num_attention_heads=7, head_dim=None), ""),
    FolderCase("no key heads", config(num_key_value_heads=0), ""),
    FolderCase("a width of ten million", config(hidden_size=10**7), "hidden_size = 10000000"),
    FolderCase("a width below zero", config(hidden_size=-32), "hidden_size = -32"),
    FolderCase("a width that is a list", config(hidden_size=[32, 10**9]), "hidden_size = 1000000000"),
    FolderCase("an MLP of a billion", config(intermediate_size=10**9), "intermediate_size = 1000000000"),
    FolderCase("a vocabulary of a trillion", config(vocab_size=10**12), "vocab_size = 1000000000000"),
    FolderCase("no vocabulary", config(vocab_size=0), "vocab_size = 0"),
    FolderCase("positions below zero", config(max_position_embeddings=-1), "max_position_embeddings = -1"),
    FolderCase("a billion layers, nested", config(text_config={"num_hidden_layers": 10**9}), "num_hidden_layers"),
    FolderCase("nested text_config as text", config(text_config="llama"), ""),
    FolderCase("a dtype that is none", config(dtype="float99"), 'dtype = "float99"'),
    FolderCase("a dtype to be chosen", config(dtype="auto"), 'dtype = "auto"'),
    FolderCase("an old dtype to be chosen", config(torch_dtype="auto"), 'torch_dtype = "auto"'),
    FolderCase("a dtype of whole numbers", config(dtype="int8"), 'dtype = "int8"'),
    FolderCase("a dtype that is a function", config(dtype="load"), 'dtype = "load"'),
    FolderCase("a dtype that is a number", config(dtype=16), "dtype = 16"),
    FolderCase("quantization as text", config(quantization_config="gptq"), "is quantized (gptq)"),
    FolderCase("quantization as a list", config(quantization_config=[1]), "is quantized (an unnamed method)"),
    FolderCase("quantization named by a number", config(quantization_config={"quant_method": 4}), "is quantized (an"),
    FolderCase("an activation nobody knows", config(hidden_act="sigmoidal"), "cannot be opened"),
    FolderCase("an activation that is a list", config(hidden_act=["silu"]), "cannot be opened"),
    FolderCase("rope as text", config(rope_parameters="linear"), "cannot be opened"),
    FolderCase("rope of an unknown kind", config(rope_parameters={"rope_type": "x", "rope_theta": 1.0}), "cannot be"),
    FolderCase("code of its own", config(auto_map={"AutoModel": "m.M"}), "needs Python code"),
]  # fmt: skip
"""Refused by the config alone."""

TOKENIZERS = [
    FolderCase("null", text("tokenizer.json", "null"), "has no tokenizer that can be read", 2),
    FolderCase("a list", text("tokenizer.json", "[]"), "has no tokenizer that can be read", 2),
    FolderCase("nothing", text("tokenizer.json", ""), "has no tokenizer that can be read", 2),
    FolderCase("nested without end", text("tokenizer.json", NESTED), "has no tokenizer that can be read", 2),
    FolderCase("no model", tokenizer(model=None), "has no tokenizer that can be read", 2),
    FolderCase("a model as text", tokenizer(model="BPE"), "has no tokenizer that can be read", 2),
    FolderCase("a version to come", tokenizer(version="9.0"), "has no tokenizer that can be read", 2),
    FolderCase("a config that is a list", text("tokenizer_config.json", "[]"), "has no tokenizer that can be read", 2),
    FolderCase("a config that is null", text("tokenizer_config.json", "null"), "has no tokenizer that can be read", 2),
    FolderCase("a config cut short", text("tokenizer_config.json", "{"), "has no tokenizer that can be read", 2),
]
"""Refused by the tokenizer's files alone."""
