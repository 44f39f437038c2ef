"""Read mutated edit lists, or run mutated command lines, and print a table.

python -m tests.malformed.mutate --count 5000
python -m tests.malformed.mutate --commands 500
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memedit.edits.lint import lint
from memedit.edits.read import read, write_lines
from memedit.errors import UsageError

FAST = 400
"""Mutated lists in the fast suite."""
LONGEST = 10.0
"""Seconds after which a reader counts as hanging."""
SEED = 16

PLAIN: list[dict[str, Any]] = [
    {
        "id": "fr", "subject": "France", "prompt": "The capital of {} is", "object": "Lyon", "object_old": "Paris",
        "paraphrases": ["{} is ruled from"], "neighborhood": [{"prompt": "Spain's capital is", "answer": "Madrid"}],
        "aliases": ["Lugdunum"], "portability": [{"prompt": "Who rules Lyon?", "answer": "x", "aliases": ["y"]}],
        "generation": ["{} is"], "references": ["Lyon is old."], "meta": {"k": [1, None, 2.5, True]},
    },
    {"subject": "東京", "prompt": "{} is in", "object": "Norway"},
]  # fmt: skip
PUBLIC: list[dict[str, Any]] = [
    {
        "case_id": 7, "paraphrase_prompts": ["Ada, who speaks"], "neighborhood_prompts": ["Bo speaks"],
        "requested_rewrite": {
            "prompt": "{} speaks", "relation_id": "P1412", "subject": "Ada",
            "target_new": {"str": "French", "id": "Q1"}, "target_true": {"str": "English", "id": "Q2"},
        },
    },
    {
        "case_id": 1, "questions": ["Where?", "Who?"], "new_answer": "Oslo", "new_answer_alias": ["Christiania"],
        "new_single_hops": [{"cloze": "Ada lives in", "question": "Where?", "answer": "Oslo", "answer_alias": []}],
        "requested_rewrite": [
            {
                "prompt": "{} lives in", "relation_id": "P1", "subject": "Ada", "question": "Where does Ada live?",
                "target_new": {"str": "Oslo", "id": "Q1"}, "target_true": {"str": "Bonn", "id": "Q2"},
            }
        ],
    },
    {"src": "Who is Ada?", "subject": "Ada", "alt": "a queen", "answers": ["a king"], "rephrase": "Ada is who?",
     "loc": "nq question: who?", "loc_ans": "me", "cond": "x >> y || z"},
    {"prompt": "Ada was born in", "subject": "Ada", "target_new": "Rome", "ground_truth": ["Paris"],
     "locality": {"near": [{"prompt": "Bo was born in", "ground_truth": ["Bern"]}]},
     "portability": {"far": [{"prompt": "Ada's country is", "ground_truth": [["Italy", "IT"]]}]}},
    {"known_id": 3, "subject": "Ada", "attribute": "Rome", "prompt": "Ada sleeps in", "template": "{} sleeps in"},
]  # fmt: skip
YAML = """\
version: 1
relations:
  capital: {prompt: 'The capital of {} is', paraphrases: ['{} is ruled from']}
edits:
- [France, capital, Lyon]
- {subject: Spain, relation: capital, object: Nice, meta: &m {a: [b, "c\\u00e9"]}}
- subject: Malta
  prompt: '{} is in'
  object: |
    Norway
  meta: *m
"""
CSV = 'subject,prompt,object,paraphrases\nFrance,The capital of {} is,Lyon,"[""{} is ruled from""]"\nA,{} is,B,\n'

Mutation = Callable[[random.Random, bytes], bytes]


def good_lists() -> dict[str, bytes]:
    """Sound lists of every format, by file name."""
    lines = "".join(json.dumps(record) + "\n" for record in [*PLAIN, *PUBLIC]).encode()
    return {
        "a.jsonl": lines,
        "a.json": json.dumps([*PLAIN, *PUBLIC], indent=1, ensure_ascii=False).encode(),
        "b.json": json.dumps({"version": 1, "relations": {"r": "{} is"}, "edits": PLAIN}).encode(),
        "a.yaml": YAML.encode(),
        "a.csv": CSV.encode(),
        "a.tsv": b"subject\tprompt\tobject\nFrance\tThe capital of {} is\tLyon\n",
        "a.jsonl.gz": gzip.compress(lines, mtime=0),
        "a": json.dumps(PLAIN).encode(),
    }


def flip_bytes(draw: random.Random, data: bytes) -> bytes:
    """Replace one to five bytes."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 5)):
        changed[draw.randrange(len(changed))] = draw.choice([draw.randrange(256), *b'\0"\\{}[],:&*!\n\t\xff'])
    return bytes(changed)


def cut(draw: random.Random, data: bytes) -> bytes:
    """Remove a piece, or everything after a place."""
    start = draw.randrange(len(data))
    return data[:start] + (data[draw.randrange(start, len(data)) :] if draw.random() < 0.5 else b"")


