"""What the task needs beside its records: the prompt with its subject, and every object of the relation."""

from __future__ import annotations

from typing import Any


def with_choices(records: Any) -> Any:
    """Adds `text` and `choices` to each fact."""
    objects: dict[str, set[str]] = {}
    for record in records:
        objects.setdefault(record["relation"], set()).add(record["object"])

    def one(record: dict[str, Any]) -> dict[str, Any]:
        text = record["prompt"].replace("{}", record["subject"])
        return {"text": text, "choices": sorted(objects[record["relation"]])}

    return records.map(one)
