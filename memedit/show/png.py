"""The page's figures as files of their own, through matplotlib (the `plots` extra)."""

from __future__ import annotations

import io
import re
from typing import Any, Literal

from memedit.errors import UsageError
from memedit.numerics.effects import ROLES
from memedit.results.traces import Average, Curve, TracedFact, TracingResult
from memedit.show.heatmap import TITLES, labels
from memedit.show.html import FACTS
from memedit.show.svg import ROLE_INKS, SEVERED_INKS, SEVERED_NAMES

MAPS = {"hidden": "Purples", "mlp": "Greens", "attention": "Reds"}


def check_plots() -> None:
    """Raises UsageError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        hint = "pip install 'memedit[plots]'; without it -o writes trace.html"
        raise UsageError("--plot draws with matplotlib, which is not installed", hint) from error


def figures(tracing: TracingResult, suffix: Literal["png", "svg"]) -> dict[str, bytes]:
    """Files by name: the averages, the severed bars, and the three maps of each of the first facts."""
    check_plots()
    found = {
        f"figures/average.{suffix}": _averages(tracing.average, suffix),
        f"figures/severed.{suffix}": _severed(tracing.average, suffix),
    }
    for number, traced in enumerate(tracing.facts[:FACTS], start=1):
        name = re.sub(r"[^\w.-]+", "-", traced.fact.id)[:80]
        found[f"figures/{number:02d}-{name}.{suffix}"] = _maps(traced, suffix)
    return found


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _bytes(figure: Any, suffix: str) -> bytes:
    import matplotlib

    stream = io.BytesIO()
    # Without a date and with ids by a salt, the same traces give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "memedit", "svg.fonttype": "none"}):
        figure.savefig(stream, format=suffix, dpi=160, metadata={"Date": None} if suffix == "svg" else {})
    return stream.getvalue()


def _maps(traced: TracedFact, suffix: str) -> bytes:
    fact, names = traced.fact, labels(traced.fact)
    low, clean = fact.corrupted or 0.0, fact.clean or 0.0
    top = max(clean, *(float(traced.scores[kind].max()) for kind in TITLES))
    n_layers = traced.scores["hidden"].shape[1]
    figure = _figure(3 * max(3.4, 1.6 + 0.09 * n_layers), 1.5 + 0.24 * len(names))
    figure.suptitle(f"{fact.prompt} \u2192 {fact.answer.strip()}\ntotal effect {clean - low:.3f}", fontsize=10)
    for axes, (kind, title) in zip(figure.subplots(1, 3), TITLES.items(), strict=True):
        # Text is data: a dollar in it is no formula.
        drawn = axes.imshow(traced.scores[kind].numpy(), cmap=MAPS[kind], vmin=low, vmax=top, aspect="auto")
        axes.set_title(title if kind == "hidden" else f"{title}\n(window {fact.window})", fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=8, family="monospace", parse_math=False)
        axes.set_xlabel("layer", fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        bar = figure.colorbar(drawn, ax=axes)
        bar.set_ticks([low, clean], labels=[f"corrupted {low:.3f}", f"clean {clean:.3f}"], fontsize=7)
    return _bytes(figure, suffix)


def _averages(average: Average, suffix: str) -> bytes:
    figure = _figure(11, 3.6)
    inks = dict(zip(ROLES, ROLE_INKS, strict=True))
    all_axes = figure.subplots(1, 3, sharey=True)
    for axes, (kind, roles) in zip(all_axes, average.effects.items(), strict=True):
        for role, curve in roles.items():
            axes.plot(curve.mean, color=inks[role], marker="o", markersize=3, label=role)
            low, high = _interval(curve)
            axes.fill_between(range(average.n_layers), low, high, color=inks[role], alpha=0.15, linewidth=0)
        axes.set_title(TITLES[kind] if kind == "hidden" else f"{TITLES[kind]} (window {average.window})", fontsize=9)
        axes.set_xlabel("layer", fontsize=8)
        axes.axhline(0, color="#888", linewidth=0.8)
        axes.xaxis.get_major_locator().set_params(integer=True)
    all_axes[0].set_ylabel("mean effect", fontsize=8)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return _bytes(figure, suffix)


def _severed(average: Average, suffix: str) -> bytes:
    figure = _figure(max(6.0, 0.22 * average.n_layers), 3.4)
    axes = figure.subplots()
    width = 0.8 / len(average.severed)
    for n, (kind, curve) in enumerate(average.severed.items()):
        low, high = _interval(curve)
        spread = [
            [m - a for m, a in zip(curve.mean, low, strict=True)],
            [b - m for m, b in zip(curve.mean, high, strict=True)],
        ]
        at = [layer + (n - 1) * width for layer in range(average.n_layers)]
        ink, name = SEVERED_INKS[kind], SEVERED_NAMES[kind]
        axes.bar(
            at, curve.mean, width, yerr=spread, color=ink, label=name, error_kw={"linewidth": 0.8, "ecolor": "#333"}
        )
    axes.set_title("at the last subject token", fontsize=9)
    axes.set_xlabel("layer", fontsize=8)
    axes.set_ylabel("mean effect", fontsize=8)
    axes.axhline(0, color="#888", linewidth=0.8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8)
    return _bytes(figure, suffix)


def _interval(curve: Curve) -> tuple[list[float], list[float]]:
    """The ends; of one subject alone, the mean itself."""
    ends = [
        (m if a is None else a, m if b is None else b)
        for m, a, b in zip(curve.mean, curve.low, curve.high, strict=True)
    ]
    return [a for a, _ in ends], [b for _, b in ends]
