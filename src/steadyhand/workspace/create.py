"""Create and reopen the checkout of a job: a private copy, or an overlay over a warm checkout."""

import asyncio
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from steadyhand.agents import Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.job import Job, JobWarning
from steadyhand.ports import (
    BindMount,
    Checkout,
    Instructions,
    JobPaths,
    OverlayLayers,
    SandboxExec,
    is_reported,
    report_phase,
)
from steadyhand.workspace.checkout_note import CheckoutNote
from steadyhand.workspace.content_plan import ContentPlan, ContentPlanner
from steadyhand.workspace.disk_images import DiskImages
from steadyhand.workspace.fetched_refs import stale_refs_warning, store_refs
from steadyhand.workspace.filesystem import PRIVATE, chown_tree, copy_objects, make_dir, remove_tree
from steadyhand.workspace.foreign_refs import (
    RefAccess,
    find_foreign_name,
    read_foreign_name,
    restrict,
    write_foreign_name,
)
from steadyhand.workspace.git import Git, GitSettings
from steadyhand.workspace.git_dir import write_git_dir
from steadyhand.workspace.git_progress import GitProgress
from steadyhand.workspace.instructions import InstructionsCache
from steadyhand.workspace.job_dirs import (
    base_dir,
    base_index_path,
    disk_image_path,
    fetched_refs_path,
    given_path,
    overlay_dirs,
    refs_layer_dir,
)
from steadyhand.workspace.local_exec import LocalExec
from steadyhand.workspace.mirror import BaseCommit, Mirror, Mirrors
from steadyhand.workspace.sandboxed_git_client import MIRROR_DIR
from steadyhand.workspace.submodules import write_module_dirs
from steadyhand.workspace.uncommitted import import_uncommitted
from steadyhand.workspace.warm_checkouts import (
    BRANCH,
    CHECKOUT_SECONDS,
    WarmCheckout,
    WarmCheckouts,
    check_out,
    objects_bind,
    read_given,
    secret_binds,
    service_checkout,
    write_alternates,
    write_base,
)

_MAX_COPY_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class CreatedCheckout:
    """A checkout beside its folders: the agent's directory, the commit, the repository's instructions, the layers.

    `access` is what the job may use of its workspace; `warnings` are about its refs.
    """

    directory: Path
    commit: str | None
    instructions: Instructions
    access: RefAccess
    layers: OverlayLayers | None = None
    binds: tuple[BindMount, ...] = ()
    warnings: tuple[JobWarning, ...] = ()


