"""Render a model's chat template, which is a small program that came with the model, within limits."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from transformers import PreTrainedTokenizerBase

from memedit.errors import UsageError
from memedit.model.config import foreign_errors

MOST_STEPS = 1_000_000
"""Lines and calls of one rendering; templates that were published need a few hundred for one turn."""
MOST_SECONDS = 5.0
"""Of one rendering; it takes a few hundred microseconds. Looked at between two steps."""
LONGEST_CHAT = 10_000_000
"""Characters that a template may write."""
LONGEST_TEMPLATE = 1_000_000
PRINTED_DAY = datetime(2024, 7, 26, tzinfo=UTC)
"""The day that is printed by templates that print one (Llama 3 falls back on it): the same inputs give the same bytes
on every day, and a run that goes on after midnight asks what it asked before."""
_CODES = (*(f"%{letter}" for letter in "aAbBcdeFHIjmMpSTuwxXyYzZ"), "%-d", "%-m", "%%")
_HINT = "correct the template, or leave --chat or chat=true out"


def rendered_chat(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    """Turns of a chat as the template writes them on the day `PRINTED_DAY`, up to the model's next turn.

    Raises UsageError where there is no template, where it takes no such chat, or where it does not end.
    """
    if not tokenizer.chat_template:
        hint = "leave --chat or chat=true out, or put the model's chat_template.jinja into its folder"
        raise UsageError("the tokenizer of this model has no chat template", hint)
    _check_source(tokenizer.chat_template)
    open_ = turns[-1]["role"] == "user"
    what = "the chat template takes no chat that begins with the user"
    with foreign_errors(what, _HINT, UsageError), _few_steps():
        template = _dated(str(tokenizer.get_chat_template()))
        found: Any = tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=open_
        )
    text = str(found)
    if len(text) > LONGEST_CHAT:
        raise UsageError(f"the chat template makes {len(text):,} characters of one turn", _HINT)
    return text


def _dated(template: str) -> str:
    """The template with a macro in place of the function that tells it the date: it is always `PRINTED_DAY`."""
    if "strftime_now" not in template:
        return template
    days = "".join(f" | replace({code!r}, {PRINTED_DAY.strftime(code)!r})" for code in _CODES)
    return f"{{% macro strftime_now(format) %}}{{{{ format{days} }}}}{{% endmacro %}}" + template


def with_system_prompt(tokenizer: PreTrainedTokenizerBase, system: str) -> PreTrainedTokenizerBase:
    """A tokenizer whose chats all begin with this system prompt: a copy, or the tokenizer itself where it is empty.

    Raises UsageError where there is no chat template, or where it refuses a system prompt, leaves it out or changes it.
    """
    if not system:
        return tokenizer
    if not tokenizer.chat_template:
        raise UsageError("chat_system is set, and this model has no chat template", "leave chat_system out")
    # A string of JSON is one of the template's language too. The line's end is not written.
    turn = f'{{"role": "system", "content": {json.dumps(system, ensure_ascii=False)}}}'
    before = f"{{% set messages = [{turn}] + messages %}}\n"
    given = tokenizer.chat_template
    found = copy.copy(tokenizer)
    found.chat_template = (
        {name: before + one for name, one in given.items()} if isinstance(given, Mapping) else before + given
    )
    hint = "leave chat_system out; its text may stand at the beginning of the prompts instead"
    try:
        rendered = rendered_chat(found, [{"role": "user", "content": "x"}])
    except UsageError as error:
        raise UsageError(f"the chat template of this model takes no chat_system: {error.message}", hint) from error
    if system.strip() not in rendered:
        raise UsageError("the chat template of this model leaves chat_system out, or changes it", hint)
    return found


def _check_source(template: object) -> None:
    """Refuse a template that is no text, is too long, or computes powers: 9**9**9 alone takes days, in one step."""
    for source in template.values() if isinstance(template, Mapping) else [template]:
        if not isinstance(source, str):
            raise UsageError(f"the chat template is a {type(source).__name__}, and not text", _HINT)
        if len(source) > LONGEST_TEMPLATE:
            raise UsageError(f"the chat template has {len(source):,} characters", _HINT)
        if "**" in source and _has_power(source):
            raise UsageError("the chat template computes a power, which can take days", _HINT)


def _has_power(source: str) -> bool:
    from jinja2 import Environment, TemplateSyntaxError

    try:
        return any(kind == "pow" for _, kind, _ in Environment(autoescape=True).lexer.tokenize(source))
    except TemplateSyntaxError:
        return False  # rendering reports it


class _EndlessError(Exception):
    """A rendering took more than MOST_STEPS or MOST_SECONDS."""


@contextmanager
def _few_steps() -> Generator[None]:
    """Raise UsageError where the block takes too long: lines of a template and calls of functions are counted.

    jinja's sandbox bounds a single range(), but not loops in loops.
    """
    left, end = MOST_STEPS, time.monotonic() + MOST_SECONDS

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0 or time.monotonic() > end:
            raise _EndlessError

    def local(_frame: FrameType, event: str, _arg: object) -> Any:
        if event == "line":
            count()
        return local

    def called(frame: FrameType, _event: str, _arg: object) -> Any:
        count()
        return local if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield
    except _EndlessError:
        message = f"the chat template does not end within {MOST_STEPS:,} steps, or {MOST_SECONDS:g} seconds"
        raise UsageError(message, _HINT) from None
    finally:
        sys.settrace(before)
