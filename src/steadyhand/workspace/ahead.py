"""Checkouts that are made before their job is there: whether one is still as a new one would be, and its refs.

No agent has done anything in such a checkout. Only the repository can have changed since it was made.
"""

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from steadyhand.agents import AgentDefinition
from steadyhand.ports import Checkout, JobPaths
from steadyhand.workspace.fetched_refs import read_refs
from steadyhand.workspace.foreign_refs import find_foreign_name, read_foreign_name
from steadyhand.workspace.job_dirs import fetched_refs_path
from steadyhand.workspace.mirror import BaseCommit, Mirror

_CHECKOUT_INSIDE = "workspace"
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READABLE = 0o644


async def is_same_base(checkout: Checkout, mirror: Mirror, base: BaseCommit) -> bool:
    """Return True if a new checkout would have the same commit, with the same rights."""
    if base.commit != checkout.commit or base.fetch_failure is not None:
        return False
    return await find_foreign_name(mirror, base, None) == read_foreign_name(checkout.paths)


def has_same_definitions(checkout: Checkout, own: Mapping[str, AgentDefinition]) -> bool:
    """Return True if the operator's definitions are still those of the checkout."""
    origins = {name: each for name, each in checkout.definitions.items() if each.origin == "data_dir"}
    return origins == dict(own)


def lay_refs(files: JobPaths, snapshot: Path, agent_root: Path | None, owner: int | None) -> bool:
    """Lay the refs of a mirror's file into a checkout that a process has mounted; blocks.

    `agent_root` is the root of the process's files. Return False if that cannot be done.
    """
    record, content = fetched_refs_path(files), snapshot.read_bytes()
    if read_refs(record) == read_refs(snapshot):
        return True
    if agent_root is None:
        return False
    try:
        with contextlib.ExitStack() as stack:
            folder = os.open(agent_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            for name in (_CHECKOUT_INSIDE, ".git"):
                folder = os.open(name, _DIR_FLAGS, dir_fd=folder)
                stack.callback(os.close, folder)
            _replace_file(folder, "packed-refs", content, owner)
    except OSError:
        return False
    part = record.with_suffix(".part")
    part.write_bytes(content)
    part.chmod(_READABLE)
    part.replace(record)
    return True


def _replace_file(folder: int, name: str, content: bytes, owner: int | None) -> None:
    part = f"{name}.{uuid.uuid4().hex}"
    with os.fdopen(
        os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _READABLE, dir_fd=folder), "wb"
    ) as file:
        file.write(content)
        if owner is not None:
            os.fchown(file.fileno(), owner, owner)
    os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
