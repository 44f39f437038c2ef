"""What a person asks for, in words: one edit, and what can be found wrong with it.

Every format that memedit reads ends in `EditRequest`; its JSON schema is the public schema of an edit list.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SLOT = "{}"


def shown(value: object, width: int = 60) -> str:
    """A value as it stands in a message: in quotes, on one line, cut when long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= width else text[: width - 4] + ' ..."'


class Neighbor(BaseModel):
    """A prompt about something else whose answer must not move."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    prompt: str
    """The whole prompt, its subject filled in."""
    answer: str | None = None
    """Its true answer; None: the edit's old object."""
    group: str | None = None
    """What the list calls its kind: its figure is also given by itself."""


class Question(BaseModel):
    """A prompt beyond the fact itself, and the answer it has once the edit holds."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    prompt: str
    """The whole prompt, its subject filled in."""
    answer: str
    aliases: tuple[str, ...] = ()
    """Other spellings of the answer that count as right."""
    group: str | None = None
    """What the list calls its kind: its figure is also given by itself."""


class EditRequest(BaseModel):
    """One fact to write into a model.

    Subjects and objects are data: braces, quotes, newlines and any script may stand in them.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    id: str
    """Name of the edit, unique in its list; made from file line where the list gives none."""
    subject: str
    """What the fact is about, as it stands in the prompt."""
    relation: str | None = None
    """A label that groups edits: contradictions and derived probes go by it."""
    prompt: str
    """The template, with one `{}` where the subject goes; the object follows its end."""
    object: str
    """What the model shall say after the prompt."""
    object_old: str | None = None
    """What it says now."""
    paraphrases: tuple[str, ...] = ()
    """Other prompts for the same fact, their subject filled in (a `{}` stands for the subject)."""
    neighborhood: tuple[Neighbor, ...] = ()
    """Prompts whose answers must stay."""
    aliases: tuple[str, ...] = ()
    """Other spellings of the object that count as right."""
    portability: tuple[Question, ...] = ()
    """What follows from the edit: questions that a model which has taken it in answers anew."""
    reversal: tuple[Question, ...] = ()
    """The fact asked from its other end: the object stands in the prompt, the subject is the answer."""
    generation: tuple[str, ...] = ()
    """Openings about the subject for the model to write on from (a `{}` stands for the subject)."""
    references: tuple[str, ...] = ()
    """Texts about things that have the new object: what is written is held against their words."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """Anything else; carried along, never read."""
    origin: str = ""
    """`file:line`, carried into every complaint."""

    @property
    def text(self) -> str:
        """The prompt with the subject in it."""
        head, tail = self.frame
        return head + self.subject + tail

    @property
    def frame(self) -> tuple[str, str]:
        """What stands before and after the subject in the prompt."""
        head, _, tail = self.prompt.partition(SLOT)
        return head, tail

    @property
    def fact(self) -> tuple[str, str]:
        """Subject and relation (else prompt): two edits that agree here and differ in object contradict."""
        return self.subject, self.relation or self.prompt

    @property
    def questions(self) -> tuple[tuple[str, ...], ...]:
        """What it answers: its prompt, and its relation where it has one. Edits that answer one question with different
        objects contradict."""
        by_relation = (("relation", self.subject, self.relation),) if self.relation else ()
        return (("prompt", self.text), *by_relation)

    def finding(self, code: str, message: str) -> Finding:
        """Something to say of this edit, under its id and where it stands."""
        return Finding(origin=self.origin, code=code, message=f"edit {shown(self.id)}: {message}", edit=self.id)

    def public(self) -> dict[str, Any]:
        """The record as people write it: public fields only, empty ones left out."""
        record = self.model_dump(exclude={"origin"}, mode="json")
        for name in ("neighborhood", "portability", "reversal"):
            record[name] = [_filled(entry) for entry in record[name]]
        return _filled(record)

    @property
    def digest(self) -> str:
        """sha256 of what an edit does: subject, prompt and object."""
        return hashlib.sha256(json.dumps([self.subject, self.prompt, self.object]).encode()).hexdigest()


def _filled(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value not in (None, [], {}, ())}


class Finding(BaseModel):
    """One thing wrong, or odd, in an edit list."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    origin: str
    """`file:line`."""
    code: str
    """`E...` for an error, `W...` for a warning."""
    message: str
    edit: str | None = None
    """The edit's id, where it has one."""

    @property
    def severity(self) -> Literal["error", "warning"]:
        """Whether the finding refuses the list (error) or not (warning)."""
        return "error" if self.code.startswith("E") else "warning"

    @property
    def line(self) -> str:
        """`file:line: CODE message`, on one line whatever stands in the message."""
        text = self.message.replace("\r", "\\r").replace("\n", "\\n")
        return f"{self.origin}: {self.code} {text}"
