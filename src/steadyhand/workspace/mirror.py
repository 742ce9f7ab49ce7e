"""A bare mirror for each repository, owned by the service. Fetches are shared, debounced and bounded."""

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from steadyhand.errors import WorkspaceError
from steadyhand.ports import ProgressRelay, is_reported, report_phase
from steadyhand.workspace import ref_names
from steadyhand.workspace.fetch_errors import MISMATCHED_FORMATS, MISSING_REF, RemoteGitError, explain
from steadyhand.workspace.fetched_refs import (
    MAX_REFS_BYTES,
    ORIGIN,
    parse_ref_listing,
    read_refs_state,
    to_packed_refs,
    write_if_changed,
)
from steadyhand.workspace.filesystem import PRIVATE, make_dir, remove_tree
from steadyhand.workspace.git import Git, GitSettings
from steadyhand.workspace.git_progress import GitProgress, wait_for_fetch
from steadyhand.workspace.push_report import push_failure
from steadyhand.workspace.ref_names import COMMIT, FETCHED_PREFIX, HEAD_REF
from steadyhand.workspace.repository_source import (
    RepositorySource,
    parse_source,
    remote_config,
    remote_environment,
    serving_command,
)
from steadyhand.workspace.sandboxed_git import read_packed_refs
from steadyhand.workspace.tree_files import TreeEntry, list_tree_files, read_tree_blobs

_MAX_CACHED_REFS = 1000
_FAILURE_SECONDS = 60.0
_OPTIONAL_FETCH_SECONDS = 60.0
_REACHED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class BaseCommit:
    """The commit that a name means. `foreign_ref` is the full name of a ref that is neither a branch nor a tag.

    `by_id` is True if the commit was named by its id. `fetch_failure` is the failure of a fetch that was not needed for
    the commit: the branches and tags may be old.
    """

    commit: str
    foreign_ref: str | None = None
    by_id: bool = False
    fetch_failure: WorkspaceError | None = None


