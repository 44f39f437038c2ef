"""Sample the contexts, the prefixes under which an edit must hold, from the model itself, with a seed."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from memedit.config.recipe import ContextKnobs
from memedit.forward.passes import sample
from memedit.model.load import LanguageModel
from memedit.model.tokens import chat_openings, encode_bare, text_opening


def sample_contexts(lm: LanguageModel, knobs: ContextKnobs, seed: int, *, chat: bool = False) -> tuple[str, ...]:
    """Sample the contexts: the empty one (the bare prompt) first, then one from each opening, with a full stop.

    Where the model has a chat template, what it writes before a turn of the user's and before one of the model's are
    contexts too (knobs.chat), in the place of the last openings; not if the prompts themselves are asked in the
    template (`chat`).

    Follows kmeng01/memit, get_context_templates: top-k sampling to a fixed length, opening included. The model writes
    after the tokens with which a text begins, which the published code leaves out: without them a model whose tokenizer
    adds none continues from the middle of nowhere. Sampled text is never used as a template: a brace in it stays one.
    """
    begin = text_opening(lm.tokenizer)
    turns = chat_contexts(lm.tokenizer, knobs, chat=chat)
    openings = [(*begin, *encode_bare(lm.tokenizer, opening)) for opening in _openings(knobs, turns)]
    written = sample(lm, openings, length=knobs.tokens + len(begin), top_k=knobs.top_k, seed=seed)
    texts = [str(lm.tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in written]
    return ("", *(f"{text.strip()}. " for text in texts), *turns)


def _openings(knobs: ContextKnobs, turns: Sequence[str]) -> tuple[str, ...]:
    """The openings that are sampled from beside these turns: as many contexts in all, so a search takes as long."""
    return knobs.openings[: max(1, len(knobs.openings) - len(turns))]


def chat_contexts(tokenizer: PreTrainedTokenizerBase, knobs: ContextKnobs, *, chat: bool) -> tuple[str, ...]:
    """The contexts that the chat template gives; none if the prompts themselves are asked in it (`chat`)."""
    return chat_openings(tokenizer) if knobs.chat and not chat else ()


def context_shape(tokenizer: PreTrainedTokenizerBase, knobs: ContextKnobs, *, chat: bool) -> tuple[int, int]:
    """How many contexts there are, the empty one included, and how many tokens one adds to a prompt at most."""
    turns = chat_contexts(tokenizer, knobs, chat=chat)
    # A sampled context adds its own tokens, and the full stop and space that join it to the prompt.
    longest = max([knobs.tokens + 2, *(len(encode_bare(tokenizer, turn)) for turn in turns)])
    return 1 + len(_openings(knobs, turns)) + len(turns), longest
