"""Sample the contexts, the prefixes under which an edit must hold, from the model itself, with a seed."""

from __future__ import annotations

from memedit.config.recipe import ContextKnobs
from memedit.forward.passes import sample
from memedit.model.load import LanguageModel
from memedit.model.tokens import encode_bare, text_opening


def sample_contexts(lm: LanguageModel, knobs: ContextKnobs, seed: int) -> tuple[str, ...]:
    """Sample the contexts: the empty one (the bare prompt) first, then one from each opening, with a full stop.

    Follows kmeng01/memit, get_context_templates: top-k sampling to a fixed length, opening included. The model writes
    after the tokens with which a text begins, which the published code leaves out: without them a model whose tokenizer
    adds none continues from the middle of nowhere. Sampled text is never used as a template: a brace in it stays one.
    """
    begin = text_opening(lm.tokenizer)
    openings = [(*begin, *encode_bare(lm.tokenizer, opening)) for opening in knobs.openings]
    written = sample(lm, openings, length=knobs.tokens + len(begin), top_k=knobs.top_k, seed=seed)
    texts = [str(lm.tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in written]
    return ("", *(f"{text.strip()}. " for text in texts))
