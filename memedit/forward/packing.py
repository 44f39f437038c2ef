"""Pack documents into rows of token ids of one length."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from transformers import PreTrainedTokenizerBase

from memedit.model.tokens import text_opening

TOGETHER = 256  # documents tokenized at a time


def packed(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Generator[tuple[int, ...]]:
    """Pack documents, one after another, into rows of `length` tokens; the last row may be shorter.

    Each document begins as a text does (`text_opening`).
    """
    opening = text_opening(tokenizer)
    held: list[int] = []
    for text in _together(documents):
        for ids in tokenizer(text, add_special_tokens=False)["input_ids"]:  # type: ignore[union-attr]
            held += [*opening, *ids]  # type: ignore[list-item]
        while len(held) >= length:
            yield tuple(held[:length])
            held = held[length:]
    if held:
        yield tuple(held)


def _together(documents: Iterable[str]) -> Generator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == TOGETHER:
            yield batch
            batch = []
    if batch:
        yield batch
