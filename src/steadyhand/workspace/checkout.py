"""Repositories made into places where an agent can work: a private copy per job, or a directory in place."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from steadyhand.agents import Definition, Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.job import Job, Notice
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import Errands, Harvest, JobFiles, Place
from steadyhand.redact import Redactor
from steadyhand.workspace.caches import Caches
from steadyhand.workspace.checkout_note import Note, bring_back, forget_note, note_of
from steadyhand.workspace.create import Made, Making
from steadyhand.workspace.filesystem import hand_over
from steadyhand.workspace.git import GitSettings
from steadyhand.workspace.harvest import HARVEST_SECONDS, Harvester
from steadyhand.workspace.in_place import InPlace
from steadyhand.workspace.instructions import Instructions, InstructionsOf, definitions_in, trusts_fully
from steadyhand.workspace.job_dirs import Folders, transient
from steadyhand.workspace.mirror import Mirrors
from steadyhand.workspace.retention import trim
from steadyhand.workspace.warm_checkouts import WarmCheckouts

DEFINITIONS_MAX_AGE = 30.0
"""Seconds that the list of a workspace's definitions may be behind its repository."""
_LOST = Notice(
    WarningCode.WORK_LOST, "The work of the run before could not be put back; the run goes on without it."
)


class GitCheckouts:
    """Checkouts by git in a data directory: `mirrors`, `jobs/<id>` and the operator's `agents` are in it."""

    def __init__(
        self,
        data_dir: Path,
        *,
        git: GitSettings | None = None,
        agent_uid_base: int = 64000,
        classic: bool = False,
        home: Path | None = None,
        harvest_seconds: float = HARVEST_SECONDS,
        debounce_seconds: float = 2.0,
        errands: Errands | None = None,
        overlay: bool = False,
        shares: bool = False,
        disk_of: Callable[[Job], int | None] | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        """Describe the checkouts; nothing is made before the first verb.

        As root, agents run as uid and gid `agent_uid_base + slot`, else as the service. `classic` and the
        service's `home` say how a directory in place is used (docs/http-api.md#the-classic-profile). With `errands`
        agents are sealed off, and all git on what they left runs beside them; with `overlay` as well, and as root,
        a job's checkout is laid over a warm one that belongs to the uid below the agents'; else with `shares`, when
        agents can be shown what the service reads, it is a clone that shares the mirror's objects. `disk_of` says
        how many bytes a job may write over it; null is no limit. `redactor` cleans what is kept of an agent's record.
        """
        data_dir = data_dir.absolute()  # git is told of it from other directories
        self._data_dir = data_dir
        settings = git or GitSettings()
        self._base_uid = agent_uid_base if os.geteuid() == 0 else None
        self.mirrors = Mirrors(data_dir / "mirrors", settings, debounce_seconds=debounce_seconds)
        self._in_place = InPlace(self._base_uid, classic=classic, home=home, errands=errands)
        self._harvester = Harvester(self.mirrors, settings, harvest_seconds, errands, redactor)
        self._errands = errands
        self._brought = InstructionsOf()
        shared = None if self._base_uid is None else agent_uid_base - 1
        warm = None
        if errands is not None and overlay and shared is not None:
            warm = WarmCheckouts(data_dir / "warm", errands, settings, owner=shared)
        self.making = Making(
            data_dir,
            self.mirrors,
            settings,
            self._brought,
            errands=errands,
            warm=warm,
            shares=shares,
            disk_of=disk_of,
        )
        self._folders = Folders(data_dir, shared=shared is not None, sealed=errands is not None)
        self._caches = Caches(data_dir / "caches", shared)

    def files(self, job_id: str) -> JobFiles:
        """Say where a job's files lie."""
        return self._folders.of(job_id)

    # --- definitions -----------------------------------------------------------------------

    async def definitions(self, workspace: Workspace) -> Mapping[str, Definition]:
        """Give the workspace's definitions by its trust, and the operator's own, which win."""
        brought = Instructions()
        if workspace.repository is not None and workspace.trust != "none":
            if workspace.mode == "in_place":
                brought = await self._in_place.instructions(workspace)
            else:
                mirror = self.mirrors.of(workspace.repository)
                commit = await mirror.resolve(workspace.ref, max_age=DEFINITIONS_MAX_AGE)
                brought = await self._brought.of(mirror, commit, workspace)
        return {**brought.definitions, **self._own_definitions()}

    def _own_definitions(self) -> dict[str, Definition]:
        return definitions_in(self._data_dir / "agents")

    # --- making a place --------------------------------------------------------------------

    async def prepare(self, job: Job, workspace: Workspace, slot: int) -> Place:
        """Make a private copy, or take the directory in place; raises `WorkspaceError`."""
        if job.ref is not None:
            workspace = replace(workspace, ref=job.ref)
        files = self.files(job.id)
        note = await asyncio.to_thread(note_of, files) if job.begin == "resume" else None
        try:
            if note is None:
                return await self._prepare_anew(job, workspace, files, slot)
            return await self._prepare_again(job, workspace, files, slot, note)
        except BaseException as error:
            # Nobody has a place to release yet; a cancelled prepare leaves no checkout behind but a kept one.
            if note is None:
                with contextlib.suppress(WorkspaceError):
                    await self._let_go(files)
            if isinstance(error, OSError):
                raise WorkspaceError(f"The checkout could not be made: {error.strerror}.") from error
            raise

    async def _prepare_anew(self, job: Job, workspace: Workspace, files: JobFiles, slot: int) -> Place:
        origin = self._origin(job)
        await asyncio.to_thread(self._folders.make_room, files, origin)
        if _is_in_place(workspace):
            return await self._prepare_in_place(workspace, files, slot, goes_on=origin is not None)
        user = self._user(slot)
        if origin is not None and job.commit is not None:
            workspace = replace(workspace, ref=job.commit)
        made = await self.making.anew(job, workspace, files, user)
        place = await self._placed(job, workspace, files, slot, made)
        # With full trust the CLI reads the repository's own instructions where they stand.
        texts = {} if place.trust_full else made.brought.texts
        await asyncio.to_thread(self._folders.make_homes, files, user, texts, place.definitions)
        if origin is not None:
            place = await self._bring_back(place, origin)
        await asyncio.to_thread(self.making.note(job.id, user, made).write, files)
        return place

    async def _prepare_again(
        self, job: Job, workspace: Workspace, files: JobFiles, slot: int, note: Note
    ) -> Place:
        """Take up the checkout that was kept of a job, for the user of another slot if need be."""
        if _is_in_place(workspace):
            return await self._prepare_in_place(workspace, files, slot, goes_on=True)
        user = self._user(slot)
        made = await self.making.again(job, workspace, files, user, note)
        for folder in (files.home, files.config):
            await asyncio.to_thread(hand_over, folder, user)
        await asyncio.to_thread(self.making.note(job.id, user, made).write, files)
        return await self._placed(job, workspace, files, slot, made)

    async def _placed(self, job: Job, workspace: Workspace, files: JobFiles, slot: int, made: Made) -> Place:
        binds = made.binds
        if self._errands is not None:
            binds += await asyncio.to_thread(self._caches.of, workspace)
        return Place(
            workspace=workspace,
            files=files,
            directory=made.directory,
            home=files.home,
            config=files.config,
            user=self._user(slot),
            commit=made.commit,
            definitions={**made.brought.definitions, **self._own_definitions()},
            trust_full=trusts_fully(workspace),
            notices=(*made.brought.notices, *self._unused(workspace)),
            layers=made.layers,
            binds=binds,
            slot=slot,
            publish=job.publish,
        )

    def _user(self, slot: int) -> int | None:
        return None if self._base_uid is None else self._base_uid + slot

    def _unused(self, workspace: Workspace) -> tuple[Notice, ...]:
        if self._errands is not None or not workspace.caches:
            return ()
        return (Notice(WarningCode.CACHES_UNUSED, "The workspace's shared caches need isolation 'bwrap'."),)

    async def _prepare_in_place(
        self, workspace: Workspace, files: JobFiles, slot: int, *, goes_on: bool
    ) -> Place:
        # A run that goes on finds the directory as the run before left it.
        place = await self._in_place.take(workspace, files, slot, pull=not goes_on)
        brought = await self._in_place.instructions(workspace)
        definitions = {**brought.definitions, **self._own_definitions()}
        texts = {} if place.trust_full else brought.texts
        await asyncio.to_thread(self._folders.make_homes, files, place.user, texts, definitions)
        await asyncio.to_thread(Note(place.user, place.commit, in_place=True).write, files)
        return replace(place, definitions=definitions, notices=(*place.notices, *brought.notices))

    # --- going on --------------------------------------------------------------------------

    def _origin(self, job: Job) -> JobFiles | None:
        """Give the files of the job whose session this run goes on with: its own, or its parent's at first."""
        if job.begin != "resume":
            return None
        first = job.parent_job_id is not None and job.run <= 1
        return self.files(job.parent_job_id if first and job.parent_job_id else job.id)

    async def _bring_back(self, place: Place, origin: JobFiles) -> Place:
        """Put the work that was harvested from `origin` into a checkout made anew."""
        if place.commit is None:
            return place
        if not await asyncio.to_thread(origin.bundle.is_file):
            if await asyncio.to_thread(origin.diff.is_file):
                return replace(place, notices=(*place.notices, _LOST))
            return place  # nothing had been changed
        try:
            await bring_back(self._errands, place, origin.bundle)
        except WorkspaceError:
            return replace(place, notices=(*place.notices, _LOST))
        return place

    # --- after the run ---------------------------------------------------------------------

    async def harvest(self, place: Place) -> Harvest:
        """Keep the diff, the commits and the transcript; what could not be kept is a notice."""
        return await self._harvester.harvest(place)

    async def release(self, place: Place) -> None:
        """Remove the checkout and the home; the config directory stays, with the session in it."""
        await self._let_go(place.files)

    async def keep(self, place: Place) -> None:
        """Leave everything where it is: it is noted already, and its warm checkout stays in use."""

    async def kept(self) -> Mapping[str, datetime]:
        """Give the jobs whose checkout is there, and since when."""
        return await asyncio.to_thread(self._folders.kept)

    async def drop(self, job_id: str) -> None:
        """Remove the checkout and the home that were kept of a job."""
        await self._let_go(self.files(job_id))

    async def _let_go(self, files: JobFiles) -> None:
        await self.making.give_back(files)
        # The note goes first: what is half removed is nothing to go on in.
        await asyncio.to_thread(forget_note, files)
        await self._folders.remove(transient(files))

    async def forget(self, job_id: str) -> None:
        """Remove all that is kept of a job."""
        files = self.files(job_id)
        await self.making.give_back(files)
        await self._folders.remove((files.root,))

    async def trim(self, now: datetime, transcripts: timedelta | None, max_bytes: int | None) -> None:
        """Remove what has been kept long enough, or is too much; see `retention.trim`."""
        try:
            await asyncio.to_thread(
                trim, self._folders.jobs, now=now, transcripts=transcripts, max_bytes=max_bytes
            )
        except OSError as error:
            raise WorkspaceError(f"Old files could not be removed: {error.strerror}.") from error

    async def sweep(self, spared: Collection[str] = ()) -> None:
        """Remove what earlier lives left: checkouts and homes of jobs that are not spared, and half removed trees."""
        await self.making.sweep(lambda job_id: note_of(self.files(job_id)), spared)
        await self._folders.remove(self._folders.left_over(spared))


def _is_in_place(workspace: Workspace) -> bool:
    return workspace.repository is not None and workspace.mode == "in_place"
