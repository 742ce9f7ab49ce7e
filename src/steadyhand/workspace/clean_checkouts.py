"""Find out if a new warm checkout is clean: a harvest of it as it is brings nothing.

Only then the upper layer of a job's overlay says all that the job changed. A setup command may change tracked files,
which are in each job's diff, or make refs.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from steadyhand.ports import BindMount, Checkout, SandboxExec
from steadyhand.workspace import git_index as staging
from steadyhand.workspace.filesystem import make_dir, remove_tree
from steadyhand.workspace.harvest_context import work_branch
from steadyhand.workspace.harvest_frames import FrameReceiver, HarvestFrame
from steadyhand.workspace.sandboxed_git_client import (
    BASE_DIR,
    GIVEN_DIR,
    MIRROR_DIR,
    SCRATCH_DIR,
    receive_harvest,
)
from steadyhand.workspace.saved_refs import GivenRefs

_MAX_BYTES = 16 * 1024 * 1024
_GIT_SECONDS = 60.0
_SECONDS = 120.0


async def is_clean(
    sandbox_exec: SandboxExec, checkout: Checkout, base_dir: Path, *, tree: str, refs: GivenRefs
) -> bool:
    """Harvest a checkout that no job has used; `tree` is its commit's, `refs` are those that it was given.

    Raise `WorkspaceError` if nothing comes.
    """
    commit, branch = checkout.commit, work_branch("", sandboxed=True)
    assert commit is not None  # noqa: S101  # it is a checkout of one
    folder = checkout.paths.root / "probe"
    make_dir(folder, 0o755)
    try:
        (folder / "refs").write_bytes(refs.to_bytes())
        (folder / "refs").chmod(0o644)
        binds = (*checkout.binds, BindMount(base_dir, BASE_DIR), BindMount(folder, GIVEN_DIR))
        request = {
            "verb": "harvest", "base": commit, "head": commit, "commits": True, "without_gitmodules": False,
            "branch": branch, "limit": _MAX_BYTES, "commits_seconds": _GIT_SECONDS,
            "file_bytes": staging.FILE_BYTES, "all_bytes": staging.TOTAL_BYTES, "batch_bytes": _MAX_BYTES,
            "base_dir": str(BASE_DIR), "given_refs": str(GIVEN_DIR / "refs"), "objects": str(MIRROR_DIR),
            "scratch": SCRATCH_DIR, "changed_names": None, "git_dir": True,
        }  # fmt: skip
        receiver = FrameReceiver(folder, _MAX_BYTES)
        frames = await receive_harvest(
            sandbox_exec, request, replace(checkout, binds=binds), receiver,
            seconds=_SECONDS, on_progress=lambda _: None,
        )  # fmt: skip
    finally:
        remove_tree(folder)
    return receiver.is_complete and _says_nothing(frames, commit, tree)


def _says_nothing(frames: Sequence[HarvestFrame], commit: str, tree: str) -> bool:
    nothing = (
        {"section": "head", "head": commit},
        {"section": "changed", "omitted": 0, "deleted": [], "deleted_count": 0},
        {"section": "progress", "bytes": 0},
        {"section": "files", "tree": tree, "waiting": [], "count": 0},
        {"section": "end"},
    )
    return all(frame.pack is None and frame.fields in nothing for frame in frames)
