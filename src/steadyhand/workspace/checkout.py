"""Repositories made into places where an agent can work: a private copy per job, or a directory in place."""

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from steadyhand.agents import Definition, Workspace
from steadyhand.errors import NotFound, WorkspaceError
from steadyhand.job import Job, Notice
from steadyhand.ports import Bind, Errands, Harvest, JobFiles, Layers, Place
from steadyhand.workspace.caches import Caches
from steadyhand.workspace.disk import PRIVATE, TRAVERSABLE, copy_objects, hand_over, make_folder, remove_tree
from steadyhand.workspace.dotgit import describe
from steadyhand.workspace.git import Git, GitSettings
from steadyhand.workspace.harvest import HARVEST_SECONDS, Harvester
from steadyhand.workspace.images import DiskImages
from steadyhand.workspace.in_place import InPlace
from steadyhand.workspace.instructions import (
    PATHS,
    Instructions,
    definitions_in,
    read_instructions,
    trusts_fully,
    write_config,
)
from steadyhand.workspace.mirror import Mirror, Mirrors
from steadyhand.workspace.retention import trim
from steadyhand.workspace.warm import (
    BRANCH,
    Warm,
    WarmCheckouts,
    check_out,
    secrets_of,
    shown_objects,
    write_base,
)

DEFINITIONS_MAX_AGE = 30.0
"""Seconds that the list of a workspace's definitions may be behind its repository."""
CHECKOUT_SECONDS = 300.0
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_COPY_TRIES = 3
_CACHED = 64


