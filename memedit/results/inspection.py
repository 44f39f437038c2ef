"""What a look at a model finds, and which moments it has: plain values that turn into JSON. Layers count from 0."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Block(_Value):
    """One block, and whether its down-projection can be edited."""

    layer: int
    down_projection: str | None = None
    """Module path; None where the block has none that all tokens pass."""
    inputs: int = 0
    """F, the MLP's width here."""
    gain: float | None = None
    """What its output, or the norm's, is multiplied with where it joins the residual stream; None: not measured."""
    norm: str | None = None
    """The norm that stands before it joins; None where none does."""
    editable: bool
    reason: str | None = None
    """Why it cannot be edited."""


class Head(_Value):
    """From the last block to logits."""

    path: str
    norm: str | None = None
    """The norm before it."""
    tied: bool
    """Its weight is that of the embeddings."""
    bias: bool
    scale: float | None = None
    """What the head's output is multiplied with; None where that was not measured."""
    cap: float | None = None
    """Where its output is bent to stay within (a soft cap); None: nowhere, or not measured."""


class Carrier(_Value):
    """Whether a tool can carry an edit of this model as a LoRA adapter."""

    carries: Literal["yes", "no", "unknown"]
    reason: str


class Costs(_Value):
    """Bytes, for the layers that `--layers depth` would edit."""

    weights: int
    """The model in memory, in the dtype of the forward."""
    moments: int
    """Main memory at the largest, beside the model: when moments are measured, or when a layer is solved."""
    cache: int
    """Disk that moments and factors take, made once for a model."""
    output: int | None = None
    """Disk that an edited copy takes; None where there are no weights here."""


class Inspection(_Value):
    """A model as memedit sees it."""

    model: str
    model_type: str
    architecture: str
    proved: bool
    """Measured on the weights; else read off the config alone: gains, scales and caps are not known then."""
    parameters: int
    stored: dict[str, int] = {}
    """Dtypes of the checkpoint, and how many of its numbers are of each."""
    blocks: str
    """Module path of the block list."""
    n_layers: int
    width: int
    vocabulary: int
    positions: int | None = None
    orientation: Literal["linear", "conv1d"]
    """linear: weights are (out, in), as nn.Linear's; conv1d: (in, out), as GPT-2's."""
    bias: bool
    """The down-projections have one."""
    parallel: bool | None = None
    """Attention and MLP of a block read the same state; None where that was not measured."""
    head: Head
    each: tuple[Block, ...]
    editable: str
    """The layers that can be edited, as --layers takes them."""
    default: str
    """The layers that `--layers depth` means."""
    peft: Carrier
    vllm: Carrier
    costs: Costs
    problems: tuple[str, ...] = ()
    """What keeps memedit from editing it at all."""
    hint: str = ""
    """What to do about the first of them."""


class MomentRow(_Value):
    """One layer's second moment in the cache."""

    layer: int
    width: int
    tokens: int
    bytes: int
    state: Literal["cached", "measured", "imported", "missing"]
    file: str

    @property
    def line(self) -> str:
        """For people."""
        return f"layer {self.layer:>3}  {self.width:,} units  {self.tokens:,} tokens  {self.state:<8}  {self.file}"
