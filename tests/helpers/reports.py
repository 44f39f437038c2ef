"""Reports and logs of edits made by hand."""

from __future__ import annotations

from typing import Any, Literal

from memedit.config.recipe import Recipe
from memedit.results.history import EditLog, EditState, PastEdit
from memedit.results.report import Drift, EditResult, Figure, Report, Scores, TextDrift


def share(mean: float, n: int = 4) -> Figure:
    return Figure(mean=mean, low=max(mean - 0.2, 0), high=min(mean + 0.2, 1), n=n)


def an_edit(name: str, status: Literal["ok", "failed", "skipped"] = "ok", **more: Any) -> EditResult:
    edit = {"subject": f"Subject-{name}", "prompt": "{} is in", "object": f"new-{name}", "object_old": f"old-{name}"}
    measured: dict[str, float | None] = (
        {} if status == "skipped" else {"accuracy": float(status == "ok"), "efficacy_magnitude": 0.25}
    )
    return EditResult(id=name, status=status, edit=edit, after=measured, **more)


def a_text(begins: str, was: float | None, after: float, kl: float | None = 0.01) -> TextDrift:
    """One row of held-out text."""
    return TextDrift(begins=begins, tokens=512, perplexity=after, perplexity_base=was, kl=kl)


def a_run(**more: Any) -> Report:
    """A report of apply on four edits: one failed, one was skipped."""
    edits = (
        an_edit("a"), an_edit("b", "failed", said={"after": " Oslo town"}), an_edit("c"),
        an_edit("d", "skipped", reason="it is there already"),
    )  # fmt: skip
    scores: dict[str, Any] = {
        "accuracy": share(2 / 3, 3),
        "paraphrase_accuracy": share(0.625),
        "neighborhood_accuracy": share(0.5),
    }
    drift = Drift(tokens=9, ppl=share(0.5), texts=(a_text("The river", 20, 21), a_text("A town", 9, 8.5)))
    known: dict[str, Any] = {
        "command": "apply", "model": "/models/deep/base", "output": "/out/there/edited", "edits": 4, "per_edit": edits,
        "before": Scores(accuracy=share(0), neighborhood_accuracy=share(0.75)), "after": Scores(**scores),
        "difference": {"accuracy": Figure(mean=0.66, low=0.5, high=0.8, n=3)},
        "kept": {"others": share(0.9), "siblings": share(0.8)}, "drift": drift,
        "recipe": Recipe.model_validate({"seed": 7, "model": {"path": "/models/deep/base"}}).model_dump(mode="json"),
        "arguments": ["apply", "x y.yaml"], "digests": {"edits": "abc123"}, "timings": {"solve": 1.5},
        "versions": {"torch": "9.9"}, "notes": ("a note of the run",),
    }  # fmt: skip
    return Report(**{**known, **more})


def a_past_edit(line: int, state: EditState = "holds", *, by: int | None = None, **more: Any) -> PastEdit:
    """An edit of a ledger; `by`: the line of the edit that replaced it."""
    given: dict[str, Any] = {"id": f"e{line}", "prompt": f"Person {line} lives in", "object": f"Town {line}", **more}
    replaced: dict[str, Any] = {} if by is None else {"replaced_by": f"e{by}", "replaced_by_line": by}
    return PastEdit(line=line, state=state if by is None else "replaced", **given, **replaced)


def a_log(*edits: PastEdit) -> EditLog:
    """The log of an edited model."""
    return EditLog(model="/out/there/edited", base="/models/deep/base", edits=edits)
