"""What a run would do and cost, before it is done: plain values."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from memedit.report import LedgerReport


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preview(_Value):
    """What a run would do and cost, before it is done."""

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
    """What the missing moments will take in the cache."""
    bytes_memory: int
    """Model, moments and target search at their largest, about."""
    seconds: float
    """What moments and targets take, about."""
    ledger: LedgerReport | None = None
    resumes: bool
    """A run of the same edits, model and recipe was begun, and will be gone on with."""

    def lines(self) -> list[str]:
        """For people."""
        layers = ", ".join(str(layer) for layer in self.layers)
        missing = ", ".join(str(layer) for layer in self.moments_missing) or "none"
        return [
            f"edits     {self.edits:,} ({self.skipped:,} skipped, {self.warnings:,} warnings)",
            f"layers    {layers}",
            *(f"          {name}" for name in self.parameters),
            *([f"ledger    {self.ledger.line}"] if self.ledger else []),
            f"moments   {len(self.moments_cached)} cached; to measure: {missing} ({self.tokens:,} tokens)",
            f"writes    {self.bytes_output / 1e6:,.1f} MB of output, {self.bytes_cache / 1e6:,.1f} MB of cache",
            f"memory    about {self.bytes_memory / 1e9:,.2f} GB",
            f"time      about {self.seconds:,.0f} s",
            f"resumes   {'an unfinished run' if self.resumes else 'nothing'}",
        ]
