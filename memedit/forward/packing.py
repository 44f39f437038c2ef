"""Pack documents into rows of token ids of one length."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from transformers import PreTrainedTokenizerBase

TOGETHER = 256  # documents tokenized at a time


def packed(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Generator[tuple[int, ...]]:
    """Pack documents, one after another, into rows of `length` tokens; the last row may be shorter.

    Each document begins with the tokens that the tokenizer puts before a text (BOS). Where there are none it begins
    with EOS, which separates documents as in training.
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
