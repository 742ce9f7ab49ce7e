"""What the service notes of a job's checkout, so that a later run can go on in it.

`place.json` in the job's folder is the service's own; the agent never sees it. It is there as long as the checkout is.
"""

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from steadyhand.agents import Agent
from steadyhand.ports import BindMount, Checkout, JobPaths, SandboxExec
from steadyhand.workspace.filesystem import make_dir, remove_tree
from steadyhand.workspace.git import MIB, Git
from steadyhand.workspace.sandboxed_git_client import BASE_DIR, run_sandboxed_git

RESTORE_SECONDS = 60.0
_BUNDLE_FILE = "commits.bundle"
_NOTE_FILE = "place.json"


@dataclass(frozen=True, slots=True)
class CheckoutNote:
    """How a checkout was made: whose its files are on disk, and the warm one that it lies over, if any.

    `warm` is below the folder of warm checkouts; `over_nothing` says that the lower one is empty, `image` that what
    the job wrote is in an image of its own, `shared` that its objects are the mirror's.
    """

    user: int | None
    commit: str | None = None
    warm: str | None = None
    over_nothing: bool = False
    image: bool = False
    in_place: bool = False
    shared: bool = False

    def write(self, files: JobPaths) -> None:
        """Write the note down whole."""
        part = files.root / f"{_NOTE_FILE}.part"
        part.write_text(json.dumps(asdict(self)), "ascii")
        part.chmod(0o600)
        part.replace(files.root / _NOTE_FILE)


def read_note(files: JobPaths) -> CheckoutNote | None:
    """Read the note of a job's checkout; null when there is no checkout, or the note cannot be read."""
    try:
        return CheckoutNote(**json.loads((files.root / _NOTE_FILE).read_text("ascii")))
    except (OSError, ValueError, TypeError):
        return None


def delete_note(files: JobPaths) -> None:
    """Say that there is no checkout any more."""
    (files.root / _NOTE_FILE).unlink(missing_ok=True)


def jobs_with_checkout(jobs: Path) -> Iterator[tuple[str, datetime]]:
    """Give the jobs below a folder that have a checkout, and when it was last prepared."""
    for folder in sorted(jobs.iterdir()) if jobs.is_dir() else ():
        try:
            seconds = (folder / _NOTE_FILE).lstat().st_mtime
        except OSError:
            continue
        yield folder.name, datetime.fromtimestamp(seconds, UTC)


async def restore_commits(sandbox_exec: SandboxExec | None, checkout: Checkout, bundle: Path) -> None:
    """Put the commits of a bundle of ours on top of a checkout that was made anew, by the agent's own uid.

    With `errands` that is done inside the sandbox. Raises `WorkspaceError`.
    """
    folder = checkout.paths.root / "restore"
    ref = f"refs/heads/steadyhand/{bundle.parent.parent.name}"
    try:
        make_dir(folder, 0o755)
        await asyncio.to_thread(shutil.copyfile, bundle, folder / _BUNDLE_FILE)
        (folder / _BUNDLE_FILE).chmod(0o644)
        if sandbox_exec is None:
            git = Git(user=checkout.uid)
            path = str(folder / _BUNDLE_FILE)
            await git.run("fetch", "--quiet", path, ref, cwd=checkout.directory, seconds=RESTORE_SECONDS)
            await git.run(
                "reset", "--quiet", "--hard", "FETCH_HEAD", cwd=checkout.directory, seconds=RESTORE_SECONDS
            )
            return
        sandbox_checkout = replace(checkout, binds=(*checkout.binds, BindMount(folder, BASE_DIR)))
        request = {"verb": "restore", "bundle": _BUNDLE_FILE, "ref": ref}
        await run_sandboxed_git(
            sandbox_exec,
            request,
            sandbox_checkout,
            Agent("restore"),
            seconds=RESTORE_SECONDS,
            max_output=MIB,
            parts=0,
        )
    finally:
        await asyncio.to_thread(remove_tree, folder)
