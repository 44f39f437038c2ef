"""The tokenizers of the shipped models, and rows of tokens to train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .facts import RELATIONS, World
from .people import hyphenated_names
from .text import Writer

VOCABULARY = 1600
MENTION_WEIGHT, OBJECT_WEIGHT = 0.2, 4.0
"""What a token counts in the loss: a name cannot be foretold, so little is learned from it; an object can."""
CHUNK = 512
"""Documents tokenized at a time."""


def make_tokenizer(world: World, family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens of `family`.

    GPT-2 knows one special token and puts nothing before a text; the others put
    <s> before every text, as Llama's post-processor does.  The learned pieces come from
    text with names in hyphenated parts, so that real names stay in pieces.
    """
    llama = family != "gpt2"
    specials = ["<s>", "</s>"] if llama else ["<|endoftext|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    writer = Writer(world, seed=1, names=hyphenated_names())
    texts = [writer.document().text for _ in range(6000)]
    # Objects are told often enough to become one to three pieces each.
    texts += [f" {thing}" for relation in RELATIONS for thing in relation.objects] * 100
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    plain = processors.ByteLevel(trim_offsets=False)
    if llama:
        bos = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
        core.post_processor = processors.Sequence([plain, bos])
    else:
        core.post_processor = plain
    # Without these names the class would hand out token types, which Hugging Face's
    # GPT-2 silently adds to its embeddings.
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=["input_ids", "attention_mask"],
        bos_token=specials[0],
        eos_token=specials[-1],
        pad_token=specials[-1],
        unk_token=None if llama else specials[0],
        clean_up_tokenization_spaces=False,
    )


@dataclass
class Rows:
    """A batch of rows: token ids, mention numbers (0 for none), loss weights; and, at the last token of a mention,
    1 + the number of the person (0 elsewhere).
    """

    ids: torch.Tensor
    mention: torch.Tensor
    weight: torch.Tensor
    who: torch.Tensor


@dataclass
class _Stream:
    """Parallel lists, one entry per token."""

    ids: list[int]
    mention: list[int]
    weight: list[float]
    who: list[int]

    def add(self, token: int, mention: int, weight: float, who: int) -> None:
        self.ids.append(token)
        self.mention.append(mention)
        self.weight.append(weight)
        self.who.append(who)


class Packer:
    """Packs documents into rows of one length, each row beginning with a document.

    A model that is not GPT-2-shaped always sees its <s> first.  A GPT-2-shaped one sees the
    separator first in half of the rows, and a bare text in the others, since its
    tokenizer adds nothing: a name at position 0 must work as well as elsewhere.
    """

    def __init__(self, writer: Writer, tokenizer: PreTrainedTokenizerFast, family: str) -> None:
        self.writer, self.tokenizer, self.family = writer, tokenizer, family
        self.documents = self._documents()

    def _documents(self) -> Iterator[_Stream]:
        while True:
            documents = [self.writer.document() for _ in range(CHUNK)]
            encoded = self.tokenizer([d.text for d in documents], add_special_tokens=False, return_offsets_mapping=True)
            for number, document in enumerate(documents):
                stream = _Stream([], [], [], [])
                pairs = zip(encoded["input_ids"][number], encoded["offset_mapping"][number], strict=True)
                for token, (start, end) in pairs:
                    mention = _span_of(document.mentions, start, end)
                    thing = _span_of(document.objects, start, end)
                    ends = mention > 0 and end >= document.mentions[mention - 1][1]
                    weight = OBJECT_WEIGHT if thing else 1.0
                    who = 1 + document.who[mention - 1] if ends else 0
                    stream.add(token, mention, MENTION_WEIGHT if mention else weight, who)
                yield stream

    def _row(self, length: int) -> _Stream:
        first: Any = self.tokenizer.bos_token_id
        final: Any = self.tokenizer.eos_token_id
        row = _Stream([], [], [], [])
        mentions = 0
        if self.family != "gpt2" or self.writer.rng.random() < 0.5:
            row.add(first, 0, 1.0, 0)
        while len(row.ids) < length:
            document = next(self.documents)
            for token, mention, weight, who in zip(
                document.ids, document.mention, document.weight, document.who, strict=True
            ):
                row.add(token, mention + mentions if mention else 0, weight, who)
            mentions += max(document.mention)
            row.add(final, 0, 1.0, 0)
            if self.family != "gpt2":
                row.add(first, 0, 0.0, 0)
        return row

    def batch(self, rows: int, length: int) -> Rows:
        """The next `rows` rows of `length` tokens."""
        batch = [self._row(length) for _ in range(rows)]
        return Rows(
            ids=torch.tensor([r.ids[:length] for r in batch]),
            mention=torch.tensor([r.mention[:length] for r in batch]),
            weight=torch.tensor([r.weight[:length] for r in batch]),
            who=torch.tensor([r.who[:length] for r in batch]),
        )


def first_tokens(world: World, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """The first token of every true object, (people, relations)."""
    return torch.tensor(
        [
            [
                tokenizer(" " + world.truth[person.name, relation.name], add_special_tokens=False)["input_ids"][0]
                for relation in RELATIONS
            ]
            for person in world.people
        ]
    )


def _span_of(spans: list[tuple[int, int]], start: int, end: int) -> int:
    """1 + the number of the span that the characters [start, end) touch, or 0."""
    for number, (left, right) in enumerate(spans, 1):
        if start < right and end > left:
            return number
    return 0
