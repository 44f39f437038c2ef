"""Writing on from prompts: many at once, each token after kept keys and values, nothing ever padded.

Prompts of equal length share a launch, and a beginning that many share runs once (see scoring). What a prompt gets
does not depend on its company: greedy decoding has no choice, and a drawn token comes from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from memedit.model.load import LanguageModel
from memedit.model.passes import launches
from memedit.model.scoring import Ids, lead_cache, leads, picked, run_on


@torch.no_grad()
def write(
    lm: LanguageModel,
    prompts: Sequence[Ids],
    tokens: int,
    *,
    top_k: int = 1,
    seed: int = 0,
    seen: Callable[[int], None] | None = None,
) -> list[Ids]:
    """What the model writes after each prompt: at most `tokens` tokens, ended by its EOS, which is left out.

    `top_k` 1 is greedy decoding; else each token is drawn from the `top_k` likeliest by a generator seeded with `seed`
    and the prompt. A model with a longest row writes no further than that.
    """
    found: dict[Ids, Ids] = {}
    stop = lm.tokenizer.eos_token_id
    for lead, group in leads(list(dict.fromkeys(prompts))):
        start = lead_cache(lm, group[0][:lead])
        for batch in launches([len(prompt) + tokens for prompt in group]):
            chosen = [group[index] for index in batch]
            room = tokens if lm.anatomy.positions is None else min(tokens, lm.anatomy.positions - len(chosen[0]))
            draws = [_generator(seed, prompt) for prompt in chosen] if top_k > 1 else None
            cache = picked(start, [0] * len(chosen))
            ids = torch.tensor([prompt[lead:] for prompt in chosen])
            written: list[list[int]] = [[] for _ in chosen]
            ended = [False] * len(chosen)
            for _ in range(room):
                picks = _pick(run_on(lm, ids, cache, keep=1)[:, 0], top_k, draws)
                for row, token in enumerate(picks):
                    ended[row] = ended[row] or token == stop
                    if not ended[row]:
                        written[row].append(token)
                if all(ended):
                    break
                ids = torch.tensor(picks)[:, None]
            found |= {prompt: tuple(line) for prompt, line in zip(chosen, written, strict=True)}
            if seen:
                seen(len(chosen))
    return [found[prompt] for prompt in prompts]


def _pick(logits: Tensor, top_k: int, draws: list[torch.Generator] | None) -> list[int]:
    """The next token of each row, logits (B, V)."""
    if draws is None:
        return logits.argmax(-1).tolist()
    values, tokens = logits.cpu().topk(min(top_k, logits.shape[-1]))
    shares = values.softmax(-1)
    return [int(tokens[row, torch.multinomial(shares[row], 1, generator=draw)]) for row, draw in enumerate(draws)]


def _generator(seed: int, prompt: Ids) -> torch.Generator:
    mixed = seed
    for token in prompt:
        mixed = (mixed * 1_000_003 + token + 1) % (1 << 63)
    return torch.Generator().manual_seed(mixed)
