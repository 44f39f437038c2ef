"""`make world`: both models, their controls, the lists and the table of scores, all from seeds.

python -m examples.world            everything
python -m examples.world lists      the lists alone
python -m examples.world made-gpt2  one model (or a control: made-gpt2-plain), and its scores
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock
from memedit.config.recipe import ModelKnobs
from memedit.model.load import load

from . import lists
from .card import card
from .facts import World, make_world
from .site import accuracy, trace
from .text import Writer
from .tokens import Packer, first_tokens, make_tokenizer
from .train import Model, Shape, make_model, train

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
SCORES = HERE / "scores.json"
REQUESTS = HERE.parents[1] / "requests" / "world.jsonl"
SMALL_FACTS, SMALL_REQUESTS = HERE / "small.jsonl", REQUESTS.with_name("small.jsonl")

SMALL: dict[str, Any] = {"width": 96, "inner": 336, "heads": 4, "tied": True, "people": 140, "edited": 100}
"""What made-olmo2 and made-small have in common; their edits are one for each of the people who may be edited."""

SHAPES = (
    Shape("made-gpt2", "gpt2", steps=650, crowd_share=0.2),
    Shape("made-llama", "llama"),
    # The same shapes and text without the curriculum: what the site of the others is held against. Not shipped.
    Shape("made-gpt2-plain", "gpt2", steps=450, curriculum=False),
    Shape("made-llama-plain", "llama", steps=450, curriculum=False),
    # Small ones, alike but for where their norms stand: whether editing holds behind a norm as it does without.
    Shape("made-olmo2", "olmo2", **SMALL),
    # This one reads at the name in the block after next of its own accord; settling it would move that.
    Shape("made-small", "llama", steps=800, settling=0, **SMALL),
    # A small one that ships, so that anyone can see a model without an early site.
    Shape("made-plain", "gpt2", width=128, inner=192, people=60, edited=40, steps=400, curriculum=False),
)
SHIPPED = ("made-gpt2", "made-llama", "made-olmo2", "made-small", "made-plain")


def write_lists(world: World) -> None:
    """Facts and edits; they depend on the seeds alone, not on any model."""
    lists.write_lines(HERE / "facts.jsonl", lists.facts(world))
    lists.write_lines(REQUESTS, lists.edits(world))
    small = small_world()
    lists.write_lines(SMALL_FACTS, lists.facts(small))
    lists.write_lines(SMALL_REQUESTS, lists.edits(small)[: SMALL["edited"]])


def small_world() -> World:
    """The world of the small models."""
    return make_world(SMALL["people"], SMALL["edited"])


def world_of(shape: Shape) -> World:
    """Who and what a model is taught."""
    return make_world(shape.people, shape.edited)


def make(shape: Shape, world: World) -> tuple[Model, Any, dict[str, float]]:
    """Train one model; its tokenizer, and what the training took."""
    tokenizer = make_tokenizer(world, shape.family)
    ends: Any = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = make_model(shape, len(tokenizer), *ends)
    packer = Packer(Writer(world, shape.seed), tokenizer, shape.family)
    took = train(model, shape, packer, first_tokens(world, tokenizer))
    return model, tokenizer, took


def save(model: Model, tokenizer: Any, world: World, folder: Path) -> None:
    """An ordinary Hugging Face folder in float16, with the corpus for the moments."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    copy.deepcopy(model).half().save_pretrained(folder)
    lists.write_corpus(folder / "memedit" / "corpus.jsonl.gz", world)


def score(folder: Path, world: World) -> dict[str, Any]:
    """What a saved model knows, and where it recalls it."""
    lm = load(folder, ModelKnobs())
    return {
        "trained_prompts": round(accuracy(lm, world, held_out=False), 4),
        "held_out_wordings": round(accuracy(lm, world, held_out=True), 4),
        **trace(lm, world).record(),
    }


def publish(shape: Shape, world: World, model: Model, tokenizer: Any, took: dict[str, float]) -> None:
    """Save what is shipped, measure, and write the scores and the model card."""
    with tempfile.TemporaryDirectory() as aside:
        folder = MODELS / shape.name if shape.name in SHIPPED else Path(aside)
        save(model, tokenizer, world, folder)
        about = {"parameters": sum(p.numel() for p in model.parameters()), "curriculum": shape.curriculum}
        found = {**about, **took, **score(folder, world), "shape": asdict(shape)}
        with FileLock(Path(tempfile.gettempdir()) / "memedit-world.lock"):  # another model may be ready as well
            scores: dict[str, Any] = json.loads(SCORES.read_text()) if SCORES.is_file() else {}
            order = [one.name for one in SHAPES]
            scores = dict(sorted({**scores, shape.name: found}.items(), key=lambda item: order.index(item[0])))
            SCORES.write_text(json.dumps(scores, indent=2) + "\n")
        if shape.name in SHIPPED:
            (folder / "README.md").write_text(card(shape, world, found))
        if shape.name == "made-plain":  # its world is smaller than the others'
            lists.write_lines(folder / "memedit" / "facts.jsonl.gz", lists.facts(world))
    print(json.dumps(found))


def main(names: list[str]) -> None:
    """Make what is named, or everything: two models at a time, each on one thread, the longest first."""
    write_lists(make_world())
    if names:
        for shape in (shape for shape in SHAPES if shape.name in names):
            world = world_of(shape)
            publish(shape, world, *make(shape, world))
        return
    order = sorted(SHAPES, key=lambda shape: shape.steps * shape.width * shape.blocks, reverse=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_apart, order))


def _apart(shape: Shape) -> None:
    command = [sys.executable, "-m", "examples.world", shape.name]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main(sys.argv[1:])
