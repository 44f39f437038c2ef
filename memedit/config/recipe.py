"""Every setting, with its default and its description.

A recipe is frozen and has a digest: two runs with equal recipes and inputs write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from memedit.config.methods import METHODS, Method, Name, method_named

CONTEXTS_BEFORE_POLISH = 3  # polish asks under the others too; memedit/docs/trials.md has the figures
LARGEST_SEED = 2**63 - 1  # that torch takes
LARGEST_COUNT = 2**31 - 1  # more of anything would never end, and a C integer of any platform holds it
SIZE = r"^\s*\d{1,18}(\.\d{1,18})?\s*[kKMGT]?i?B?\s*$"  # some 400 digits would be no float


class _Knobs(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True,
        coerce_numbers_to_str=True,  # YAML reads `layers: 5` as a number
    )  # fmt: skip

    @field_validator("*")
    @classmethod
    def _check_count(cls, value: Any, info: ValidationInfo) -> Any:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, int) and one > LARGEST_COUNT and info.field_name != "seed":
                raise ValueError(f"a whole number here is at most {LARGEST_COUNT:,}")
        return value


class ModelKnobs(_Knobs):
    """Which model, and how it is opened."""

    path: str = ""
    """A folder, or the name of a Hub repository."""
    revision: str | None = None
    """Branch, tag or commit of a Hub repository."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the forward; auto: the checkpoint's on a GPU, float32 on a CPU. There polish multiplies in bfloat16 if
    the CPU has instructions for it."""
    device_map: Literal["auto"] | None = None
    """auto: spread the blocks over all GPUs (needs accelerate); None: one device holds the model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off: such a model is refused."""


class MethodKnobs(_Knobs):
    """The solve: which layers, and how strongly old knowledge is kept."""

    name: Name = "memit"
    """memit (Meng et al. 2023, eq. 14): fits all edits, weighed against what the model knew. emmet (Gupta et al. 2024):
    fits all edits exactly, at one layer, with the least disturbance of the rest. rome (Meng et al. 2022,
    eq. 2): the same edit after edit; the consistent form, one averaged key throughout. alphaedit (Fang et al. 2025):
    weighed as in memit, but changes only directions in which old keys hold next to nothing."""
    layers: str = "depth"
    """`3-8`, `5`, depth: from relative depth, published: those published for a model of this shape, else by depth, or
    auto: where tracing the edits finds their recall. From 0, both ends included. Of depth and auto, emmet and rome take
    the middle layer."""
    ridge: float = Field(ge=0)
    """lambda / d_mlp: the weight of what the model knew against the edits; k M^-1 k averages d_mlp. 0: edits are met
    exactly. Unless given, the method's own: memit and alphaedit 1 (L2 = ridge null_space trace(C)), else 0."""
    null_space: float = Field(default=0.05, gt=0, lt=1)
    """alphaedit: a change moves in the directions of smallest moment that together hold this share of it."""
    semantics: Literal["memedit", "reference"] = "memedit"
    """memedit: contexts weigh alike, n steps. reference: the published code's 1/2 and 1/10, n - 1 steps."""

    @model_validator(mode="before")
    @classmethod
    def _own_ridge(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("ridge") is None:
            method = method_named(values.get("name", "memit"))
            return {**values, "ridge": method.ridge} if method else values
        return values

    @property
    def kind(self) -> Method:
        """What the method chooses."""
        return METHODS[self.name]


class TargetKnobs(_Knobs):
    """The search for the state that makes the model say the new object."""

    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    """lbfgs, or adam, as published: it takes several times the steps. The published semantics, and an absolute step,
    are adam's whatever stands here."""
    steps: int = Field(default=40, ge=1)
    """Steps of the search at most; an edit stops on its own when its loss is under `stop`."""
    step: float = Field(default=0.05, gt=0)
    """Adam's step, in units of the root mean square of the edit's own state: one default for every scale."""
    step_absolute: float | None = Field(default=None, gt=0)
    """Adam's step in the model's own units, as published; set, it is used instead of `step`."""
    ball: float = Field(default=1.0, gt=0)
    """Largest length of the change, in units of the length of the state it starts from."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight of |delta| / |state|^2, the published decay."""
    kl: float = Field(default=0.0625, ge=0)
    """Weight of KL(edited || original) at the subject's last token of the bare subject."""
    stop: float = Field(default=0.05, ge=0)
    """The search of an edit ends when its loss is below this."""
    contexts: int | None = Field(default=None, ge=0)
    """Contexts that an edit is searched under, at most: the bare prompt, and others evenly among them; 0: all. None: 3
    before polish, which asks under all of them; all without it, and under the published semantics. The solve always
    asks under all."""
    retry: int = Field(default=0, ge=0)
    """Retry rounds: the targets of failed edits are found again on the edited weights, and everything is solved again
    from the base. A round after which no more edits succeed is dropped."""
    joint: bool = True
    """Edits of one subject share one change, found for all of them at once; off, and under the published semantics,
    each finds its own, and the solve averages those that share a key."""


class PolishKnobs(_Knobs):
    """Steps of descent after the closed form, on what the edited model says and on what it must still say."""

    steps: int = Field(default=24, ge=0)
    """Steps of Adam; 0: the closed form alone. Unless given, 0 under the published semantics and presets."""
    step: float = Field(default=0.1, gt=0)
    """Adam's step, in units of the root mean square of what a layer's change adds."""
    preserve: float = Field(default=0.75, ge=0)
    """Weight of KL(base || edited) and of the lost lead after prompts that must stay, against the loss of the edits."""
    lead: float = Field(default=1.0, ge=0)
    """Difference of log-probabilities by which what the base says first there must lead all other tokens, or by as much
    as it did, if that was less; 0: KL alone."""
    siblings: int = Field(default=4, ge=0)
    """Prompts that must stay, at most for each edit, and up to 256 where the edits are few: the list's other relations,
    asked of the edited subjects. 0: none."""
    others: int = Field(default=4, ge=0)
    """The same: the list's relations, asked of other subjects, whom the model names."""
    keep: tuple[str, ...] = ()
    """More prompts for the edited subjects, with {} for the subject, such as "The language of {} is": what the model
    says there must stay, as under the list's other relations."""
    ratio: float = Field(default=1.5, gt=0)
    """Prompts that must stay in a step, for each edit; as many of each kind, if there are. Where there are fewer in
    all, what stays weighs less by as much."""
    spoken: float = Field(default=1.0, ge=0, le=1)
    """Share of the edits that a step also asks in chat, where the model has a chat template: the model's own answer
    with the new object in it."""
    own: float = Field(default=0.25, ge=0, le=1)
    """Share of the steps in which an edit is asked by its own prompt alone; in the others, by one of all its rows."""
    shorten: float = Field(default=0.15, ge=0, lt=1)
    """Share of the tokens around the subject that half of an edit's rows leave out, so that it holds in wordings that
    the list does not give."""

    @field_validator("keep")
    @classmethod
    def _check_keep(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in keep:
            if prompt.count("{}") != 1:
                raise ValueError(f"{prompt!r} needs {{}} once, where the subject stands")
        return keep


class ContextKnobs(_Knobs):
    """The prefixes under which an edit must hold, sampled from the model itself."""

    openings: tuple[str, ...] = ("The", "Therefore", "Because", "I", "You")
    """One context is written from each, beside the bare prompt."""
    chat: bool = True
    """Where the tokenizer has a chat template, the last two openings make room for a turn of the user's begun, and one
    of the model's."""
    tokens: int = Field(default=10, ge=1)
    """Length of a context in tokens, its opening included."""
    top_k: int = Field(default=5, ge=1)
    """Top-k: sample each token from the k most likely."""


class MomentKnobs(_Knobs):
    """The second moments, which represent what the model knew."""

    corpus: str | None = None
    """A .txt or .jsonl file (.gz too), hf:repo[:config], or self: text that the model writes. None: the model's own
    memedit/corpus.jsonl.gz, and where there is none, self."""
    tokens: int | None = Field(default=None, ge=1)
    """How many tokens to read; None: ten times the MLP's width."""
    row: int = Field(default=512, ge=8)
    """Tokens in a packed row at most."""


class TraceKnobs(_Knobs):
    """Causal tracing."""

    noise: str | float = "3sigma"
    """Noise on the subject's embeddings: its standard deviation, or `3sigma`: three of those embeddings' own."""
    samples: int = Field(default=10, ge=1)
    """Draws of noise for each fact."""
    window: int | None = Field(default=None, ge=1)
    """Layers in which MLP or attention outputs are put back together; None: a fifth of the depth."""
    facts: int = Field(default=100, ge=1)
    """How many edits `layers: auto` traces at most, spread over the list."""

    @field_validator("noise")
    @classmethod
    def _check_noise(cls, noise: str | float) -> str | float:
        match = re.fullmatch(r"\s*([-+.\w]+?)\s*(sigma)?\s*", str(noise))
        try:
            value = float(match[1]) if match else math.nan
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise ValueError("noise is a positive number, or one of standard deviations such as 3sigma")
        return noise

    @property
    def noise_value(self) -> tuple[float, bool]:
        """The number, and whether it counts standard deviations of the subjects' embeddings."""
        text = str(self.noise).strip()
        return float(text.removesuffix("sigma")), text.endswith("sigma")


class OutputKnobs(_Knobs):
    """What is written, and how."""

    dir: str | None = None
    """The folder to write."""
    link: Literal["auto", "hard", "copy"] = "auto"
    """How untouched files get into the output: auto clones where the file system can, else copies."""
    overwrite: bool = False
    """Replace the output folder if memedit or save_pretrained wrote it."""
    force: bool = False
    """Replace the output folder whatever it holds."""
    keep_originals: bool = False
    """Keep the edited tensors as they were in memedit/originals.safetensors, so that the edit can be taken back to the
    bit without the base; as large as those tensors are."""
    keep_copies: bool = False
    """Also copy the files of MODEL that hold its weights a second time, such as consolidated.safetensors or
    pytorch_model.bin. They are not edited, so a program that reads them serves the old facts."""
    rounding: Literal["auto", "nearest", "key-aware"] = "auto"
    """How an edited weight is rounded to the checkpoint's dtype: to nearest, or key-aware, so that the edited keys keep
    their change; auto: key-aware if nearest would lose over 1 % of the change. It counts in the digest."""
    max_shard_size: str | None = Field(default=None, pattern=SIZE)
    """Split the weights into files of this size at most, such as 5GB; None: the files stay as they are."""

    @property
    def max_shard(self) -> int | None:
        """The same in bytes."""
        return bytes_of(self.max_shard_size) if self.max_shard_size else None


class EvalKnobs(_Knobs):
    """Questions to a model, beyond the forced answers to the list's own probes."""

    level: Literal["full", "quick", "none"] = "full"
    """What apply asks before and after the edit. full: all that it can tell; quick: only the probes and facts that were
    given; none: only whether each edit is said, which the ledger keeps."""
    derive: bool = True
    """Derive probes from the list where it has none, and facts that must stay from the model's own answers."""
    tokens: int = Field(default=24, ge=1)
    """Length of a free answer in tokens at most; what counts is its first sentence."""
    prefixes: tuple[int, ...] = (0, 50, 200)
    """Free answers are asked for after this many tokens of unrelated text."""
    unrelated: str | None = None
    """A text file (.txt or .jsonl, .gz too) that begins with the unrelated text; None: a passage in English."""
    fluency_tokens: int = Field(default=100, ge=1)
    """Length of a text written on from an opening, the opening included."""
    fluency_top_k: int = Field(default=5, ge=1)
    """Top-k: sample each of its tokens from the k most likely."""
    drift_tokens: int = Field(default=20_000, ge=2)
    """How many tokens of the text are read."""
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    """Seed of the text that is sampled for fluency and consistency."""

    @field_validator("prefixes")
    @classmethod
    def _check_prefixes(cls, prefixes: tuple[int, ...]) -> tuple[int, ...]:
        if any(count < 0 for count in prefixes):
            raise ValueError("a number of tokens is 0 or more")
        return prefixes

    @property
    def makes(self) -> bool:
        """Whether apply makes facts, questions and text, to tell what else an edit moves."""
        return self.derive and self.level == "full"


class Recipe(_Knobs):
    """Everything that decides what a run does, except the edits."""

    model: ModelKnobs = ModelKnobs()
    method: MethodKnobs = MethodKnobs.model_validate({})
    target: TargetKnobs = TargetKnobs()
    polish: PolishKnobs = PolishKnobs()
    contexts: ContextKnobs = ContextKnobs()
    moments: MomentKnobs = MomentKnobs()
    trace: TraceKnobs = TraceKnobs()
    output: OutputKnobs = OutputKnobs()
    eval: EvalKnobs = EvalKnobs()
    chat: bool = False
    """Prompts are put into the model's chat template as a user turn."""
    chat_system: str = Field(default="", max_length=100_000)
    """System prompt with which every chat begins, where prompts, contexts or questions are put into the chat template;
    empty: the template's own, if it has one."""
    chunk: int = Field(default=256, ge=1)
    """Edits whose targets are found together, at most: the unit of resume."""
    memory: str | None = Field(default=None, pattern=SIZE)
    """Memory for the weights, the target search, and on a GPU the solve of a layer, such as 20GB; None: most of what is
    free. Where the weights do not fit, blocks are read from disk as they run. It changes results by rounding only."""
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    """Seed of everything that is sampled: contexts, and the noise of tracing."""

    @model_validator(mode="before")
    @classmethod
    def _published_steps(cls, values: Any) -> Any:
        """The published semantics are those of the closed form alone, unless steps of polish are asked for."""
        if not isinstance(values, Mapping):
            return values
        method, polish = values.get("method"), values.get("polish") or {}
        semantics = method.get("semantics") if isinstance(method, Mapping) else getattr(method, "semantics", None)
        if semantics == "reference" and isinstance(polish, Mapping) and "steps" not in polish:
            return {**values, "polish": {**polish, "steps": 0}}
        return values

    @property
    def joint(self) -> bool:
        """Whether edits of one subject share a change; the published code has no such option."""
        return self.target.joint and self.method.semantics == "memedit"

    @property
    def searched_contexts(self) -> int:
        """Contexts that an edit is searched under, at most; 0: all."""
        if self.target.contexts is not None:
            return self.target.contexts
        return CONTEXTS_BEFORE_POLISH if self.polish.steps and self.method.semantics == "memedit" else 0

    @property
    def memory_limit(self) -> int | None:
        """`memory` in bytes; None: no limit is set."""
        return bytes_of(self.memory) if self.memory else None

    @property
    def digest(self) -> str:
        """sha256 of the values, without output (but with its rounding), memory and eval."""
        record = self.model_dump(mode="json", exclude={"output", "memory", "eval"})
        record["rounding"] = self.output.rounding
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def bytes_of(text: str) -> int:
    """`20GB`, `512 MiB` or `1000000` in bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?\s*", text)
    assert match, text  # the recipe was validated
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
