"""What a caller sent beside text: told to the model as blocks, or laid as files into the checkout. Pure."""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from steadyhand.job import Job, Turn
from steadyhand.ports import Place, Sandbox

FOLDER = ".attachments"
"""In the checkout; by what lies in it git takes it for none of the work, neither the agent's nor the service's."""
_IGNORED = (".gitignore", b"*\n")

Block = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Attached:
    """A job's turns as the agent is to see them."""

    history: tuple[Turn, ...]
    content: str | list[Block]


def attached(job: Job, folder: PurePosixPath) -> Attached:
    """Give the turns of a job; a file is a line that says where it lies, in `folder` as the agent knows it."""
    history = tuple(
        turn
        if isinstance(turn.content, str)
        else Turn(turn.role, tuple(_told(block, folder) for block in turn.content))
        for turn in job.history
    )
    return Attached(history, [_told(block, folder) for block in job.content] if job.content else job.prompt)


def files_of(job: Job, earlier: Sequence[Block] = ()) -> tuple[tuple[str, bytes], ...]:
    """Give the names and contents of a job's files, those of its history and of `earlier` turns among them."""
    files = {_name(block): _raw(block) for block in (*earlier, *job.files)}
    return (_IGNORED, *files.items()) if files else ()


def told_at(place: Place, sandbox: Sandbox) -> tuple[Path, PurePosixPath]:
    """Give the folder for a run's files, and how the agent is told of it: in every checkout of a session the same.

    A directory in place is the caller's own and stays as it is: they lie in the home then.
    """
    if place.workspace.mode == "in_place" and place.workspace.repository is not None:
        return place.home / FOLDER, PurePosixPath(sandbox.view(place).home / FOLDER)
    return sandbox.checkout(place) / FOLDER, PurePosixPath(FOLDER)


def _told(block: Block, folder: PurePosixPath) -> Block:
    if block.get("type") != "file":
        return block
    return {"type": "text", "text": f"[A file that comes with this message: {folder / _name(block)}]"}


def _name(block: Block) -> str:
    # By what is in it: the same file has the same name in every turn, and another one never its place.
    digest = hashlib.sha256(str(block["data"]).encode()).hexdigest()[:8]
    return f"{digest}-{PurePosixPath(str(block['name'])).name}"


def _raw(block: Block) -> bytes:
    try:
        return base64.b64decode(str(block["data"]), validate=True)
    except binascii.Error:
        return b""
