"""Choose an engine for activation patching: sweeps where they are proved on the model, else whole forwards."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from memedit.forward.passes import output_of
from memedit.forward.proof import prove_engine
from memedit.model.forward_hooks import hooked
from memedit.model.load import LanguageModel
from memedit.model.memory import in_double, send
from memedit.tracing.clean_and_corrupted import (
    Cell,
    NoiseTrial,
    answer_logits,
    answer_probability,
    answer_ranks,
    noised,
)
from memedit.tracing.parts import PARTS, BlockOutput, Parts
from memedit.tracing.suffix_engine import TOKENS, SuffixPatching

TRACE_AGREEMENT = 1e-3  # relative, on probabilities, in float32
TRACE_AGREEMENT_HALF = 0.05  # the same in half precision, where every state is rounded


class Engine(Protocol):
    """One trial, ready for activation patching."""

    clean: float
    """Probability of the answer in the clean run, joint over its tokens."""
    low: float
    """The same in the corrupted runs, mean over samples."""
    rank: int
    """Rank of the answer in the corrupted runs, median over samples; see `answer_ranks`."""

    def scores(self, cells: Sequence[Cell]) -> Tensor:
        """The answer's probability with each cell patched, mean over samples: (cells,) float64."""
        ...


class WholeForwardPatching:
    """Patch cells in whole forwards, with hooks: slower, and it runs on every model that can be traced.

    `choose_trace_engine` compares the sweeps with it, and falls back to it.
    """

    @torch.no_grad()
    def __init__(self, lm: LanguageModel, parts: Parts, trial: NoiseTrial) -> None:
        self.lm, self.parts, self.trial = lm, parts, trial
        self.samples, ids = len(trial.noise), trial.question.ids
        self.seen: dict[str, Tensor] = {}
        """The output of each module: (1 + S, N, D), the clean row first."""
        rows = 1 + self.samples

        def read(path: str) -> Any:
            def hook(_module: Any, _args: Any, output: Any) -> None:
                self.seen[path] = output_of(output).reshape(rows, len(ids), -1).clone()

            return hook

        blocks = [f"{lm.architecture.blocks}.{layer}" for layer in range(lm.architecture.n_layers)]
        paths = [*blocks, *(path for part in PARTS for path in parts.of(part))]
        with noised(lm, trial, 1, rows), hooked([(lm.model.get_submodule(path), read(path)) for path in paths]):
            logits = self._logits(rows)
        found, ranks = answer_probability(logits, trial.question), answer_ranks(logits[1:], trial.question)
        self.clean, self.low, self.rank = float(found[0]), float(in_double(found[1:]).mean()), int(ranks.median())

    def _logits(self, rows: int) -> Tensor:
        ids = send(torch.tensor([self.trial.question.ids]), self.lm.device).expand(rows, -1)
        return answer_logits(self.lm, self.trial.question, input_ids=ids, use_cache=False)

    @torch.no_grad()
    def scores(self, cells: Sequence[Cell]) -> Tensor:
        """As `Engine`."""
        size = max(1, TOKENS // (self.samples * len(self.trial.question.ids)))
        found: list[Tensor] = []
        for at in range(0, len(cells), size):
            batch = cells[at : at + size]
            rows = len(batch) * self.samples
            with noised(self.lm, self.trial, 0, rows), self._patched(batch):
                patched = answer_probability(self._logits(rows), self.trial.question)
                found.append(in_double(patched.view(len(batch), -1)).mean(1).cpu())
        return torch.cat(found)

    @contextmanager
    def _patched(self, cells: Sequence[Cell]) -> Generator[None]:
        patches: dict[str, list[tuple[slice, int, Tensor]]] = {}
        for number, cell in enumerate(cells):
            rows = slice(number * self.samples, (number + 1) * self.samples)
            for path, value in self._values(cell):
                patches.setdefault(path, []).append((rows, cell.token, value))
        modules = ((self.lm.model.get_submodule(path), self._patch(values)) for path, values in patches.items())
        with hooked(modules):
            yield

    def _values(self, cell: Cell) -> Generator[tuple[str, Tensor]]:
        """Modules, and the output that each is given at the cell's token: (D,) or (S, D)."""
        layer, part, held = self.trial.put(cell)
        if cell.kind != part:
            block = f"{self.lm.architecture.blocks}.{layer}"
            yield block, self.seen[block][0, cell.token]
        elif part:
            yield from self._output(part, layer, cell)
        for above in held:
            if part:
                yield from self._output(part, above, cell)

    def _output(self, part: BlockOutput, layer: int, cell: Cell) -> Generator[tuple[str, Tensor]]:
        path = self.parts.of(part)[layer]
        yield path, self.seen[path][0 if cell.kind == part else slice(1, None), cell.token]

    def _patch(self, values: list[tuple[slice, int, Tensor]]) -> Any:
        length = len(self.trial.question.ids)

        def hook(_module: Any, _args: Any, output: Any) -> Any:
            states = output_of(output).clone()
            for rows, token, value in values:
                states.view(-1, length, states.shape[-1])[rows, token] = value
            return states if isinstance(output, Tensor) else (states, *output[1:])

        return hook


def choose_trace_engine(
    lm: LanguageModel, parts: Parts, trial: NoiseTrial
) -> tuple[type[SuffixPatching] | type[WholeForwardPatching], str]:
    """Prove the sweeps on some cells of one trial against whole forwards; return the engine to use, and why, in words.

    Raises what `prove_engine` raises, among it every exhaustion of memory.
    """
    question, top = trial.question, lm.architecture.n_layers - 1
    tokens = sorted({question.first, question.last, len(question.prompt) - 1})
    some = [Cell(kind, layer, token) for kind in (*PARTS, "hidden") for token in tokens for layer in {0, top // 2, top}]
    some += [Cell("mlp severed", top // 2, question.last), Cell("attention severed", 0, question.last)]

    def scores(kind: type[SuffixPatching] | type[WholeForwardPatching]) -> list[Tensor]:
        engine = kind(lm, parts, trial)
        return [torch.cat([engine.scores(some), torch.tensor([engine.clean, engine.low])])]

    limit = TRACE_AGREEMENT if lm.dtype == torch.float32 else TRACE_AGREEMENT_HALF
    proof = prove_engine(lambda: scores(SuffixPatching), lambda: scores(WholeForwardPatching), limit, name="sweeps")
    return (SuffixPatching if proof.holds else WholeForwardPatching), proof.reason
