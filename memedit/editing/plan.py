"""Tokenize the edits and report every problem at once, before any heavy work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from memedit.config.layers import layers_of
from memedit.config.recipe import Recipe
from memedit.editing.contexts import context_shape
from memedit.editing.unknown import made_up_names
from memedit.edits.edit import SLOT, EditRequest, Finding, shown
from memedit.edits.glue import Glue
from memedit.edits.lint import lint, raise_errors
from memedit.errors import RecipeError
from memedit.model.architecture import Architecture
from memedit.model.tokens import (
    Prompt,
    SubjectLost,
    encode_objects,
    encode_questions,
    locate_subjects,
    text_opening,
)


@dataclass(frozen=True)
class Edit:
    """A tokenized request."""

    request: EditRequest
    prompt: Prompt
    """The prompt without a context."""
    target: tuple[int, ...]
    """The ids of the object after the prompt; of a removal, those of the old object (none if it is not known yet)."""
    subject: tuple[int, ...]
    """The bare subject, up to its last token: where the KL loss is measured. Without a subject, the prompt's last token
    alone, behind the opening of a text: what follows that token in other prompts must stay."""
    wordings: tuple[Prompt, ...] = ()
    """The prompts of the request's other wordings, without a context."""

    @property
    def shared(self) -> tuple[int, ...]:
        """Equal for edits that share a change: the ids of the subject, and without one those of the prompt."""
        return self.subject if self.request.subject else self.prompt.head


@dataclass(frozen=True)
class Plan:
    """The edits and layers of a run, checked; it has no tensors."""

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
    """Make the plan. `findings` are the reader's.

    Raises EditListError with every finding if one is an error, RecipeError for layers that the model does not have or
    too many edits for an exact fit, UnsupportedModelError for a layer that cannot be edited.
    """
    edits, found = check_edits(requests, tokenizer, recipe, architecture.positions)
    found += [edit.request.finding("E123", f"{_SILENT}; name what to remove") for edit in edits if not edit.target]
    everything = [*findings, *found]
    raise_errors("the edit list", everything, empty=not edits)
    # auto traces the edits, so it needs a correct list first; the caller then replaces these layers.
    chosen = "depth" if recipe.method.layers == "auto" else recipe.method.layers
    layers = layers_of(chosen, architecture.shape, single=recipe.method.kind.single)
    if recipe.method.layers != "auto":
        architecture.require(layers)
    _check_exact_fit(edits, recipe, min(architecture.mlp_widths[layer] for layer in layers))
    kept = {edit.request.id for edit in edits}
    skipped = tuple(request for request in requests if request.id not in kept)
    return Plan(tuple(edits), tuple(layers), tuple(everything), skipped)


_SILENT = 'it is a removal without "object_old", and the model says nothing after its prompt'


def check_edits(
    requests: Sequence[EditRequest], tokenizer: PreTrainedTokenizerBase, recipe: Recipe, positions: int | None
) -> tuple[list[Edit], list[Finding]]:
    """Tokenize every edit that can be made (exact duplicates once); returns them and all errors and warnings.

    `positions`: the longest row of the model in tokens, None if it has no limit. Raises RecipeError if contexts leave
    no room for any edit.
    """
    findings = lint(requests)
    flawed = {finding.edit for finding in findings if finding.severity == "error"}
    once = {request.digest: request for request in reversed(requests)}.values()
    sound = [request for request in reversed(once) if request.id not in flawed]
    edits: list[Edit] = []
    for request, edit in zip(sound, _edits(sound, tokenizer, recipe.chat), strict=True):
        if isinstance(edit, SubjectLost):
            findings.append(request.finding("E120", str(edit)))
        else:
            edits.append(edit)
    room = None if positions is None else _room(tokenizer, recipe, positions)
    for edit in edits:
        findings += _check_edit(edit, room, tokenizer, recipe)
    findings += _shared_keys(edits)
    return edits, findings


