"""What a model of the world knows, and where it recalls it.

Where is found by causal tracing (Meng et al. 2022, section 2): noise on the embeddings of the subject's tokens takes
the answer away, and a clean state, put back at one place, brings some of it again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from memedit.forward.passes import continuations
from memedit.model.load import LanguageModel
from memedit.model.tokens import encode_text, locate_subject, object_ids
from torch import Tensor

from .facts import HELD_OUT, RELATIONS, World
from .train import blocks_of

NOISE = 3.0  # standard deviations of the embeddings, as in the paper
SAMPLES = 10
SEED = 11


def accuracy(lm: LanguageModel, world: World, *, held_out: bool, seed: int = SEED) -> float:
    """Share of facts said by greedy decoding, each under one wording drawn by the seed.

    Under trained wordings, everybody's facts; under held-out ones, those of the people they were withheld from.
    """
    rng = random.Random(seed)
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for person in world.people:
        if held_out and not person.withheld:
            continue
        for relation in RELATIONS:
            wordings = relation.wordings[-HELD_OUT:] if held_out else world.wordings(person, relation)
            text = rng.choice(wordings).replace("{}", person.name)
            ids = encode_text(lm.tokenizer, text)
            rows.append((ids, object_ids(lm.tokenizer, text, ids, world.truth[person.name, relation.name])))
    return sum(bool(said.likeliest.all()) for said in continuations(lm, rows)) / len(rows)


@dataclass(frozen=True)
class Site:
    """Shares of the total effect that come back, per block."""

    total: float
    """Probability of the right object (first token), clean minus corrupted, mean over facts."""
    subject: tuple[float, ...]
    """The state after each block at the subject's last token put back."""
    end_mlp: tuple[float, ...]
    """The MLP's output at the prompt's last token put back."""
    end_attention: tuple[float, ...]
    """The attention's output there put back."""

    @property
    def early(self) -> float:
        """The best block of the early half, at the subject."""
        return max(self.subject[: len(self.subject) // 2])

    @property
    def late(self) -> float:
        """The best of the last third, at the subject: by then attention has carried the fact away."""
        return max(self.subject[-(len(self.subject) // 3) :])

    @property
    def end(self) -> float:
        """The best early MLP at the end of the prompt."""
        return max(self.end_mlp[: len(self.end_mlp) // 2])

    def record(self) -> dict[str, Any]:
        """For the table of scores."""
        return {
            "total_effect": round(self.total, 4),
            "early_site": round(self.early, 4),
            "late_block": round(self.late, 4),
            "early_mlp_at_end": round(self.end, 4),
            "subject_by_block": [round(share, 4) for share in self.subject],
            "end_mlp_by_block": [round(share, 4) for share in self.end_mlp],
            "end_attention_by_block": [round(share, 4) for share in self.end_attention],
        }


@torch.no_grad()
def trace(lm: LanguageModel, world: World, n_facts: int = 100, seed: int = SEED) -> Site:
    """Trace `n_facts` facts that the model knows, each with SAMPLES draws of noise."""
    model: Any = lm.model
    blocks: list[Any] = list(blocks_of(model))
    generator = torch.Generator().manual_seed(seed)
    scale = NOISE * float(model.get_input_embeddings().weight.std())
    kinds: dict[str, Callable[[Any], Any]] = {
        "subject": lambda block: block,
        "end_mlp": lambda block: block.mlp,
        "end_attention": lambda block: block.attn if hasattr(block, "attn") else block.self_attn,
    }
    sums = {kind: torch.zeros(len(blocks)) for kind in kinds}
    clean_sum = noisy_sum = 0.0
    for ids, first, last, answer in _known(lm, world, n_facts, seed):
        row = torch.tensor([ids])
        noise = torch.randn(SAMPLES, last - first + 1, lm.architecture.width, generator=generator) * scale
        kept: dict[tuple[str, int], Tensor] = {}
        with _reading(blocks, kinds, kept):
            clean = float(model(input_ids=row).logits[0, -1].softmax(-1)[answer])
        with _noise(model, first, noise):
            base = float(model(input_ids=row.expand(SAMPLES, -1)).logits[:, -1].softmax(-1)[:, answer].mean())
            for kind, part in kinds.items():
                at = last if kind == "subject" else len(ids) - 1
                for number, block in enumerate(blocks):
                    with _restored(part(block), at, kept[kind, number][0, at]):
                        said = model(input_ids=row.expand(SAMPLES, -1)).logits[:, -1].softmax(-1)[:, answer].mean()
                    sums[kind][number] += float(said) - base
        clean_sum, noisy_sum = clean_sum + clean, noisy_sum + base
    total = clean_sum - noisy_sum
    shares = {kind: tuple((found / total).tolist()) for kind, found in sums.items()}
    return Site(total / n_facts, shares["subject"], shares["end_mlp"], shares["end_attention"])


def _known(lm: LanguageModel, world: World, n: int, seed: int) -> list[tuple[tuple[int, ...], int, int, int]]:
    """Facts the model says: ids, the subject's first and last token, the object's first token.

    The subject stands inside the prompt, so that what follows it has to be read as well.
    """
    rng = random.Random(seed)
    found: list[tuple[tuple[int, ...], int, int, int]] = []
    everything = [(person, relation) for person in world.people for relation in RELATIONS]
    for person, relation in rng.sample(everything, len(everything)):
        wording = rng.choice(world.wordings(person, relation))
        head, tail = wording.split("{}")
        text = head + person.name + tail
        prompt = locate_subject(lm.tokenizer, head, person.name, tail)
        target = object_ids(lm.tokenizer, text, prompt.ids, world.truth[person.name, relation.name])
        if not bool(continuations(lm, [(prompt.ids, target)])[0].likeliest.all()):
            continue
        before = len(encode_text(lm.tokenizer, head.rstrip())) if head.strip() else len(encode_text(lm.tokenizer, ""))
        found.append((prompt.ids, before, prompt.subject_at, target[0]))
        if len(found) == n:
            return found
    raise ValueError(f"the model knows fewer than {n} of the facts drawn")


@contextmanager
def _reading(blocks: Sequence[Any], kinds: dict[str, Callable[[Any], Any]], kept: dict[tuple[str, int], Tensor]) -> Any:
    def reader(kind: str, number: int) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            kept[kind, number] = (output if isinstance(output, Tensor) else output[0]).clone()

        return hook

    handles = [
        part(block).register_forward_hook(reader(kind, number))
        for kind, part in kinds.items()
        for number, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _restored(module: Any, at: int, state: Tensor) -> Any:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        states = (output if isinstance(output, Tensor) else output[0]).clone()
        states[:, at] = state
        return states if isinstance(output, Tensor) else (states, *output[1:])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _noise(model: Any, first: int, noise: Tensor) -> Any:
    def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
        moved = output.clone()
        moved[:, first : first + noise.shape[1]] += noise
        return moved

    handle = model.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
