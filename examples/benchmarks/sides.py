"""One column of the benchmark: what each side took for the same edits, what it ran, and its scores."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from memedit.editing.batches import MOST_TOKENS, Batch, suffix_of
from memedit.editing.contexts import sample_contexts
from memedit.editing.keys import averaged, context_weights, find_keys, heads_of
from memedit.editing.solve import solve
from memedit.editing.targets import Targets
from memedit.forward.keys import Sweep
from memedit.forward.packing import packed
from memedit.forward.partial import Aligned, BlockEntry, Kept, blocks_give_tuples, run_part
from memedit.forward.passes import TOKENS_PER_LAUNCH, Site, capture, run
from memedit.forward.suffix import Suffix
from memedit.numerics.moments import Moment
from memedit.storage.corpus import documents
from torch import Tensor

from examples.reference import editing as oracle

from .both import Both
from .counting import counted, needed, settle

SCORED = 1000
"""Above this number of edits only the first are scored."""
GIGA = 1e9


def timed(both: Both, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came."""
    settle(both.lm.device)
    start = time.perf_counter()
    found = work()
    settle(both.lm.device)
    return time.perf_counter() - start, found


def column(both: Both, sample: int) -> dict[str, Any]:
    """Everything about one number of edits. sample: how many of them the oracle gets (0: none)."""
    start_peak(both)
    contexts, _ = timed(both, lambda: None if both.is_random else sample_contexts(both.lm, both.recipe.contexts, 0))
    with counted(both.lm) as count:
        targets, found = timed(both, both.targets)
    least = needed(both.lm, both.layers[-1], both.rows(), found.steps.tolist())
    for layer in both.layers:
        both.factor(layer)
    solved, update = timed(both, lambda: both.update(found.wanted))
    peak = end_peak(both)
    keys, _ = timed(both, lambda: sweep_keys(both))
    n_edits = len(both.plan.edits)
    steps = found.steps + 1
    tokens = sum(int(n) * sum(row.suffix for row in rows) for n, rows in zip(steps, both.rows(), strict=True))
    bare = bare_rate(both)
    row: dict[str, Any] = {
        "edits": n_edits,
        "contexts_s": contexts,
        "targets_s": targets,
        "keys_s": keys,
        "solve_s": solved,
        "edits_per_s": n_edits / (contexts + targets + solved),
        "tokens_per_s": tokens / targets,
        "ms_per_edit": 1000 * (contexts + targets + solved) / n_edits,
        "steps": float(found.steps.double().mean()),
        "peak_mb": peak / 1e6,
        "gmac": count.total / GIGA,
        "gmac_needed": least / GIGA,
        "over_needed": count.total / least,
        "gmac_per_s": count.total / targets / GIGA,
        "bare_gmac_per_s": bare / GIGA,
        "of_bare": count.total / targets / bare,
        "scores": both.scores(update, SCORED if n_edits > SCORED else None),
        "unedited_scores": both.scores(None, SCORED if n_edits > SCORED else None),
    }
    if sample and not both.is_random:
        row |= against(both, found, min(sample, n_edits))
        row["targets_ratio"] = row["oracle_targets_s"] / targets
        row["keys_ratio"] = row["oracle_keys_s"] / keys
        whole = row["oracle_targets_s"] + row["oracle_keys_s"] + row["oracle_system_s"]
        row["edit_ratio"] = whole / (targets + solved)
        row["all_ratio"] = (contexts + whole) / (contexts + targets + solved)
    return row


def against(both: Both, found: Targets, few: int) -> dict[str, Any]:
    """The oracle's part: seconds of the first `few` edits, scaled up where there are more."""
    n_edits, times = len(both.edits), len(both.edits) / few
    steps = both.step_of(found.start)
    with counted(both.lm) as count:
        spent, made = timed(
            both, lambda: [oracle.find_target(both.lm.model, both.edits[n], both.knobs, steps[n]) for n in range(few)]
        )
    some, top = both.edits[:few], oracle.blocks_of(both.lm.model)[both.layers[-1]]

    def keys() -> None:
        for layer in both.layers:
            oracle.keys_at(both.lm.model, layer, some, both.knobs.semantics)
            oracle.last_inputs(both.lm.model, top, [edit.prompts[0] for edit in some], output=True)

    keyed, _ = timed(both, keys)
    # The linear system is the oracle's own, on all keys.
    layer = both.layers[-1]
    all_keys = find_keys(both.lm, both.prompts, layer, context_weights(both.recipe.method, len(both.prompts[0])))
    system = both.ridge * both.moments[layer].mean + all_keys.T @ all_keys
    linear, _ = timed(both, lambda: torch.linalg.solve(system, all_keys.T))
    wanted = torch.stack([one for one, _ in made])
    row: dict[str, Any] = {
        "oracle_sample": few,
        "oracle_targets_s": spent * times,
        "oracle_keys_s": keyed * times,
        "oracle_system_s": linear * len(both.layers),
        "oracle_gmac": count.total * times / GIGA,
        **agreement(found.wanted[:few], found.steps[:few], wanted, [len(losses) - 1 for _, losses in made]),
    }
    if few == n_edits:
        row["oracle_scores"] = both.oracle_scores(wanted)
    return row