def _room(tokenizer: PreTrainedTokenizerBase, recipe: Recipe, positions: int) -> int:
    """Tokens of a prompt and its object that fit into the model behind the longest context."""
    _, longest = context_shape(tokenizer, recipe.contexts, chat=recipe.chat)
    if positions - longest < 2:  # a prompt and an object of one token each
        sampled = context_shape(tokenizer, recipe.contexts, chat=True)[1] == longest
        setting = f"contexts.tokens = {recipe.contexts.tokens:,}" if sampled else "contexts.chat = true"
        message = (
            f"{setting}: a context has up to {longest:,} tokens, and this model takes {positions:,}: no edit has room"
        )
        better = f"tokens={min(10, positions // 2)}" if sampled else "chat=false"
        raise RecipeError(message, f"use --set contexts.{better}")
    return positions - longest


def _check_exact_fit(edits: Sequence[Edit], recipe: Recipe, inner: int) -> None:
    """Raises RecipeError if more edits must be fitted exactly than a layer has dimensions."""
    method, keys = recipe.method, len({edit.prompt.head for edit in edits})
    if method.ridge == 0 and not method.kind.in_turn and keys > inner:
        message = f"method.ridge = 0 fits every edit exactly: {keys:,} keys are too many for {inner:,} dimensions"
        raise RecipeError(message, "use --set method.ridge=1, or --method memit")


@dataclass(frozen=True)
class Contexts:
    """The contexts of a run, the empty one first, and every edit's prompts under them."""

    texts: tuple[str, ...]
    prompts: tuple[tuple[Prompt, ...], ...]
    """X prompts for each of E edits."""


def encode_contexts(
    edits: Sequence[Edit], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, chat: bool, seed: int = 0
) -> Contexts:
    """Tokenize every edit's prompt after every context, once for the whole run; the first context must be empty.

    An edit that has wordings takes them in turn: context n is followed by template n of the prompt and its wordings,
    counted around. So wordings cost nothing, and keys and targets are those of all of them. Where a subject is not
    located after a context, since the tokenizer joins the two, the template stands there without it. The prompts of a
    removal also bring what they are about made-up subjects, whose names are drawn by the seed.
    """
    places = [(edit, number) for edit in edits for number in range(1, len(texts))]
    frames = [_frame(edit.request, number, texts[number]) for edit, number in places]
    located = locate_subjects(tokenizer, frames, chat=chat)
    lost = [at for at, prompt in enumerate(located) if isinstance(prompt, SubjectLost)]
    for at in lost:
        frames[at] = _frame(places[at][0].request, places[at][1])
    alone = locate_subjects(tokenizer, [frames[at] for at in lost], chat=chat)
    for at, prompt in zip(lost, alone, strict=True):
        located[at] = prompt
    prompts = map(_sound, located)  # check_edits has located every template without a context
    whole: list[tuple[Prompt, ...]] = [(edit.prompt, *(next(prompts) for _ in texts[1:])) for edit in edits]
    framed = iter(frames)
    every = [[_frame(edit.request, 0), *(next(framed) for _ in texts[1:])] for edit in edits]
    for n, edit in enumerate(edits):
        if edit.request.remove:
            strangers = _strangers(every[n], tokenizer, chat, seed)
            whole[n] = tuple(replace(one, strangers=ids) for one, ids in zip(whole[n], strangers, strict=True))
    return Contexts(tuple(texts), tuple(whole))


def _strangers(
    frames: Sequence[tuple[str, str, str]], tokenizer: PreTrainedTokenizerBase, chat: bool, seed: int
) -> list[tuple[tuple[int, ...], ...]]:
    """For each prompt of a removal, its ids with each made-up name in the subject's place."""
    names = made_up_names(frames[0][1], seed)
    texts = [head + name + tail for head, _, tail in frames for name in names]
    ids = iter([prompt for prompt, _ in encode_questions(tokenizer, [(one, (), None) for one in texts], chat=chat)])
    return [tuple(next(ids) for _ in names) for _ in frames]


