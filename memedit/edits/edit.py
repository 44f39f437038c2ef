"""An edit in words, and a finding: one thing that is wrong with it.

Every format that memedit reads ends in `EditRequest`; its JSON schema is the public schema of an edit list.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from memedit.edits.glue import Glue, behind, glue_between

SLOT = "{}"
Matching = Literal["exact", "contains"]
"""How an answer is compared with the object."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")  # what a terminal could take for a command


def shown(value: object, width: int = 60) -> str:
    """A value for a message: in quotes, on one line, cut when long, in characters that any output can encode."""
    text = escape_controls(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= width else text[: width - 4] + ' ..."'


def escape_controls(text: str) -> str:
    """Text in which control characters and halves of surrogate pairs are written as escapes."""
    escaped = _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)
    return escaped.encode("utf-8", "backslashreplace").decode("utf-8")


class Neighbor(BaseModel):
    """A prompt about something else, whose answer must not change."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    prompt: str
    """The whole prompt, its subject filled in."""
    answer: str | None = None
    """Its true answer; if None, the edit's old object."""
    group: str | None = None
    """A label from the list; scores are also reported for each label."""


class Question(BaseModel):
    """A prompt that goes beyond the fact, and its answer after the edit."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    prompt: str
    """The whole prompt, its subject filled in."""
    answer: str
    aliases: tuple[str, ...] = ()
    """Other spellings of the answer that count as right."""
    group: str | None = None
    """A label from the list; scores are also reported for each label."""


class EditRequest(BaseModel):
    """One fact to write into a model, or to remove from it.

    Subjects and objects are data: they may contain braces, quotes, newlines and any script.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid",
        json_schema_extra={"anyOf": [{"required": ["object"]}, {"required": ["remove"]}]},
    )  # fmt: skip

    id: str
    """Name of the edit, unique in its list; if the list gives none, it is made from the file's name and a number."""
    subject: str = ""
    """The thing that the fact is about, as it is written in the prompt; if empty, the edit is made at the last token of
    the prompt."""
    relation: str | None = None
    """A label that groups edits; contradictions and derived probes are found by it."""
    prompt: str
    """The template, with one `{}` where the subject goes, or without a subject the whole text; the object follows."""
    object: str = Field(default="", json_schema_extra={"type": ["string", "null"]})
    """The text that the model should give after the prompt. In a list null is the same as `remove`."""
    object_old: str | None = None
    """The text that it gives now; of a removal, the text to be removed."""
    remove: bool = False
    """Remove the old object, and write no other: the model becomes as unsure as about an unknown subject."""
    glue: Glue | None = None
    """What joins the object to the prompt and the wordings, "" or " "; if None, the rule for punctuation decides."""
    evaluate: Matching = "exact"
    """When the edit holds: every token of the object is the most likely one, or the greedy answer contains the words of
    the object that matter; the latter suits objects of a sentence or more."""
    wordings: tuple[str, ...] = ()
    """Other templates for the same fact, each with one `{}`; the edit is made to hold under them too."""
    paraphrases: tuple[str, ...] = ()
    """Other prompts for the same fact, used only to score. A `{}` is replaced by the subject."""
    neighborhood: tuple[Neighbor, ...] = ()
    """Prompts whose answers must not change."""
    aliases: tuple[str, ...] = ()
    """Other spellings of the object that count as right; of a removal, of the old object."""
    portability: tuple[Question, ...] = ()
    """Questions whose answers follow from the edit."""
    reversal: tuple[Question, ...] = ()
    """The fact in reverse: the object is in the prompt, and the subject is the answer."""
    generation: tuple[str, ...] = ()
    """Openings about the subject that the model continues (a `{}` is replaced by the subject)."""
    references: tuple[str, ...] = ()
    """Texts about things that have the new object; generated text is compared with their words."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """Anything else; it is stored and never interpreted."""
    origin: str = ""
    """`file:line`, repeated in every finding."""

    @property
    def answer(self) -> str:
        """What the edit is about behind its prompt: the object, of a removal the old one (empty if it is not known)."""
        old = self.object_old or ""
        return self.object if not self.remove else old if old.strip() else ""

    def without_probes(self) -> EditRequest:
        """The edit without what it is scored by beside its own prompt."""
        return self.model_copy(update=dict.fromkeys(("paraphrases", "neighborhood", "portability", "reversal"), ()))

    @property
    def text(self) -> str:
        """The prompt with the subject in it."""
        head, tail = self.frame
        return head + self.subject + tail

    @property
    def frame(self) -> tuple[str, str]:
        """The prompt before and after the subject."""
        head, _, tail = self.prompt.partition(SLOT)
        return head, tail

    @property
    def ending(self) -> str:
        """The answer with what joins it to the prompt, as it follows the prompt."""
        return behind(self.text, self.answer, self.glue)

    @property
    def glue_elsewhere(self) -> Glue | None:
        """The glue behind paraphrases and neighbors: the edit's own if it differs from the rule; None is the rule.

        A glue that only confirms the rule was given for the end of the prompt; a paraphrase may end in another way.
        """
        return None if self.glue == glue_between(self.text, self.answer) else self.glue

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompt and the wordings that are not empty: all templates that the edit is made by."""
        return (self.prompt, *(wording for wording in self.wordings if wording.strip()))

    @property
    def fact(self) -> tuple[str, str]:
        """Subject and relation (or prompt): two edits of one fact with different objects contradict each other.

        Without a subject the prompt alone says what the fact is about, whatever its relation.
        """
        return self.subject, (self.subject and self.relation) or self.prompt

    @property
    def questions(self) -> tuple[tuple[str, ...], ...]:
        """Keys of the questions that the edit answers: its prompt, and its relation if it has one and a subject.

        Two edits contradict each other if they answer one question with different objects.
        """
        by_relation = (("relation", self.subject, self.relation),) if self.subject and self.relation else ()
        return (("prompt", self.text), *by_relation)

    def contradicts(self, other: EditRequest) -> bool:
        """Whether two edits that answer one question say different texts; white space around an object does not count.

        The same object joined to the same prompt by another glue is another text. A removal says none.
        """
        if self.remove or other.remove:
            return self.remove != other.remove
        if self.object.strip() != other.object.strip():
            return True
        return self.text == other.text and self.ending.rstrip() != other.ending.rstrip()

    def finding(self, code: str, message: str) -> Finding:
        """A finding about this edit, with its id, file and line."""
        return Finding(origin=self.origin, code=code, message=f"edit {shown(self.id)}: {message}", edit=self.id)

    def public(self) -> dict[str, Any]:
        """The record as people write it: public fields only, without empty ones."""
        unsaid = {"origin", "object" if self.remove else "remove"} | (
            {"evaluate"} if self.evaluate == "exact" else set()
        )
        record = self.model_dump(exclude=unsaid, mode="json")
        for name in ("neighborhood", "portability", "reversal"):
            record[name] = [_filled(entry) for entry in record[name]]
        return _filled(record)

    @property
    def digest(self) -> str:
        """sha256 of subject, prompt, object, and the wordings and the glue where they are given.

        A removal has no object here: it is the same whatever its old object is called.
        """
        wanted = None if self.remove else self.object
        more = [*([list(self.wordings)] if self.wordings else []), *([] if self.glue is None else [self.glue])]
        return hashlib.sha256(json.dumps([self.subject, self.prompt, wanted, *more]).encode()).hexdigest()


def _filled(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value not in (None, [], {}, ())}


class Finding(BaseModel):
    """One error or warning about an edit list."""

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
        """`file:line: CODE message`, on one line, whatever the message contains."""
        text = self.message.replace("\r", "\\r").replace("\n", "\\n")
        return escape_controls(f"{self.origin}: {self.code} {text}")
