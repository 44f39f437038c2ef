"""Activation patching by sweeps: a patched run starts at its layer and token, and computes only what the patch changes.

1. `Runs` keeps the states, keys and values of the clean and the corrupted run, and each block's output with its MLP's
   or its attention's output patched.
2. A patch at (layer, token) changes that token's state after the layer, and later tokens in the layers above. Before
   the subject both runs agree, so a patch changes nothing there.
3. So all cells of one token share a sweep up the layers. Each joins after its layer, with its patched state and the
   corrupted states of the later tokens. Attention reads earlier tokens from the corrupted run's keys and values.
4. The last block's MLP and the head run only where the answer is read.

Masks, rotary tables, norms and the head are the model's own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from memedit.forward.partial import Kept, cache_name, spliced
from memedit.forward.passes import output_of, replaced
from memedit.model.forward_hooks import Hook, hooked
from memedit.model.load import LanguageModel
from memedit.model.memory import in_double, send
from memedit.tracing.clean_and_corrupted import Cell, NoiseTrial, Runs, answer_logits, answer_probability
from memedit.tracing.parts import BlockOutput, Parts

TOKENS = 4096  # in one launch
LOGITS = 1 << 26  # in one launch


class _Before(Kept):
    """The corrupted run's keys and values of the tokens before the patched one: the same for every cell."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        keys, values = (part[:, :, : self.length] for part in self.kept[layer_idx])
        cells = len(key_states) // len(keys)
        return (
            torch.cat([keys.repeat(cells, 1, 1, 1), key_states], 2),
            torch.cat([values.repeat(cells, 1, 1, 1), value_states], 2),
        )


