"""Jobs on foreign refs: what a stranger's code may not have unless the workspace lists the ref.

A job's files say whether its ref was foreign, since a later turn continues on the same commit by its id.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steadyhand.agents import Workspace
from steadyhand.job import JobWarning, Publish
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import JobPaths
from steadyhand.workspace.mirror import BaseCommit, Mirror
from steadyhand.workspace.uncommitted import without_repository_rights

_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class RefAccess:
    """The rights of a job on a ref: `workspace` without the parts that are withheld, and how it may publish."""

    workspace: Workspace
    publish: Publish
    warnings: tuple[JobWarning, ...] = ()


async def find_foreign_name(mirror: Mirror, base: BaseCommit, continued: JobPaths | None) -> str | None:
    """Return the full name of a job's foreign ref or the id of its foreign commit; None if the code is no stranger's.

    `continued` are the files of the job that this one continues on the same commit.
    """
    if continued is not None:
        return read_foreign_name(continued)
    if base.by_id and not await mirror.is_reached(base.commit):
        return base.commit
    return base.foreign_ref


def restrict(workspace: Workspace, publish: Publish, name: str | None) -> RefAccess:
    """Return what a job may use whose foreign ref has this name (`None`: it is none); blocks."""
    if name is None:
        return RefAccess(workspace, publish)
    if name in workspace.trusted_refs:
        # By its full name: `main` in the list means the branch, never a ref `refs/main`.
        own_name = workspace.ref is not None and f"refs/{workspace.ref}" == name
        return RefAccess(replace(workspace, ref=name) if own_name else workspace, publish)
    withheld = _withheld_names(workspace, publish)
    warnings = (_warning(name, withheld),) if withheld else ()
    # Its .gitmodules and .lfsconfig could name all that the service's credentials reach.
    return RefAccess(without_repository_rights(workspace), "none", warnings)


def _withheld_names(workspace: Workspace, publish: Publish) -> Sequence[str]:
    parts = {
        "setup_secrets": workspace.setup_secrets,
        "caches": workspace.caches,
        "submodules": workspace.submodules,
        "Git LFS": workspace.lfs,
        "publish": publish != "none",
        "full trust": workspace.trust == "full",
    }
    return [part for part, is_set in parts.items() if is_set]


def _warning(name: str, withheld: Sequence[str]) -> JobWarning:
    text = (
        f"'{name[:_MAX_NAME]}' is code of a stranger: no branch and no tag holds it."
        f" It gets no {', no '.join(withheld)}. List it in the workspace's trusted_refs to change that."
    )
    return JobWarning(WarningCode.FOREIGN_REF, text)


def read_foreign_name(files: JobPaths) -> str | None:
    """Return the name of a job's foreign ref; None if it is none. Blocks."""
    try:
        return _note(files).read_text("utf-8")
    except FileNotFoundError:
        return None


def write_foreign_name(files: JobPaths, name: str | None) -> None:
    """Store the name of a job's foreign ref for as long as its files are kept. Blocks."""
    if name is None:
        _note(files).unlink(missing_ok=True)
    else:
        _note(files).write_text(name, "utf-8")


def _note(files: JobPaths) -> Path:
    return files.root / "foreign-ref"
