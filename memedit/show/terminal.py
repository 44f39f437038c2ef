"""Reports and recipes as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from memedit.edits.edit import Finding
from memedit.results.report import Figure, Report

SCORE_MEANINGS = {
    "efficacy": "the new object is likelier than the old",
    "accuracy": "the model says the new object",
    "paraphrase": "likelier under other wordings",
    "paraphrase_accuracy": "said under other wordings",
    "neighborhood": "neighbors keep their own object likelier",
    "neighborhood_accuracy": "neighbors still say their own object",
}
TOLD = 0.01  # a loss to rounding over which it is told beside that of the other way
KEPT = {
    "others": "facts of others right before, right after",
    "siblings": "other facts of the edited, right after",
    "earlier": "edits of earlier runs right before, right after",
}


def scores_table(report: Report) -> Table:
    """Before and after, one row a score, with the 95 % interval of what is after."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("n", justify="right")
    table.add_column("")
    for name, meaning in SCORE_MEANINGS.items():
        was: Figure | None = getattr(report.before, name, None)
        now: Figure | None = getattr(report.after, name, None)
        if now is not None:
            table.add_row(name.replace("_", " "), percent(was), percent(now), interval(now), f"{now.n:,}", meaning)
    if report.after is not None and report.after.score is not None:
        before = report.before.score if report.before else None
        was_text = f"{before:.1%}" if before is not None else "-"
        table.add_row("score", was_text, f"{report.after.score:.1%}", "", "", "harmonic mean of the three successes")
    for name, meaning in KEPT.items():
        if (share := report.kept.get(name)) is not None:
            table.add_row(f"kept, {name}", "100.0%", percent(share), interval(share), f"{share.n:,}", meaning)
    if (held := report.retention) is not None:
        meaning = "edits of earlier runs that took when made"
        table.add_row("retention", "", percent(held), interval(held), f"{held.n:,}", meaning)
    return table


def layers_table(report: Report) -> Table:
    """One row a layer: how much was missing, how well the keys were fitted, how much the weight moved.

    Where units never fired, or a moment had to be made positive definite, that stands beside it; and where rounding
    to nearest would lose over 1 % of a layer's effect, what it would lose.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    singular = any(one.dead or one.shift for one in report.layers)
    titles = ["layer", "missing before", "after", "leverage", "fitted", "|delta| / |W|", "lost to rounding"]
    for title in titles + (["dead units", "moment's shift"] if singular else []):
        table.add_column(title, justify="right")
    matters = any(one.nearest_loss > TOLD for one in report.layers)
    if matters:
        table.add_column("to nearest", justify="right")
        table.add_column("rounding")
    for one in report.layers:
        table.add_row(
            str(one.layer), f"{one.residual_before:.3g}", f"{one.residual_after:.3g}", f"{one.leverage:.2f}",
            f"{one.fitted:.1%}", f"{one.delta_norm:.2%}", f"{one.rounding_loss:.2%}",
            *([f"{one.dead:,}", f"{one.shift:.0e}"] if singular else []),
            *((f"{one.nearest_loss:.2%}", one.rounding) if matters else ()),
        )  # fmt: skip
    return table


def percent(figure: Figure | None) -> str:
    """A share, or a dash."""
    return "-" if figure is None else f"{figure.mean:.1%}"


def interval(figure: Figure) -> str:
    """Its 95 % interval."""
    return f"{figure.low:.1%} to {figure.high:.1%}"


def findings_text(findings: list[Finding]) -> str:
    """One line each, and how many there are."""
    errors = sum(finding.severity == "error" for finding in findings)
    lines = [finding.line for finding in findings]
    lines.append(f"{_count(errors, 'error')}, {_count(len(findings) - errors, 'warning')}")
    return "\n".join(lines)


def recipe_text(record: Mapping[str, Any], sources: Mapping[str, str], prefix: str = "", depth: int = 0) -> str:
    """A recipe as YAML that can be read back with -c, each value with where it came from."""
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
