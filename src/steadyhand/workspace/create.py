"""How a job gets its checkout: a private copy or layers over a warm one, made anew or taken up again."""

import asyncio
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from steadyhand.agents import Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.job import Job
from steadyhand.ports import Bind, Errands, JobFiles, Layers
from steadyhand.workspace.checkout_note import Note
from steadyhand.workspace.disk_images import DiskImages
from steadyhand.workspace.filesystem import PRIVATE, copy_objects, hand_over, make_folder, remove_tree
from steadyhand.workspace.git import Git, GitSettings
from steadyhand.workspace.git_dir import describe
from steadyhand.workspace.instructions import Instructions, InstructionsOf
from steadyhand.workspace.job_dirs import base_index, base_of, image_of, upper_of
from steadyhand.workspace.mirror import Mirror, Mirrors
from steadyhand.workspace.warm_checkouts import (
    BRANCH,
    CHECKOUT_SECONDS,
    Warm,
    WarmCheckouts,
    bare_place,
    check_out,
    secrets_of,
    share_objects,
    shown_objects,
    write_base,
)

_COPY_TRIES = 3


@dataclass(frozen=True, slots=True)
class Made:
    """What `prepare` made beside the folders: where the agent works, the commit, what came along."""

    directory: Path
    commit: str | None
    brought: Instructions
    layers: Layers | None = None
    binds: tuple[Bind, ...] = ()


