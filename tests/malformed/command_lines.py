"""Mutated command lines: sound ones for every command, how they are changed, and how each ended."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import memedit

from tests.conftest import byte_tokenizer, tiny_model
from tests.helpers.in_process import LONGEST, faults, held, run_main
from tests.malformed.hostile import FEW

EDITS = """{"id": "one", "subject": "Ada", "prompt": "{} lives in", "object": "Rome", "object_old": "Oslo"}
{"id": "two", "subject": "Bo", "prompt": "{} lives in", "object": "Oslo", "object_old": "Rome"}
"""
SHORT = [*FEW, "--corpus", "corpus.txt"]
SOUND: list[list[str]] = [
    ["apply", "edits.jsonl", "-m", "model", "-o", "out", *SHORT],
    ["apply", "edits.jsonl", "-m", "model", "-o", "out", *SHORT, "--method", "rome", "--limit", "1", "--json"],
    ["apply", "edits.jsonl", "-m", "edited", "-o", "out", "--on-top", "-q"],
    ["apply", "edits.jsonl", "-m", "model", "-o", "out", *SHORT, "--dry-run"],
    ["apply", "edits.jsonl", "--show-config", "-c", "recipe.yaml"],
    ["apply", "--delta", "edited", "-m", "model", "-o", "out"],
    ["forget", "one", "-m", "edited", "-o", "out", "--base", "model"],
    ["eval", "edits.jsonl", "-m", "edited", "--base", "model", "--fail-under", "efficacy=0.5", "--per-edit"],
    ["eval", "edits.jsonl", "-m", "model", "--adapter", "lora", "--text", "corpus.txt", "--facts", "edits.jsonl"],
    ["check", "edits.jsonl", "-m", "model", "--input-format", "jsonl"],
    ["stats", "-m", "model", "--layers", "1-2", "--tokens", "50", "--corpus", "corpus.txt"],
    ["trace", "edits.jsonl", "-m", "model", "-o", "out", "--samples", "2", "--window", "1", "--noise", "3sigma"],
    ["trace", "-m", "model", "--prompt", "Ada lives in", "--subject", "Ada", "--answer", " Oslo"],
    ["inspect", "model", "--dtype", "float32", "--device", "cpu", "--json"],
    ["export", "edited", "--to", "lora", "-m", "model", "-o", "out", "--rank", "1"],
    ["export", "edited", "--to", "dense", "-m", "model", "-o", "out.safetensors"],
    ["revert", "edited", "-o", "out", "-m", "model"],
    ["diff", "model", "edited", "--exit-code"],
    ["log", "edited", "--json"],
    ["push", "edited", "someone/edited", "--dry-run", "--no-records"],
    ["schema", "recipe"],
    ["help", "settings", "method"],
    ["cache", "ls", "--kind", "moment", "--json"],
    ["cache", "clean", "--older-than", "30d", "--dry-run"],
]
ODD = [
    "", " ", "x", "-", "--", "-1", "0", "1", "nan", "inf", "1e999", "9" * 50, "\x1b[2J", "\udcff", "\u00e9", "a\nb",
    "a\0b",
    "3-1", "0-99", "auto", "a" * 5000, "{}", "[", "*", "%s", "None", "true", "3GB", "model", "edits.jsonl", "out",
    "corpus.txt", "edited", "lora", "recipe.yaml", "model/config.json", "model/model.safetensors", "-h", "--json", "-q",
    "--set", "--set=seed=x", "--set=method.ridge=nan", "--set=chunk=99999999999999999999", "--layers=-1", "--limit=0",
    "--per-edit", "--dtype=int8", "--device=meta", "--device=cuda:99", "--method=x", "--config=model",
    "--no-such-option",
    "--preset=gpt2-xl", "--chat", "--base=edited", "--overwrite", "--link=hard", "--memory=1", "--retry=1",
]  # fmt: skip


def mutated_command(number: int, seed: int) -> list[str]:
    """The command line with this number: a sound one in which one to three words were changed."""
    draw = random.Random(f"{seed}-command-{number}")
    words = list(draw.choice(SOUND))
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        at = draw.randrange(len(words))
        kind = draw.choice([0, 1, 2, 3, 4, 4, 4, 4])
        if kind == 0 and len(words) > 1:
            del words[at]
        elif kind == 1:
            words.insert(at, words[draw.randrange(len(words))])
        elif kind == 2:
            words.insert(at + 1, draw.choice(ODD))
        elif kind == 3:
            other = draw.randrange(len(words))
            words[at], words[other] = words[other], words[at]
        else:
            words[at] = draw.choice(ODD)
    return words


def make_place(root: Path) -> Path:
    """Make a folder with all that the sound command lines name."""
    root.mkdir(exist_ok=True)
    tiny_model("llama").save_pretrained(root / "model")
    byte_tokenizer().save_pretrained(root / "model")
    (root / "corpus.txt").write_text("The old bridges of the town stood near the river.\n\n" * 20)
    (root / "edits.jsonl").write_text(EDITS)
    (root / "recipe.yaml").write_text("version: 1\nmethod.ridge: 2\n")
    settings = {name: value for name, _, value in (word.partition("=") for word in FEW if "=" in word)}
    settings |= {"method.layers": "1", "moments.corpus": str(root / "corpus.txt")}
    memedit.apply(str(root / "edits.jsonl"), root / "model", root / "edited", settings=settings)
    memedit.export(root / "edited", "lora", root / "model", root / "lora")
    return root


@contextmanager
def _inside(place: Path) -> Generator[None]:
    """Work in a folder, with an empty standard input, and stop what takes far too long."""

    def stop(_number: int, _frame: object) -> None:
        raise TimeoutError

    before, stdin, handler = Path.cwd(), sys.stdin, signal.signal(signal.SIGALRM, stop)
    os.chdir(place)
    sys.stdin = io.StringIO("")
    signal.setitimer(signal.ITIMER_REAL, 12 * LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        sys.stdin = stdin
        os.chdir(before)


def ended(words: list[str], sound: Path, place: Path) -> tuple[int, list[str]]:
    """Run a command line in a copy of the sound folder; returns its exit code, and what is wrong with its end."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(sound, place)
    before = held(place)
    with _inside(place):
        result = run_main(words)
    wrong = faults(result)
    left = sorted(held(place) - before)
    if result.code and left:
        wrong.append(f"it left {', '.join(left)[:200]}")
    hidden = [name for name in left if Path(name).name.startswith(".")]
    return result.code, [*wrong, *(f"it left {name}" for name in hidden)]


def run_table(count: int, seed: int) -> int:
    """Run mutated command lines and print a table; returns 1 if one of them had an unexpected end."""
    totals: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEMEDIT_CACHE"] = f"{folder}/cache"
        sound = make_place(Path(folder) / "sound")
        for number in range(count):
            words = mutated_command(number, seed)
            code, wrong = ended(words, sound, Path(folder) / "place")
            name = words[0] if words[0].isalpha() else "other"
            totals.setdefault(name, Counter())["unexpected" if wrong else str(code)] += 1
            if wrong:
                print(f"command {number} {words!r}: {'; '.join(wrong)}")
    kinds = ("0", "1", "2", "3", "4", "5", "unexpected")
    total: Counter[str] = sum(totals.values(), Counter())
    print(f"{'command':<12}" + "".join(f"{kind:>12}" for kind in kinds))
    for name, counts in [*sorted(totals.items()), ("all", total)]:
        print(f"{name[:11]:<12}" + "".join(f"{counts[kind]:>12,}" for kind in kinds))
    print(f"unexpected={total['unexpected']}")
    return 1 if total["unexpected"] else 0
