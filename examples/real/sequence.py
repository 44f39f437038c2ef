"""What a sequence of edit lists leaves of the first one, on a real model: one row of scores after each list.

    python -m examples.real.sequence MODEL OUT --lists 10 --each 20
    python -m examples.real.sequence MODEL OUT --mode on-top

Edits facts that the model knows, of all relations, one to a subject, drawn by a seed, list after list, at default
settings. By default each run solves all lists again from the base; on-top edits the edited model. With --mode once the
lists are one list. The scores, in per cent:

    first       edits of the first list that the model says now, of those that it said after the first run
    all         edits of all lists so far that the model says
    others      facts that the model knew about subjects of no list and still says
    siblings    known facts of the edited subjects, in other relations, that it still says
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import monotonic

import memedit
from memedit.api import Mode
from memedit.config.recipe import ModelKnobs
from memedit.edits.edit import EditRequest
from memedit.model.load import load

from examples.real.facts import beside, draw_edits, known_facts, load_relations
from examples.real.trade import cell, said

MODES: dict[str, Mode | None] = {"re-solve": None, "on-top": "on top", "once": None}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path, help="folder for the edited models")
    parser.add_argument("--lists", type=int, default=10)
    parser.add_argument("--each", type=int, default=20, help="edits in a list")
    parser.add_argument("--mode", choices=sorted(MODES), default="re-solve")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    relations = load_relations()
    known = known_facts(load(asked.model, ModelKnobs(path=str(asked.model)), editing=False), relations)
    edits = draw_edits(known, relations, asked.lists * asked.each, asked.seed)
    others, siblings = beside(edits, known)
    size = len(edits) if asked.mode == "once" else asked.each
    model, held = asked.model, list[EditRequest]()
    print(f"{len(others)} others, {len(siblings)} siblings\n")
    print("| edits | first | all | others | siblings | s |\n|---:|---:|---:|---:|---:|---:|")
    for at in range(0, len(edits), size):
        begun, folder = monotonic(), asked.output / f"{asked.mode}-{at + size}"
        memedit.apply(
            edits[at : at + size], model, folder, mode=MODES[asked.mode] if at else None,
            settings={"output.overwrite": True},
        )  # fmt: skip
        model = folder
        lm = load(model, ModelKnobs(path=str(model)), editing=False)
        if not at:
            first = edits[: asked.each]
            held = [edit for edit, right in zip(first, said(lm, first), strict=True) if right]
        parts = (held, edits[: at + size], others, siblings)
        row = [cell(said(lm, part), interval=False) for part in parts]
        print("|", " | ".join([str(at + size), *row, f"{monotonic() - begun:.0f}"]), "|", flush=True)


if __name__ == "__main__":
    main()
