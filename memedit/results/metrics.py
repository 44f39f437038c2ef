"""Every metric that memedit reports: one table.

Edit scores, the scores of a model, the terminal, the pages, the model card and the gates read it. A metric is known by
the name that gates and files use: `efficacy`, `generated.old`, `drift.ppl`, `kept.others`.

Papers: Meng et al. 2022 (CounterFact), Mitchell et al. 2022 (zsRE), Wang et al. 2024 (EasyEdit),
Hoelscher-Obermaier et al. 2023 (specificity-plus), Zhang et al. 2018 (fluency).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

MetricKind = Literal[
    "success", "exact", "magnitude", "tokens",  # forced answers
    "agreement", "text", "written", "contains", "old", "drift", "count", "kept", "retention", "score",
]  # fmt: skip
"""How a metric is measured: `success`, `exact`, `magnitude` and `tokens` on forced answers, `written`,
`contains` and `old` on free ones, `text` on longer free text."""
FORCED_KINDS: tuple[MetricKind, ...] = ("success", "exact", "magnitude", "tokens")
SCORE_PARTS = ("efficacy", "paraphrase", "neighborhood")
"""The three metrics that `score` joins."""


@dataclass(frozen=True)
class MetricRow:
    """One metric: how it is measured, named and read."""

    name: str
    """As in gates and files."""
    kind: MetricKind
    meaning: str
    """One line, without the name."""
    share: bool = True
    """From 0 to 1, shown in percent; else a plain number."""
    signed: bool = False
    """Can be negative; shown with its sign."""
    paper: str = ""
    """Who defined it; empty: defined here."""
    probe: str = ""
    """The probes it is measured on; empty: on no probe of an edit."""
    title: str = ""
    """The label where it is not the name."""

    @property
    def label(self) -> str:
        """The name as people read it."""
        return self.title or self.name.replace("_", " ").replace(".", " ")

    def number(self, value: float, *, difference: bool = False) -> str:
        """Format a value: a share in percent, else three decimals; `difference`: always with its sign."""
        sign = "+" if self.signed or difference else ""
        return f"{value:{sign}.1%}" if self.share else f"{value:{sign}.3f}"


MENG, MITCHELL, EASYEDIT = "Meng et al. 2022", "Mitchell et al. 2022", "Wang et al. 2024"
PLUS_PAPER, FLUENCY_PAPER = "Hoelscher-Obermaier et al. 2023", "Zhang et al. 2018"

METRICS = (
    MetricRow("efficacy", "success", "new object more likely than the old", True, False, MENG, "efficacy"),
    MetricRow("paraphrase", "success", "the same in other words", True, False, MENG, "paraphrase"),
    MetricRow(
        "neighborhood", "success", "neighbors: own object more likely than the new", True, False, MENG, "neighborhood",
    ),
    MetricRow("accuracy", "exact", "every token of the new object is on top", probe="efficacy"),
    MetricRow("paraphrase_accuracy", "exact", "the same in other words", probe="paraphrase"),
    MetricRow(
        "neighborhood_accuracy", "exact", "neighbors: every token of the own object is on top", probe="neighborhood"
    ),
    MetricRow(
        "efficacy_magnitude", "magnitude", "probability per token: new object minus old", False, True, MENG, "efficacy"
    ),
    MetricRow("paraphrase_magnitude", "magnitude", "the same in other words", False, True, MENG, "paraphrase"),
    MetricRow(
        "neighborhood_magnitude", "magnitude", "neighbors: own object minus the new", False, True, MENG, "neighborhood"
    ),
    MetricRow("token_accuracy", "tokens", "tokens of the new object on top", True, False, MITCHELL, "efficacy"),
    MetricRow("paraphrase_token_accuracy", "tokens", "the same in other words", True, False, MITCHELL, "paraphrase"),
    MetricRow(
        "neighborhood_token_accuracy", "tokens", "neighbors: tokens of the own object", True, False, MITCHELL,
        "neighborhood",
    ),
    MetricRow(
        "neighborhood_plus", "success", "neighborhood, with the edited fact before the prompt", True, False,
        PLUS_PAPER, "neighborhood_plus",
    ),
    MetricRow(
        "neighborhood_plus_magnitude", "magnitude", "its probabilities: own object minus the new", False, True,
        PLUS_PAPER, "neighborhood_plus",
    ),
    MetricRow(
        "locality", "agreement", "neighbors: top tokens that equal the base model's", True, False, EASYEDIT,
        "neighborhood",
    ),
    MetricRow(
        "portability", "tokens", "tokens right in what follows from the edit", True, False, EASYEDIT, "portability"
    ),
    MetricRow("portability_accuracy", "exact", "every token right in what follows", probe="portability"),
    MetricRow("reversal", "tokens", "tokens right, asked from the object's side", probe="reversal"),
    MetricRow("reversal_accuracy", "exact", "every token right, asked from the object's side", probe="reversal"),
    MetricRow("still_named", "exact", "removed facts: every token of the old object is still on top", probe="removal"),
    MetricRow("paraphrase_still_named", "exact", "the same in other words", probe="removal_paraphrase"),
    MetricRow("generated.efficacy", "written", "free text names the new object first", probe="efficacy"),
    MetricRow("generated.paraphrase", "written", "the same in other words", probe="paraphrase"),
    MetricRow(
        "generated.contains", "contains", "free text has the words of the new object that matter", probe="efficacy"
    ),
    MetricRow("generated.chat", "written", "asked in chat by the edit's prompt, the answer names the new object"),
    MetricRow("generated.old", "old", "free text names the old object", probe="efficacy"),
    MetricRow("generated.paraphrase_old", "old", "the same in other words", probe="paraphrase"),
    MetricRow("generated.portability", "written", "free text says what follows from the edit", probe="portability"),
    MetricRow("generated.reversal", "written", "free text names the subject", probe="reversal"),
    MetricRow("generated.still_named", "written", "removed facts: free text names the old object", probe="removal"),
    MetricRow(
        "generated.paraphrase_still_named", "written", "the same in other words", probe="removal_paraphrase"
    ),
    MetricRow("fluency", "text", "n-gram entropy in bits, prompt included", False, False, FLUENCY_PAPER),
    MetricRow("fluency_written", "text", "n-gram entropy in bits, without the prompt", False),
    MetricRow("consistency", "text", "tf-idf cosine with the references", False, False, MENG),
    MetricRow("drift.tokens", "count", "tokens of text that were read", False),
    MetricRow("drift.perplexity", "drift", "perplexity of text", False),
    MetricRow("drift.perplexity_base", "drift", "the base model's perplexity", False),
    MetricRow("drift.ppl", "drift", "perplexity divided by the base model's", False),
    MetricRow("drift.kl", "drift", "KL(base, model) per token, in nats", False),
    MetricRow("drift.top1", "drift", "tokens where both models predict the same"),
    MetricRow(
        "kept.others", "kept", "known facts of other subjects that are still right", title="kept, other subjects"
    ),
    MetricRow(
        "kept.siblings", "kept", "known facts of edited subjects that are still right", title="kept, edited subjects"
    ),
    MetricRow(
        "kept.subjects", "kept", "edited subjects that the model writes about as itself, and not as another",
        title="kept, the subjects",
    ),
    MetricRow(
        "kept.earlier", "kept", "edits of earlier runs, right before this run and still right",
        title="kept, earlier edits",
    ),
    MetricRow("retention", "retention", "edits that held right after they were made and still hold"),
    MetricRow("score", "score", "harmonic mean of efficacy, paraphrase and neighborhood", True, False, MENG),
)  # fmt: skip
"""Every metric, in the order in which tables show them."""
MOST_TELLING = (
    "efficacy", "accuracy", "paraphrase", "kept.earlier", "neighborhood", "kept.siblings", "still_named", "kept.others",
    "generated.still_named", "kept.subjects", "drift.ppl", "paraphrase_still_named", "retention", "generated.efficacy",
    "score", "paraphrase_accuracy", "neighborhood_accuracy",
)  # fmt: skip
"""The metrics that a terminal shows first, the most important ones first."""
METRICS_BY_NAME = {one.name: one for one in METRICS}
FORCED_METRICS = tuple(one for one in METRICS if one.kind in FORCED_KINDS)
"""The metrics of one edit's forced answers: the fields of `EditScores`, in order."""
_BY_PROBE = {(one.probe, one.kind): one for one in METRICS if one.probe}


