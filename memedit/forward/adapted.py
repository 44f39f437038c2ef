"""Log-probabilities of rows while low-rank changes act on some down-projections, with gradients of the changes.

Rows that begin with the same tokens share them: the shared prefix runs once, with the changes but without a gradient,
and its keys and values serve all of them. The rest of each row runs right-aligned, with a gradient. That gradient is an
approximation: what a change does through a shared prefix is in the value, not in the derivative. So are the products of
a float32 model on some CPUs, which are taken in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memedit.forward.partial import Aligned, Kept, KeysValues, cut, run_part, select_rows
from memedit.forward.passes import launches
from memedit.forward.proof import prove_engine
from memedit.forward.suffix import SUFFIX_AGREEMENT
from memedit.model.forward_hooks import hooked
from memedit.model.load import LanguageModel
from memedit.model.memory import send

Factors = Mapping[int, tuple[Tensor, Tensor]]
"""For each layer a change left @ right: left (D, R), right (R, F), float32, on the device of the layer's weight."""

_Forward = tuple[Tensor | None, Callable[[], Tensor]]
"""Where the changes act (rows, T, 1), None: everywhere; and the forward that gives the logits."""


@dataclass(frozen=True)
class ReadRow:
    """A row of ids whose last `reads` logits are read."""

    ids: tuple[int, ...]
    shared: int
    """Tokens at its beginning that may be shared with other rows."""
    at: int
    """The subject's last token."""
    reads: int = 1


class AdaptedRows:
    """Rows under changes of the weights; `whole` runs each row whole, without sharing and padding.

    `products` is the dtype of matrix products, the model's (None) or that of `products_of`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        rows: Sequence[ReadRow],
        *,
        tokens: int,
        whole: bool = False,
        products: torch.dtype | None = None,
    ) -> None:
        self.lm, self.rows, self.tokens, self.whole = lm, list(rows), tokens, whole
        self.products = products or lm.dtype

    def launches(self, which: Sequence[int]) -> list[list[int]]:
        """Group rows, by number, into launches."""
        if self.whole:
            batches = launches([len(self.rows[n].ids) for n in which], self.tokens)
        else:
            batches = cut([len(self.rows[n].ids) - self.rows[n].shared for n in which], self.tokens, self.tokens // 8)
        return [[which[n] for n in batch] for batch in batches]

    @contextmanager
    def log_probs(self, launch: Sequence[int], changes: Factors, *, at_subject: bool = False) -> Generator[Tensor]:
        """The log-probabilities at every read of a launch, (reads of its rows, V) float32, row by row.

        With `at_subject` the changes act on no other token of a row's own part than the subject's last. A gradient is
        taken inside: blocks that are read from disk run again for it, and must run under the changes.
        """
        rows = [self.rows[n] for n in launch]
        mask, logits = self._whole(rows, at_subject) if self.whole else self._shared(rows, changes, at_subject)
        with hooked(self._hooks(changes, mask)):
            with self._multiplying():
                found = logits()
            yield found.float().log_softmax(-1)

    def _whole(self, rows: Sequence[ReadRow], at_subject: bool) -> _Forward:
        ids = send(torch.tensor([row.ids for row in rows]), self.lm.device)
        most = max(row.reads for row in rows)
        only = (
            _only(len(rows), ids.shape[1], [row.at for row in rows], [row.shared for row in rows])
            if at_subject
            else None
        )

        def logits() -> Tensor:
            every = self.lm.forward(input_ids=ids, use_cache=False, logits_to_keep=most).logits
            return torch.cat([line[-row.reads :] for row, line in zip(rows, every, strict=True)])

        return None if only is None else send(only, self.lm.device), logits

    def _shared(self, rows: Sequence[ReadRow], changes: Factors, at_subject: bool) -> _Forward:
        device = self.lm.device
        prefixes = list(dict.fromkeys(row.ids[: row.shared] for row in rows if row.shared))
        width = max(map(len, prefixes), default=0)
        seen, place = self._prefixes(prefixes, width, changes)
        lines = send(torch.tensor([place.get(row.ids[: row.shared], 0) for row in rows]), device)
        own = [row.ids[row.shared :] for row in rows]
        size, most = max(map(len, own)), max(row.reads for row in rows)
        ids, mask = (
            torch.zeros(len(rows), size, dtype=torch.long),
            torch.zeros(len(rows), width + size, dtype=torch.long),
        )
        positions = torch.zeros(len(rows), size, dtype=torch.long)
        for n, (row, part) in enumerate(zip(rows, own, strict=True)):
            ids[n, size - len(part) :] = torch.tensor(part)
            mask[n, width - row.shared : width], mask[n, width + size - len(part) :] = 1, 1
            positions[n, size - len(part) :] = torch.arange(row.shared, len(row.ids))
        cells = [n * most + column for n, row in enumerate(rows) for column in range(most - row.reads, most)]
        ends = [size - len(row.ids) + row.at for row in rows]
        aligned, before = Aligned(ids, mask, positions).to(device), Kept(select_rows(seen, lines), width)
        reads = most, send(torch.tensor(cells), device)

        def logits() -> Tensor:
            found = run_part(self.lm, aligned, before, reads=reads)
            assert found is not None
            return found

        return send(_only(len(rows), size, ends), device) if at_subject else None, logits

    @torch.no_grad()
    def _prefixes(
        self, prefixes: Sequence[tuple[int, ...]], width: int, changes: Factors
    ) -> tuple[KeysValues, dict[tuple[int, ...], int]]:
        """Keys and values of prefixes under the changes, aligned on the right of `width` columns, and their rows.

        Prefixes of about the same length run together: most are far shorter than the longest.
        """
        parts: list[KeysValues] = []
        place: dict[tuple[int, ...], int] = {}
        for batch in cut([len(one) for one in prefixes], self.tokens, self.tokens // 8):
            together = [prefixes[n] for n in batch]
            longest = max(map(len, together))
            aligned = Aligned.of(together, longest, [len(one) for one in together], longest).to(self.lm.device)
            kept = Kept({}, 0, range(self.lm.architecture.n_layers))
            with hooked(self._hooks(changes, None)), self._multiplying():
                run_part(self.lm, aligned, kept)
            seen = kept.seen.items()
            parts.append({layer: (_padded(keys, width), _padded(values, width)) for layer, (keys, values) in seen})
            place |= {prefix: len(place) + n for n, prefix in enumerate(together)}
        return _joined(parts), place

    def _multiplying(self) -> AbstractContextManager[object]:
        """Take matrix products in `products`, where that is not the model's dtype."""
        other = self.products != self.lm.dtype
        return torch.autocast("cpu", self.products) if other else nullcontext()

    def _hooks(self, changes: Factors, mask: Tensor | None) -> list[tuple[nn.Module, Callable[..., Any]]]:
        """Hooks that add the changes to what the down-projections give, at the tokens of `mask` (rows, T, 1)."""

        def adding(left: Tensor, right: Tensor) -> Callable[..., Any]:
            def add(_module: nn.Module, args: Any, output: Tensor) -> Tensor:
                more = (args[0].float() @ right.T) @ left.T
                more = more if mask is None else more.reshape(*mask.shape[:2], -1) * mask.to(more.device)
                return output + more.reshape(output.shape).to(output.dtype)

            return add

        modules = self.lm.architecture.down_projections
        return [(self.lm.model.get_submodule(modules[n]), adding(*pair)) for n, pair in changes.items()]