class Mirror:
    """One repository's mirror. `fetches` counts the fetches that were made."""

    def __init__(
        self,
        source: RepositorySource,
        folder: Path,
        settings: GitSettings,
        *,
        debounce_seconds: float = 2.0,
        fetch_seconds: float = 300.0,
    ) -> None:
        """Keep the settings of a mirror in `folder`; nothing is created before the first fetch."""
        self.source = source
        self.folder = folder
        self.fetches = 0
        self._debounce = debounce_seconds
        self._fetch_seconds = fetch_seconds
        self._git = Git()
        self._remote = Git(
            env=remote_environment(settings, folder.parent), config=remote_config(source, settings)
        )
        self._lock = asyncio.Lock()
        self._relay = ProgressRelay()
        self._started = self._finished = float("-inf")
        self._failure: tuple[float, WorkspaceError] | None = None
        self._commit_cache: dict[str | None, str] = {}
        self._generation = 0
        self._reached: dict[str, bool] = {}
        self._fetched_at: dict[str, float] = {}
        self._refs_file_current = False

    @property
    def objects(self) -> Path:
        """The folder of the mirror's objects."""
        return self.folder / "objects"

    # --- commits ---------------------------------------------------------------------------

    async def resolve(self, ref: str | None, *, max_age: float | None = None) -> str:
        """Return the commit of a ref; see `resolve_base`."""
        return (await self.resolve_base(ref, max_age=max_age)).commit

    async def resolve_base(self, ref: str | None, *, max_age: float | None = None) -> BaseCommit:
        """Resolve a branch, a tag, a commit id or another ref of the repository; `None` is the repository's HEAD.

        The mirror may be `max_age` seconds old (the debounce if `None`). If it does not have the name, fetch once
        more. A failed fetch is an error only if it is needed for the commit. Raise `WorkspaceError`.
        """
        requested_at = time.monotonic()
        if ref is not None and not ref_names.is_valid(ref):
            raise WorkspaceError(f"The ref {ref[:100]!r} is not a valid name.", retryable=False)
        since = requested_at - (self._debounce if max_age is None else max_age)
        if ref is not None and COMMIT.fullmatch(ref) and await self._own_commit(ref):
            failure = await self.try_refresh(since)
            return BaseCommit(ref, by_id=True, fetch_failure=failure)
        await self._refresh(since, share=True)
        commit = await self._own_commit(ref)
        foreign = ref_names.foreign_name(ref)
        if commit is None and foreign != ref:
            await self._refresh(requested_at, share=False)
            commit = await self._own_commit(ref)
        if commit is not None:
            by_id = commit.startswith(ref or "-")
            return BaseCommit(commit, by_id=by_id)
        if foreign is not None:
            commit = await self._fetch_on_demand(foreign, since)
        if commit is not None:
            return BaseCommit(commit, foreign_ref=foreign)
        if ref is not None and COMMIT.fullmatch(ref):
            commit = await self._fetch_commit(ref)
        if commit is not None:
            return BaseCommit(commit, by_id=True)
        raise WorkspaceError(await self._missing_text(ref), retryable=False)

    async def _missing_text(self, ref: str | None) -> str:
        if ref not in (None, "HEAD"):
            return f"The ref '{ref}' is not in the repository."
        refs = read_packed_refs((await self.refs_file()).read_bytes())
        if not refs:
            return "The repository has no commit yet."
        branches = sorted(name for name in refs if name.startswith(ORIGIN))
        example = os.fsdecode((branches or sorted(refs))[0]).removeprefix(os.fsdecode(ORIGIN))
        return f"The HEAD of the repository names no branch. Set a ref, such as '{example[:100]}'."

    async def is_reached(self, commit: str) -> bool:
        """Return True if a branch, a tag or HEAD of the mirror reaches a commit; False also if that takes too long."""
        if commit in self._reached:
            return self._reached[commit]
        generation = self._generation
        head = [HEAD_REF] if await self._rev_parse([HEAD_REF]) else []
        try:
            result = await self._git.run(
                "rev-list", "--max-count=1", commit, "--not", "--branches", "--tags", *head,
                cwd=self.folder, seconds=_REACHED_SECONDS,
            )  # fmt: skip
        except WorkspaceError:
            return False
        if generation == self._generation and len(self._reached) < _MAX_CACHED_REFS:
            self._reached[commit] = not result.text
        return not result.text

    async def _own_commit(self, ref: str | None) -> str | None:
        """Return the mirror's commit for a name; git runs at most once for it between two fetches."""
        generation = self._generation
        if ref in self._commit_cache:
            return self._commit_cache[ref]
        whole = ref is not None and COMMIT.fullmatch(ref)
        names = [] if whole else ref_names.own_names(ref)
        if ref is not None and ref_names.may_be_commit(ref):
            names.append(ref)
        commit = await self._rev_parse(names)
        if (
            commit is not None
            and generation == self._generation
            and len(self._commit_cache) < _MAX_CACHED_REFS
        ):
            self._commit_cache[ref] = commit
        return commit

    async def _rev_parse(self, names: Sequence[str]) -> str | None:
        if not self.folder.is_dir():
            return None
        for name in names:
            result = await self._git.run(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}",
                cwd=self.folder, check=False,
            )  # fmt: skip
            if result.code == 0 and COMMIT.fullmatch(result.text):
                return result.text
        return None

    async def find_commit(self, ref: str) -> str | None:
        """Return the commit of a full ref that the mirror has, without a fetch, or `None`."""
        return await self._rev_parse([ref])

    async def tree_of(self, commit: str) -> str:
        """Return the id of a commit's tree. Raise `WorkspaceError` if the mirror does not have it."""
        return (await self._git.run("rev-parse", "--verify", f"{commit}^{{tree}}", cwd=self.folder)).text

    async def import_commit(self, repository: Path, commit: str, ref: str) -> None:
        """Fetch a commit from a bare repository of the service, and store it under `ref`. Raise `WorkspaceError`."""
        async with self._exclusive():
            await self._git.run(
                "fetch", "--quiet", "--no-write-fetch-head", "--no-auto-maintenance", "--update-shallow",
                "--", str(repository), f"+{commit}:{ref}", cwd=self.folder, seconds=self._fetch_seconds,
            )  # fmt: skip

    # --- fetching --------------------------------------------------------------------------

    async def try_refresh(self, since: float | None = None) -> WorkspaceError | None:
        """Fetch unless a fetch started after `since` (the debounce if `None`), and return the failure.

        After a failure, wait a minute before the next try.
        """
        since = time.monotonic() - self._debounce if since is None else since
        if self._failure is not None and self._failure[0] >= time.monotonic() - _FAILURE_SECONDS:
            return self._failure[1]
        try:
            async with asyncio.timeout(_OPTIONAL_FETCH_SECONDS):
                await self._refresh(since, share=True)
        except TimeoutError:
            self._failure = (time.monotonic(), self._failed(WorkspaceError("It took too long.")))
            return self._failure[1]
        except WorkspaceError as error:
            return error
        return None

    async def _refresh(self, since: float, *, share: bool) -> None:
        """Fetch, unless a fetch started after `since` or (with `share`) ran while this call waited."""
        requested_at = time.monotonic()
        async with self._exclusive():
            if self._started >= since or (share and self._finished >= requested_at):
                return
            if self._failure is not None and self._failure[0] >= requested_at:
                failure = self._failure[1]
                raise WorkspaceError(failure.detail, retryable=failure.retryable) from failure
            await self._fetch()

    @contextlib.asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        """Lock the mirror for one fetch; wait at most as long as two fetches may take."""
        try:
            async with asyncio.timeout(2 * self._fetch_seconds):
                await wait_for_fetch(self._lock, self._relay)
        except TimeoutError as error:
            raise WorkspaceError(f"The repository '{self.source.display_name}' is busy.") from error
        try:
            yield
        finally:
            self._lock.release()

    async def _fetch(self) -> None:
        started, was_current, generation = time.monotonic(), self._refs_file_current, self._generation
        self._refs_file_current = False
        try:
            await report_phase("fetching")
            await self._init()
            self.fetches += 1
            await self._fetch_all()
        except WorkspaceError as error:
            failed = self._failed(error)
            self._failure = (time.monotonic(), failed)
            raise failed from error
        self._failure = None
        self._started, self._finished = started, time.monotonic()
        if was_current and generation == self._generation:
            self._refs_file_current = True  # nothing has changed
            return
        await self._write_refs_file()
        await self._git.run(
            "gc", "--auto", "--quiet", cwd=self.folder, seconds=self._fetch_seconds, check=False
        )

    def _failed(self, error: WorkspaceError) -> WorkspaceError:
        text = f"The repository '{self.source.display_name}' could not be fetched: {error.detail}"
        return WorkspaceError(text, retryable=error.retryable)

    async def _fetch_all(self) -> None:
        """Fetch the branches, the tags and HEAD. A pattern for HEAD, since git fails for a name that is not there."""
        refspecs = (f"+HEAD*:{HEAD_REF}*", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        for is_last in (False, True):
            try:
                await self._run_fetch("--prune", *refspecs)
            except RemoteGitError as error:
                mismatch = MISMATCHED_FORMATS.search(error.stderr)
                if mismatch is None or is_last or self._has_refs():
                    raise
                await asyncio.to_thread(remove_tree, self.folder)
                await self._init(mismatch[2])
            else:
                return

    def _has_refs(self) -> bool:
        return (self.folder / "packed-refs").exists() or any((self.folder / "refs").glob("*/*"))

    async def _fetch_on_demand(self, name: str, since: float) -> str | None:
        """Fetch one ref that is neither a branch nor a tag; return None if the repository does not have it."""
        local = f"{FETCHED_PREFIX}{name}"
        async with self._exclusive():
            if self._fetched_at.get(name, float("-inf")) < since:
                started = time.monotonic()
                try:
                    await self._run_fetch("--no-tags", f"+{name}:{local}")
                except RemoteGitError as error:
                    if MISSING_REF.search(error.stderr):
                        return None
                    raise self._failed(error) from error
                while len(self._fetched_at) >= _MAX_CACHED_REFS:
                    self._fetched_at.pop(next(iter(self._fetched_at)))
                self._fetched_at[name] = started
            return await self._rev_parse([local])

    async def _fetch_commit(self, commit: str) -> str | None:
        """Fetch one commit that no branch or tag reaches; some servers refuse this."""
        async with self._exclusive():
            try:
                await self._run_fetch("--no-tags", f"+{commit}:refs/steadyhand/commits/{commit}")
            except RemoteGitError as error:
                if MISSING_REF.search(error.stderr):
                    return None
                raise self._failed(error) from error
        return await self._own_commit(commit)

    async def _run_fetch(self, *arguments: str) -> None:
        options = [argument for argument in arguments if argument.startswith("--")]
        refspecs = [argument for argument in arguments if not argument.startswith("--")]
        upload_pack = serving_command(self.source, "upload-pack")
        if upload_pack is not None:
            options.append(f"--upload-pack={upload_pack}")
        before, has_changed = await asyncio.to_thread(read_refs_state, self.folder), True
        try:
            await self._run_remote_fetch(options, refspecs)
            has_changed = before is None or before != await asyncio.to_thread(read_refs_state, self.folder)
        finally:
            if has_changed:
                self._generation += 1
                self._commit_cache.clear()
                self._reached.clear()

    async def _run_remote_fetch(self, options: Sequence[str], refspecs: Sequence[str]) -> None:
        progress = (
            ("--progress",) if is_reported() else ()
        )  # with --quiet it prints the progress and nothing else
        result = await self._remote.run(
            "fetch", "--quiet", *progress, "--no-write-fetch-head", "--no-auto-maintenance", "--update-shallow",
            *options, "--", self.source.url, *refspecs, cwd=self.folder, seconds=self._fetch_seconds,
            on_stderr=GitProgress(self._relay.report).feed if progress else None, check=False,
        )  # fmt: skip
        if result.code != 0:
            raise explain(result.reason, result.stderr)

    async def push(self, repository: Path, commit: str, branch: str, *, seconds: float) -> None:
        """Push `commit` of a bare repository of the service to `branch` of the source. Raise `WorkspaceError`.

        A branch with this name is replaced: an earlier run pushed it.
        """
        receive_pack = serving_command(self.source, "receive-pack")
        options = [] if receive_pack is None else [f"--receive-pack={receive_pack}"]
        result = await self._remote.run(
            "push", "--quiet", "--porcelain", "--no-verify", "--force", *options,
            "--", self.source.url, f"{commit}:refs/heads/{branch}", cwd=repository, seconds=seconds, check=False,
        )  # fmt: skip
        if result.code != 0:
            raise WorkspaceError(f"git push failed: {push_failure(result)}")

    async def _init(self, object_format: str = "sha1") -> None:
        if self.source.folder is not None and not self.source.folder.is_dir():
            raise WorkspaceError("the directory does not exist", retryable=False)
        if (self.folder / "HEAD").is_file():
            self._drop_stale_locks()
            return
        make_dir(self.folder.parent, PRIVATE)
        make_dir(self.folder, PRIVATE)
        await self._git.run(
            "init", "--quiet", "--bare", "--template=", f"--object-format={object_format}", ".",
            cwd=self.folder,
        )  # fmt: skip

    def _drop_stale_locks(self) -> None:
        """Remove locks that a killed git left long ago. Only this service uses the data directory."""
        if self._finished > float("-inf"):
            return
        for lock in (*self.folder.glob("*.lock"), *self.folder.glob("refs/**/*.lock")):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - lock.stat().st_mtime > self._fetch_seconds:
                    lock.unlink()

    async def check_reachable(self, cwd: Path, seconds: float) -> None:
        """Read the HEAD of the repository without a fetch. Raise `WorkspaceError`."""
        if self.source.folder is not None and not self.source.folder.is_dir():
            raise WorkspaceError("The directory does not exist.", retryable=False)
        upload_pack = serving_command(self.source, "upload-pack")
        options = [] if upload_pack is None else [f"--upload-pack={upload_pack}"]
        result = await self._remote.run(
            "ls-remote", "--quiet", *options, "--", self.source.url, "HEAD",
            cwd=cwd, seconds=seconds, check=False,
        )  # fmt: skip
        if result.code != 0:
            raise explain(result.reason, result.stderr)

    # --- reading ---------------------------------------------------------------------------

    async def refs_file(self) -> Path:
        """Return a file with the refs that a job begins with: the branches and tags of the newest fetch.

        Its content is that of the job's `packed-refs`. It never changes: after a fetch that changes a ref, another
        file is at the path.
        """
        if not self._refs_file_current:
            async with self._exclusive():  # no fetch changes half of the refs meanwhile
                if not self._refs_file_current:
                    await self._write_refs_file()
        return self._refs_file

    @property
    def _refs_file(self) -> Path:
        return self.folder / "refs-of-jobs"

    async def _write_refs_file(self) -> None:
        result = await self._git.run(
            "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags",
            cwd=self.folder, limit=MAX_REFS_BYTES,
        )  # fmt: skip
        content = to_packed_refs(parse_ref_listing(result.stdout))
        await asyncio.to_thread(write_if_changed, self._refs_file, content)
        self._refs_file_current = True

    async def pack_new(self, old: Sequence[bytes], new: Sequence[bytes], pack: Path, *, limit: int) -> None:
        """Write a pack with all objects that `new` reach and `old` do not; both are ids. Raise `WorkspaceError`."""
        lines = [*new, *(b"^" + value for value in old)]
        with pack.open("wb") as file:
            await self._git.run(
                "pack-objects", "--quiet", "--stdout", "--revs", cwd=self.folder,
                stdin=b"".join(line + b"\n" for line in lines), stdout_file=file, limit=limit,
                seconds=self._fetch_seconds,
            )  # fmt: skip

    async def list_files(self, commit: str, paths: Sequence[str]) -> Sequence[TreeEntry]:
        """Return the regular files at or under these paths in a commit, without symlinks and submodules."""
        return await list_tree_files(self._git, self.folder, commit, paths)

    async def read_blobs(self, entries: Sequence[TreeEntry], limit: int) -> Sequence[bytes]:
        """Return the content of files as committed, without filters. Raise `WorkspaceError` above `limit` bytes."""
        return await read_tree_blobs(self._git, self.folder, entries, limit)


class Mirrors:
    """The mirrors of a data directory, one for each repository."""

    def __init__(self, folder: Path, settings: GitSettings, *, debounce_seconds: float = 2.0) -> None:
        """Keep mirrors in `folder`."""
        self._folder = folder
        self._settings = settings
        self._debounce = debounce_seconds
        self._mirrors: dict[str, Mirror] = {}

    def get(self, repository: str) -> Mirror:
        """Return a repository's mirror. Raise `WorkspaceError` if `repository` is neither a path nor a URL."""
        source = parse_source(repository)
        # Another password means another mirror: a copy must not replace the right to read.
        identity = f"{source.url}\n{source.authorization or ''}".encode("utf-8", "surrogateescape")
        name = hashlib.sha256(identity).hexdigest()[:16]
        if name not in self._mirrors:
            folder = self._folder / f"{name}.git"
            self._mirrors[name] = Mirror(source, folder, self._settings, debounce_seconds=self._debounce)
        return self._mirrors[name]

    async def delete_ref(self, folder_name: str, ref: str) -> None:
        """Delete a ref of the mirror with this folder's name, if there is one. Raise `WorkspaceError`."""
        folder = self._folder / Path(folder_name).name
        if folder.is_dir():
            await Git().run("update-ref", "-d", ref, cwd=folder)

    async def check_reachable(self, repository: str, *, seconds: float = 15.0) -> None:
        """Connect to a repository without a fetch. Raise `WorkspaceError`."""
        await self.get(repository).check_reachable(self._folder.parent, seconds)
