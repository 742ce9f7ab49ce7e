"""Attachments of a caller: blocks in the prompt, or files in the checkout. Pure."""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from steadyhand.job import Job, Turn
from steadyhand.ports import Checkout, Sandbox

ATTACHMENTS_DIR = ".attachments"
"""A folder in the checkout. A `.gitignore` in it keeps it out of the work of the agent and of the service."""
_GITIGNORE = (".gitignore", b"*\n")

Block = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PreparedTurns:
    """A job's turns as the agent gets them."""

    history: tuple[Turn, ...]
    content: str | list[Block]


def prepare_turns(job: Job, folder: PurePosixPath) -> PreparedTurns:
    """Return the turns of a job. A file becomes a line with its path in `folder`, which is the agent's path."""
    spec = job.spec
    history = tuple(
        turn
        if isinstance(turn.content, str)
        else Turn(turn.role, tuple(_as_text_block(block, folder) for block in turn.content))
        for turn in spec.history
    )
    return PreparedTurns(
        history, [_as_text_block(block, folder) for block in spec.content] if spec.content else spec.prompt
    )


def attachment_files(job: Job, earlier: Sequence[Block] = ()) -> tuple[tuple[str, bytes], ...]:
    """Return the names and contents of a job's files, with those of its history and of `earlier` turns."""
    files = {_file_name(block): _file_content(block) for block in (*earlier, *job.spec.attachments)}
    return (_GITIGNORE, *files.items()) if files else ()


def attachment_dirs(checkout: Checkout, sandbox: Sandbox) -> tuple[Path, PurePosixPath]:
    """Return the folder for a run's files, and the agent's path of it, which is the same in the whole session.

    A directory in place is the caller's own and stays unchanged: the files are in the home then.
    """
    if checkout.workspace.mode == "in_place" and checkout.workspace.repository is not None:
        return checkout.home / ATTACHMENTS_DIR, PurePosixPath(
            sandbox.agent_paths(checkout).home / ATTACHMENTS_DIR
        )
    return sandbox.host_checkout_dir(checkout) / ATTACHMENTS_DIR, PurePosixPath(ATTACHMENTS_DIR)


def _as_text_block(block: Block, folder: PurePosixPath) -> Block:
    if block.get("type") != "file":
        return block
    return {"type": "text", "text": f"[A file that comes with this message: {folder / _file_name(block)}]"}


def _file_name(block: Block) -> str:
    # By content: the same file has the same name in every turn, and another file never has that name.
    digest = hashlib.sha256(str(block["data"]).encode()).hexdigest()[:8]
    return f"{digest}-{PurePosixPath(str(block['name'])).name}"


def _file_content(block: Block) -> bytes:
    try:
        return base64.b64decode(str(block["data"]), validate=True)
    except binascii.Error:
        return b""