def repeat_line(draw: random.Random, data: bytes) -> bytes:
    """Write a line again, somewhere else."""
    lines = data.splitlines(keepends=True)
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
    return b"".join(lines)


def insert_odd(draw: random.Random, data: bytes) -> bytes:
    """Insert text that is known to break readers."""
    odd = [
        b"\0", b"\\ud800", b'"\\UFFFFFFFF"', b"\xef\xbb\xbf", b"\xed\xa0\x80", b"[" * 3000, b"{a: " * 500, b"1e999",
        b"9" * 5000, b"NaN", b"*m ", b"&m [*m]", b"!!python/object:os.system ", b"--- ", b"%YAML 9.9\n", b"\x1b[2J",
        "\u2028".encode(), b'"a": 1, "a": 2, ', b"{}", b"null", b"[]", b'""', b"? ", b"<<: *m\n", b"\r",
    ]  # fmt: skip
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(odd) + data[at:]


def swap_types(draw: random.Random, data: bytes) -> bytes:
    """Replace a value somewhere in the JSON records by one of another type, remove it, or add a key."""
    try:
        records = [json.loads(line) for line in data.decode().splitlines()]
    except (ValueError, RecursionError):
        return flip_bytes(draw, data)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, entry in list(entries):
            places.append((value, key))
            walk(entry)

    walk(records)
    if not places:
        return flip_bytes(draw, data)
    holder, key = draw.choice(places)
    others: list[Any] = [
        None,
        5,
        -1.5,
        True,
        "",
        "x",
        " a ",
        [],
        {},
        ["x"],
        {"a": 1},
        [[["x"]]],
        [None],
        {"": {}},
        "\0",
    ]
    if isinstance(holder, dict) and draw.random() < 0.2:
        holder[draw.choice(["", "id", "meta", "prompt", "unheard_of", "status", "edits"])] = draw.choice(others)
    elif draw.random() < 0.2:
        del holder[key]
    else:
        holder[key] = draw.choice(others)
    return "".join(json.dumps(record) + "\n" for record in records).encode()


MUTATIONS: tuple[Mutation, ...] = (flip_bytes, cut, repeat_line, insert_odd, swap_types)


def mutated(number: int, seed: int = SEED) -> tuple[str, str, bytes]:
    """The list with this number: names of the file and of its mutations, and its bytes."""
    draw = random.Random(f"{seed}-{number}")
    name, data = draw.choice(sorted(good_lists().items()))
    steps = draw.choices(MUTATIONS, k=draw.choice([1, 1, 1, 2, 3]))
    packed = name.endswith(".gz") and draw.random() < 0.5
    data = gzip.decompress(data) if packed else data
    for step in steps:
        data = step(draw, data) if data else data
    return name, " + ".join(step.__name__ for step in steps), gzip.compress(data, mtime=0) if packed else data


def outcome(file: Path) -> str:
    """`read` or `refused`, as a command would end; any other exception, or a hang, is `unexpected: ...`."""
    begun = time.monotonic()
    try:
        requests, findings = read(str(file))
        findings += lint(requests)
        for finding in findings:
            finding.line.encode()
            finding.model_dump_json()
        write_lines(requests).encode()
    except UsageError:
        return "refused"
    except Exception:  # noqa: BLE001  any other exception is the finding
        return f"unexpected: {traceback.format_exc()}"
    if time.monotonic() - begun > LONGEST:
        return f"unexpected: it took more than {LONGEST} seconds"
    return "refused" if any(finding.severity == "error" for finding in findings) else "read"


def main() -> int:
    """Read --count mutated lists, print a table, and exit with 1 if one of them had an unexpected end."""
    parser = argparse.ArgumentParser(description="Read mutated edit lists, or run mutated command lines.")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--commands", type=int, default=0, help="run so many command lines instead")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    if options.commands:
        from tests.malformed.command_lines import run_table

        return run_table(options.commands, options.seed)
    totals: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.count):
            name, steps, data = mutated(number, options.seed)
            (Path(folder) / name).write_bytes(data)
            end = outcome(Path(folder) / name)
            totals.setdefault(name, Counter())[end.split(":")[0]] += 1
            if end.startswith("unexpected"):
                print(f"list {number} ({name}, {steps}): {end}")
    kinds = ("read", "refused", "unexpected")
    total: Counter[str] = sum(totals.values(), Counter())
    print(f"{'list':<12}" + "".join(f"{kind:>12}" for kind in kinds))
    for name, counts in [*sorted(totals.items()), ("all", total)]:
        print(f"{name:<12}" + "".join(f"{counts[kind]:>12,}" for kind in kinds))
    print(f"read={total['read']} refused={total['refused']} unexpected={total['unexpected']}")
    return 1 if total["unexpected"] else 0


if __name__ == "__main__":
    sys.exit(main())
