"""Estimate what a run would do and cost, without doing it."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from memedit.editing.batches import Sizes, plan_batches
from memedit.editing.contexts import context_shape
from memedit.editing.ledger_update import ledger_report
from memedit.editing.resources import TimeLeft, cache_bytes, moment_bytes
from memedit.editing.run import EditRun
from memedit.editing.target_search import memory_for
from memedit.results.report import LedgerReport
from memedit.results.units import bytes_text, range_text


class DryRun(BaseModel):
    """The plan and cost of a run, as plain values. Memory and time are estimates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    edits: int
    skipped: int
    warnings: int
    layers: tuple[int, ...]
    parameters: tuple[str, ...]
    corpus: str | None
    tokens: int
    moments_cached: tuple[int, ...]
    moments_missing: tuple[int, ...]
    bytes_output: int
    bytes_cache: int
    """Space that the missing second moments will take in the cache."""
    bytes_memory: int
    """Estimate for model, second moments and target search together."""
    seconds: float
    """Estimate of the run's time, if the search ends early."""
    seconds_most: float
    """The same if it takes long."""
    ledger: LedgerReport | None = None
    resumes: bool
    """A run of the same edits, model and recipe was interrupted, and will continue."""

    def lines(self) -> list[str]:
        """Lines of text for the terminal."""
        layers = ", ".join(str(layer) for layer in self.layers)
        missing = ", ".join(str(layer) for layer in self.moments_missing) or "none"
        return [
            f"edits     {self.edits:,} ({self.skipped:,} skipped, {self.warnings:,} warnings)",
            f"layers    {layers}",
            *(f"          {name}" for name in self.parameters),
            *([f"ledger    {self.ledger.line}"] if self.ledger else []),
            f"moments   {len(self.moments_cached)} cached; to measure: {missing} ({self.tokens:,} tokens)",
            f"writes    {bytes_text(self.bytes_output)} of output, {bytes_text(self.bytes_cache)} of cache",
            f"memory    about {bytes_text(self.bytes_memory)}",
            f"time      about {range_text(self.seconds, self.seconds_most)}",
            f"resumes   {'an unfinished run' if self.resumes else 'nothing'}",
        ]


def plan_dry_run(job: EditRun) -> DryRun:
    """Make the preview of a run; the only forwards are those that are timed, and those that name old objects."""
    lm, moments = job.lm, job.moment_plan
    widths = [lm.architecture.mlp_widths[layer] for layer in job.plan.layers]
    seconds, most = TimeLeft(job.takes()).seconds
    return DryRun(
        edits=len(job.requests),
        skipped=len(job.plan.skipped) + len(job.history.duplicates),
        warnings=len(job.plan.warnings),
        layers=job.plan.layers,
        parameters=tuple(job.names.values()),
        corpus=moments.corpus,
        tokens=moments.tokens,
        moments_cached=moments.cached,
        moments_missing=tuple(moments.missing),
        bytes_output=job.base.output_size(keep_copies=job.recipe.output.keep_copies),
        bytes_cache=cache_bytes([lm.architecture.mlp_widths[layer] for layer in moments.missing]),
        bytes_memory=lm.size + moment_bytes(widths) + _search_bytes(job),
        seconds=seconds,
        seconds_most=most,
        ledger=ledger_report(job.history, job.groups, job.kept),
        resumes=job.store().folder.is_dir(),
    )


def _search_bytes(job: EditRun) -> int:
    """Bytes of the largest batch of the search, with contexts of their full length."""
    lm, edits, recipe = job.lm, job.plan.edits, job.recipe
    count, beyond = context_shape(lm.tokenizer, recipe.contexts, chat=recipe.chat)
    longest = [replace(edit.prompt, ids=edit.prompt.ids + (0,) * beyond) for edit in edits]
    prompts = [[prompt] * count for prompt in longest]
    sizes = Sizes.of(lm, edits, prompts, job.plan.layers[-1])
    memory, which = memory_for(lm, recipe), [n for n in range(len(edits)) if n not in job.kept]
    batches = plan_batches(edits, which, sizes, memory, recipe.chunk, lm.device.type, joint=recipe.joint)
    return max((len(one.edits) * sizes.per_edit + one.tokens * sizes.per_token for one in batches), default=0)
