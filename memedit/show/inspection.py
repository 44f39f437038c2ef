"""The report of `inspect`, in lines."""

from __future__ import annotations

from collections.abc import Iterator

from memedit.config.layers import layers_text
from memedit.results.inspection import Block, Inspection
from memedit.results.units import bytes_text


def inspection_lines(found: Inspection) -> Iterator[str]:
    """Describe the model, its blocks (equal ones together), its head, what can carry its edits, and what they cost."""
    proof = "proved on its weights" if found.proved else "from its config alone, not proved"
    stored = ", ".join(f"{count:,} {name}" for name, count in sorted(found.stored.items())) or "no weights here"
    yield f"model       {found.model}: {found.architecture} ({found.model_type}), {proof}"
    yield f"parameters  {found.parameters:,}; stored: {stored}"
    limit = found.positions or "unbounded"
    yield f"stream      width {found.width:,}, vocabulary {found.vocabulary:,}, positions {limit}"
    yield f"blocks      {found.n_layers} in {found.blocks}; attention and MLP {_parallel(found)}"
    weights = "Conv1D (in, out)" if found.orientation == "conv1d" else "Linear (out, in)"
    yield f"down        {weights}, {'with' if found.bias else 'without'} bias"
    for run in _runs(found.each):
        yield f"  {layers_text([block.layer for block in run]):<9} {_block(run[0], found.proved)}"
    head = found.head
    parts = [head.path, "tied to the embeddings" if head.tied else "of its own", *(["bias"] if head.bias else [])]
    if found.proved:
        parts += [f"times {head.scale:g}"] if head.scale not in (None, 1.0) else []
        parts += [f"soft cap at {head.cap:g}"] if head.cap is not None else []
    yield f"head        {', '.join(parts)}; norm before it: {head.norm or 'none'}"
    yield f"editable    {found.editable or 'no layer'}; --layers depth is {found.default}"
    yield f"adapter     PEFT: {found.peft.carries}, {found.peft.reason}"
    yield f"            vLLM: {found.vllm.carries}, {found.vllm.reason}"
    costs = found.costs
    output = "" if costs.output is None else f", {bytes_text(costs.output)} of output"
    yield f"memory      {bytes_text(costs.weights)} of weights, {bytes_text(costs.moments)} for moments"
    yield f"disk        {bytes_text(costs.cache)} of cache{output}"


def _parallel(found: Inspection) -> str:
    return {None: "(not measured)", True: "side by side", False: "one after the other"}[found.parallel]


def _runs(each: tuple[Block, ...]) -> list[list[Block]]:
    """Group neighboring blocks that differ in their number only."""
    runs: list[list[Block]] = []
    for block in each:
        if runs and _like(runs[-1][-1]) == _like(block):
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


def _like(block: Block) -> tuple[object, ...]:
    number = f"{block.layer}"
    path = (block.down_projection or "").replace(f".{number}.", ".N.")
    return path, block.inputs, block.gain, bool(block.norm), block.editable


def _block(block: Block, proved: bool) -> str:
    if not block.editable:
        return f"not editable: {block.reason}"
    path = (block.down_projection or "").replace(f".{block.layer}.", ".N.")
    joins = f"gain {block.gain:g}" if proved and block.gain is not None else "gain not measured"
    if block.norm:
        behind = f", gain {block.gain:g} behind it" if block.gain not in (None, 1.0) else ""
        joins = f"through {block.norm.replace(f'.{block.layer}.', '.N.')}{behind}"
    return f"{path}, {block.inputs:,} units, {joins}"
