"""Receive the frames of a harvest from inside the sandbox; see `sandboxed_harvest`. An attacker may have written all.

Packs go to files as they come, so that nothing is held in memory and a harvest that is cut keeps its beginning.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from steadyhand.errors import WorkspaceError
from steadyhand.workspace.git import MIB
from steadyhand.workspace.ref_names import COMMIT

MAX_FRAMES = 20_000
SECONDS_PER_MIB = 1.0
"""The time that a harvest may take longer for each MiB that it brings out."""
_HEADER_BYTES = MIB
_MAX_NAME_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class HarvestFrame:
    """One frame: its fields, and the pack that came with it."""

    fields: Mapping[str, Any]
    pack: Path | None = None

    def text(self, name: str, max_length: int = _MAX_NAME_LENGTH) -> str:
        """Return a text without NUL. Raise `WorkspaceError`."""
        value = self.fields.get(name)
        if not isinstance(value, str) or "\x00" in value or len(value) > max_length:
            raise malformed_reply()
        return value

    def object_id(self, name: str) -> str:
        """Return the id of an object. Raise `WorkspaceError`."""
        value = self.fields.get(name)
        if not isinstance(value, str) or COMMIT.fullmatch(value) is None:
            raise malformed_reply()
        return value

    def number(self, name: str) -> int:
        """Return a count; anything else is 0."""
        value = self.fields.get(name)
        return value if _is_count(value) else 0

    def names(self, name: str, limit: int) -> list[str]:
        """Return a list of texts, at most `limit` of them. Raise `WorkspaceError`."""
        values = self.fields.get(name)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise malformed_reply()
        return [value[:_MAX_NAME_LENGTH] for value in values[:limit]]

    def sentence(self, name: str) -> str | None:
        """Return a text on one line, cut short, or `None`."""
        value = self.fields.get(name)
        return " ".join(value.split())[:300] if isinstance(value, str) else None


def malformed_reply() -> WorkspaceError:
    """Return the error about a reply that does not follow the format."""
    return WorkspaceError("the reply from inside the sandbox is malformed")


@dataclass
class FrameReceiver:
    """Collects the frames of a stream, with its packs as files in `folder`; at most `max_bytes` of packs."""

    folder: Path
    max_bytes: int
    prefix: str = ""
    frames: list[HarvestFrame] = field(default_factory=list)
    is_malformed: bool = False
    _header: bytearray = field(default_factory=bytearray)
    _pack: BinaryIO | None = None
    _fields: Mapping[str, Any] = field(default_factory=dict)
    _path: Path | None = None
    _bytes_missing: int = 0
    _bytes_received: int = 0
    _progress: int = 0

    def feed(self, data: bytes) -> float:
        """Consume a piece of the stream and return the seconds that it adds to the time limit."""
        before = self._bytes_received + self._progress
        view = memoryview(data)
        while view and not self.is_malformed:
            view = self._feed_pack(view) if self._pack is not None else self._feed_header(view)
        return (self._bytes_received + self._progress - before) / MIB * SECONDS_PER_MIB

    @property
    def is_complete(self) -> bool:
        """True if the stream ended where it should."""
        last = self.frames[-1].fields.get("section") if self.frames else None
        return not self.is_malformed and self._pack is None and not self._header and last in {"end", "lost"}

    def close(self) -> None:
        """Close and remove a pack that is not whole."""
        if self._pack is not None and self._path is not None:
            self._pack.close()
            self._path.unlink(missing_ok=True)
            self._pack = None

    def _feed_header(self, view: memoryview) -> memoryview:
        data = bytes(view[:_HEADER_BYTES])
        end = data.find(b"\n")
        self._header += data if end < 0 else data[:end]
        if len(self._header) > _HEADER_BYTES or len(self.frames) >= MAX_FRAMES:
            self.is_malformed = True
        elif end >= 0:
            self._begin(bytes(self._header))
            self._header.clear()
        return view[len(data) if end < 0 else end + 1 :]

    def _begin(self, header: bytes) -> None:
        try:
            fields = json.loads(header)
        except (ValueError, RecursionError):
            self.is_malformed = True
            return
        if not isinstance(fields, dict):
            self.is_malformed = True
            return
        if "size" not in fields:
            claimed = fields.get("bytes")
            if fields.get("section") == "progress" and _is_count(claimed):
                # It is a claim, so all claims together count only up to the limit of the packs.
                self._progress = min(self.max_bytes, self._progress + claimed)
            self.frames.append(HarvestFrame(fields))
            return
        size = fields["size"]
        if not _is_count(size) or size == 0 or self._bytes_received + size > self.max_bytes:
            self.is_malformed = True
            return
        self._fields, self._bytes_missing = fields, size
        self._path = self.folder / f"pack-{self.prefix}{len(self.frames)}.pack"
        self._pack = self._path.open("wb")

    def _feed_pack(self, view: memoryview) -> memoryview:
        assert self._pack is not None  # noqa: S101  # asked by the caller
        piece = view[: self._bytes_missing]
        self._pack.write(piece)
        self._bytes_missing -= len(piece)
        self._bytes_received += len(piece)
        if self._bytes_missing == 0:
            self._pack.close()
            self._pack = None
            self.frames.append(HarvestFrame(self._fields, self._path))
        return view[len(piece) :]


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0
