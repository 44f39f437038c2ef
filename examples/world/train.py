"""Training with a curriculum that makes the model recall at the subject.

A small transformer trained plainly on facts reads the sub-words of a name straight from the end of the prompt, and
looks the fact up there: the weights of an MLP are the same at every token, so any token after a name can gather its
sub-words and call the fact up as the name itself does. Large models do it otherwise: early MLPs at the last token of
the subject call up what is known of it, and attention carries it to the end later. Six things make a small model do
the same, and leave its form as it is:

1. A mask. In the early half of the blocks no token outside a mention of a person sees that mention; in the late half
   it sees the mention's last token alone. It goes after three quarters of the steps.
2. A price. The attention that would go where the mask forbids it is a term of the loss all through the training, so
   that little goes there when the mask is gone. (Without it, a single head of the first block took the fact at the
   end of the prompt as soon as it might: 99 % of the facts right, 0.1 % of the effect at the subject.)
3. Silence. For the first part of the steps the late MLPs give nothing: a fact can be called up only in early MLPs at
   the name, and is read by attention late.
4. Recall. For the same part, what leaves the early half at a mention's last token is asked, through the model's own
   norm and head, for the objects of that person, all relations at once. So are subjects enriched in large models (Geva
   et al. 2023). Without it the loss rests where only the objects' frequencies are known.
5. Blurred names. Noise is put on the embeddings of some mentions; nothing is to be learned of their facts, and the
   price holds there too, so that what is no known word draws no attention.

6. Settling. At the end, for a few steps more, the last third of the blocks is kept from mentions altogether in the same
   two ways, so that a fact has left the name by then.

The first steps are about a small crowd: the way from a name to its facts, once found for few people, serves all.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
)

from .tokens import OBJECT_WEIGHT, Packer, Rows

Model = GPT2LMHeadModel | LlamaForCausalLM | Olmo2ForCausalLM


@dataclass(frozen=True)
class Shape:
    """What a model looks like, and how it is trained."""

    name: str
    family: str
    width: int = 256
    inner: int = 1536
    blocks: int = 6
    heads: int = 8
    positions: int = 128
    tied: bool = False
    """Whether the head is the embeddings, where the family leaves it open."""
    people: int = 280
    edited: int = 180
    steps: int = 1000
    tokens: int = 2048
    lengths: tuple[int, ...] = (128, 48)
    peak: float = 0.02
    peak_others: float = 2e-3
    fall: float = 0.5
    curriculum: bool = True
    masked_share: float = 0.75
    early_price: float = 0.3
    late_price: float = 0.1
    silent_share: float = 0.6
    recall_weight: float = 0.5
    blurred_share: float = 0.15
    settling: int = 150
    settling_peak: float = 0.25
    first_crowd: int = 40
    crowd_share: float = 0.1
    seed: int = 7

    @property
    def late(self) -> int:
        """The first block of the late half."""
        return self.blocks // 2


def make_model(shape: Shape, vocabulary: int, bos: int, eos: int) -> Model:
    """A fresh model of this shape, its weights drawn from the shape's seed."""
    torch.manual_seed(shape.seed)
    common: dict[str, Any] = {"vocab_size": vocabulary, "bos_token_id": bos, "eos_token_id": eos}
    if shape.family != "gpt2":
        common |= {
            "hidden_size": shape.width,
            "intermediate_size": shape.inner,
            "num_hidden_layers": shape.blocks,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads // 2,
            "max_position_embeddings": shape.positions,
            "tie_word_embeddings": shape.tied,
            "pad_token_id": eos,
        }
        if shape.family == "olmo2":  # norms stand behind attention and MLP, none before them
            return Olmo2ForCausalLM(Olmo2Config(**common))
        return LlamaForCausalLM(LlamaConfig(**common))
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=shape.width,
            n_inner=shape.inner,
            n_layer=shape.blocks,
            n_head=shape.heads,
            n_positions=shape.positions,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            **common,
        )
    )


def blocks_of(model: Model) -> list[nn.Module]:
    """The transformer's blocks in order."""
    inner: Any = model
    return list(inner.transformer.h if hasattr(inner, "transformer") else inner.model.layers)


