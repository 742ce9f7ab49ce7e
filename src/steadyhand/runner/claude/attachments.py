"""What a caller sent beside text: told to the model as blocks, or laid as files into the checkout. Pure."""

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
"""In the checkout; by what lies in it git takes it for none of the work, neither the agent's nor the service's."""
_GITIGNORE = (".gitignore", b"*\n")

Block = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PreparedTurns:
    """A job's turns as the agent is to see them."""

    history: tuple[Turn, ...]
    content: str | list[Block]


def prepare_turns(job: Job, folder: PurePosixPath) -> PreparedTurns:
    """Give the turns of a job; a file is a line that says where it lies, in `folder` as the agent knows it."""
    history = tuple(
        turn
        if isinstance(turn.content, str)
        else Turn(turn.role, tuple(_as_text_block(block, folder) for block in turn.content))
        for turn in job.history
    )
    return PreparedTurns(
        history, [_as_text_block(block, folder) for block in job.content] if job.content else job.prompt
    )


def attachment_files(job: Job, earlier: Sequence[Block] = ()) -> tuple[tuple[str, bytes], ...]:
    """Give the names and contents of a job's files, those of its history and of `earlier` turns among them."""
    files = {_file_name(block): _file_content(block) for block in (*earlier, *job.attachments)}
    return (_GITIGNORE, *files.items()) if files else ()


def attachment_dirs(checkout: Checkout, sandbox: Sandbox) -> tuple[Path, PurePosixPath]:
    """Give the folder for a run's files, and how the agent is told of it: in every checkout of a session the same.

    A directory in place is the caller's own and stays as it is: they lie in the home then.
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
    # By what is in it: the same file has the same name in every turn, and another one never its place.
    digest = hashlib.sha256(str(block["data"]).encode()).hexdigest()[:8]
    return f"{digest}-{PurePosixPath(str(block['name'])).name}"


def _file_content(block: Block) -> bytes:
    try:
        return base64.b64decode(str(block["data"]), validate=True)
    except binascii.Error:
        return b""
