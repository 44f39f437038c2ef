"""Hostile deltas, ledgers, adapters and records of runs: a folder of sound ones, a change, a command and its exit code.

In a command MODEL is the sound base, EDITED a folder that apply wrote, LORA an adapter, EDITS and MORE are edit lists,
and OUT is a folder that must not exist afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.malformed.checkpoints import HEADERS, INDEXES
from tests.malformed.folders import CONFIGS, NESTED, TOKENIZERS

Change = Callable[[Path], None]
FEW = (
    "--set",
    "polish.steps=0",
    "--set",
    "target.steps=1",
    "--set",
    "moments.tokens=50",
    "--set",
    "contexts.tokens=3",
    "--layers",
    "1",
)
APPLY = ("apply", "EDITS", "-m", "MODEL", "-o", "OUT", *FEW)
ADD = ("apply", "--delta", "EDITED", "-m", "MODEL", "-o", "OUT")
EXPORT = ("export", "EDITED", "--to", "lora", "-m", "MODEL", "-o", "OUT")
REVERT = ("revert", "EDITED", "-o", "OUT")
AGAIN = ("apply", "MORE", "-m", "EDITED", "-o", "OUT")
FORGET = ("forget", "one", "-m", "EDITED", "-o", "OUT")
EVAL = ("eval", "EDITS", "-m", "MODEL", "--adapter", "LORA")


class Hostile(NamedTuple):
    """One hostile input."""

    name: str
    change: Change
    """What is done to the folder that holds MODEL, EDITED and LORA."""
    command: tuple[str, ...]
    codes: tuple[int, ...]
    says: str = ""


def inside(folder: str, change: Change) -> Change:
    """Make a change in a folder of the sound ones."""
    return lambda root: change(root / folder)


def put(file: str, data: bytes) -> Change:
    """Write a file."""

    def change(root: Path) -> None:
        (root / file).unlink(missing_ok=True)
        (root / file).write_bytes(data)

    return change


def sharded(index: bytes) -> Change:
    """Put an index in the place of the one weight file."""

    def change(root: Path) -> None:
        (root / "MODEL" / "model.safetensors").rename(root / "MODEL" / "model-00001-of-00001.safetensors")
        (root / "MODEL" / "model.safetensors.index.json").write_bytes(index)

    return change


def field(file: str, *path: str | int, value: Any) -> Change:
    """Set a value in a JSON file, or in the first line of a .jsonl file; `...` removes it."""

    def change(root: Path) -> None:
        first, _, rest = (root / file).read_text().partition("\n" if file.endswith("l") else "\0")
        tree: Any = json.loads(first)
        holder = tree
        for part in path[:-1]:
            holder = holder[part]
        if value is ...:
            holder.pop(path[-1], None)
        else:
            holder[path[-1]] = value
        (root / file).write_text(json.dumps(tree) + ("\n" + rest if file.endswith("l") else ""))

    return change


def tensors(file: str, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> Change:
    """Change the tensors and the metadata of a file."""

    def changed(root: Path) -> None:
        with safe_open(root / file, "pt") as kept:
            metadata = dict(kept.metadata() or {})
        found = load_file(root / file)
        change(found, metadata)
        save_file({name: part.contiguous() for name, part in found.items()}, root / file, metadata)

    return changed


def _about(**values: Any) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    def change(_tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        metadata["about"] = json.dumps({**json.loads(metadata["about"]), **values})

    return change


def _metadata(**values: str | None) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    def change(_tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        for name, value in values.items():
            metadata.pop(name, None)
            if value is not None:
                metadata[name] = value

    return change


def _each(do: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    def change(found: dict[str, torch.Tensor], _metadata: dict[str, str]) -> None:
        for name, part in found.items():
            found[name] = do(part)

    return change


def _renamed(do: Callable[[str], str]) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    def change(found: dict[str, torch.Tensor], _metadata: dict[str, str]) -> None:
        for name in list(found):
            part = found.pop(name)
            found[do(name)] = part

    return change


def _without_first(found: dict[str, torch.Tensor], _metadata: dict[str, str]) -> None:
    del found[min(found)]


def _wider(found: dict[str, torch.Tensor], _metadata: dict[str, str]) -> None:
    for name, part in found.items():
        if "lora_A" in name:
            found[name] = torch.cat([part, part], 1)


def _first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(part: torch.Tensor) -> torch.Tensor:
        if part.is_floating_point():
            part.view(-1)[0] = value
        return part

    return change


DELTA, LEDGER = "EDITED/memedit/delta.safetensors", "EDITED/memedit/ledger.safetensors"
LINES = "EDITED/memedit/ledger.jsonl"
RUN, ADAPTER, WEIGHTS = "EDITED/memedit/run.json", "LORA/adapter_config.json", "LORA/adapter_model.safetensors"
ODD: tuple[tuple[str, Any], ...] = (
    ("null", None), ("a number", 7), ("a text", "x"), ("a list", ["x"]), ("an object", {"x": [1]}), ("missing", ...),
)  # fmt: skip
SOUND_LINES = {("on", "a text"), ("group", "a text"), ("loss", "a number"), ("steps", "a number")}
PATTERNS = (
    "(a+)+$", "(.*)*x", "[", "a{9999}", "(?R)", "\\", "", "." * 5000, "(a|a)*b", ".*" * 60, "a" * 101, "[[:alpha:]]",
)  # fmt: skip
NAN, INF = float("nan"), float("inf")
BYTES: tuple[tuple[str, bytes], ...] = (
    ("nothing", b""), ("a list", b"[]"), ("null", b"null"), ("nested without end", NESTED.encode()),
    ("not UTF-8", b'{"a": "\xe7"}'), ("NUL bytes", bytes(1000)), ("cut short", b'{"a": '),
)  # fmt: skip

MODELS = [
    *(Hostile(f"config: {one.name}", inside("MODEL", one.change), APPLY, (1, 2, 4)) for one in CONFIGS),
    *(Hostile(f"tokenizer: {one.name}", inside("MODEL", one.change), APPLY, (2,)) for one in TOKENIZERS),
    *(Hostile(f"weights: {one.name}", put("MODEL/model.safetensors", one.data), APPLY, (1, 2, 4)) for one in HEADERS),
    *(Hostile(f"index: {name}", sharded(data), APPLY, (1, 2, 4)) for name, data in INDEXES.items()),
]
DELTAS = [
    *(Hostile(f"delta: {one.name}", put(DELTA, one.data), ADD, (1,)) for one in HEADERS),
    Hostile("delta: another kind of file", tensors(DELTA, _metadata(format="pt")), ADD, (1,), "no delta file"),
    Hostile("delta: a version to come", tensors(DELTA, _metadata(version="2")), EXPORT, (1,), "no delta file"),
    Hostile("delta: no base", tensors(DELTA, _metadata(base=None)), ADD, (1,), "damaged"),
    Hostile("delta: another base", tensors(DELTA, _metadata(base="0" * 64)), ADD, (2,), "base"),
    Hostile("delta: a base that is a control sequence", tensors(DELTA, _metadata(base="\x1b[2J")), ADD, (2,)),
    Hostile("delta: NaN", tensors(DELTA, _each(_first(NAN))), ADD, (1,), "not finite"),
    Hostile("delta: infinity", tensors(DELTA, _each(_first(INF))), EXPORT, (1,), "not finite"),
    Hostile("delta: NaN, revert", tensors(DELTA, _each(_first(NAN))), (*REVERT, "-m", "MODEL"), (1,), "not finite"),
    Hostile("delta: whole numbers", tensors(DELTA, _each(lambda part: part.long())), ADD, (1,)),
    Hostile("delta: one dimension", tensors(DELTA, _each(lambda part: part.reshape(-1))), ADD, (1,)),
    Hostile("delta: three dimensions", tensors(DELTA, _each(lambda part: part[None])), ADD, (1,)),
    Hostile("delta: factors that disagree", tensors(DELTA, _each(lambda part: part[:, :0])), ADD, (1, 2)),
    Hostile("delta: factors transposed", tensors(DELTA, _each(lambda part: part.T)), ADD, (1, 2)),
    Hostile("delta: a tensor that the model lacks", tensors(DELTA, _renamed(lambda name: f"x.{name}")), ADD, (1, 2)),
    Hostile("delta: line breaks in names", tensors(DELTA, _renamed(lambda name: f"a\n\x1b[J{name}")), ADD, (1, 2)),
    Hostile("delta: a name of 5,000 letters", tensors(DELTA, _renamed(lambda name: "x" * 5000 + name)), ADD, (1, 2)),
    Hostile("delta: parts without a name", tensors(DELTA, _renamed(lambda name: name.split(".")[-1])), ADD, (1, 2)),
    Hostile("delta: one part alone", tensors(DELTA, _without_first), ADD, (1,)),
]
LEDGERS = [
    *(Hostile(f"ledger: {one.name}", put(LEDGER, one.data), AGAIN, (1,), "ledger") for one in HEADERS),
    *(Hostile(f"ledger lines: {name}", put(LINES, data), AGAIN, (1,), "ledger") for name, data in BYTES),
    *(
        Hostile(f"ledger line: {name} is {what}", field(LINES, name, value=value), AGAIN, (1,), "ledger")
        for name in ("edit", "digest", "found", "on", "group", "loss", "steps")
        for what, value in ODD
        if (name, what) not in SOUND_LINES
    ),
    *(
        Hostile(f"ledger edit: {name} is {what}", field(LINES, "edit", name, value=value), AGAIN, (1,), "ledger")
        for name in ("subject", "prompt", "object")
        for what, value in ODD
    ),
    *(
        Hostile(f"ledger about: {name} is {what}", tensors(LEDGER, _about(**{name: value})), AGAIN, (1,), "ledger")
        for name in ("base", "contexts", "knobs", "layers")
        for what, value in ODD
        if value is not ... and (name, what) not in {("contexts", "a list"), ("knobs", "an object")}
    ),
    *(
        Hostile(
            f"ledger setting {name[:40]!r} = {value!r}",
            tensors(LEDGER, _about(knobs={name: value})),
            AGAIN,
            (1,),
            "ledger",
        )
        for name, value in (
            ("model.trust_remote_code", True),
            ("output.overwrite", True),
            ("output.dir", "/"),
            ("memory", "1GB"),
            ("method.ridge", -1),
            ("method.ridge", "x"),
            ("seed", 2**64),
            ("contexts.tokens", 0),
            ("x" * 5000, 1),
            ("a\x1b[2Jb", 1),
            ("model.dtype", "int8"),
            ("target.steps", None),
        )
    ),
    Hostile("ledger: no targets", tensors(LEDGER, _renamed(lambda _name: "x")), AGAIN, (1,), "ledger"),
    Hostile("ledger: too many rows", tensors(LEDGER, _each(lambda part: part.repeat(2, 1))), AGAIN, (1,), "ledger"),
    Hostile("ledger: rows too wide", tensors(LEDGER, _each(lambda part: part.repeat(1, 2))), AGAIN, (1,), "ledger"),
    Hostile("ledger: NaN", tensors(LEDGER, _each(_first(NAN))), AGAIN, (1,), "not finite"),
    Hostile("ledger: NaN, forget", tensors(LEDGER, _each(_first(NAN))), FORGET, (1,), "not finite"),
    Hostile("ledger: half precision", tensors(LEDGER, _each(lambda part: part.half())), AGAIN, (1,), "ledger"),
    Hostile("ledger: another format", tensors(LEDGER, _metadata(format="pt")), AGAIN, (1,), "ledger"),
    Hostile("ledger: no metadata", tensors(LEDGER, _metadata(about=None)), AGAIN, (1,), "ledger"),
    Hostile("ledger: layers that the model lacks", tensors(LEDGER, _about(layers=[99])), AGAIN, (1, 2, 4)),
    Hostile("ledger: a base elsewhere", tensors(LEDGER, _about(base={"path": "/none", "digest": "0"})), AGAIN, (1, 2)),
]
ADAPTERS = [
    *(Hostile(f"adapter: {one.name}", put(WEIGHTS, one.data), EVAL, (1, 4)) for one in HEADERS),
    *(Hostile(f"adapter config: {name}", put(ADAPTER, data), EVAL, (1, 4)) for name, data in BYTES),
    *(
        Hostile(f"adapter: {name} is {what}", field(ADAPTER, name, value=value), EVAL, (1, 4))
        for name, values in (
            ("peft_type", ODD),
            ("r", [one for one in ODD if one[0] != "missing"]),
            ("lora_alpha", [one for one in ODD if one[0] not in ("missing", "a number")]),
            ("rank_pattern", [one for one in ODD if one[0] not in ("null", "missing", "an object")]),
            ("alpha_pattern", [one for one in ODD if one[0] not in ("null", "missing", "an object")]),
            ("use_dora", [("true", True), ("a text", "x")]),
            ("bias", [("all", "all"), ("a list", [1])]),
            ("modules_to_save", [("a list", ["lm_head"])]),
        )
        for what, value in values
    ),
    *(
        Hostile(f"adapter: pattern {n}", field(ADAPTER, "rank_pattern", value={pattern: 3}), EVAL, (1, 4))
        for n, pattern in enumerate(PATTERNS)
    ),
    Hostile("adapter: no weights", lambda root: (root / WEIGHTS).unlink(), EVAL, (1,)),
    Hostile("adapter: no config", lambda root: (root / ADAPTER).unlink(), EVAL, (1,)),
    Hostile("adapter: NaN", tensors(WEIGHTS, _each(_first(NAN))), EVAL, (1,), "not finite"),
    Hostile("adapter: infinity", tensors(WEIGHTS, _each(_first(INF))), EVAL, (1,), "not finite"),
    Hostile("adapter: other names", tensors(WEIGHTS, _renamed(lambda name: f"x.{name}")), EVAL, (4,), "no factor"),
    Hostile("adapter: one factor alone", tensors(WEIGHTS, _without_first), EVAL, (1,)),
    Hostile("adapter: factors that disagree", tensors(WEIGHTS, _each(lambda part: part[:, :1])), EVAL, (1, 2)),
    Hostile(
        "adapter: a module that the model lacks",
        tensors(WEIGHTS, _renamed(lambda name: name.replace(".1.", ".77."))),
        EVAL,
        (2,),
    ),
    Hostile("adapter: of another width", tensors(WEIGHTS, _wider), EVAL, (2,)),
]
RUNS = [
    *(Hostile(f"run: {name}", put(RUN, data), REVERT, (1, 2)) for name, data in BYTES),
    *(
        Hostile(f"run: {path[-1]} is {what}", field(RUN, *path, value=value), REVERT, (1, 2))
        for path in (("recipe",), ("recipe", "model"), ("recipe", "model", "path"), ("digests",))
        for what, value in ODD
        if (path[-1], what) != ("path", "a text")  # a base that is not here: the change is subtracted
    ),
]
HOSTILE = [*MODELS, *DELTAS, *LEDGERS, *ADAPTERS, *RUNS]
