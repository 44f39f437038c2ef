"""Documents -> rows of token ids of one length, each document begun as the model family begins a text."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from transformers import PreTrainedTokenizerBase

TOGETHER = 256  # documents tokenized at a time


def packed(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Generator[tuple[int, ...]]:
    """Documents one after another in rows of `length` tokens, each begun as the family begins a text.

    A tokenizer that puts nothing before a text gets its separator (EOS) between documents, as in training. What is
    left over at the end makes a shorter row.
    """
    opening = list(tokenizer("")["input_ids"])  # type: ignore[arg-type]
    separator = opening or ([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])
    held: list[int] = []
    for text in _together(documents):
        for ids in tokenizer(text, add_special_tokens=False)["input_ids"]:  # type: ignore[union-attr]
            held += [*separator, *ids]  # type: ignore[list-item]
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