class Making:
    """Makes checkouts, and knows which warm ones they lie over.

    Without `warm` each is a work tree of its own, over the mirror's objects where sealed agents can be shown them
    (`shares`), else with a copy of them.
    """

    def __init__(
        self,
        data_dir: Path,
        mirrors: Mirrors,
        settings: GitSettings,
        brought: InstructionsOf,
        *,
        errands: Errands | None,
        warm: WarmCheckouts | None,
        shares: bool,
        disk_of: Callable[[Job], int | None] | None,
    ) -> None:
        self.warm = warm
        self._data_dir = data_dir
        self._mirrors = mirrors
        self._settings = settings
        self._brought = brought
        self._errands = errands
        self._shares = shares and errands is not None
        self._images = DiskImages(data_dir / "images")
        self._disk_of = disk_of
        self._held: dict[str, Warm] = {}

    async def anew(self, job: Job, workspace: Workspace, files: JobFiles, user: int | None) -> Made:
        """Make a checkout of the workspace's commit; raises `WorkspaceError`."""
        if workspace.repository is None:
            return Made(files.checkout, None, Instructions(), await self._scratch(job, files, user))
        mirror = self._mirrors.of(workspace.repository)
        commit = await mirror.resolve(workspace.ref)
        brought = await self._brought.of(mirror, commit, workspace)
        if self.warm is not None:
            await self.give_back(files)
            self._held[job.id] = await self.warm.take(mirror, commit, workspace)
            layers = await self._lay_over(self._held[job.id].tree, self.warm.owner, job, files, user)
            return Made(files.checkout, commit, brought, layers, (shown_objects(mirror),))
        binds: tuple[Bind, ...] = ()
        if self._shares:
            binds = (shown_objects(mirror),)
            make_folder(files.checkout, PRIVATE)
            await asyncio.to_thread(share_objects, files.checkout / ".git")
        else:
            await self._copy(mirror, files)
        branch = BRANCH if self._errands is not None else f"steadyhand/{job.id}"
        await describe(files.checkout / ".git", mirror, self._settings, branch)
        await asyncio.to_thread(hand_over, files.checkout, user)
        if self._errands is not None:
            await self._check_out_sealed(self._errands, workspace, commit, files, user, binds=binds)
            return Made(files.checkout, commit, brought, binds=binds)
        if workspace.setup:
            raise WorkspaceError("The workspace's setup commands need isolation 'bwrap'.", retryable=False)
        # The work tree is written by the agent's uid: what is in it belongs to the agent from the start.
        await Git(user=user).run(
            "checkout", "--quiet", "-B", branch, commit, cwd=files.checkout, seconds=CHECKOUT_SECONDS
        )
        shutil.copyfile(files.checkout / ".git" / "index", base_index(files))
        base_index(files).chmod(0o600)
        return Made(files.checkout, commit, brought)

    def note(self, job_id: str, user: int | None, made: Made) -> Note:
        """Say how a checkout was made, so that a later run can go on in it."""
        warm, layers = self._held.get(job_id), made.layers
        return Note(
            user=user,
            commit=made.commit,
            warm=None if warm is None or self.warm is None else self.warm.name(warm),
            over_nothing=layers is not None and warm is None,
            shared=layers is None and made.binds != (),
            image=layers is not None and layers.image is not None,
        )

    async def again(
        self, job: Job, workspace: Workspace, files: JobFiles, user: int | None, note: Note
    ) -> Made:
        """Take up the checkout that a note tells of, for this user; raises `WorkspaceError`."""
        if (note.warm is not None or note.over_nothing) and self.warm is None:
            raise WorkspaceError(
                "The kept checkout was laid over another one, which is not to be had now.", retryable=False
            )
        if note.shared and not self._shares:
            raise WorkspaceError(
                "The kept checkout shares the mirror's objects, which agents cannot be shown now.",
                retryable=False,
            )
        layers: Layers | None = None
        binds: tuple[Bind, ...] = ()
        brought = Instructions()
        if workspace.repository is not None and note.commit is not None:
            mirror = self._mirrors.of(workspace.repository)
            brought = await self._brought.of(mirror, note.commit, workspace)
            if self.warm is not None and note.warm is not None:
                warm = await self.warm.take(mirror, note.commit, workspace)
                await self.give_back(files)
                self._held[job.id] = warm
                layers, binds = self._layers_again(warm.tree, files, note, user), (shown_objects(mirror),)
            elif note.shared:
                binds = (shown_objects(mirror),)
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

    async def _scratch(self, job: Job, files: JobFiles, user: int | None) -> Layers | None:
        """Make an empty checkout: a folder, or layers over nothing when its disk has a limit."""
        if self.warm is not None and self._disk_limit(job) is not None:
            nothing = self._data_dir / "empty"
            make_folder(nothing, 0o755, self.warm.owner)
            return await self._lay_over(nothing, self.warm.owner, job, files, user)
        make_folder(files.checkout, PRIVATE, user)
        return None

    def _disk_limit(self, job: Job) -> int | None:
        return self._disk_of(job) if self._disk_of is not None and self._images.can_be_had() else None

    async def _lay_over(self, lower: Path, owner: int, job: Job, files: JobFiles, user: int | None) -> Layers:
        """Lay a job's checkout over the warm one of its commit: what that costs does not grow with the repository."""
        upper, work = upper_of(files)
        size = self._disk_limit(job)
        if size is not None:
            await self._images.put(image_of(files), size)
            return Layers(lower, Path(upper.name), Path(work.name), owner, image_of(files))
        make_folder(upper, PRIVATE, user)
        make_folder(work, PRIVATE, user)
        return Layers(lower, upper, work, owner)

    async def _check_out_sealed(
        self,
        errands: Errands,
        workspace: Workspace,
        commit: str,
        files: JobFiles,
        user: int | None,
        *,
        binds: tuple[Bind, ...],
    ) -> None:
        """Check out and set up in the job's own work tree, where there is no overlay."""
        for folder in (files.home, files.config):
            make_folder(folder, PRIVATE, user)
        place = bare_place(workspace, files, user, commit, (*binds, *secrets_of(workspace)))
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

    async def give_back(self, files: JobFiles) -> None:
        """Say that a job does not use its warm checkout any more."""
        warm = self._held.pop(files.root.name, None)
        if warm is not None and self.warm is not None:
            await self.warm.give_back(warm)

    async def sweep(self, kept: Callable[[str], Note | None], spared: Collection[str]) -> None:
        """Remove warm checkouts that are half made; those that spared jobs lie over, by their notes, stay in use."""
        if self.warm is None:
            return
        await self.warm.sweep()
        for job_id in spared:
            note = kept(job_id)
            if note is not None and note.warm is not None:
                self._held[job_id] = self.warm.hold(note.warm)