def metric_for(probe: str, kind: MetricKind) -> MetricRow | None:
    """Find the metric that a kind of measurement gives on a kind of probe; None where there is none."""
    return _BY_PROBE.get((probe, kind))


def metric_of(name: str) -> MetricRow | None:
    """Find the metric of a name; None where there is none.

    Beside the names of METRICS: `generated.efficacy_50` (the prompt after 50 unrelated tokens), and
    `portability/KIND` and `locality/KIND`, where KIND is what the edit list calls its questions.

    >>> metric_of("generated.old_50").meaning, metric_of("portability/Reasoning").share, metric_of("beauty")
    ('free text names the old object, after 50 unrelated tokens', True, None)
    """
    if (known := METRICS_BY_NAME.get(name)) is not None:
        return known
    whole, slash, group = name.partition("/")
    if slash and group and whole in ("portability", "locality"):
        of = METRICS_BY_NAME[whole]
        return replace(of, name=name, title=name, meaning=f"{whole}: questions of this kind only")
    head, _, count = name.rpartition("_")
    behind = METRICS_BY_NAME.get(head)
    if behind is not None and behind.kind in ("written", "contains", "old") and count.isdecimal():
        meaning = f"{behind.meaning}, after {count} unrelated tokens"
        return replace(behind, name=name, title=f"{behind.label} {count}", meaning=meaning)
    return None


def table_order(names: Iterable[str]) -> list[str]:
    """Sort names of metrics as METRICS has them; those of `metric_of` follow the metric that they are a case of."""
    at = {one.name: n for n, one in enumerate(METRICS)}

    def place(name: str) -> tuple[int, bool]:
        metric = metric_of(name)
        if metric is None or name in at:
            return at.get(name, len(at)), False
        return at[_BY_PROBE[metric.probe, metric.kind].name], True

    return sorted(dict.fromkeys(names), key=place)


def gate_names() -> Iterator[str]:
    """The names that --fail-under and --fail-over take, beside those that end in a number of tokens."""
    return (one.name for one in METRICS)