@dataclass(frozen=True, slots=True)
class Made:
    """What `prepare` made beside the folders: where the agent works, the commit, what came along."""

    directory: Path
    commit: str | None
    brought: Instructions
    layers: Layers | None = None
    binds: tuple[Bind, ...] = ()


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
        disk_of: Callable[[Job], int | None] | None = None,
    ) -> None:
        """Describe the checkouts; nothing is made before the first verb.

        As root, agents run as uid and gid `agent_uid_base + slot`, else as the service. `classic` and the
        service's `home` say how a directory in place is used (contract.md, the classic profile). With `errands`
        agents are sealed off, and all git on what they left runs beside them; with `overlay` as well, and as root,
        a job's checkout is laid over a warm one that belongs to the uid below the agents'. `disk_of` says
        how many bytes a job may write over it; null is no limit.
        """
        data_dir = data_dir.absolute()  # git is told of it from other directories
        self._data_dir = data_dir
        self._settings = git or GitSettings()
        self._base_uid = agent_uid_base if os.geteuid() == 0 else None
        self._jobs = data_dir / "jobs"
        self.mirrors = Mirrors(data_dir / "mirrors", self._settings, debounce_seconds=debounce_seconds)
        self._in_place = InPlace(self._base_uid, classic=classic, home=home, errands=errands)
        self._harvester = Harvester(self.mirrors, self._settings, harvest_seconds, errands)
        self._errands = errands
        self.warm: WarmCheckouts | None = None
        shared = agent_uid_base - 1
        if errands is not None and overlay and self._base_uid is not None:
            self.warm = WarmCheckouts(data_dir / "warm", errands, self._settings, owner=shared)
        self._images = DiskImages(data_dir / "images")
        self._disk_of = disk_of
        self._caches = Caches(data_dir / "caches", None if self._base_uid is None else shared)
        self._held: dict[str, Warm] = {}
        self._instructions: dict[tuple[str, str, bool], Instructions] = {}

    def files(self, job_id: str) -> JobFiles:
        """Say where a job's files lie."""
        if _JOB_ID.fullmatch(job_id) is None:
            raise NotFound("Job not found")
        return JobFiles(self._jobs / job_id)

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
                brought = await self._brought(mirror, commit, workspace)
        return {**brought.definitions, **self._own_definitions()}

    def _own_definitions(self) -> dict[str, Definition]:
        return definitions_in(self._data_dir / "agents")

    async def _brought(self, mirror: Mirror, commit: str, workspace: Workspace) -> Instructions:
        if workspace.trust == "none":
            return Instructions()
        full = trusts_fully(workspace)
        key = (mirror.folder.name, commit, full)
        if key not in self._instructions:
            found = await mirror.files(commit, PATHS)
            while len(self._instructions) >= _CACHED:
                self._instructions.pop(next(iter(self._instructions)))
            self._instructions[key] = await read_instructions(found, mirror.blobs, full=full)
        return self._instructions[key]

    # --- making a place --------------------------------------------------------------------

    async def prepare(self, job: Job, workspace: Workspace, slot: int) -> Place:
        """Make a private copy, or take the directory in place; raises `WorkspaceError`."""
        if job.ref is not None:
            workspace = replace(workspace, ref=job.ref)
        files = self.files(job.id)
        try:
            await asyncio.to_thread(self._make_room, files)
            if workspace.repository is not None and workspace.mode == "in_place":
                return await self._prepare_in_place(workspace, files, slot)
            user = None if self._base_uid is None else self._base_uid + slot
            made = await self._make(job, workspace, files, user)
            binds = made.binds
            if self._errands is not None:
                binds += await asyncio.to_thread(self._caches.of, workspace)
            full = trusts_fully(workspace)
            definitions = {**made.brought.definitions, **self._own_definitions()}
            # With full trust the CLI reads the repository's own instructions where they stand.
            texts = {} if full else made.brought.texts
            await asyncio.to_thread(self._make_homes, files, user, texts, definitions)
        except BaseException as error:
            # Nobody has a place to release yet; a cancelled prepare leaves no checkout behind.
            with contextlib.suppress(WorkspaceError):
                await self._let_go(files)
            if isinstance(error, OSError):
                raise WorkspaceError(f"The checkout could not be made: {error.strerror}.") from error
            raise
        return Place(
            workspace=workspace,
            files=files,
            directory=made.directory,
            home=files.home,
            config=files.config,
            user=user,
            commit=made.commit,
            definitions=definitions,
            trust_full=full,
            notices=(*made.brought.notices, *self._unused(workspace)),
            layers=made.layers,
            binds=binds,
            slot=slot,
            publish=job.publish,
        )

    def _unused(self, workspace: Workspace) -> tuple[Notice, ...]:
        if self._errands is not None or not workspace.caches:
            return ()
        return (Notice("caches_unused", "The workspace's shared caches need isolation 'bwrap'."),)

    async def _prepare_in_place(self, workspace: Workspace, files: JobFiles, slot: int) -> Place:
        place = await self._in_place.take(workspace, files, slot)
        brought = await self._in_place.instructions(workspace)
        definitions = {**brought.definitions, **self._own_definitions()}
        texts = {} if place.trust_full else brought.texts
        await asyncio.to_thread(self._make_homes, files, place.user, texts, definitions)
        return replace(place, definitions=definitions, notices=(*place.notices, *brought.notices))

    async def _make(self, job: Job, workspace: Workspace, files: JobFiles, user: int | None) -> Made:
        if workspace.repository is None:
            return Made(files.checkout, None, Instructions(), await self._scratch(job, files, user))
        mirror = self.mirrors.of(workspace.repository)
        commit = await mirror.resolve(workspace.ref)
        brought = await self._brought(mirror, commit, workspace)
        if self.warm is not None:
            await self._give_back(files)
            self._held[job.id] = await self.warm.take(mirror, commit, workspace)
            layers = await self._lay_over(self._held[job.id].tree, self.warm.owner, job, user)
            return Made(files.checkout, commit, brought, layers, (shown_objects(mirror),))
        await self._copy(mirror, files)
        branch = BRANCH if self._errands is not None else f"steadyhand/{job.id}"
        await describe(files.checkout / ".git", mirror, self._settings, branch)
        await asyncio.to_thread(hand_over, files.checkout, user)
        if self._errands is not None:
            await self._check_out_sealed(self._errands, workspace, commit, files, user)
            return Made(files.checkout, commit, brought)
        if workspace.setup:
            raise WorkspaceError("The workspace's setup commands need isolation 'bwrap'.", retryable=False)
        # The work tree is written by the agent's uid: what is in it belongs to the agent from the start.
        await Git(user=user).run(
            "checkout", "--quiet", "-B", branch, commit, cwd=files.checkout, seconds=CHECKOUT_SECONDS
        )
        shutil.copyfile(files.checkout / ".git" / "index", base_index(files))
        base_index(files).chmod(0o600)
        return Made(files.checkout, commit, brought)

    async def _scratch(self, job: Job, files: JobFiles, user: int | None) -> Layers | None:
        """Make an empty checkout: a folder, or layers over nothing when its disk has a limit."""
        if self.warm is not None and self._disk_limit(job) is not None:
            nothing = self._data_dir / "empty"
            make_folder(nothing, 0o755, self.warm.owner)
            return await self._lay_over(nothing, self.warm.owner, job, user)
        make_folder(files.checkout, PRIVATE, user)
        return None

    def _disk_limit(self, job: Job) -> int | None:
        return self._disk_of(job) if self._disk_of is not None and self._images.can_be_had() else None

    async def _lay_over(self, lower: Path, owner: int, job: Job, user: int | None) -> Layers:
        """Lay a job's checkout over the warm one of its commit: what that costs does not grow with the repository."""
        files = self.files(job.id)
        upper, work = upper_of(files)
        size = self._disk_limit(job)
        if size is not None:
            await self._images.put(image_of(files), size)
            return Layers(lower, Path(upper.name), Path(work.name), owner, image_of(files))
        make_folder(upper, PRIVATE, user)
        make_folder(work, PRIVATE, user)
        return Layers(lower, upper, work, owner)

    async def _check_out_sealed(
        self, errands: Errands, workspace: Workspace, commit: str, files: JobFiles, user: int | None
    ) -> None:
        """Check out and set up in the job's own copy, where there is no overlay."""
        for folder in (files.home, files.config):
            make_folder(folder, PRIVATE, user)
        place = Place(
            workspace=workspace,
            files=files,
            directory=files.checkout,
            home=files.home,
            config=files.config,
            user=user,
            commit=commit,
            binds=secrets_of(workspace),
        )
        write_base(base_of(files), await check_out(errands, place, settle=False))
        for folder in (files.home, files.config):
            await asyncio.to_thread(remove_tree, folder)

    async def _copy(self, mirror: Mirror, files: JobFiles) -> None:
        """Copy the mirror's objects; a repack under the copy starts it over."""
        for attempt in range(1, _COPY_TRIES + 1):
            make_folder(files.checkout, PRIVATE)
            folder = files.checkout / ".git"
            objects = folder / "objects"
            await asyncio.to_thread(objects.mkdir, parents=True)
            try:
                await asyncio.to_thread(copy_objects, mirror.objects, objects)
            except FileNotFoundError:
                if attempt == _COPY_TRIES:
                    raise
                await asyncio.to_thread(remove_tree, files.checkout)
            else:
                return

    def _make_room(self, files: JobFiles) -> None:
        """Make the job's folder, empty but for what is kept of earlier runs' output."""
        make_folder(self._jobs, TRAVERSABLE)
        if self._base_uid is not None:
            # An agent's uid passes through the data directory and lists nothing in it.
            self._data_dir.chmod(self._data_dir.stat().st_mode | 0o011)
        make_folder(files.root, TRAVERSABLE)
        make_folder(files.kept, PRIVATE)
        for path in (*_transient(files), files.config):
            remove_tree(path)
        for path in (files.diff, files.bundle, files.transcript):
            path.unlink(missing_ok=True)
        (files.root / "prepared").write_bytes(b"")

    def _make_homes(
        self,
        files: JobFiles,
        user: int | None,
        texts: Mapping[str, str],
        definitions: Mapping[str, Definition],
    ) -> None:
        make_folder(files.home, PRIVATE)
        make_folder(files.home / "tmp", PRIVATE)
        make_folder(files.config, PRIVATE)
        write_config(files.config, texts, definitions, sealed=self._errands is not None)
        hand_over(files.home, user)
        hand_over(files.config, user)

    # --- after the run ---------------------------------------------------------------------

    async def harvest(self, place: Place) -> Harvest:
        """Keep the diff, the commits and the transcript; what could not be kept is a notice."""
        return await self._harvester.harvest(place)

    async def release(self, place: Place) -> None:
        """Remove the checkout and the home; the config directory stays, with the session in it."""
        await self._let_go(place.files)

    async def _let_go(self, files: JobFiles) -> None:
        await self._give_back(files)
        await self._remove(_transient(files))

    async def _give_back(self, files: JobFiles) -> None:
        warm = self._held.pop(files.root.name, None)
        if warm is not None and self.warm is not None:
            await self.warm.give_back(warm)

    async def forget(self, job_id: str) -> None:
        """Remove all that is kept of a job."""
        await self._remove((self.files(job_id).root,))

    async def trim(self, now: datetime, transcripts: timedelta | None, max_bytes: int | None) -> None:
        """Remove what has been kept long enough, or is too much; see `retention.trim`."""
        try:
            await asyncio.to_thread(trim, self._jobs, now=now, transcripts=transcripts, max_bytes=max_bytes)
        except OSError as error:
            raise WorkspaceError(f"Old files could not be removed: {error.strerror}.") from error

    async def sweep(self) -> None:
        """Remove what earlier lives left: every checkout and home, and trees that were being removed."""
        if self.warm is not None:
            await self.warm.sweep()
        if not self._jobs.is_dir():
            return
        paths: list[Path] = []
        for folder in sorted(self._jobs.iterdir()):
            if folder.name.startswith(".trash-"):
                paths.append(folder)
            elif _JOB_ID.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                paths += _transient(JobFiles(folder))
                paths += folder.glob(".trash-*")
        await self._remove(paths)

    async def _remove(self, paths: tuple[Path, ...] | list[Path]) -> None:
        failed: Exception | None = None
        for path in paths:
            try:
                await asyncio.to_thread(remove_tree, path)
            except (OSError, WorkspaceError) as error:
                failed = error
        if failed is not None:
            raise WorkspaceError("A checkout could not be removed whole.") from failed


def _transient(files: JobFiles) -> tuple[Path, ...]:
    root = files.root
    layers = (*upper_of(files), image_of(files))
    return (files.checkout, files.home, *layers, root / "harvest", base_of(files), base_index(files))


def upper_of(files: JobFiles) -> tuple[Path, Path]:
    """Give the folders of what a job writes over a warm checkout: the files, and the kernel's own beside them."""
    return files.root / "upper", files.root / "work"


def image_of(files: JobFiles) -> Path:
    """Give the file with the file system that holds both when the job's disk has a limit."""
    return files.root / "disk.ext4"


def base_index(files: JobFiles) -> Path:
    """The index as it was when the run began, which the service alone can write; without isolation."""
    return files.root / "base.index"


def base_of(files: JobFiles) -> Path:
    """The folder of what a harvest of a sealed private copy stands on."""
    return files.root / "base"
