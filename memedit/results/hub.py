"""What an upload to the Hub sends: plain values that turn into JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class UploadFile(BaseModel):
    """One file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Its path in the folder and in the repository."""
    bytes: int


class Upload(BaseModel):
    """The files of an upload."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    repo: str
    files: tuple[UploadFile, ...]
    notes: tuple[str, ...] = ()
    """What a person should know before others read the files."""
    address: str | None = None
    """Of the repository, where the files were sent."""

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(file.bytes for file in self.files)
