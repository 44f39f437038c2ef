"""Reports and recipes as tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from memedit.config.layers import layers_text
from memedit.edits.edit import Finding
from memedit.results.report import Report
from memedit.results.units import printable

ROUNDING_SHOWN = 0.01  # the loss of rounding to nearest above which it is shown beside the loss of what was used


def print_line(console: Console, text: str) -> None:
    """Print one line: a pipe gets it whole, whatever its length; a terminal breaks it between words."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=not console.is_terminal)


def plain_table(titles: Sequence[str], left: Collection[int] = (0,)) -> Table:
    """A table without lines, but one under its head; `left`: the columns of text. What does not fit is folded."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for n, title in enumerate(titles):
        table.add_column(title, justify="left" if n in left else "right", overflow="fold")
    return table


def layers_table(report: Report) -> Table:
    """One row per layer: the residual before and after, the fit of the keys, the size of the change.

    Columns for dead units and the moment's shift appear if a layer has any. Columns for rounding to nearest appear if
    it would lose over 1 % of a layer's effect.
    """
    singular = any(one.dead or one.shift for one in report.layers)
    titles = ["layer", "missing before", "after", "leverage", "fitted", "|delta| / |W|", "lost to rounding"]
    titles += ["dead units", "moment's shift"] if singular else []
    matters = any(one.nearest_loss > ROUNDING_SHOWN for one in report.layers)
    table = plain_table(titles + (["if to nearest", "rounding"] if matters else []), left=())
    for one in report.layers:
        table.add_row(
            str(one.layer), f"{one.residual_before:.3g}", f"{one.residual_after:.3g}", f"{one.leverage:.2f}",
            f"{one.fitted:.1%}", f"{one.delta_norm:.2%}", f"{one.rounding_loss:.2%}",
            *([f"{one.dead:,}", f"{one.shift:.0e}"] if singular else []),
            *((f"{one.nearest_loss:.2%}", one.rounding) if matters else ()),
        )  # fmt: skip
    return table


def layers_line(report: Report) -> str:
    """The same in one line: how well the keys are fitted, the largest change, the largest loss to rounding."""
    layers = report.layers
    fitted = [one.fitted for one in layers]
    span = f"{min(fitted):.0%}" if len(layers) == 1 else f"{min(fitted):.0%} to {max(fitted):.0%}"
    return (
        f"layers {layers_text([one.layer for one in layers])}: fitted {span}, |delta| / |W| up to "
        f"{max(one.delta_norm for one in layers):.1%}, rounding lost {max(one.rounding_loss for one in layers):.1%}"
    )


def findings_text(findings: list[Finding]) -> str:
    """One line per finding, then the number of errors and warnings."""
    errors = sum(finding.severity == "error" for finding in findings)
    lines = [printable(finding.line) for finding in findings]
    lines.append(f"{_count(errors, 'error')}, {_count(len(findings) - errors, 'warning')}")
    return "\n".join(lines)


def recipe_text(record: Mapping[str, Any], sources: Mapping[str, str], prefix: str = "", depth: int = 0) -> str:
    """Write a recipe as YAML that -c can read; a comment says where each value comes from."""
    import json

    lines: list[str] = []
    for name, value in record.items():
        key = prefix + name
        if isinstance(value, Mapping):
            lines.append(f"{'  ' * depth}{name}:")
            lines.append(recipe_text(value, sources, f"{key}.", depth + 1))  # type: ignore[reportUnknownArgumentType]
        else:
            lines.append(f"{'  ' * depth}{name}: {json.dumps(value, ensure_ascii=False)}  # {sources[key]}")
    return "\n".join(lines)


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"
