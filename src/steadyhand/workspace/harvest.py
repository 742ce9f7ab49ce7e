"""The harvest: store the work of a job after its last process has ended.

If the service ran git in a repository that an agent wrote, git could run the agent's code. So a program that runs as
the agent's uid, in the sandbox if there is one, packs its commits, its refs and its files (`sandboxed_harvest`). The
packs are checked object by object in a bare repository of the service (`harvest_import`), from which the diff and the
bundle are made (`harvest_results`).
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from steadyhand.agents import Agent
from steadyhand.errors import WorkspaceError
from steadyhand.job import Changes, JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import AgentFilesOf, Checkout, Harvest, JobPaths, SandboxExec
from steadyhand.redact import Redactor
from steadyhand.workspace import git_index as staging
from steadyhand.workspace import harvest_import, shortstat
from steadyhand.workspace.fetched_refs import read_refs
from steadyhand.workspace.filesystem import PRIVATE, chown_tree, make_dir, remove_tree
from steadyhand.workspace.git import MIB, GitSettings
from steadyhand.workspace.harvest_context import DIFF, DIFF_BYTES, HarvestContext, work_branch
from steadyhand.workspace.harvest_frames import HarvestFrame
from steadyhand.workspace.harvest_import import HarvestImport
from steadyhand.workspace.harvest_results import HarvestResults
from steadyhand.workspace.job_dirs import fetched_refs_path
from steadyhand.workspace.local_exec import LocalExec
from steadyhand.workspace.mirror import Mirrors
from steadyhand.workspace.ref_names import COMMIT
from steadyhand.workspace.sandboxed_git_client import run_sandboxed_git
from steadyhand.workspace.saved_refs import GivenRefs
from steadyhand.workspace.upper_layer import LayerChanges, read_changes
from steadyhand.workspace.warm_checkouts import WarmCheckout

HARVEST_SECONDS = harvest_import.HARVEST_SECONDS
PUSH_SECONDS = 10.0
"""The minimal time limit of a push, in seconds; the rest of the harvest's time is added."""
_SHORTSTAT_BYTES = 4096


class Harvester:
    """Harvests the work of jobs whose agents have ended."""

    def __init__(
        self,
        mirrors: Mirrors,
        settings: GitSettings,
        agent_files_of: AgentFilesOf,
        seconds: float = HARVEST_SECONDS,
        sandbox_exec: SandboxExec | None = None,
        *,
        redactor: Redactor,
    ) -> None:
        """Keep the settings. `seconds` limits all git work of a harvest; with `sandbox_exec` it runs in the sandbox."""
        self._redactor = redactor
        self._agent_files_of = agent_files_of
        self._sandbox_exec = sandbox_exec
        self._mirrors = mirrors
        self._settings = settings
        self._seconds = seconds

    async def save_progress(self, checkout: Checkout, results: JobPaths) -> None:
        """Write the diff and the bundle of a run that goes on to `results`, as far as its work has come.

        The agent works meanwhile, so a file may be in it half written. Raise `WorkspaceError` or `TimeoutError`.
        """
        try:
            async with asyncio.timeout(self._seconds) as bound:
                await self._changes(checkout, [], functools.partial(_extend, bound), results)
        finally:
            await asyncio.to_thread(_clean_up, results)

    async def harvest(self, checkout: Checkout) -> Harvest:
        """Store the transcript, the diff and the commits. A part that cannot be stored becomes a warning."""
        warnings: list[JobWarning] = []
        warning = await asyncio.to_thread(self._copy_transcript, checkout)
        if warning is not None:
            warnings.append(warning)
        changes = None
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds) as bound:
                changes = await self._changes(checkout, warnings, functools.partial(_extend, bound))
            if (
                changes is not None
                and changes.head != changes.base
                and checkout.publish == "branch"
                and checkout.workspace.mode != "in_place"
            ):
                seconds_left = max(PUSH_SECONDS, self._seconds + PUSH_SECONDS - (time.monotonic() - started))
                changes = await self._publish(checkout, changes, warnings, seconds_left)
        except TimeoutError:
            warnings.append(_failure_warning(f"it took longer than {self._seconds:g} s."))
        except WorkspaceError as error:
            warnings.append(_failure_warning(error.detail))
        except OSError as error:
            warnings.append(_failure_warning(f"{error.strerror}."))
        finally:
            await asyncio.to_thread(_clean_up, checkout.paths)
        return Harvest(changes, tuple(warnings))

    def _copy_transcript(self, checkout: Checkout) -> JobWarning | None:
        agent_files, files = self._agent_files_of(checkout.runner), checkout.paths
        if checkout.config_dir is not None:
            return agent_files.copy_transcript(
                checkout.config_dir, files.transcript, owner=checkout.uid, redactor=self._redactor
            )
        since = (files.root / "prepared").stat().st_mtime
        return agent_files.copy_transcript(
            agent_files.default_config_dir(checkout.home),
            files.transcript,
            owner=checkout.uid,
            since=since,
            directory=checkout.directory,
            redactor=self._redactor,
        )

    async def _changes(
        self,
        checkout: Checkout,
        warnings: list[JobWarning],
        on_progress: Callable[[float], None],
        results: JobPaths | None = None,
    ) -> Changes | None:
        if checkout.workspace.repository is None or checkout.commit is None:
            return None
        if checkout.workspace.mode == "in_place":
            context = HarvestContext(checkout, checkout.commit, warnings)
            return await _harvest_in_place(context, self._sandbox_exec)
        mirror = self._mirrors.get(checkout.workspace.repository)
        refs, layer = await asyncio.to_thread(_read_given, checkout)
        if layer is not None and layer.is_empty:
            return None
        context = HarvestContext(checkout, checkout.commit, warnings, results)
        own_branch = work_branch(context.job_id, sandboxed=self._sandbox_exec is not None)
        given = GivenRefs(None if refs is None else {own_branch.encode(): context.base.encode(), **refs})
        imported = await HarvestImport(
            context,
            mirror.objects,
            self._settings,
            self._sandbox_exec,
            given_refs=given,
            layer=layer,
            on_progress=on_progress,
        ).run()
        return await HarvestResults(context, imported, given).write()

    async def _publish(
        self, checkout: Checkout, changes: Changes, warnings: list[JobWarning], seconds: float
    ) -> Changes:
        """Push the branch with the service's own credentials. If the push fails, the commits stay in the bundle."""
        branch = f"steadyhand/{checkout.paths.root.name}"
        if any(warning.code == WarningCode.DIFF_DIFFERS for warning in warnings):
            text = f"The branch '{branch}' was not pushed: the diff does not show all of it."
            warnings.append(JobWarning(WarningCode.PUBLISH_FAILED, text))
            return replace(changes, branch=branch)
        mirror = self._mirrors.get(checkout.workspace.repository or "")
        try:
            await mirror.push(
                checkout.paths.root / "harvest" / "import.git", changes.head, branch, seconds=seconds
            )
        except WorkspaceError as error:
            text = f"The branch '{branch}' could not be pushed; its commits are kept. ({error.detail})"
            warnings.append(JobWarning(WarningCode.PUBLISH_FAILED, text))
            return replace(changes, branch=branch)
        return replace(changes, branch=branch, published=True)


