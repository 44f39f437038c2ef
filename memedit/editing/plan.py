"""Requests meet a tokenizer: every edit as ids, or every complaint at once, before any heavy work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from memedit.config.layers import layers_of
from memedit.config.recipe import Recipe
from memedit.edits.edit import EditRequest, Finding, shown
from memedit.edits.lint import lint, raise_errors
from memedit.errors import RecipeError
from memedit.model.architecture import Architecture
from memedit.model.tokens import Prompt, SubjectLost, encode_prompt, locate_subject, object_ids


@dataclass(frozen=True)
class Edit:
    """A request that met a tokenizer."""

    request: EditRequest
    prompt: Prompt
    """The prompt without a context."""
    target: tuple[int, ...]
    """The object's ids after the prompt."""
    subject: tuple[int, ...]
    """The bare subject, up to its last token: where the essence is measured."""


@dataclass(frozen=True)
class Plan:
    """What will be done: no tensors, and nothing left to complain about."""

    edits: tuple[Edit, ...]
    layers: tuple[int, ...]
    """Edited layers, ascending."""
    warnings: tuple[Finding, ...]
    skipped: tuple[EditRequest, ...]
    """Exact duplicates of earlier edits."""


def make_plan(
    requests: Sequence[EditRequest],
    tokenizer: PreTrainedTokenizerBase,
    architecture: Architecture,
    recipe: Recipe,
    findings: Sequence[Finding] = (),
) -> Plan:
    """The plan, after the reader's findings and all others. Raises EditListError with every finding, or RecipeError.

    Raises UnsupportedModelError where the recipe names a layer that cannot be edited.
    """
    edits, found = check_edits(requests, tokenizer, recipe, architecture.positions)
    everything = [*findings, *found]
    raise_errors("the edit list", everything, empty=not edits)
    # auto asks for a sound list first: who makes the plan traces it, and puts what it finds in place of these.
    chosen = "depth" if recipe.method.layers == "auto" else recipe.method.layers
    layers = layers_of(chosen, architecture.n_layers, single=recipe.method.kind.single)
    if recipe.method.layers != "auto":
        architecture.require(layers)
    _room(edits, recipe, min(architecture.mlp_widths[layer] for layer in layers))
    kept = {edit.request.id for edit in edits}
    skipped = tuple(request for request in requests if request.id not in kept)
    return Plan(tuple(edits), tuple(layers), tuple(everything), skipped)


def check_edits(
    requests: Sequence[EditRequest], tokenizer: PreTrainedTokenizerBase, recipe: Recipe, positions: int | None
) -> tuple[list[Edit], list[Finding]]:
    """Every edit that can be made (exact duplicates once), and everything that is wrong or odd."""
    findings = lint(requests)
    flawed = {finding.edit for finding in findings if finding.severity == "error"}
    edits: list[Edit] = []
    for request in {request.digest: request for request in reversed(requests)}.values():
        if request.id in flawed:
            continue
        try:
            edits.append(_edit(request, tokenizer, recipe.chat))
        except SubjectLost as error:
            findings.append(request.finding("E120", str(error)))
    edits.reverse()
    # A context adds its own tokens, and the full stop and space that join it to the prompt.
    room = None if positions is None else positions - recipe.contexts.tokens - 2
    for edit in edits:
        findings += _of_one(edit, room)
    findings += _shared_keys(edits)
    return edits, findings


def _room(edits: Sequence[Edit], recipe: Recipe, inner: int) -> None:
    """Raises RecipeError where more edits are to be met exactly than a layer has dimensions."""
    method, keys = recipe.method, len({edit.prompt.head for edit in edits})
    if method.ridge == 0 and not method.kind.in_turn and keys > inner:
        said = f"method.ridge = 0 meets every edit exactly: {keys:,} keys are too many for {inner:,} dimensions"
        raise RecipeError(said, "say --set method.ridge=1, or --method memit")


def with_contexts(
    edit: Edit, contexts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, chat: bool
) -> list[Prompt]:
    """The edit's prompt after each context (the first is the bare prompt)."""
    return [
        encode_prompt(tokenizer, edit.request, context=context, chat=chat) if context else edit.prompt
        for context in contexts
    ]


def _edit(request: EditRequest, tokenizer: PreTrainedTokenizerBase, chat: bool) -> Edit:
    prompt = encode_prompt(tokenizer, request, chat=chat)
    target = object_ids(tokenizer, request.text, prompt.ids, request.object, chat=chat)
    if not target:
        raise SubjectLost(f"the object {shown(request.object)} has no tokens in this tokenizer")
    return Edit(request, prompt, target, locate_subject(tokenizer, "", request.subject, "").head)


def _of_one(edit: Edit, room: int | None) -> list[Finding]:
    findings: list[Finding] = []
    length = len(edit.prompt.ids) + len(edit.target)
    if room is not None and length > room:
        said = f"prompt and object are {length:,} tokens long; with a context before them {room:,} fit into this model"
        findings.append(edit.request.finding("E121", said))
    if edit.prompt.merged:
        said = f"the last token of the subject {shown(edit.request.subject)} runs on into the text behind it"
        findings.append(edit.request.finding("W220", said))
    return findings


def _shared_keys(edits: Sequence[Edit]) -> list[Finding]:
    """Edits that agree up to the subject's last token have one key, and one value there has to serve them all."""
    first: dict[tuple[int, ...], Edit] = {}
    findings: list[Finding] = []
    for edit in edits:
        other = first.setdefault(edit.prompt.head, edit)
        if other.target != edit.target:
            said = f"the same key as the edit at {other.request.origin}, with another object: they share one value"
            findings.append(edit.request.finding("W221", said))
    return findings