class SuffixPatching:
    """Patch cells of one trial by sweeps. S samples; D the model's width."""

    def __init__(self, lm: LanguageModel, parts: Parts, trial: NoiseTrial) -> None:
        self.lm, self.parts, self.trial = lm, parts, trial
        self.runs = Runs(lm, parts, trial)
        self.clean, self.low, self.rank = self.runs.clean, float(self.runs.low.double().mean()), self.runs.rank
        self.samples = len(trial.noise)
        self.top = len(trial.windows) - 1
        self.takes_positions = "position_ids" in inspect.signature(lm.model.forward).parameters

    def scores(self, cells: Sequence[Cell]) -> Tensor:
        """The answer's probability with each cell patched, mean over samples: (cells,) float64."""
        found = torch.full((len(cells),), self.low, dtype=torch.float64)
        by_token: dict[int, list[int]] = {}
        for number, cell in enumerate(cells):
            if not self._is_identity(cell):
                by_token.setdefault(cell.token, []).append(number)
        for token, numbers in by_token.items():
            numbers.sort(key=lambda number: self.trial.put(cells[number])[0])
            for batch in self._launches(numbers, len(self.trial.question.ids) - token):
                found[batch] = self._sweep(token, [cells[number] for number in batch])
        return found

    def _is_identity(self, cell: Cell) -> bool:
        """Whether a patch changes nothing: before the subject, and after the last block where no answer is read."""
        question = self.trial.question
        at_top = self.trial.put(cell)[0] == self.top
        return cell.token < question.first or (at_top and cell.token < len(question.prompt) - 1)

    def _launches(self, numbers: list[int], length: int) -> list[list[int]]:
        logits = len(self.trial.question.answer) * self.lm.architecture.vocabulary
        size = max(1, min(TOKENS // length, LOGITS // logits) // self.samples)
        return [numbers[at : at + size] for at in range(0, len(numbers), size)]

    @torch.no_grad()
    def _sweep(self, token: int, cells: Sequence[Cell]) -> Tensor:
        """One launch over cells of one token, sorted by the layer they enter after: (cells,) float64."""
        question, rows = self.trial.question, len(cells) * self.samples
        ids = send(torch.tensor([question.ids[token:]]), self.lm.device).expand(rows, -1)
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": ids.new_ones(rows, len(question.ids)),
            cache_name(self.lm): _Before(dict(enumerate(self.runs.kept)), token),
            "use_cache": True,
        }
        if self.takes_positions:
            inputs["position_ids"] = torch.arange(token, len(question.ids), device=ids.device).expand(rows, -1)
        climbs, held = self._climbs(token, cells), self._held(token, cells)
        with spliced(self.lm, climbs), hooked(held), self._read_at_the_end(ids.shape[1]), _in_place(self.lm):
            found = answer_probability(answer_logits(self.lm, question, **inputs), question)
        return in_double(found.view(len(cells), -1)).mean(1).cpu()

    def _climbs(self, token: int, cells: Sequence[Cell]) -> dict[int, Any]:
        """For each block a forward over the cells that joined below; cells of its own layer join behind it."""
        enters = [self.trial.put(cell)[0] for cell in cells]
        rows = len(cells) * self.samples

        def climb(layer: int, original: Any) -> Any:
            below = self.samples * sum(after < layer for after in enters)
            entering = [cell for cell, after in zip(cells, enters, strict=True) if after == layer]

            def forward(hidden_states: Tensor, *args: Any, **options: Any) -> Any:
                states = [hidden_states] if not below and not entering else []
                if below:
                    mine, named = _first(args, below, rows), _first(options, below, rows)
                    states.append(output_of(original(hidden_states[:below], *mine, **named)))
                states += [self._entering(token, cell, layer) for cell in entering]
                joined = torch.cat(states)
                return (joined, None) if self.runs.in_tuple else joined

            return forward

        blocks: Any = self.lm.model.get_submodule(self.lm.architecture.blocks)
        return {layer: climb(layer, block.forward) for layer, block in enumerate(blocks)}

    def _entering(self, token: int, cell: Cell, layer: int) -> Tensor:
        """The states with which a cell joins, (S, T, D): corrupted from `token` on, the patched one first."""
        states = self.runs.after[layer][:, token:].clone()
        if cell.kind in ("mlp", "attention"):
            states[:, 0] = self.runs.entries[cell.kind][layer][:, token]
        else:
            states[:, 0] = self.runs.clean_after[layer][token]
        return states

    def _held(self, token: int, cells: Sequence[Cell]) -> list[tuple[nn.Module, Hook]]:
        """Hooks that set outputs at `token`: to the clean run's, or to the corrupted run's on a severed path."""
        held: dict[tuple[BlockOutput, int], list[tuple[int, Tensor]]] = {}
        # The last block's MLP runs at the answer only: its output at `token` is not read.
        unread = self.top if token < len(self.trial.question.prompt) - 1 else None
        for number, cell in enumerate(cells):
            _, part, layers = self.trial.put(cell)
            for layer in layers:
                if part and layer != unread:
                    clean = self.runs.clean_outputs[part][layer][token].expand(self.samples, -1)
                    value = clean if cell.kind == part else self.runs.outputs[part][layer][:, token]
                    held.setdefault((part, layer), []).append((number, value))
        length = len(self.trial.question.ids) - token
        return [
            (self.lm.model.get_submodule(self.parts.of(part)[layer]), self._hold(values, length))
            for (part, layer), values in held.items()
        ]

    def _hold(self, values: list[tuple[int, Tensor]], length: int) -> Hook:
        wanted = torch.cat([value for _, value in values])
        numbers = send(torch.tensor([number for number, _ in values]), wanted.device)
        rows = (numbers[:, None] * self.samples + torch.arange(self.samples, device=wanted.device)).flatten()

        def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
            states = output.clone()
            states.view(-1, length, wanted.shape[-1])[rows, 0] = wanted
            return states

        return hook

    @contextmanager
    def _read_at_the_end(self, length: int) -> Generator[None]:
        """Run the last block's MLP only over the tokens where the answer is read; its output is zero before them."""
        reads = len(self.trial.question.answer)
        if not self.parts.whole_mlp or reads >= length:
            yield
            return
        module: Any = self.lm.model.get_submodule(self.parts.whole_mlp[self.top])
        original = module.forward

        def forward(*args: Tensor) -> Tensor:
            output: Tensor = original(*(states[:, -reads:].contiguous() for states in args))
            return torch.cat([output.new_zeros(len(output), length - reads, output.shape[-1]), output], 1)

        with replaced(module, forward):
            yield


@contextmanager
def _in_place(lm: LanguageModel) -> Generator[None]:
    """Compute GELU's tanh form in place: families that write it out make eight new tensors, a fifth of a CPU sweep."""
    written_out = [module for module in lm.model.modules() if isinstance(module, NewGELUActivation)]
    try:
        for module in written_out:
            module.__dict__["forward"] = _gelu
        yield
    finally:
        for module in written_out:
            module.__dict__.pop("forward", None)


def _gelu(states: Tensor) -> Tensor:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016)."""
    scale = math.sqrt(2 / math.pi)
    inner = states.square().mul_(0.044715 * scale).add_(scale).mul_(states).tanh_()
    return inner.add_(1.0).mul_(states).mul_(0.5)


def _first(value: Any, rows: int, total: int) -> Any:
    """Cut an argument of a block (mask, table, bias, nested) to the first `rows` of `total` rows."""
    if isinstance(value, Tensor):
        # A table of one row serves all; a bias may have a row for every head of every row.
        by_row = value.ndim > 1 and value.shape[0] % total == 0
        return value[: rows * (value.shape[0] // total)] if by_row else value
    if isinstance(value, tuple | list):
        return type(value)(_first(part, rows, total) for part in value)
    if isinstance(value, dict):
        return {name: _first(part, rows, total) for name, part in value.items()}
    return value
