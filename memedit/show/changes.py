"""Exports, reverts and differences as tables and lines."""

from __future__ import annotations

from rich.table import Table

from memedit.results.changes import Comparison, Outcome
from memedit.show.terminal import plain_table


def tensors_table(outcome: Outcome) -> Table:
    """One row a tensor: how much it changes, and what a dtype or a rank lost of that."""
    cut, apart = any(one.lost for one in outcome.tensors), any(one.distance is not None for one in outcome.tensors)
    titles = ["parameter", "rank", "|delta| / |W|", "lost to rounding"]
    titles += ["energy lost to --rank"] if cut else []
    titles += ["from the checkpoint"] if apart else []
    table = plain_table(titles)
    for one in outcome.tensors:
        row = [f"{one.rank:,}", f"{one.relative:.2%}", f"{one.rounding_loss:.2%}"]
        row += [f"{one.lost:.2%}"] if cut else []
        row += ["-" if one.distance is None else f"{one.distance:.2%}"] if apart else []
        table.add_row(one.parameter, *row)
    return table


def reverted(outcome: Outcome) -> str:
    """How far a revert is exact."""
    how = {
        "base": "the edited tensors are the base's own",
        "originals": "the edited tensors are those that were kept",
        "subtraction": "the change was subtracted",
    }[outcome.origin or "subtraction"]
    if outcome.exact:
        return f"{how}: the model is its base to the bit (digest {outcome.digests['model'][:12]})"
    if outcome.origin == "subtraction":
        return f"{how}: the model is its base up to the rounding of each number, not to the bit"
    return f"{how}; another file of the model is not its base's"


def comparison_table(found: Comparison) -> Table:
    """One row for each tensor that differs."""
    table = plain_table(["tensor", "file", "|B - A|", "/ |A|", "largest", "changed", "rank"], left=(0, 1))
    for one in found.tensors:
        if one.norm is None:
            words = [*(_two(*pair) for pair in (one.shapes, one.dtypes) if pair[0] != pair[1]), "not compared"]
            table.add_row(one.name, one.file, " ".join(words), "", "", "", "")
            continue
        relative = "-" if one.relative is None else f"{one.relative:.2%}"
        rank = "-" if one.rank is None else f"{one.rank:,}"
        table.add_row(one.name, one.file, f"{one.norm:.3g}", relative, f"{one.largest:.3g}", f"{one.changed:.2%}", rank)
    return table


def comparison_lines(found: Comparison) -> list[str]:
    """All that differs beside values, and how many tensors do."""
    lines = [f"dtype of {one.name}: {_two(*one.dtypes)}" for one in found.tensors if one.dtypes[0] != one.dtypes[1]]
    lines += [f"tensor only in A: {name}" for name in found.only_in_a]
    lines += [f"tensor only in B: {name}" for name in found.only_in_b]
    lines += [f"file differs: {name}" for name in found.files]
    lines += [f"file only in A: {name}" for name in found.files_only_in_a]
    lines += [f"file only in B: {name}" for name in found.files_only_in_b]
    count = len(found.tensors)
    lines.append(f"{count:,} of {count + found.same_tensors:,} tensors differ")
    return lines


def tensor_names(found: Comparison) -> list[str]:
    """What differs or is in one only, a name each."""
    tensors = [*(one.name for one in found.tensors), *found.only_in_a, *found.only_in_b]
    return [*tensors, *found.files, *found.files_only_in_a, *found.files_only_in_b]


def _two(one: object, two: object) -> str:
    return f"{one} -> {two}"
