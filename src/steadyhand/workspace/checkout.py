"""Checkouts by git: a private copy for each job, or a directory that is used in place."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from steadyhand.agents import AgentDefinition, Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.job import Job, JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import (
    AgentFiles,
    AgentFilesOf,
    Checkout,
    Harvest,
    Instructions,
    JobPaths,
    SandboxExec,
)
from steadyhand.ports.artifacts import FileName
from steadyhand.redact import Redactor
from steadyhand.retry import continues_parent
from steadyhand.workspace.ahead import has_same_definitions, is_same_base, lay_refs
from steadyhand.workspace.caches import SharedCaches
from steadyhand.workspace.checkout_note import (
    CheckoutNote,
    delete_note,
    read_note,
    restore_work,
    settle_work,
)
from steadyhand.workspace.create import CheckoutFactory, CreatedCheckout
from steadyhand.workspace.filesystem import chown_tree
from steadyhand.workspace.foreign_refs import read_foreign_name, write_foreign_name
from steadyhand.workspace.git import GitSettings
from steadyhand.workspace.harvest import HARVEST_SECONDS, Harvester, is_as_given
from steadyhand.workspace.in_place import InPlaceCheckouts
from steadyhand.workspace.instructions import (
    InstructionsCache,
    is_fully_trusted,
    load_definitions,
)
from steadyhand.workspace.job_dirs import JobDirs, moved_checkout, transient_paths
from steadyhand.workspace.mirror import Mirrors
from steadyhand.workspace.refs_update import bring_up_to_date
from steadyhand.workspace.retention import trim
from steadyhand.workspace.uncommitted import forget_uncommitted, without_repository_rights
from steadyhand.workspace.warm_checkouts import WarmCheckouts

_DEFINITIONS_RUNNER = "claude"
"""The runner whose agents a repository may define."""
DEFINITIONS_MAX_AGE = 30.0
"""Seconds for which the cached list of a workspace's agent definitions is used before a new fetch."""
_WORK_LOST = JobWarning(
    WarningCode.WORK_LOST, "The work of the run before could not be restored; the run continues without it."
)


