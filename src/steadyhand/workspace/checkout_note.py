"""The service's note about a job's checkout, which a later run needs to continue in it.

The file is `place.json` in the job's folder, outside of the sandbox. It exists as long as the checkout does.
"""

import asyncio
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steadyhand.agents import Agent
from steadyhand.ports import BindMount, Checkout, JobPaths, SandboxExec
from steadyhand.workspace.filesystem import make_dir, remove_tree
from steadyhand.workspace.git import MIB
from steadyhand.workspace.harvest_context import work_branch
from steadyhand.workspace.local_exec import LocalExec
from steadyhand.workspace.sandboxed_git_client import BASE_DIR, run_sandboxed_git

RESTORE_SECONDS = 60.0
_BUNDLE_FILE = "commits.bundle"
_NOTE_FILE = "place.json"


@dataclass(frozen=True, slots=True)
class CheckoutNote:
    """The making of a checkout: the owner of its files on disk, and the warm checkout below it, if any.

    `warm` is a path below the folder of warm checkouts. `over_nothing` is set if the lower layer is empty, `image` if
    the job's changes are in a disk image, and `shared` if the checkout uses the mirror's objects.
    """

    user: int | None
    commit: str | None = None
    warm: str | None = None
    over_nothing: bool = False
    image: bool = False
    in_place: bool = False
    shared: bool = False

    def write(self, files: JobPaths) -> None:
        """Write the note as one atomic change."""
        part = files.root / f"{_NOTE_FILE}.part"
        part.write_text(json.dumps(asdict(self)), "ascii")
        part.chmod(0o600)
        part.replace(files.root / _NOTE_FILE)


def read_note(files: JobPaths) -> CheckoutNote | None:
    """Return the note of a job's checkout; `None` if there is no checkout or the note is unreadable."""
    try:
        return CheckoutNote(**json.loads((files.root / _NOTE_FILE).read_text("ascii")))
    except (OSError, ValueError, TypeError):
        return None


def delete_note(files: JobPaths) -> None:
    """Delete the note: the job has no checkout any more."""
    (files.root / _NOTE_FILE).unlink(missing_ok=True)


def jobs_with_checkout(jobs: Path) -> Iterator[tuple[str, datetime]]:
    """Return the jobs below a folder that have a checkout, each with the time of its last preparation."""
    for folder in sorted(jobs.iterdir()) if jobs.is_dir() else ():
        try:
            seconds = (folder / _NOTE_FILE).lstat().st_mtime
        except OSError:
            continue
        yield folder.name, datetime.fromtimestamp(seconds, UTC)


async def restore_work(sandbox_exec: SandboxExec | None, checkout: Checkout, bundle: Path) -> None:
    """Apply the commits of the service's own bundle to a new checkout, and restore its branches, tags and stash.

    It runs as the agent's user, inside the sandbox if there is one. Raise `WorkspaceError`.
    """
    job_id = bundle.parent.parent.name
    request = {"verb": "restore", "jobs": f"refs/steadyhand/jobs/{job_id}/"}
    await _run_with_bundle(sandbox_exec, checkout, bundle, request)


async def settle_work(sandbox_exec: SandboxExec, checkout: Checkout) -> None:
    """Leave a checkout after its harvest as the next turn finds it in a new one, for a turn that goes on in it.

    What git ignores stays, and so does the repository's own configuration. Raise `WorkspaceError`.
    """
    branch = work_branch(checkout.paths.root.name, sandboxed=True)
    request = {"verb": "settle", "branch": branch, "base": checkout.commit}
    await _run_with_bundle(sandbox_exec, checkout, checkout.paths.bundle, request)


async def _run_with_bundle(
    sandbox_exec: SandboxExec | None, checkout: Checkout, bundle: Path, fields: Mapping[str, Any]
) -> None:
    """Run git with a bundle of a job, if there is one, and the name of the job's branch in it."""
    folder, has_bundle = checkout.paths.root / "restore", await asyncio.to_thread(bundle.is_file)
    try:
        make_dir(folder, 0o755)
        if has_bundle:
            await asyncio.to_thread(shutil.copyfile, bundle, folder / _BUNDLE_FILE)
            (folder / _BUNDLE_FILE).chmod(0o644)
        place = BASE_DIR
        if sandbox_exec is None:
            place = folder
        else:
            checkout = replace(checkout, binds=(*checkout.binds, BindMount(folder, BASE_DIR)))
        request = {
            **fields,
            "bundle": str(place / _BUNDLE_FILE) if has_bundle else None,
            "ref": f"refs/heads/steadyhand/{bundle.parent.parent.name}",
        }
        await run_sandboxed_git(
            sandbox_exec or LocalExec(),
            request,
            checkout,
            Agent("restore"),
            seconds=RESTORE_SECONDS,
            max_output=MIB,
            parts=0,
        )
    finally:
        await asyncio.to_thread(remove_tree, folder)