def products_of(lm: LanguageModel) -> torch.dtype:
    """The dtype for matrix products: the model's, but bfloat16 for a float32 model on a CPU with instructions for it.

    Such a CPU multiplies bfloat16 twice as fast. Sums, norms and log-probabilities stay in float32. A dtype that
    `model.dtype` names is kept. Blocks that are read from disk run again for the gradient: torch takes the same
    products then.
    """
    chosen = lm.source is not None and lm.source.knobs.dtype != "auto"
    if lm.device.type != "cpu" or lm.dtype != torch.float32 or chosen:
        return lm.dtype
    # Older versions of torch do not tell.
    tell: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return torch.bfloat16 if tell().get("avx512_bf16") else lm.dtype


def _padded(states: Tensor, width: int) -> Tensor:
    """States (R, heads, T, head width) with zeros before them, up to `width` tokens."""
    return nn.functional.pad(states, (0, 0, width - states.shape[2], 0))


def _joined(parts: Sequence[KeysValues]) -> KeysValues:
    """The rows of several keys and values, one after the other."""
    layers = parts[0] if parts else {}
    return {
        layer: (torch.cat([part[layer][0] for part in parts]), torch.cat([part[layer][1] for part in parts]))
        for layer in layers
    }


def _only(rows: int, columns: int, at: Sequence[int], before: Sequence[int] = ()) -> Tensor:
    """A mask (rows, columns, 1) float32, on the CPU: 1 at column `at` of each row, and in its first `before` ones."""
    mask = torch.zeros(rows, columns, 1)
    mask[torch.arange(len(at)), torch.tensor(at)] = 1
    for row, count in enumerate(before):
        mask[row, :count] = 1
    return mask


def choose_adapted_rows(
    lm: LanguageModel, rows: Sequence[ReadRow], changes: Factors, *, tokens: int, few: Sequence[int]
) -> tuple[AdaptedRows, str]:
    """Prove shared prefixes on the rows `few` against whole forwards; return the rows to use, and why, in words.

    The proof is in the model's dtype; the rows to use take their products as `products_of` says.
    """
    fast, plain = AdaptedRows(lm, rows, tokens=tokens), AdaptedRows(lm, rows, tokens=tokens, whole=True)

    def measured(engine: AdaptedRows) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for launch in engine.launches(few):
            with engine.log_probs(launch, changes) as log_probs:
                parts = log_probs.split([rows[n].reads for n in launch])
            found |= dict(zip(launch, parts, strict=True))
        return [found[n] for n in few]

    with torch.no_grad():
        limit = SUFFIX_AGREEMENT[lm.dtype]
        proof = prove_engine(lambda: measured(fast), lambda: measured(plain), limit, name="shared prefixes")
    whole = not proof.holds
    return AdaptedRows(lm, rows, tokens=tokens, whole=whole, products=products_of(lm)), proof.reason
