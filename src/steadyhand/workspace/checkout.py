"""Repositories made into places where an agent can work: a private copy per job, or a directory in place."""

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from steadyhand.agents import Definition, Workspace
from steadyhand.errors import NotFound, WorkspaceError
from steadyhand.job import Job, Notice
from steadyhand.ports import Bind, Errands, Harvest, JobFiles, Layers, Place
from steadyhand.redact import Redactor
from steadyhand.sessions import folder_name
from steadyhand.workspace.caches import Caches
from steadyhand.workspace.disk import (
    PRIVATE,
    TRAVERSABLE,
    copy_objects,
    copy_tree,
    hand_over,
    make_folder,
    remove_tree,
)
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
from steadyhand.workspace.kept import Note, bring_back, forget_note, note_of, noted
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
_LOST = Notice("work_lost", "The work of the run before could not be put back; the run goes on without it.")
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
        redactor: Redactor | None = None,
    ) -> None:
        """Describe the checkouts; nothing is made before the first verb.

        As root, agents run as uid and gid `agent_uid_base + slot`, else as the service. `classic` and the
        service's `home` say how a directory in place is used (contract.md, the classic profile). With `errands`
        agents are sealed off, and all git on what they left runs beside them; with `overlay` as well, and as root,
        a job's checkout is laid over a warm one that belongs to the uid below the agents'. `disk_of` says
        how many bytes a job may write over it; null is no limit. `redactor` cleans what is kept of an agent's record.
        """
        data_dir = data_dir.absolute()  # git is told of it from other directories
        self._data_dir = data_dir
        self._settings = git or GitSettings()
        self._base_uid = agent_uid_base if os.geteuid() == 0 else None
        self._jobs = data_dir / "jobs"
        self.mirrors = Mirrors(data_dir / "mirrors", self._settings, debounce_seconds=debounce_seconds)
        self._in_place = InPlace(self._base_uid, classic=classic, home=home, errands=errands)
        self._harvester = Harvester(self.mirrors, self._settings, harvest_seconds, errands, redactor)
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
        await asyncio.to_thread(self._make_room, files, origin)
        if _is_in_place(workspace):
            return await self._prepare_in_place(workspace, files, slot, goes_on=origin is not None)
        user = self._user(slot)
        if origin is not None and job.commit is not None:
            workspace = replace(workspace, ref=job.commit)
        made = await self._make(job, workspace, files, user)
        place = await self._placed(job, workspace, files, slot, made)
        # With full trust the CLI reads the repository's own instructions where they stand.
        texts = {} if place.trust_full else made.brought.texts
        await asyncio.to_thread(self._make_homes, files, user, texts, place.definitions)
        if origin is not None:
            place = await self._bring_back(place, origin)
        await asyncio.to_thread(self._note(job.id, user, made).write, files)
        return place

    async def _prepare_again(
        self, job: Job, workspace: Workspace, files: JobFiles, slot: int, note: Note
    ) -> Place:
        """Take up the checkout that was kept of a job, for the user of another slot if need be."""
        if _is_in_place(workspace):
            return await self._prepare_in_place(workspace, files, slot, goes_on=True)
        user = self._user(slot)
        made = await self._go_on(job, workspace, files, user, note)
        for folder in (files.home, files.config):
            await asyncio.to_thread(hand_over, folder, user)
        await asyncio.to_thread(self._note(job.id, user, made).write, files)
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
        return (Notice("caches_unused", "The workspace's shared caches need isolation 'bwrap'."),)

    async def _prepare_in_place(
        self, workspace: Workspace, files: JobFiles, slot: int, *, goes_on: bool
    ) -> Place:
        # A run that goes on finds the directory as the run before left it.
        place = await self._in_place.take(workspace, files, slot, pull=not goes_on)
        brought = await self._in_place.instructions(workspace)
        definitions = {**brought.definitions, **self._own_definitions()}
        texts = {} if place.trust_full else brought.texts
        await asyncio.to_thread(self._make_homes, files, place.user, texts, definitions)
        await asyncio.to_thread(Note(place.user, place.commit, in_place=True).write, files)
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

    # --- going on --------------------------------------------------------------------------

    def _origin(self, job: Job) -> JobFiles | None:
        """Give the files of the job whose session this run goes on with: its own, or its parent's at first."""
        if job.begin != "resume":
            return None
        first = job.parent_job_id is not None and job.run <= 1
        return self.files(job.parent_job_id if first and job.parent_job_id else job.id)

    def _note(self, job_id: str, user: int | None, made: Made) -> Note:
        warm, layers = self._held.get(job_id), made.layers
        return Note(
            user=user,
            commit=made.commit,
            warm=None if warm is None or self.warm is None else self.warm.name(warm),
            over_nothing=layers is not None and warm is None,
            image=layers is not None and layers.image is not None,
        )

    async def _go_on(
        self, job: Job, workspace: Workspace, files: JobFiles, user: int | None, note: Note
    ) -> Made:
        if (note.warm is not None or note.over_nothing) and self.warm is None:
            raise WorkspaceError(
                "The kept checkout was laid over another one, which is not to be had now.", retryable=False
            )
        layers: Layers | None = None
        binds: tuple[Bind, ...] = ()
        brought = Instructions()
        if workspace.repository is not None and note.commit is not None:
            mirror = self.mirrors.of(workspace.repository)
            brought = await self._brought(mirror, note.commit, workspace)
            if self.warm is not None and note.warm is not None:
                warm = await self.warm.take(mirror, note.commit, workspace)
                await self._give_back(files)
                self._held[job.id] = warm
                layers, binds = self._layers_again(warm.tree, files, note, user), (shown_objects(mirror),)
        if self.warm is not None and note.over_nothing:
            layers = self._layers_again(self._data_dir / "empty", files, note, user)
        if layers is None:
            await asyncio.to_thread(hand_over, files.checkout, user)
        elif layers.image is None:
            await asyncio.to_thread(hand_over, layers.upper, user)
            await asyncio.to_thread(remove_tree, layers.work)
            make_folder(layers.work, PRIVATE, user)
        return Made(files.checkout, note.commit, brought, layers, binds)

    def _layers_again(self, lower: Path, files: JobFiles, note: Note, user: int | None) -> Layers:
        assert self.warm is not None  # noqa: S101  # asked by the caller
        upper, work = upper_of(files)
        if not note.image:
            return Layers(lower, upper, work, self.warm.owner)
        image = image_of(files)
        names = Path(upper.name), Path(work.name)
        return Layers(lower, *names, self.warm.owner, image, hand_over=note.user != user)

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

    def _make_room(self, files: JobFiles, origin: JobFiles | None) -> None:
        """Make the job's folder, empty but for what is kept of earlier runs' output, and the session of `origin`."""
        make_folder(self._jobs, TRAVERSABLE)
        if self._base_uid is not None:
            # An agent's uid passes through the data directory and lists nothing in it.
            self._data_dir.chmod(self._data_dir.stat().st_mode | 0o011)
        make_folder(files.root, TRAVERSABLE)
        make_folder(files.kept, PRIVATE)
        for path in _transient(files):
            remove_tree(path)
        if origin is None or origin.root != files.root:
            remove_tree(files.config)
            for path in (files.diff, files.bundle, files.transcript):
                path.unlink(missing_ok=True)
        if origin is not None and origin.root != files.root:
            copy_tree(origin.config, files.config)
            if self._errands is None:
                _move_session(files.config, origin.checkout, files.checkout)
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
        fresh = not files.config.is_dir()
        make_folder(files.config, PRIVATE)
        if fresh:  # else it is the agent's, with the session that the run goes on with
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

    async def keep(self, place: Place) -> None:
        """Leave everything where it is: it is noted already, and its warm checkout stays in use."""

    async def kept(self) -> Mapping[str, datetime]:
        """Give the jobs whose checkout is there, and since when."""
        return await asyncio.to_thread(lambda: dict(noted(self._jobs)))

    async def drop(self, job_id: str) -> None:
        """Remove the checkout and the home that were kept of a job."""
        await self._let_go(self.files(job_id))

    async def _let_go(self, files: JobFiles) -> None:
        await self._give_back(files)
        # The note goes first: what is half removed is nothing to go on in.
        await asyncio.to_thread(forget_note, files)
        await self._remove(_transient(files))

    async def _give_back(self, files: JobFiles) -> None:
        warm = self._held.pop(files.root.name, None)
        if warm is not None and self.warm is not None:
            await self.warm.give_back(warm)

    async def forget(self, job_id: str) -> None:
        """Remove all that is kept of a job."""
        files = self.files(job_id)
        await self._give_back(files)
        await self._remove((files.root,))

    async def trim(self, now: datetime, transcripts: timedelta | None, max_bytes: int | None) -> None:
        """Remove what has been kept long enough, or is too much; see `retention.trim`."""
        try:
            await asyncio.to_thread(trim, self._jobs, now=now, transcripts=transcripts, max_bytes=max_bytes)
        except OSError as error:
            raise WorkspaceError(f"Old files could not be removed: {error.strerror}.") from error

    async def sweep(self, spared: Collection[str] = ()) -> None:
        """Remove what earlier lives left: checkouts and homes of jobs that are not spared, and half removed trees."""
        if self.warm is not None:
            await self.warm.sweep()
            for job_id in spared:
                note = note_of(self.files(job_id))
                if note is not None and note.warm is not None:
                    self._held[job_id] = self.warm.hold(note.warm)
        if not self._jobs.is_dir():
            return
        paths: list[Path] = []
        for folder in sorted(self._jobs.iterdir()):
            if folder.name.startswith(".trash-"):
                paths.append(folder)
            elif _JOB_ID.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                if folder.name not in spared:
                    forget_note(JobFiles(folder))
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


def _move_session(config: Path, before: Path, after: Path) -> None:
    """Put a session where the CLI looks for it in another directory; sealed ones are all at the same place."""
    old, new = (config / "projects" / folder_name(str(each.resolve())) for each in (before, after))
    if old.is_dir() and not old.is_symlink():
        old.rename(new)


def _is_in_place(workspace: Workspace) -> bool:
    return workspace.repository is not None and workspace.mode == "in_place"


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