def _sound(prompt: Prompt | SubjectLost) -> Prompt:
    if isinstance(prompt, SubjectLost):
        raise prompt
    return prompt


def _frame(request: EditRequest, number: int, context: str = "") -> tuple[str, str, str]:
    """What stands before the subject, the subject, and what stands behind, in the prompt of context `number`."""
    templates = request.templates
    head, _, tail = templates[number % len(templates)].partition(SLOT)
    return context + head, request.subject, tail


def _edits(
    requests: Sequence[EditRequest], tokenizer: PreTrainedTokenizerBase, chat: bool
) -> Iterator[Edit | SubjectLost]:
    """Tokenize each request; one that cannot be edited gives the error that says why."""
    frames = [_frame(one, number) for one in requests for number in range(len(one.templates))]
    located = iter(locate_subjects(tokenizer, frames, chat=chat))
    prompts = [[next(located) for _ in one.templates] for one in requests]
    subjects = iter(locate_subjects(tokenizer, [("", one.subject, "") for one in requests if one.subject]))
    opening = text_opening(tokenizer)
    asked: list[tuple[str, tuple[int, ...], str, Glue | None]] = [
        (one.text, first.ids, one.answer, one.glue)
        for one, (first, *_) in zip(requests, prompts, strict=True)
        if one.answer and not isinstance(first, SubjectLost)
    ]
    targets = iter(encode_objects(tokenizer, asked, chat=chat))
    for request, mine in zip(requests, prompts, strict=True):
        target = next(targets) if request.answer and not isinstance(mine[0], SubjectLost) else ()
        bare = next(subjects) if request.subject else _last_alone(mine[0], opening)
        lost = [one for one in (*mine, bare) if isinstance(one, SubjectLost)]
        if lost:
            yield lost[0]
        elif request.answer and not target:
            yield SubjectLost(f"the object {shown(request.answer)} has no tokens in this tokenizer")
        else:
            prompt, *wordings = map(_sound, mine)
            yield Edit(request, prompt, target, _sound(bare).head, tuple(wordings))


def _last_alone(prompt: Prompt | SubjectLost, opening: tuple[int, ...]) -> Prompt | SubjectLost:
    """The last token of a prompt without a subject, behind the opening of a text."""
    if isinstance(prompt, SubjectLost):
        return prompt
    return Prompt((*opening, prompt.ids[prompt.subject_at]), len(opening))


def _check_edit(edit: Edit, room: int | None, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> list[Finding]:
    findings: list[Finding] = []
    length = max(len(prompt.ids) for prompt in (edit.prompt, *edit.wordings)) + len(edit.target)
    if room is not None and edit.request.remove:
        # It is also asked about made-up subjects, which may be longer. A token has a character at least.
        names = made_up_names(edit.request.subject, recipe.seed)
        if length + max(map(len, names)) > room:
            frames = [_frame(edit.request, number) for number in range(len(edit.request.templates))]
            strangers = _strangers(frames, tokenizer, recipe.chat, recipe.seed)
            length = max(length, *(len(ids) + len(edit.target) for of_one in strangers for ids in of_one))
    if room is not None and length > room:
        message = (
            f"prompt and object are {length:,} tokens long; with a context before them {room:,} fit into this model"
        )
        findings.append(edit.request.finding("E121", message))
    if edit.prompt.merged:
        message = f"the last token of the subject {shown(edit.request.subject)} runs on into the text behind it"
        findings.append(edit.request.finding("W220", message))
    return findings


def _shared_keys(edits: Sequence[Edit]) -> list[Finding]:
    """Report edits with the same tokens up to the subject's last: they have one key, so they share one value."""
    first: dict[tuple[int, ...], Edit] = {}
    findings: list[Finding] = []
    for edit in edits:
        other = first.setdefault(edit.prompt.head, edit)
        if (other.target, other.request.remove) != (edit.target, edit.request.remove):
            message = f"the same key as the edit at {other.request.origin}, with another object: they share one value"
            findings.append(edit.request.finding("W221", message))
    return findings