async def _harvest_in_place(context: HarvestContext, sandbox_exec: SandboxExec | None) -> Changes | None:
    """Compare HEAD before the run with the files after it, as the agent's user; index and objects do not change.

    The directory's git configuration may run commands, so this runs in the sandbox if there is one.
    """
    scratch = "/tmp/compare"  # noqa: S108  # the sandbox's own
    if sandbox_exec is None:
        scratch = str(context.folder / "compare")
        make_dir(Path(scratch), PRIVATE)
        chown_tree(Path(scratch), context.checkout.uid)
    request = {
        "verb": "compare", "base": context.base, "diff": DIFF, "limit": DIFF_BYTES, "scratch": scratch,
        "file_bytes": staging.FILE_BYTES, "all_bytes": staging.TOTAL_BYTES, "top_only": sandbox_exec is not None,
    }  # fmt: skip
    reply = await run_sandboxed_git(
        sandbox_exec or LocalExec(), request, context.checkout, Agent("harvest"),
        seconds=HARVEST_SECONDS, max_output=DIFF_BYTES + MIB, parts=2,
    )  # fmt: skip
    head = reply.validated_text("head", COMMIT)
    losses = reply.fields.get("losses")
    for each in losses if isinstance(losses, list) else ():
        if isinstance(each, dict):
            with contextlib.suppress(WorkspaceError):
                context.warn_losses(HarvestFrame(each))
    text = bytes(reply.parts[1][:_SHORTSTAT_BYTES]).decode("utf-8", "replace")
    files, insertions, deletions = shortstat.parse(text)
    if reply.fields.get("cut"):
        context.warn(WarningCode.DIFF_TOO_LARGE, "The diff is larger than 64 MiB and was not kept.")
    elif files or head != context.base:
        await asyncio.to_thread(context.files.diff.write_bytes, reply.parts[0])
    if files == 0 and head == context.base:
        return None
    return Changes(context.base, head, files, insertions, deletions)


def _read_given(checkout: Checkout) -> tuple[Mapping[bytes, bytes] | None, LayerChanges | None]:
    """Return the refs that a job was given, and what its overlay says that it changed, if it says all; blocks."""
    refs, layers = read_refs(fetched_refs_path(checkout.paths)), checkout.layers
    if refs is None or layers is None or layers.image is not None or layers.refs is None:
        return refs, None
    if not WarmCheckout(layers.lower.parent).clean_file.is_file():
        return refs, None
    return refs, read_changes(layers.upper, layers.lower)


def is_as_given(checkout: Checkout) -> bool:
    """Return True if the overlay of a checkout shows that nothing in it has changed; blocks."""
    layer = _read_given(checkout)[1]
    return layer is not None and layer.is_empty


def _extend(bound: asyncio.Timeout, seconds: float) -> None:
    """Move a time limit: a harvest may take longer if it brings more out."""
    when = bound.when()
    if when is not None and not bound.expired():
        bound.reschedule(when + seconds)


def _clean_up(files: JobPaths) -> None:
    remove_tree(files.root / "harvest")
    for name in ("diff.part", "bundle.part"):
        (files.artifacts / name).unlink(missing_ok=True)


def _failure_warning(reason: str) -> JobWarning:
    return JobWarning(WarningCode.HARVEST_FAILED, f"The agent's changes could not be kept: {reason}")
