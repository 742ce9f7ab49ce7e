"""Puts what changed in a work tree into an index, within bounds. The git given runs as the agent's uid."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from steadyhand.job import Notice
from steadyhand.job_warnings import WarningCode
from steadyhand.workspace import sandboxed_git
from steadyhand.workspace.git import MIB, Git, without_secrets
from steadyhand.workspace.sandboxed_git import joined, sort_names

FILE_BYTES = sandboxed_git.FILE_BYTES
ALL_BYTES = sandboxed_git.ALL_BYTES
LIST_BYTES = 32 * MIB
_PATHSPECS = 2000


async def stage(git: Git, tree: Path, notices: list[Notice]) -> None:
    """Stage every change that .gitignore does not hide; what is left out is noted.

    Left out are files above 64 MiB, what goes beyond 256 MiB in all, repositories inside the tree, and
    what cannot be read.
    """
    listed = await git.run(
        "ls-files", "-z", "--modified", "--others", "--exclude-standard", "--deduplicate",
        cwd=tree, limit=LIST_BYTES,
    )  # fmt: skip
    names = [name for name in listed.out.split(b"\x00") if name]
    nested = [name for name in names if name.endswith(b"/")]
    chosen, gone, large = await asyncio.to_thread(sort_names, tree, names, FILE_BYTES, ALL_BYTES)
    if large:
        notices.append(left_out("large", large, len(large)))
    if nested:
        notices.append(left_out("nested", nested, len(nested)))
    if gone:
        await git.run("update-index", "--force-remove", "-z", "--stdin", cwd=tree, stdin=joined(gone))
    if chosen:
        await _add(git, tree, chosen, notices)


async def _add(git: Git, tree: Path, chosen: Sequence[bytes], notices: list[Notice]) -> None:
    paths = joined(chosen)
    fast = await git.run(
        "update-index", "--add", "--replace", "-z", "--stdin", cwd=tree, stdin=paths, check=False
    )
    if fast.code == 0:
        return
    # One path that cannot be read fails them all above; `git add` goes on, at a cost that grows with their square.
    arguments = ["--literal-pathspecs", "add", "--all", "--ignore-errors"]
    if len(chosen) <= _PATHSPECS:
        slow = await git.run(
            *arguments, "--pathspec-from-file=-", "--pathspec-file-nul", cwd=tree, stdin=paths, check=False
        )
        if slow.code == 0:
            return
        fast = slow
    notices.append(
        Notice(WarningCode.HARVEST_PARTIAL, f"Some changed files could not be kept: {fast.reason}")
    )


Kind = Literal["large", "nested"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_LEFT_OUT: dict[Kind, tuple[WarningCode, str]] = {
    "large": (WarningCode.FILES_TOO_LARGE, "Changed files that are too large were left out"),
    "nested": (WarningCode.NESTED_REPOSITORY, "Repositories inside the checkout were left out"),
}


def left_out(kind: Kind, names: Sequence[bytes], count: int) -> Notice:
    """Say what of a tree was left out, by the first names of it."""
    code, what = _LEFT_OUT[kind]
    shown = ", ".join(name.decode("utf-8", "replace") for name in names[:3])
    more = f" and {count - 3} more" if count > 3 else ""  # noqa: PLR2004
    return Notice(code, without_secrets(f"{what}: {shown}{more}."))
