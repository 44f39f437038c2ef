"""Read from results.jsonl which edits of earlier runs succeeded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memedit.edits.edit import EditRequest
from memedit.errors import UsageError


def successful_edits(files: Iterable[str]) -> list[str]:
    """Digests of the edits that held right after they were made, from results.jsonl files (or folders that hold one).

    Edits are identified by their digest, not by their ids: these depend on the file they come from.
    """
    found: dict[str, None] = {}
    for name in files:
        file = Path(name).expanduser()
        file = file / "memedit" / "results.jsonl" if file.is_dir() else file
        try:
            lines = file.read_text(encoding="utf-8").split("\n")  # no other separator ends a line of JSON
            records: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
            found |= dict.fromkeys(_digest(one) for one in records if one["status"] == "ok")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"cannot read the results {file}: {reason}", "give a folder that apply wrote") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{file} holds no results of edits", "give a results.jsonl that apply wrote") from error
    return list(found)


def _digest(record: dict[str, Any]) -> str:
    edit: dict[str, Any] = record.get("edit") or record  # --per-edit prints an edit's fields beside its outcome
    fields = {name: edit[name] for name in ("subject", "prompt", "remove" if "remove" in edit else "object")}
    wordings = tuple(edit.get("wordings", ()))
    return EditRequest(id=str(record["id"]), **fields, wordings=wordings, glue=edit.get("glue")).digest
