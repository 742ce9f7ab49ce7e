"""What a caller sent beside text: told to the model as blocks, or laid as files into the agent's home. Pure."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from steadyhand.job import Job, Turn

FOLDER = "attachments"


@dataclass(frozen=True, slots=True)
class Attached:
    """A job's turns as the agent is to see them; `files` are names and contents for the folder in its home."""

    history: tuple[Turn, ...]
    content: str | list[Mapping[str, Any]]
    files: tuple[tuple[str, bytes], ...]


def attached(job: Job, home: Path) -> Attached:
    """Give the turns of a job; a file is a line that says where it lies, in the home as the agent sees it.

    It lies in the home and not in the checkout, where it would be part of what the agent changed.
    """
    if not job.content and all(isinstance(turn.content, str) for turn in job.history):
        return Attached(job.history, job.prompt, ())
    files: list[tuple[str, bytes]] = []

    def told(blocks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [_told(block, home, files) for block in blocks]

    history = tuple(
        turn if isinstance(turn.content, str) else Turn(turn.role, tuple(told(turn.content)))
        for turn in job.history
    )
    return Attached(history, told(job.content) if job.content else job.prompt, tuple(files))


def _told(block: Mapping[str, Any], home: Path, files: list[tuple[str, bytes]]) -> Mapping[str, Any]:
    if block.get("type") != "file":
        return block
    name = f"{len(files) + 1}-{PurePosixPath(str(block['name'])).name}"
    try:
        raw = base64.b64decode(str(block["data"]), validate=True)
    except binascii.Error:
        raw = b""
    files.append((name, raw))
    return {"type": "text", "text": f"[A file that comes with this message: {home / FOLDER / name}]"}
