"""Stage the changes of a work tree in an index, within limits. The `Git` that is passed runs as the agent's uid."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.workspace import sandboxed_git
from steadyhand.workspace.git import MIB, Git, scrub
from steadyhand.workspace.sandboxed_git import classify_names, nul_terminated

FILE_BYTES = sandboxed_git.FILE_BYTES
TOTAL_BYTES = sandboxed_git.TOTAL_BYTES
LIST_BYTES = 32 * MIB
_MAX_PATHSPECS = 2000


async def stage_changes(git: Git, tree: Path, warnings: list[JobWarning]) -> None:
    """Stage every change that .gitignore does not hide, and add a warning for each skipped part.

    Files above 64 MiB, all beyond 256 MiB in total, repositories inside the tree and unreadable files are skipped.
    """
    listing = await git.run(
        "ls-files", "-z", "--modified", "--others", "--exclude-standard", "--deduplicate",
        cwd=tree, limit=LIST_BYTES,
    )  # fmt: skip
    names = [name for name in listing.stdout.split(b"\x00") if name]
    nested = [name for name in names if name.endswith(b"/")]
    chosen, missing, oversized = await asyncio.to_thread(classify_names, tree, names, FILE_BYTES, TOTAL_BYTES)
    if oversized:
        warnings.append(skipped_warning("large", oversized, len(oversized)))
    if nested:
        warnings.append(skipped_warning("nested", nested, len(nested)))
    if missing:
        await git.run(
            "update-index", "--force-remove", "-z", "--stdin", cwd=tree, stdin=nul_terminated(missing)
        )
    if chosen:
        await _add_files(git, tree, chosen, warnings)


async def _add_files(git: Git, tree: Path, chosen: Sequence[bytes], warnings: list[JobWarning]) -> None:
    paths = nul_terminated(chosen)
    result = await git.run(
        "update-index", "--add", "--replace", "--remove", "-z", "--stdin", cwd=tree, stdin=paths, check=False
    )
    if result.code == 0:
        return
    # One unreadable path fails all of the command above; `git add` continues, at a cost quadratic in the paths.
    arguments = ["--literal-pathspecs", "add", "--all", "--ignore-errors"]
    if len(chosen) <= _MAX_PATHSPECS:
        fallback = await git.run(
            *arguments, "--pathspec-from-file=-", "--pathspec-file-nul", cwd=tree, stdin=paths, check=False
        )
        if fallback.code == 0:
            return
        result = fallback
    warnings.append(
        JobWarning(WarningCode.HARVEST_PARTIAL, f"Some changed files could not be kept: {result.reason}")
    )


SkipReason = Literal["large", "nested"]
SKIP_REASONS: tuple[SkipReason, ...] = get_args(SkipReason)
_SKIP_WARNINGS: dict[SkipReason, tuple[WarningCode, str]] = {
    "large": (WarningCode.FILES_TOO_LARGE, "Changed files that are too large were left out"),
    "nested": (WarningCode.NESTED_REPOSITORY, "Repositories inside the checkout were left out"),
}


def skipped_warning(reason: SkipReason, names: Sequence[bytes], count: int) -> JobWarning:
    """Return the warning about skipped files of a tree, with the first names."""
    code, sentence = _SKIP_WARNINGS[reason]
    examples = ", ".join(name.decode("utf-8", "replace") for name in names[:3])
    suffix = f" and {count - 3} more" if count > 3 else ""  # noqa: PLR2004
    return JobWarning(code, scrub(f"{sentence}: {examples}{suffix}."))