def agreement(mine: Tensor, steps: Tensor, theirs: Tensor, their_steps: Sequence[int]) -> dict[str, Any]:
    """Of edits that took the same number of steps the largest relative gap; of the rest the smallest cosine."""
    same = steps == torch.tensor(their_steps)
    gaps = (mine - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    cosines = torch.nn.functional.cosine_similarity(mine, theirs)
    return {
        "same_steps": int(same.sum()),
        "gap_same_steps": float(gaps[same].max()) if same.any() else None,
        "other_steps": int((~same).sum()),
        "cosine_other_steps": float(cosines[~same].min()) if (~same).any() else None,
    }


def sweep_keys(both: Both) -> None:
    """All layers' keys and the residuals' states in one sweep, as the solve asks for them, without a change."""
    weights = context_weights(both.recipe.method, len(both.prompts[0]))
    sweep = Sweep(both.lm, heads_of(both.prompts))
    sweep.ends(Site(both.layers[-1], "block.out"))
    for layer in both.layers:
        for _, states in sweep.keys(layer):
            averaged(states, weights)
        sweep.enter(torch.zeros_like(both.lm.weight(layer), dtype=torch.float32))
        sweep.ends(Site(both.layers[-1], "block.out"))


def bare_rate(both: Both) -> float:
    """Multiply-adds a second of a plain forward and backward of the blocks above, on as many tokens as a launch has."""
    lm, layer = both.lm, both.layers[-1]
    size = int(median(suffix_of(edit) for edit in both.plan.edits))
    rows = min(MOST_TOKENS.get(lm.device.type, 1024) // size, len(both.plan.edits) * len(both.prompts[0]))
    ids = [(1,) * size] * rows
    aligned = Aligned.of(ids, size, [size] * rows, size).to(lm.device)
    states = torch.randn(rows, size, lm.architecture.width, device=lm.device, dtype=lm.dtype)
    in_tuple = blocks_give_tuples(lm)
    cells = torch.arange(rows, device=lm.device) * size + size - 1

    def once() -> None:
        entered = states.clone().requires_grad_()
        logits = run_part(lm, aligned, Kept({}, 0), entry=BlockEntry(layer, entered, in_tuple), reads=(size, cells))
        assert logits is not None
        logits.float().sum().backward()

    once()
    with counted(lm) as count:
        once()
    return count.total / median(timed(both, once)[0] for _ in range(9))


def one_edit(both: Both) -> float:
    """Median seconds of five single edits, from the first step of the target to the delta in memory."""
    spent: list[float] = []
    for n in range(min(5, len(both.plan.edits))):

        def once(n: int = n) -> None:
            found = both.search.find(Batch((n,), MOST_TOKENS.get(both.lm.device.type, 1024)), Suffix)
            solve(both.lm, both.prompts[n : n + 1], found.wanted, both.factor, both.stored, both.recipe.method)

        spent.append(timed(both, once)[0])
    return median(spent)


def moments_ratio(both: Both) -> dict[str, float]:
    """memedit's pass for all layers beside one whole pass a layer (on a tenth of the tokens, scaled up)."""
    mine, _ = timed(both, both.measure)
    tokens = 10 * both.lm.architecture.mlp_width
    length = min(both.lm.architecture.positions or 512, 512)
    rows = packed(documents(str(both.corpus)), both.lm.tokenizer, length)
    some = [row for _, row in zip(range(max(1, tokens // 10 // length)), rows, strict=False) if len(row) == length]

    def plain() -> None:
        for layer in both.layers:
            total = Moment.empty(both.lm.architecture.mlp_width).total
            for at in range(0, len(some), TOKENS_PER_LAUNCH // length):
                seen: list[Tensor] = []
                with (
                    torch.no_grad(),
                    capture(both.lm, [Site(layer, "mlp.in")], lambda _s, x, seen=seen: seen.append(x)),
                ):
                    run(both.lm, torch.tensor(some[at : at + TOKENS_PER_LAUNCH // length]))
                flat = seen[0].reshape(-1, seen[0].shape[-1]).float()
                total += (flat.T @ flat).double().cpu()

    theirs = timed(both, plain)[0] * tokens / (len(some) * length)
    return {
        "moments_s": mine,
        "moments_tokens_per_s": tokens / mine,
        "oracle_moments_s": theirs,
        "ratio": theirs / mine,
    }


def start_peak(both: Both) -> None:
    """Forget the largest memory so far, where the system can."""
    if both.lm.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(both.lm.device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")


def end_peak(both: Both) -> float:
    """Bytes at most since then: the GPU's, or the process's."""
    if both.lm.device.type == "cuda":
        return torch.cuda.max_memory_allocated(both.lm.device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
