"""An upload sends the files of the folder and nothing else, into a repository that holds nothing it would mix with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from memedit.api import push
from memedit.errors import MemeditError, StorageError, UsageError

REPO = "someone/edited"
WEIGHTS = "model.safetensors"


class Hub:
    """Stands for the Hub: keeps what it is sent."""

    def __init__(self) -> None:
        self.there: list[str] = [".gitattributes"]
        self.made: list[tuple[str, bool]] = []
        self.sent: dict[str, str] = {}
        self.error: Exception | None = None

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> str:
        if self.error:
            raise self.error
        assert exist_ok
        self.made.append((repo, private))
        return f"https://hub/{repo}"

    def list_repo_files(self, _repo: str) -> list[str]:
        return self.there

    def create_commit(self, _repo: str, parts: list[Any], *, commit_message: str) -> None:
        assert commit_message
        self.sent = {part.path_in_repo: str(part.path_or_fileobj) for part in parts}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "memedit").mkdir(parents=True)
    files = {
        "config.json": "{}", WEIGHTS: "weights", "README.md": "---\nbase_model: base\n---\n", ".hidden": "x",
        ".secret/key": "x", "memedit/.kept/x": "x",
        "memedit/run.json": json.dumps({"model": str(tmp_path / "base")}),
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", ["memedit/run.json", "memedit/ledger.safetensors", "adapter_config.json"])
def test_paths_of_this_machine_are_told(out: Path, hub: Hub, name: str) -> None:
    (out / "memedit" / "run.json").write_text("{}")
    for base, told in (("owner/base", 0), ("/home/base", 1)):
        about = json.dumps({"base": {"path": base}})
        # A header of safetensors holds JSON inside a string of JSON.
        (out / name).write_text(json.dumps({"about": about}) if name.endswith("safetensors") else about)
        notes = [note for note in push(out, REPO, dry_run=True).notes if note.startswith(name)]
        assert len(notes) == told, (base, notes)


def test_every_file_is_sent_but_hidden_ones(out: Path, hub: Hub) -> None:
    done = push(out, REPO, private=True)
    assert done.address == f"https://hub/{REPO}" and hub.made == [(REPO, True)]
    assert set(hub.sent) == {"config.json", WEIGHTS, "README.md", "memedit/run.json"}
    assert all(Path(place) == out / name for name, place in hub.sent.items())
    assert [note.split()[0] for note in done.notes] == ["README.md", "memedit/run.json"]
    push(out, REPO, records=False)
    assert set(hub.sent) == {"config.json", WEIGHTS, "README.md"}


def test_a_dry_run_reaches_for_nothing(out: Path, hub: Hub) -> None:
    planned = push(out, REPO, dry_run=True)
    assert planned.address is None and hub.made == [] and hub.sent == {}
    assert {one.name: one.bytes for one in planned.files}[WEIGHTS] == len("weights")


def test_a_repository_with_files_is_refused_without_update(out: Path, hub: Hub) -> None:
    hub.there = [".gitattributes", "pytorch_model.bin"]
    with pytest.raises(UsageError, match="has files already"):
        push(out, REPO)
    assert hub.sent == {}
    push(out, REPO, update=True)
    assert WEIGHTS in hub.sent


class Answer:
    """What an error of the Hub carries."""

    headers: dict[str, str] = {}
    request = None


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (HfHubHTTPError("403 Forbidden: no write token", response=Answer()), MemeditError, "403 Forbidden"),  # type: ignore[arg-type]
        (OfflineModeIsEnabled("offline mode is enabled"), MemeditError, "offline mode"),
        (ConnectionError("no route"), MemeditError, "no route"),
        (HFValidationError("a/b/c"), UsageError, "is no repository's name"),
    ],
)
def test_an_error_of_the_hub_is_one_line(out: Path, hub: Hub, error: Exception, kind: type, said: str) -> None:
    hub.error = error
    with pytest.raises(MemeditError, match=said) as caught:
        push(out, REPO)
    assert type(caught.value) is kind and caught.value.hint and "\n" not in caught.value.message


def test_what_is_no_error_of_the_hub_stays_one(out: Path, hub: Hub) -> None:
    hub.error = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        push(out, REPO)


def test_no_other_folder_and_no_link_out_is_sent(out: Path, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model and no adapter"):
        push(tmp_path, REPO)
    (tmp_path / "secret").write_text("secret")
    (out / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError, match="leads out"):
        push(out, REPO)
    assert hub.sent == {}
