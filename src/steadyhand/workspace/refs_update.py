"""Bring the branches and tags up to date in a checkout that was kept, for a run that continues in it.

The agent's own changes win: only a ref that still is as it was fetched moves or goes.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from steadyhand.agents import Agent
from steadyhand.errors import WorkspaceError
from steadyhand.job import JobWarning
from steadyhand.ports import BindMount, Checkout, SandboxExec
from steadyhand.workspace.fetched_refs import (
    MAX_REFS_BYTES,
    parse_ref_listing,
    stale_refs_warning,
    write_if_changed,
)
from steadyhand.workspace.filesystem import make_dir, remove_tree
from steadyhand.workspace.git import MIB, Git
from steadyhand.workspace.job_dirs import fetched_refs_path
from steadyhand.workspace.mirror import Mirror
from steadyhand.workspace.sandboxed_git import plan_ref_updates, read_packed_refs
from steadyhand.workspace.sandboxed_git_client import BASE_DIR, MIRROR_DIR, run_sandboxed_git

_SECONDS = 60.0
_PACK, _PACK_BYTES = "pack", 128 * MIB


async def bring_up_to_date(
    checkout: Checkout, mirror: Mirror, sandbox_exec: SandboxExec | None
) -> JobWarning | None:
    """Fetch, and update the refs of a kept checkout. A failure becomes a warning: the run can continue without it."""
    record = fetched_refs_path(checkout.paths)
    if not await asyncio.to_thread(record.is_file):
        return None  # an earlier version made the checkout
    failure = await mirror.try_refresh()
    folder = record.parent / "update"
    try:
        old = await asyncio.to_thread(record.read_bytes)
        new = await asyncio.to_thread((await mirror.refs_file()).read_bytes)
        if new != old:
            await asyncio.to_thread(_write_files, folder, old, new)
            await _write_pack(checkout, mirror, folder)
            if sandbox_exec is None:
                skipped = await _update_as_agent(checkout, folder)
            else:
                skipped = await _update_in_sandbox(sandbox_exec, checkout, folder)
            await asyncio.to_thread(write_if_changed, record, _without(new, skipped))
    except WorkspaceError as error:
        failure = error
    finally:
        await asyncio.to_thread(remove_tree, folder)
    return None if failure is None else stale_refs_warning(failure)


async def _write_pack(checkout: Checkout, mirror: Mirror, folder: Path) -> None:
    """Write the pack that the checkout needs; it is empty if the checkout shares the mirror's objects."""
    (folder / _PACK).write_bytes(b"")
    (folder / _PACK).chmod(0o644)
    if any(bind.target == MIRROR_DIR for bind in checkout.binds):
        return
    old, new = (set(read_packed_refs((folder / name).read_bytes()).values()) for name in ("old", "new"))
    if new - old:
        await mirror.pack_new(sorted(old), sorted(new - old), folder / _PACK, limit=_PACK_BYTES)


def _without(content: bytes, names: Sequence[bytes]) -> bytes:
    left_out = set(names)
    lines = content.split(b"\n")
    return b"\n".join(line for line in lines if line.partition(b" ")[2] not in left_out or line[:1] in b"#")


async def _update_as_agent(checkout: Checkout, folder: Path) -> Sequence[bytes]:
    """Update the refs as the agent's uid; return the names for which there is no room beside the agent's own refs."""
    git, tree = Git(user=checkout.uid), checkout.directory
    old, new, pack = await asyncio.to_thread(
        lambda: [(folder / name).read_bytes() for name in ("old", "new", _PACK)]
    )
    if pack:
        await git.run("index-pack", "--stdin", cwd=tree, stdin=pack, seconds=_SECONDS)
    listing = await git.run(
        "for-each-ref", "--format=%(objectname) %(refname)", cwd=tree, limit=MAX_REFS_BYTES
    )
    current = {ref.name: ref.value for ref in parse_ref_listing(listing.stdout)}
    updates = plan_ref_updates(current, read_packed_refs(old), read_packed_refs(new))
    for commands in (updates.deletions, updates.changes):
        if commands:
            await git.run("update-ref", "--stdin", "-z", cwd=tree, stdin=commands, seconds=_SECONDS)
    return updates.skipped


async def _update_in_sandbox(sandbox_exec: SandboxExec, checkout: Checkout, folder: Path) -> Sequence[bytes]:
    """Update the refs inside the sandbox; return as `_update_as_agent` does."""
    reply = await run_sandboxed_git(
        sandbox_exec,
        {"verb": "refs", "old": "old", "new": "new", "pack": _PACK},
        replace(checkout, binds=(*checkout.binds, BindMount(folder, BASE_DIR))),
        Agent("refs"),
        seconds=_SECONDS,
        max_output=MAX_REFS_BYTES,
        parts=1,
    )
    return bytes(reply.parts[0]).split(b"\0") if reply.parts and reply.parts[0] else []


def _write_files(folder: Path, old: bytes, new: bytes) -> None:
    remove_tree(folder)
    make_dir(folder, 0o755)
    for name, content in (("old", old), ("new", new)):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o644)
