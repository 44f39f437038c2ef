"""Run one prompt clean and corrupted, and keep the states of both for activation patching.

One forward holds the clean row, the corrupted rows (noise on the embeddings of the subject's tokens), and two more
copies of the corrupted rows. In every block those copies enter with the corrupted run's states, and the output of their
MLP, or of their attention, is replaced by the clean row's. So one forward gives every block's patched output, for all
layers and tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from memedit.forward.partial import cache_name, spliced
from memedit.forward.passes import output_of
from memedit.model.forward_hooks import hooked
from memedit.model.load import LanguageModel
from memedit.model.memory import send
from memedit.tracing.parts import PARTS, BlockOutput, Parts

StateKind = Literal["hidden", "mlp", "attention", "mlp severed", "attention severed"]


@dataclass(frozen=True)
class TracePrompt:
    """A prompt and its answer, as ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    first: int
    """The subject's first token."""
    last: int
    """The subject's last token."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids to run: the answer's last token is predicted, so it is no input."""
        return self.prompt + self.answer[:-1]


@dataclass(frozen=True)
class Cell:
    """One patch at `token`: the clean state after `layer`, or a part's clean output in each layer of its window.

    The severed kinds patch the state, and sever a path: above it, that part's output at the token stays corrupted.
    """

    kind: StateKind
    layer: int
    token: int


@dataclass(frozen=True)
class NoiseTrial:
    """A question under noise: the noise (S, subject's tokens, width) float32, and windows (first, last) per layer."""

    question: TracePrompt
    noise: Tensor
    windows: tuple[tuple[int, int], ...]

    def put(self, cell: Cell) -> tuple[int, BlockOutput | None, range]:
        """The layer after which a cell joins; the part whose output is set, and in which layers above."""
        first, last = self.windows[cell.layer]
        if cell.kind in ("mlp", "attention"):
            return first, cell.kind, range(first + 1, last + 1)
        part: BlockOutput | None = (
            None if cell.kind == "hidden" else "mlp" if cell.kind == "mlp severed" else "attention"
        )
        return cell.layer, part, range(cell.layer + 1, len(self.windows) if part else 0)


class Runs:
    """The clean run and the corrupted runs of one trial; S samples, N tokens, D the model's width."""

    clean: float
    """Probability of the answer, joint over its tokens."""
    low: Tensor
    """(S,) float32: the same under each sample of noise."""
    rank: int
    """Rank of the answer under noise, median over samples; see `answer_ranks`."""

    @torch.no_grad()
    def __init__(self, lm: LanguageModel, parts: Parts, trial: NoiseTrial) -> None:
        question, samples = trial.question, len(trial.noise)
        self.clean_after: list[Tensor] = []  # per layer (N, D)
        self.after: list[Tensor] = []  # per layer (S, N, D)
        self.entries: dict[BlockOutput, list[Tensor]] = {part: [] for part in PARTS}  # per layer (S, N, D)
        self.clean_outputs: dict[BlockOutput, list[Tensor]] = {part: [] for part in PARTS}  # per layer (N, D)
        self.outputs: dict[BlockOutput, list[Tensor]] = {part: [] for part in PARTS}  # per layer (S, N, D)
        self.in_tuple = False
        rows = 1 + 3 * samples
        ids = send(torch.tensor([question.ids]), lm.device).expand(rows, -1)
        corrupted = slice(1, 1 + samples)
        extra = {part: slice(1 + n * samples, 1 + (n + 1) * samples) for n, part in enumerate(PARTS, start=1)}

        def block(original: Any) -> Any:
            def forward(hidden_states: Tensor, *args: Any, **options: Any) -> Any:
                again = hidden_states[corrupted]
                output = original(torch.cat([hidden_states[: 1 + samples], again, again]), *args, **options)
                states = output_of(output)
                self.in_tuple = not isinstance(output, Tensor)
                self.clean_after.append(states[0])
                self.after.append(states[corrupted])
                for part in PARTS:
                    self.entries[part].append(states[extra[part]])
                return output

            return forward

        def keep(part: BlockOutput) -> Any:
            def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
                # Some families add to an output in place, so copies are kept.
                states = output.reshape(rows, len(question.ids), -1).clone()
                self.clean_outputs[part].append(states[0].clone())
                self.outputs[part].append(states[corrupted].clone())
                states[extra[part]] = states[0]
                return states.view_as(output)

            return hook

        hooks = [(lm.model.get_submodule(path), keep(part)) for part in PARTS for path in parts.of(part)]
        blocks: Any = lm.model.get_submodule(lm.architecture.blocks)
        forwards = {layer: block(module.forward) for layer, module in enumerate(blocks)}
        cache = DynamicCache()
        with noised(lm, trial, 1, 1 + samples), hooked(hooks), spliced(lm, forwards):
            logits = answer_logits(lm, question, input_ids=ids, use_cache=True, **{cache_name(lm): cache})
        found, ranks = answer_probability(logits, question), answer_ranks(logits[corrupted], question)
        self.clean, self.low, self.rank = float(found[0]), found[corrupted].cpu(), int(ranks.median())
        layers: list[Any] = list(cache.layers)
        self.kept = [(layer.keys[corrupted], layer.values[corrupted]) for layer in layers]


@contextmanager
def noised(lm: LanguageModel, trial: NoiseTrial, start: int, stop: int) -> Generator[None]:
    """Add the noise to the embeddings of the subject's tokens in rows [start, stop); samples repeat down the rows."""
    question = trial.question

    def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
        moved, count = output.clone(), (stop - start) // len(trial.noise)
        noise = send(trial.noise, output.device).to(output.dtype)
        moved[start:stop, question.first : question.last + 1] += noise.repeat(count, 1, 1)
        return moved

    embedding: Any = lm.model.get_input_embeddings()
    with hooked([(embedding, hook)]):
        yield


def answer_logits(lm: LanguageModel, question: TracePrompt, **inputs: Any) -> Tensor:
    """Run one forward; the logits at the A tokens of the answer: (rows, A, V) float32."""
    reads = len(question.answer)
    return lm.forward(**inputs, logits_to_keep=reads).logits[:, -reads:].float()


def answer_probability(logits: Tensor, question: TracePrompt) -> Tensor:
    """The answer's probability in each row of `answer_logits`, joint over its tokens: (rows,) float32."""
    return logits.log_softmax(-1).gather(2, _wanted(logits, question))[:, :, 0].sum(1).exp()


def answer_ranks(logits: Tensor, question: TracePrompt) -> Tensor:
    """The answer's rank in each row of `answer_logits`: (rows,) int64; 1 is the most likely of all tokens.

    Of an answer of several tokens, the rank of the token that ranks worst.
    """
    return 1 + (logits > logits.gather(2, _wanted(logits, question))).sum(2).amax(1)


def _wanted(logits: Tensor, question: TracePrompt) -> Tensor:
    return send(torch.tensor(question.answer), logits.device).expand(len(logits), -1)[:, :, None]


@torch.no_grad()
def embedding_spread(lm: LanguageModel, subjects: Sequence[tuple[int, ...]]) -> float:
    """Standard deviation of all coordinates of the embeddings of some subjects' tokens; equal subjects count once."""
    embedding: Any = lm.model.get_input_embeddings()
    ids = torch.tensor([token for subject in dict.fromkeys(subjects) for token in subject], device=lm.device)
    return float(embedding(ids[None]).float().std())