class CheckoutFactory:
    """Creates checkouts, and records which warm checkouts they use.

    Without `warm`, each checkout is a work tree of its own. It uses the mirror's objects if the sandbox can show them
    to agents (`shares_objects`), else a copy of them.
    """

    def __init__(
        self,
        data_dir: Path,
        mirrors: Mirrors,
        settings: GitSettings,
        instructions: InstructionsCache,
        *,
        sandbox_exec: SandboxExec | None,
        warm: WarmCheckouts | None,
        shares_objects: bool,
        disk_limit_of: Callable[[Job], int | None] | None,
    ) -> None:
        self.warm = warm
        self._data_dir = data_dir
        self._mirrors = mirrors
        self._settings = settings
        self._instructions = instructions
        self._content = ContentPlanner(data_dir / "mirrors", settings, sandboxed=sandbox_exec is not None)
        self._sandbox_exec = sandbox_exec
        self._shares_objects = shares_objects and sandbox_exec is not None
        self._images = DiskImages(data_dir / "images")
        self._disk_limit_of = disk_limit_of
        self._acquired: dict[str, WarmCheckout] = {}

    async def create(
        self, job: Job, workspace: Workspace, files: JobPaths, user: int | None, continued: JobPaths | None
    ) -> CreatedCheckout:
        """Create a checkout of the workspace's commit. Raise `WorkspaceError`.

        `continued` are the files of the job whose commit the workspace's ref is, if this one continues another.
        """
        if workspace.repository is None:
            layers = await self._create_empty(job, files, user)
            return CreatedCheckout(
                files.checkout, None, Instructions(), RefAccess(workspace, job.publish), layers
            )
        mirror = self._mirrors.get(workspace.repository)
        base = await self._resolve(mirror, job, workspace, files)
        foreign_name = await find_foreign_name(mirror, base, continued)
        await asyncio.to_thread(write_foreign_name, files, foreign_name)
        access = restrict(workspace, job.publish, foreign_name)
        instructions = await self._instructions.load(mirror, base.commit, access.workspace, job.runner)
        plan = await self._content.plan(mirror, base.commit, access.workspace)
        refs_owner = None if self.warm is None else self.warm.owner
        await asyncio.to_thread(store_refs, files, await mirror.refs_file(), owner=refs_owner)
        layers, binds = await self._make_checkout(
            mirror, base.commit, access.workspace, plan=plan, job=job, files=files, user=user
        )
        warnings = (*access.warnings, *plan.warnings)
        if base.fetch_failure is not None:
            warnings = (*warnings, stale_refs_warning(base.fetch_failure))
        return CreatedCheckout(files.checkout, base.commit, instructions, access, layers, binds, warnings)

    async def _resolve(self, mirror: Mirror, job: Job, workspace: Workspace, files: JobPaths) -> BaseCommit:
        if job.spec.uncommitted is not None:
            return BaseCommit(await import_uncommitted(mirror, job.spec.uncommitted, files))
        if job.is_on_uncommitted and job.ref is not None and job.ref == workspace.ref:
            commit = await mirror.find_commit(job.ref)  # the changes of an earlier turn
            if commit is not None:
                return BaseCommit(commit)
        return await mirror.resolve_base(workspace.ref)

    async def _make_checkout(
        self,
        mirror: Mirror,
        commit: str,
        workspace: Workspace,
        *,
        plan: ContentPlan,
        job: Job,
        files: JobPaths,
        user: int | None,
    ) -> tuple[OverlayLayers | None, tuple[BindMount, ...]]:
        if self.warm is not None:
            await self.release(files)
            self._acquired[job.id] = await self.warm.acquire(mirror, commit, workspace, plan)
            layers = await self._create_layers(self._acquired[job.id].tree, self.warm.owner, job, files, user)
            return replace(layers, refs=refs_layer_dir(files)), (objects_bind(mirror),)
        binds: tuple[BindMount, ...] = ()
        if self._shares_objects:
            binds = (objects_bind(mirror),)
            make_dir(files.checkout, PRIVATE)
            await asyncio.to_thread(write_alternates, files.checkout / ".git")
        else:
            await self._copy_mirror_objects(mirror, files)
        branch = BRANCH if self._sandbox_exec is not None else f"steadyhand/{job.id}"
        git_dir, refs = files.checkout / ".git", fetched_refs_path(files)
        await asyncio.to_thread(
            write_git_dir, git_dir, mirror, self._settings, branch, refs=refs, commit=commit
        )
        await write_module_dirs(git_dir, plan.modules, self._settings)
        await asyncio.to_thread(chown_tree, files.checkout, user)
        if self._sandbox_exec is not None:
            await self._check_out_sandboxed(
                self._sandbox_exec, workspace, commit, files, user, binds=binds, plan=plan
            )
        else:
            await self._check_out_unsandboxed(workspace, commit, files, user, branch)
        return None, binds

    async def _check_out_unsandboxed(
        self, workspace: Workspace, commit: str, files: JobPaths, user: int | None, branch: str
    ) -> None:
        if workspace.setup:
            raise WorkspaceError("The workspace's setup commands need isolation 'bwrap'.", retryable=False)
        await report_phase("checking_out")
        # The agent's uid writes the work tree, so its files belong to the agent from the start.
        progress = ("--progress",) if is_reported() else ()
        await Git(user=user).run(
            "checkout", "--quiet", *progress, "-B", branch, commit, cwd=files.checkout, seconds=CHECKOUT_SECONDS,
            on_stderr=GitProgress().feed if progress else None,
        )  # fmt: skip
        shutil.copy2(
            files.checkout / ".git" / "index", base_index_path(files)
        )  # git compares its time with the files
        base_index_path(files).chmod(0o600)
        checkout = service_checkout(workspace, files, user, commit, ())
        given_path(files).write_bytes(await read_given(LocalExec(), checkout))
        given_path(files).chmod(0o600)

    def note_for(self, checkout: Checkout) -> CheckoutNote:
        """Return the note that a later run needs to continue in this checkout."""
        warm, layers = self._acquired.get(checkout.paths.root.name), checkout.layers
        return CheckoutNote(
            user=checkout.uid,
            commit=checkout.commit,
            warm=None if warm is None or self.warm is None else self.warm.relative_name(warm),
            over_nothing=layers is not None and warm is None,
            shared=layers is None and any(each.target == MIRROR_DIR for each in checkout.binds),
            image=layers is not None and layers.image is not None,
        )

    async def reopen(
        self, job: Job, workspace: Workspace, files: JobPaths, user: int | None, checkout_note: CheckoutNote
    ) -> CreatedCheckout:
        """Reopen the checkout that a note describes, for this user. Raise `WorkspaceError`."""
        created = await self._open_existing(job, workspace, files, user, checkout_note, in_use=False)
        layers = created.layers
        if layers is None:
            await asyncio.to_thread(chown_tree, files.checkout, user)
        elif layers.image is None:
            await asyncio.to_thread(chown_tree, layers.upper, user)
            await asyncio.to_thread(remove_tree, layers.work)
            make_dir(layers.work, PRIVATE, user)
        return created

    async def rejoin(
        self, job: Job, workspace: Workspace, files: JobPaths, checkout_note: CheckoutNote
    ) -> CreatedCheckout:
        """Return the checkout that a note describes and whose agent runs. Raise `WorkspaceError`.

        `sweep` has spared it.
        """
        return await self._open_existing(
            job, workspace, files, checkout_note.user, checkout_note, in_use=True
        )

    async def _open_existing(
        self,
        job: Job,
        workspace: Workspace,
        files: JobPaths,
        user: int | None,
        checkout_note: CheckoutNote,
        *,
        in_use: bool,
    ) -> CreatedCheckout:
        if (checkout_note.warm is not None or checkout_note.over_nothing) and self.warm is None:
            raise WorkspaceError(
                "The kept checkout is an overlay, and this service has no overlays now.", retryable=False
            )
        if checkout_note.shared and not self._shares_objects:
            raise WorkspaceError(
                "The kept checkout shares the mirror's objects, which agents cannot read now.",
                retryable=False,
            )
        layers: OverlayLayers | None = None
        binds: tuple[BindMount, ...] = ()
        instructions = Instructions()
        foreign_name = await asyncio.to_thread(read_foreign_name, files)
        access = restrict(workspace, job.publish, foreign_name)
        workspace = access.workspace
        if workspace.repository is not None and checkout_note.commit is not None:
            mirror = self._mirrors.get(workspace.repository)
            instructions = await self._instructions.load(mirror, checkout_note.commit, workspace, job.runner)
            if self.warm is not None and checkout_note.warm is not None:
                warm = await self._acquire_again(job, files, mirror, workspace, checkout_note, in_use=in_use)
                layers, binds = (
                    self._existing_layers(warm.tree, files, checkout_note, user),
                    (objects_bind(mirror),),
                )
            elif checkout_note.shared:
                binds = (objects_bind(mirror),)
        if self.warm is not None and checkout_note.over_nothing:
            layers = self._existing_layers(self._data_dir / "empty", files, checkout_note, user)
        return CreatedCheckout(
            files.checkout, checkout_note.commit, instructions, access, layers, binds, access.warnings
        )

    async def _acquire_again(
        self,
        job: Job,
        files: JobPaths,
        mirror: Mirror,
        workspace: Workspace,
        checkout_note: CheckoutNote,
        *,
        in_use: bool,
    ) -> WarmCheckout:
        """Return the warm checkout below the one that a note describes."""
        assert self.warm is not None  # noqa: S101  # asked by the caller
        assert checkout_note.commit is not None  # noqa: S101  # the same
        if in_use:
            if job.id not in self._acquired:
                raise WorkspaceError("The checkout below that of the run is gone.")
            return self._acquired[job.id]
        plan = await self._content.plan(mirror, checkout_note.commit, workspace)
        warm = await self.warm.acquire(mirror, checkout_note.commit, workspace, plan)
        await self.release(files)
        self._acquired[job.id] = warm
        return warm

    def _existing_layers(
        self, lower: Path, files: JobPaths, checkout_note: CheckoutNote, user: int | None
    ) -> OverlayLayers:
        assert self.warm is not None  # noqa: S101  # asked by the caller
        upper, work = overlay_dirs(files)
        refs = refs_layer_dir(files)
        layers = OverlayLayers(
            lower, upper, work, self.warm.owner, refs=refs if refs.is_dir() else None
        )  # without it an earlier version made the checkout, or it has no repository
        if not checkout_note.image:
            return layers
        change_owner = checkout_note.user != user
        return replace(
            layers, upper=Path(upper.name), work=Path(work.name),
            image=disk_image_path(files), change_owner=change_owner,
        )  # fmt: skip

    async def _create_empty(self, job: Job, files: JobPaths, user: int | None) -> OverlayLayers | None:
        """Create an empty checkout: a folder, or an overlay over an empty folder if the job's disk has a limit."""
        if self.warm is not None and self._disk_limit(job) is not None:
            empty_dir = self._data_dir / "empty"
            make_dir(empty_dir, 0o755, self.warm.owner)
            return await self._create_layers(empty_dir, self.warm.owner, job, files, user)
        make_dir(files.checkout, PRIVATE, user)
        return None

    def _disk_limit(self, job: Job) -> int | None:
        return (
            self._disk_limit_of(job)
            if self._disk_limit_of is not None and self._images.is_supported()
            else None
        )

    async def _create_layers(
        self, lower: Path, owner: int, job: Job, files: JobPaths, user: int | None
    ) -> OverlayLayers:
        """Create an overlay over a lower folder. The cost does not grow with the size of the repository."""
        upper, work = overlay_dirs(files)
        size = self._disk_limit(job)
        if size is not None:
            await self._images.create(disk_image_path(files), size)
            return OverlayLayers(lower, Path(upper.name), Path(work.name), owner, disk_image_path(files))
        make_dir(upper, PRIVATE, user)
        make_dir(work, PRIVATE, user)
        return OverlayLayers(lower, upper, work, owner)

    async def _check_out_sandboxed(
        self,
        sandbox_exec: SandboxExec,
        workspace: Workspace,
        commit: str,
        files: JobPaths,
        user: int | None,
        *,
        binds: tuple[BindMount, ...],
        plan: ContentPlan,
    ) -> None:
        """Check out and run the setup in the job's own work tree, without an overlay."""
        await report_phase("checking_out")
        for folder in (files.home, files.config_dir):
            make_dir(folder, PRIVATE, user)
        checkout = service_checkout(workspace, files, user, commit, (*binds, *secret_binds(workspace)))
        parts = await check_out(sandbox_exec, checkout, plan, wait_for_clock=False)
        write_base(base_dir(files), parts)
        for folder in (files.home, files.config_dir):
            await asyncio.to_thread(remove_tree, folder)

    async def _copy_mirror_objects(self, mirror: Mirror, files: JobPaths) -> None:
        """Copy the mirror's objects, and start again if a repack moves them during the copy."""
        for attempt in range(1, _MAX_COPY_ATTEMPTS + 1):
            make_dir(files.checkout, PRIVATE)
            folder = files.checkout / ".git"
            objects = folder / "objects"
            await asyncio.to_thread(objects.mkdir, parents=True)
            try:
                await asyncio.to_thread(copy_objects, mirror.objects, objects)
            except FileNotFoundError:
                if attempt == _MAX_COPY_ATTEMPTS:
                    raise
                await asyncio.to_thread(remove_tree, files.checkout)
            else:
                return

    def rename(self, old: JobPaths, new: JobPaths) -> None:
        """Note that the checkout of one folder is now in another."""
        warm = self._acquired.pop(old.root.name, None)
        if warm is not None:
            self._acquired[new.root.name] = warm

    async def release(self, files: JobPaths) -> None:
        """Release the job's warm checkout."""
        warm = self._acquired.pop(files.root.name, None)
        if warm is not None and self.warm is not None:
            await self.warm.release(warm)

    async def sweep(self, read_note: Callable[[str], CheckoutNote | None], keep: Collection[str]) -> None:
        """Remove incomplete warm checkouts, and mark those that the notes of jobs in `keep` name as in use."""
        if self.warm is None:
            return
        await self.warm.sweep()
        for job_id in keep:
            note = read_note(job_id)
            if note is not None and note.warm is not None:
                self._acquired[job_id] = self.warm.retain(note.warm)