class Curriculum:
    """Hooks on a plain model, and an attention of its own; gone without a trace once it is removed."""

    def __init__(self, model: Model, shape: Shape, objects: torch.Tensor) -> None:
        inner: Any = model
        self.model, self.shape, self.objects, self.blocks = model, shape, objects, blocks_of(model)
        self.norm = inner.transformer.ln_f if hasattr(model, "transformer") else inner.model.norm
        self.generator = torch.Generator().manual_seed(shape.seed)
        self.masked, self.settling = True, False
        self.prices: dict[int, torch.Tensor] = {}
        AttentionInterface.register("curriculum", self._attend)
        model.set_attn_implementation("curriculum")
        self.handles = [
            inner.get_input_embeddings().register_forward_hook(self._blur),
            self.blocks[shape.late - 1].register_forward_hook(self._keep),
        ]

    def begin(self, rows: Rows) -> Rows:
        """Say what the next forward reads; the rows as they are to be learned from."""
        length = rows.ids.shape[1]
        self.causal = torch.ones(length, length, dtype=torch.bool).tril()
        key, query = rows.mention[:, None, :], rows.mention[:, :, None]
        of_others = self.causal & (key > 0) & (key != query)
        late = of_others if self.settling else of_others & ~(rows.who > 0)[:, None, :]
        third = len(self.blocks) // 3
        middle = len(self.blocks) - self.shape.late - third
        self.forbidden = [of_others] * self.shape.late
        self.forbidden += [of_others & ~(rows.who > 0)[:, None, :]] * middle + [late] * third
        chance = torch.rand(len(rows.ids), int(rows.mention.max()) + 1, generator=self.generator)
        blurred = (chance < self.shape.blurred_share).index_fill(1, torch.tensor([0]), False)
        self.blurred = blurred.gather(1, rows.mention)
        told_of = blurred.gather(1, rows.mention.cummax(1).values) & (rows.weight == OBJECT_WEIGHT)
        self.recalled = (rows.who > 0) & ~self.blurred
        self.wanted = self.objects[rows.who[self.recalled] - 1]
        return replace(rows, weight=rows.weight.masked_fill(self.blurred | told_of, 0.0))

    def _attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        scores = ((query @ key.transpose(-1, -2)).float() * scale).masked_fill(~self.causal, -1e9)
        forbidden = self.forbidden[module.layer_idx]
        shares = scores.softmax(-1)
        strayed = (shares * forbidden[:, None]).sum(-1)
        # Summed over heads: one head that strays is enough to carry a fact. -log(1 - x) pulls as hard at x = 1.
        price = -torch.log1p(-strayed.clamp(max=1 - 1e-4)).sum(1)
        self.prices[module.layer_idx] = price[forbidden.any(-1)].mean()
        if self.masked:
            shares = scores.masked_fill(forbidden[:, None], -1e9).softmax(-1)
        return (shares.to(value.dtype) @ value).transpose(1, 2).contiguous(), shares

    def _blur(self, module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(output.shape, generator=self.generator) * 3 * module.weight.detach().std()
        return output + self.blurred[..., None] * noise

    def _keep(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.states = output if isinstance(output, torch.Tensor) else output[0]

    def price(self) -> torch.Tensor:
        """What the attention that strayed in the last forward costs."""
        late = self.shape.late
        early = torch.stack([price for layer, price in self.prices.items() if layer < late]).sum()
        return self.shape.early_price * early + self.shape.late_price * (sum(self.prices.values()) - early)

    def recall(self) -> torch.Tensor:
        """Cross-entropy of the mentioned people's objects, read off the states that leave the early half."""
        said: torch.Tensor = self.model.lm_head(self.norm(self.states[self.recalled]))
        return -said.float().log_softmax(-1).gather(1, self.wanted).mean()

    def silence(self, silent: bool) -> None:
        """Set the output of the late MLPs to zero, or let them speak again."""
        for block in self.blocks[self.shape.late :]:
            mlp: Any = block.mlp
            if silent:
                mlp.forward = torch.zeros_like
            else:
                mlp.__dict__.pop("forward", None)

    def remove(self) -> None:
        """Leave the model as Hugging Face made it."""
        self.silence(False)
        for handle in self.handles:
            handle.remove()
        self.model.set_attn_implementation("sdpa")


@contextmanager
def curriculum_on(model: Model, shape: Shape, objects: torch.Tensor) -> Generator[Curriculum | None]:
    """The hooks for as long as the training lasts; None for a model that is trained plainly."""
    if not shape.curriculum:
        yield None
        return
    course = Curriculum(model, shape, objects)
    try:
        yield course
    finally:
        course.remove()


class Part(nn.Parameter):
    """Some columns of a matrix that is several in one: queries, keys and values of GPT-2."""

    whole: nn.Parameter
    columns: slice

    @classmethod
    def of(cls, whole: nn.Parameter, count: int) -> list[Part]:
        """`count` equal parts; they share the whole's memory."""
        width = whole.shape[1] // count
        parts: list[Part] = []
        for number in range(count):
            columns = slice(number * width, (number + 1) * width)
            part = cls(whole.data[:, columns])
            part.whole, part.columns = whole, columns
            parts.append(part)
        return parts

    def take_gradient(self) -> None:
        """Take the gradient that the whole was given."""
        self.grad = None if self.whole.grad is None else self.whole.grad[:, self.columns]


def optimizers(model: Model, shape: Shape) -> tuple[list[torch.optim.Optimizer], list[Part]]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all else; parts that it knows by themselves.

    Facts about people are many and each is rare. After 300 steps on 80 people the objects' loss was 0.47 with Muon,
    2.92 with AdamW, whose steps follow the few directions that all text shares.
    """
    named = [
        (name, parameter)
        for block in blocks_of(model)
        for name, parameter in block.named_parameters()
        if parameter.ndim == 2
    ]
    # GPT-2 keeps queries, keys and values in one matrix. Made orthogonal as one, the step is nearly all for the
    # values, whose gradient is the largest at first, and heads take hundreds of steps more to look anywhere.
    parts = [part for name, whole in named if name.endswith("c_attn.weight") for part in Part.of(whole, 3)]
    matrices = [*parts, *(parameter for name, parameter in named if not name.endswith("c_attn.weight"))]
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in matrices:
        groups.setdefault(_turn(parameter) if shape.family == "gpt2" else 1.0, []).append(parameter)
    inside = {id(parameter) for _, parameter in named}
    others = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    muon = torch.optim.Muon(
        [{"params": group, "lr": shape.peak * turn} for turn, group in sorted(groups.items())],
        lr=shape.peak,
        momentum=0.95,
        weight_decay=0.02,
    )
    adam = torch.optim.AdamW(others, lr=shape.peak_others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return [muon, adam], parts


def _turn(parameter: nn.Parameter) -> float:
    """Muon's step grows with outputs over inputs, which it takes to be rows over columns; Conv1D has them the other
    way round."""
    rows, columns = parameter.shape
    return (max(1, columns / rows) / max(1, rows / columns)) ** 0.5


def weighted_loss(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Cross-entropy of the next token, each weighted by what can be learned from it."""
    losses = nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), rows.ids[:, 1:].flatten(), reduction="none"
    )
    weight = rows.weight[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum()


@torch.no_grad()
def object_loss(logits: torch.Tensor, rows: Rows) -> float:
    """Cross-entropy of the objects' tokens alone: what is known of the facts."""
    told = rows.weight[:, 1:] == OBJECT_WEIGHT
    return nn.functional.cross_entropy(logits[:, :-1][told].float(), rows.ids[:, 1:][told]).item()


def rate(shape: Shape, step: int) -> float:
    """The share of the peak at a step: a short warm-up, a plateau, a straight fall to zero; then a smaller fall."""
    if step >= shape.steps:
        return shape.settling_peak * (shape.steps + shape.settling - step) / shape.settling
    return min(1.0, (step + 1) / 50, (shape.steps - step) / (shape.steps * shape.fall))


def train(model: Model, shape: Shape, packer: Packer, objects: torch.Tensor, *, first: int = 0) -> dict[str, float]:
    """Train in place, from the step `first` on; return the last losses, tokens and seconds."""
    steppers, parts = optimizers(model, shape)
    peaks = [[group["lr"] for group in stepper.param_groups] for stepper in steppers]
    start, smooth = time.monotonic(), Smooth()
    model.train()
    writer = packer.writer
    everybody = writer.crowd
    writer.crowd = everybody[: shape.first_crowd]
    silent, masked = shape.silent_share * shape.steps, shape.masked_share * shape.steps
    steps = shape.steps + (shape.settling if shape.curriculum else 0)
    with curriculum_on(model, shape, objects) as course:
        for step in range(first, steps):
            if step == shape.steps:  # what was remembered of other steps would carry on where those went
                steppers, parts = optimizers(model, shape)
                writer.crowd = everybody
            if step == int(shape.crowd_share * shape.steps):
                writer.crowd = everybody
            # Short rows: a fact at the very beginning of a text has to be told as often as one in its midst.
            length = shape.lengths[step % len(shape.lengths)]
            rows = packer.batch(shape.tokens // length, length)
            if course:
                course.masked = step < masked or shape.steps <= step < shape.steps + shape.settling // 2
                course.settling = step >= shape.steps
                course.silence(step < silent)
                rows = course.begin(rows)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=rows.ids, use_cache=False).logits
                loss = weighted_loss(logits, rows)
                smooth.add(loss=loss.item(), objects=object_loss(logits, rows))
                if course:
                    price, recall = course.price(), course.recall()
                    smooth.add(price=price.item(), recall=recall.item())
                    # Its weight falls to nothing over a fifth of the steps, once the late MLPs speak.
                    fade = min(1.0, max(0.0, 1 - (step - silent) / (0.2 * shape.steps)))
                    loss = loss + price + fade * shape.recall_weight * recall
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for part in parts:
                part.take_gradient()
            for stepper, highest in zip(steppers, peaks, strict=True):
                for group, peak in zip(stepper.param_groups, highest, strict=True):
                    group["lr"] = peak * rate(shape, step)
                stepper.step()
            model.zero_grad(set_to_none=True)
            if (step + 1) % 50 == 0:
                print(f"{shape.name} {step + 1} {smooth} {time.monotonic() - start:.0f}s", flush=True)
    model.eval()
    return {**smooth.values, "tokens": float(steps * shape.tokens), "seconds": time.monotonic() - start}


class Smooth:
    """Running means, each over the last fifty or so values of its name."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, **seen: float) -> None:
        """One value more of each name."""
        for name, value in seen.items():
            self.values[name] = 0.95 * self.values.get(name, value) + 0.05 * value

    def __str__(self) -> str:
        return " ".join(f"{name} {value:.4f}" for name, value in self.values.items())