class GitCheckouts:
    """The checkouts of a data directory, made with git. It holds `mirrors`, `jobs/<id>` and the operator's `agents`."""

    def __init__(
        self,
        data_dir: Path,
        *,
        agent_files: AgentFiles,
        redactor: Redactor,
        git: GitSettings | None = None,
        agent_uid_base: int = 64000,
        classic: bool = False,
        home: Path | None = None,
        harvest_seconds: float = HARVEST_SECONDS,
        debounce_seconds: float = 2.0,
        sandbox_exec: SandboxExec | None = None,
        overlay: bool = False,
        shares_objects: bool = False,
        disk_limit_of: Callable[[Job], int | None] | None = None,
        agent_files_of: AgentFilesOf | None = None,
    ) -> None:
        """Keep the settings. Nothing is created on disk before the first call of a method.

        As root, agents run as uid and gid `agent_uid_base + slot`, else as the service. `classic` and the service's
        `home` decide how a directory in place is used (docs/http-api.md#the-classic-profile). With `sandbox_exec`,
        agents run in the sandbox, and so does all git on their files. If `overlay` is set too and the service is
        root, a job's checkout is an overlay over a warm checkout, which belongs to the uid below the first agent's.
        Otherwise, if `shares_objects` is set (agents can read the mirrors), the checkout is a clone that shares the
        mirror's objects. `disk_limit_of` returns the bytes that a job may write over a warm checkout; `None` is no
        limit. `agent_files_of` returns the `AgentFiles` of the agents of a runner; None is `agent_files` for all,
        which reads the operator's definitions. `redactor` removes secrets from the transcript.
        """
        data_dir = data_dir.absolute()  # git gets this path in other directories
        self._data_dir = data_dir
        self._agent_files = agent_files
        self._agent_files_of = agent_files_of or (lambda _runner: agent_files)
        settings = git or GitSettings()
        self._base_uid = agent_uid_base if os.geteuid() == 0 else None
        self.mirrors = Mirrors(data_dir / "mirrors", settings, debounce_seconds=debounce_seconds)
        self._in_place = InPlaceCheckouts(
            self._base_uid, self._agent_files_of, classic=classic, home=home, sandbox_exec=sandbox_exec
        )
        self._harvester = Harvester(
            self.mirrors, settings, self._agent_files_of, harvest_seconds, sandbox_exec, redactor=redactor
        )
        self._sandbox_exec = sandbox_exec
        self._instructions = InstructionsCache(self._agent_files_of)
        shared_uid = None if self._base_uid is None else agent_uid_base - 1
        warm = None
        if sandbox_exec is not None and overlay and shared_uid is not None:
            warm = WarmCheckouts(data_dir / "warm", sandbox_exec, settings, owner=shared_uid)
        self.factory = CheckoutFactory(
            data_dir,
            self.mirrors,
            settings,
            self._instructions,
            sandbox_exec=sandbox_exec,
            warm=warm,
            shares_objects=shares_objects,
            disk_limit_of=disk_limit_of,
        )
        self._job_dirs = JobDirs(
            data_dir,
            self._agent_files_of,
            separate_users=shared_uid is not None,
            sandboxed=sandbox_exec is not None,
        )
        self._caches = SharedCaches(data_dir / "caches", shared_uid)

    def job_paths(self, job_id: str) -> JobPaths:
        """Return the paths of a job's files."""
        return self._job_dirs.files_of(job_id)

    async def has_session(self, job_id: str) -> bool:
        """Return True if the job has a config directory; the session is in it."""
        return await asyncio.to_thread(self.job_paths(job_id).config_dir.is_dir)

    async def find_file(self, job_id: str, name: FileName) -> Path | None:
        """Return the path of a file that a job has left; None if there is none."""
        files = self.job_paths(job_id)
        path = {"diff": files.diff, "bundle": files.bundle, "transcript": files.transcript}[name]
        return path if await asyncio.to_thread(path.is_file) else None

    # --- definitions -----------------------------------------------------------------------

    async def agent_definitions(self, workspace: Workspace) -> Mapping[str, AgentDefinition]:
        """Return the workspace's agent definitions, as far as its trust allows, and the operator's, which win."""
        instructions = Instructions()
        if workspace.repository is not None and workspace.trust != "none":
            if workspace.mode == "in_place":
                instructions = await self._in_place.instructions(workspace, _DEFINITIONS_RUNNER)
            else:
                mirror = self.mirrors.get(workspace.repository)
                commit = await mirror.resolve(workspace.ref, max_age=DEFINITIONS_MAX_AGE)
                instructions = await self._instructions.load(mirror, commit, workspace, _DEFINITIONS_RUNNER)
        return {**instructions.definitions, **self._own_definitions()}

    def _own_definitions(self) -> dict[str, AgentDefinition]:
        return load_definitions(self._agent_files, self._data_dir / "agents")

    # --- preparing a checkout ahead --------------------------------------------------------

    async def prepare_ahead(self, job: Job, workspace: Workspace, slot: int) -> Checkout:
        """Create a checkout for a job that is not there yet. Raise `WorkspaceError`."""
        files = self._job_dirs.ahead_files_of(job.id)
        try:
            return await self._prepare_new(job, workspace, files, slot)
        except BaseException as error:  # also when cancelled: nobody has it to release
            with contextlib.suppress(WorkspaceError):
                await self.factory.release(files)
                await self._job_dirs.remove((files.root,))
            if isinstance(error, OSError):
                raise WorkspaceError(f"The checkout could not be made: {error.strerror}.") from error
            raise

    async def list_ahead(self) -> Sequence[JobPaths]:
        """Return the folders of checkouts that were prepared ahead and have no job."""
        return await asyncio.to_thread(self._job_dirs.list_ahead)

    async def hand_over(self, checkout: Checkout, job: Job, agent_root: Path | None) -> Checkout | None:
        """Move a checkout that was prepared ahead to a job's folder; see `ports.Checkouts.hand_over`."""
        files = self.job_paths(job.id)
        if not has_same_definitions(checkout, self._own_definitions()):
            return None
        if checkout.workspace.repository is not None and not await self._is_current(
            checkout, job, agent_root
        ):
            return None
        if not await asyncio.to_thread(self._job_dirs.move_ahead, checkout.paths, files):
            return None
        self.factory.rename(checkout.paths, files)
        moved = replace(moved_checkout(checkout, files), holder=None)
        await asyncio.to_thread(self.factory.note_for(moved).write, files)
        if self._sandbox_exec is None:
            await asyncio.to_thread(self._job_dirs.keep_old_path, checkout.paths, moved)
        return moved

    async def take_back(self, checkout: Checkout, checkout_id: str) -> Checkout | None:
        """Move the checkout of an ended job back; see `ports.Checkouts.take_back`."""
        files = self._job_dirs.ahead_files_of(checkout_id)
        try:
            if checkout.commit is not None:
                await self._settle(checkout)
            foreign_name = await asyncio.to_thread(read_foreign_name, checkout.paths)
            await asyncio.to_thread(self._job_dirs.move_back, checkout, files)
            await asyncio.to_thread(write_foreign_name, files, foreign_name)
        except (OSError, WorkspaceError):
            return None
        self.factory.rename(checkout.paths, files)
        return moved_checkout(checkout, files)

    async def _settle(self, checkout: Checkout) -> None:
        if self._sandbox_exec is None:
            raise WorkspaceError("The names of branches are those of a job.")
        if not await asyncio.to_thread(is_as_given, checkout):
            await settle_work(self._sandbox_exec, checkout)

    async def _is_current(self, checkout: Checkout, job: Job, agent_root: Path | None) -> bool:
        """Return True if a checkout is on the commit that a new one would have; its refs are brought up to date."""
        workspace = checkout.workspace
        if workspace.repository is None or self._sandbox_exec is None:
            return False  # without a sandbox, the names of branches and paths are those of a job
        mirror = self.mirrors.get(workspace.repository)
        if job.begin == "resume":
            # The turn continues on the commit of the turn before, whose work is in the checkout.
            return job.commit == checkout.commit and (
                await bring_up_to_date(checkout, mirror, self._sandbox_exec) is None
            )
        base = await mirror.resolve_base(workspace.ref)
        return await is_same_base(checkout, mirror, base) and await asyncio.to_thread(
            lay_refs, checkout.paths, await mirror.refs_file(), agent_root, checkout.uid
        )

    # --- preparing a checkout --------------------------------------------------------------

    async def prepare(self, job: Job, workspace: Workspace, slot: int) -> Checkout:
        """Create a private checkout or use the directory in place. Raise `WorkspaceError`."""
        if job.ref is not None:
            workspace = replace(workspace, ref=job.ref)
        if job.is_on_uncommitted:
            workspace = without_repository_rights(workspace)
        files = self.job_paths(job.id)
        resumes_own = job.begin == "resume" and not continues_parent(job)
        checkout_note = await asyncio.to_thread(read_note, files) if resumes_own else None
        try:
            if checkout_note is None:
                return await self._prepare_new(job, workspace, files, slot)
            return await self._prepare_retained(job, workspace, files, slot, checkout_note)
        except BaseException as error:  # also when cancelled: the caller has no checkout to release yet
            # A checkout that was kept stays.
            if checkout_note is None:
                with contextlib.suppress(WorkspaceError):
                    await self._remove_checkout(files)
            if isinstance(error, OSError):
                raise WorkspaceError(f"The checkout could not be made: {error.strerror}.") from error
            raise

    async def _prepare_new(self, job: Job, workspace: Workspace, files: JobPaths, slot: int) -> Checkout:
        origin = self._resumed_files(job)
        await asyncio.to_thread(self._job_dirs.make_job_dir, files, origin, self._agent_files_of(job.runner))
        if _is_in_place(workspace):
            return await self._prepare_in_place(
                workspace, files, slot, job.runner, resumed=origin is not None
            )
        user = self._uid_of(slot)
        continued = None
        if origin is not None and job.commit is not None:
            workspace, continued = replace(workspace, ref=job.commit), origin
        created = await self.factory.create(job, workspace, files, user, continued)
        checkout = await self._to_checkout(files, slot, created, job.runner)
        # With full trust the agent reads the repository's own instructions from the checkout.
        texts = {} if checkout.full_trust else created.instructions.texts
        await asyncio.to_thread(
            self._job_dirs.make_home_and_config,
            files,
            user,
            texts,
            checkout.definitions,
            self._agent_files_of(job.runner),
        )
        if origin is not None:
            checkout = await self._restore_work(checkout, origin)
        await asyncio.to_thread(self.factory.note_for(checkout).write, files)
        return checkout

    async def _prepare_retained(
        self, job: Job, workspace: Workspace, files: JobPaths, slot: int, checkout_note: CheckoutNote
    ) -> Checkout:
        """Reopen the checkout that was kept of a job, and change its owner if the slot has another user."""
        if _is_in_place(workspace):
            return await self._prepare_in_place(workspace, files, slot, job.runner, resumed=True)
        user = self._uid_of(slot)
        created = await self.factory.reopen(job, workspace, files, user, checkout_note)
        for folder in (files.home, files.config_dir):
            await asyncio.to_thread(chown_tree, folder, user)
        checkout = await self._to_checkout(files, slot, created, job.runner)
        await asyncio.to_thread(self.factory.note_for(checkout).write, files)
        if workspace.repository is None or created.commit is None:
            return checkout
        mirror = self.mirrors.get(workspace.repository)
        warning = await bring_up_to_date(checkout, mirror, self._sandbox_exec)
        return checkout if warning is None else replace(checkout, warnings=(*checkout.warnings, warning))

    async def _to_checkout(
        self, files: JobPaths, slot: int, created: CreatedCheckout, runner: str
    ) -> Checkout:
        binds, workspace = created.binds, created.access.workspace
        if self._sandbox_exec is not None and workspace.caches:
            binds += await asyncio.to_thread(self._caches.binds_for, workspace)
        return Checkout(
            workspace=workspace,
            paths=files,
            directory=created.directory,
            home=files.home,
            config_dir=files.config_dir,
            uid=self._uid_of(slot),
            commit=created.commit,
            definitions={**created.instructions.definitions, **self._own_definitions()},
            full_trust=is_fully_trusted(workspace),
            warnings=(
                *created.warnings,
                *created.instructions.warnings,
                *self._unused_cache_warnings(workspace),
            ),
            layers=created.layers,
            binds=binds,
            slot=slot,
            publish=created.access.publish,
            runner=runner,
        )

    def _uid_of(self, slot: int) -> int | None:
        return None if self._base_uid is None else self._base_uid + slot

    def _unused_cache_warnings(self, workspace: Workspace) -> tuple[JobWarning, ...]:
        if self._sandbox_exec is not None or not workspace.caches:
            return ()
        return (
            JobWarning(WarningCode.CACHES_UNUSED, "The workspace's shared caches need isolation 'bwrap'."),
        )

    async def _prepare_in_place(
        self, workspace: Workspace, files: JobPaths, slot: int, runner: str, *, resumed: bool
    ) -> Checkout:
        # A resumed run finds the directory as the run before left it.
        checkout = await self._in_place.prepare(workspace, files, slot, runner, update=not resumed)
        instructions = await self._in_place.instructions(workspace, runner)
        definitions = {**instructions.definitions, **self._own_definitions()}
        texts = {} if checkout.full_trust else instructions.texts
        await asyncio.to_thread(
            self._job_dirs.make_home_and_config,
            files,
            checkout.uid,
            texts,
            definitions,
            self._agent_files_of(runner),
        )
        await asyncio.to_thread(CheckoutNote(checkout.uid, checkout.commit, in_place=True).write, files)
        return replace(
            checkout, definitions=definitions, warnings=(*checkout.warnings, *instructions.warnings)
        )

    # --- resuming --------------------------------------------------------------------------

    def _resumed_files(self, job: Job) -> JobPaths | None:
        """Return the files of the job whose session this run continues: its own, or at first its parent's."""
        if job.begin != "resume":
            return None
        is_first = job.parent_job_id is not None and continues_parent(job)
        return self.job_paths(job.parent_job_id if is_first and job.parent_job_id else job.id)

    async def _restore_work(self, checkout: Checkout, origin: JobPaths) -> Checkout:
        """Restore the work that was harvested from `origin` in a new checkout."""
        if checkout.commit is None:
            return checkout
        if not await asyncio.to_thread(origin.bundle.is_file):
            if await asyncio.to_thread(origin.diff.is_file):
                return replace(checkout, warnings=(*checkout.warnings, _WORK_LOST))
            return checkout  # nothing had been changed
        try:
            await restore_work(self._sandbox_exec, checkout, origin.bundle)
        except WorkspaceError:
            return replace(checkout, warnings=(*checkout.warnings, _WORK_LOST))
        return checkout

    # --- during and after the run ----------------------------------------------------------

    async def save_progress(self, job: Job, checkout: Checkout) -> None:
        """Do nothing: the files of a job are on this machine alone."""

    async def save_pending(self) -> None:
        """Do nothing, as `save_progress`."""

    async def harvest(self, checkout: Checkout) -> Harvest:
        """Store the diff, the commits and the transcript. Add a warning for each part that cannot be stored."""
        return await self._harvester.harvest(checkout)

    async def release(self, checkout: Checkout) -> None:
        """Remove the checkout and the home. The config directory stays, with the session in it."""
        if self._job_dirs.is_ahead(checkout.paths):
            await self.factory.release(checkout.paths)
            await self._job_dirs.remove((checkout.paths.root,))
            return
        await self._remove_checkout(checkout.paths)

    async def retain(self, checkout: Checkout) -> None:
        """Keep the checkout as it is. Its note is on disk already, and its warm checkout stays in use."""

    async def reopen(self, job: Job, workspace: Workspace) -> Checkout | None:
        """Return the private checkout that a run left when the service stopped, to harvest it; `None` without one."""
        files = self.job_paths(job.id)
        note = await asyncio.to_thread(read_note, files)
        if note is None or note.in_place:
            return None
        if job.is_on_uncommitted:
            workspace = without_repository_rights(workspace)
        slot = 0 if note.user is None or self._base_uid is None else note.user - self._base_uid
        created = await self.factory.reopen(job, workspace, files, note.user, note)
        return await self._to_checkout(files, slot, created, job.runner)

    async def rejoin(self, job: Job, workspace: Workspace) -> Checkout:
        """Return the checkout in which the agent of an earlier service still works; nothing in it changes."""
        files = self.job_paths(job.id)
        note = await asyncio.to_thread(read_note, files)
        if note is None or note.in_place != _is_in_place(workspace):
            raise WorkspaceError("The run has no checkout.")
        if note.in_place:
            return await self._rejoin_in_place(workspace, files, note, job.runner)
        if job.is_on_uncommitted:
            workspace = without_repository_rights(workspace)
        slot = 0 if note.user is None or self._base_uid is None else note.user - self._base_uid
        created = await self.factory.rejoin(job, workspace, files, note)
        return replace(await self._to_checkout(files, slot, created, job.runner), uid=note.user, warnings=())

    async def _rejoin_in_place(
        self, workspace: Workspace, files: JobPaths, note: CheckoutNote, runner: str
    ) -> Checkout:
        checkout = await self._in_place.prepare(workspace, files, 0, runner, update=False)
        instructions = await self._in_place.instructions(workspace, runner)
        definitions = {**instructions.definitions, **self._own_definitions()}
        return replace(checkout, uid=note.user, commit=note.commit, definitions=definitions, warnings=())

    async def list_retained(self) -> Mapping[str, datetime]:
        """Return the jobs that have a checkout, each with the time of its last preparation."""
        return await asyncio.to_thread(self._job_dirs.with_checkout)

    async def discard(self, job_id: str) -> None:
        """Remove the checkout and the home of a job that kept them."""
        await self._remove_checkout(self.job_paths(job_id))

    async def _remove_checkout(self, files: JobPaths) -> None:
        await self.factory.release(files)
        # The note goes first: a run must not continue in a half-removed checkout.
        await asyncio.to_thread(delete_note, files)
        await self._job_dirs.remove(transient_paths(files))

    async def delete_job(self, job_id: str) -> None:
        """Remove all files of a job."""
        files = self.job_paths(job_id)
        await forget_uncommitted(self.mirrors, files)
        await self.factory.release(files)
        await self._job_dirs.remove((files.root,))

    async def list_job_ids(self) -> Sequence[str]:
        """Return the ids of the jobs that have a folder."""
        return await asyncio.to_thread(self._job_dirs.list_job_ids)

    async def apply_retention(
        self,
        now: datetime,
        max_transcript_age: timedelta | None,
        max_bytes: int | None,
        spared: Collection[str] = (),
    ) -> None:
        """Remove files that are too old, or that exceed the size limit; see `retention.trim`."""
        try:
            await asyncio.to_thread(
                trim,
                self._job_dirs.jobs,
                now=now,
                transcripts=max_transcript_age,
                max_bytes=max_bytes,
                spared=spared,
            )
        except OSError as error:
            raise WorkspaceError(f"Old files could not be removed: {error.strerror}.") from error

    async def remove_leftovers(self, spared: Collection[str] = ()) -> None:
        """Remove the remains of earlier processes: checkouts and homes of jobs not in `spared`, half-removed trees."""
        await self.factory.sweep(lambda job_id: read_note(self.job_paths(job_id)), spared)
        await self._job_dirs.remove(self._job_dirs.leftovers(spared))


def _is_in_place(workspace: Workspace) -> bool:
    return workspace.repository is not None and workspace.mode == "in_place"
