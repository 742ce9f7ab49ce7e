"""A bare mirror for each repository, owned by the service. Fetches are shared, debounced and bounded."""

import asyncio
import base64
import contextlib
import hashlib
import itertools
import os
import re
import shlex
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from steadyhand.errors import WorkspaceError
from steadyhand.ports import is_reported, report_phase
from steadyhand.workspace.filesystem import PRIVATE, make_dir
from steadyhand.workspace.git import MIB, Git, GitSettings, scrub
from steadyhand.workspace.git_progress import GitProgress
from steadyhand.workspace.push_report import push_failure

HEAD_REF = "refs/steadyhand/HEAD"
COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
_INVALID_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/$|^/|\.lock$|^-|^$|\.$")
_SCHEMES = frozenset({"http", "https", "ssh", "git"})
_SCP_LIKE = re.compile(r"(?:[\w.-]+@)?[\w.-]+:(?!:)[^\s]+")
_MAX_REF_LENGTH = 1024
# Commands of a repository's own configuration that upload-pack and receive-pack could run.
_REMOTE_SIDE_CONFIG = (
    "safe.directory=*",
    f"core.hooksPath={os.devnull}",
    "core.fsmonitor=false",
    "core.alternateRefsCommand=true",  # a command that names none; it cannot be unset
    "receive.denyCurrentBranch=refuse",  # to bring a work tree up to date runs its filters
    "receive.autoGC=false",
)
_MAX_CACHED_REFS = 1000

# All imports come first: the dropped uid may not be able to read this Python's library.
_DROP_AND_EXEC = (
    "import os,sys,warnings;u,g=int(sys.argv[1]),int(sys.argv[2]);os.chdir('/');"
    "os.setgroups([]);os.setresgid(g,g,g);os.setresuid(u,u,u);os.execvp(sys.argv[3],sys.argv[3:])"
)


@dataclass(frozen=True, slots=True)
class RepositorySource:
    """The source of a repository: `url` for git, without a password; `folder` if it is local."""

    url: str
    folder: Path | None = None
    authorization: str | None = None
    """The header with the password of the URL; other users could read it in a URL on a command line."""

    @property
    def display_name(self) -> str:
        """The source for error texts, without paths of this machine."""
        return self.folder.name if self.folder is not None else scrub(self.url)


def parse_source(repository: str) -> RepositorySource:
    """Parse a workspace's `repository`: a path, a `file://` URL, or a URL with http, https, ssh or git.

    Raise `WorkspaceError` for anything else, such as transports that run a command.
    """
    if not repository or repository.startswith("-") or "\x00" in repository or "::" in repository:
        raise WorkspaceError("The repository is neither a path nor a URL.", retryable=False)
    parts = urlsplit(repository)
    if parts.scheme == "file":
        return RepositorySource(unquote(parts.path), Path(unquote(parts.path)))
    if "://" in repository:
        if parts.scheme not in _SCHEMES:
            raise WorkspaceError(f"The URL scheme '{parts.scheme}' is not supported.", retryable=False)
        if parts.password is None or parts.scheme not in {"http", "https"}:
            return RepositorySource(repository)
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
        token = base64.b64encode(pair.encode()).decode()
        url_without_login = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        return RepositorySource(url_without_login, authorization=f"Authorization: Basic {token}")
    path = Path(repository)
    if not path.is_absolute() and not path.exists() and _SCP_LIKE.fullmatch(repository):
        return RepositorySource(repository)
    return RepositorySource(str(path.absolute()), path.absolute())


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """A regular file in a commit: its path from the root, its blob, its size in bytes."""

    path: str
    blob: str
    size: int


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
        self._started = self._finished = float("-inf")
        self._failure: tuple[float, WorkspaceError] | None = None
        self._commit_cache: dict[str | None, str] = {}
        self._generation = 0

    @property
    def objects(self) -> Path:
        """The folder of the mirror's objects."""
        return self.folder / "objects"

    # --- commits ---------------------------------------------------------------------------

    async def resolve(self, ref: str | None, *, max_age: float | None = None) -> str:
        """Return the commit of a branch, a tag or a commit id; `None` is the repository's HEAD.

        The mirror may be `max_age` seconds old (the debounce if `None`). If it does not have the name, fetch once
        more. Raise `WorkspaceError`.
        """
        requested_at = time.monotonic()
        if ref is not None and (len(ref) > _MAX_REF_LENGTH or _INVALID_REF.search(ref)):
            raise WorkspaceError(f"The ref {ref[:100]!r} is not a valid name.", retryable=False)
        if ref is not None and COMMIT.fullmatch(ref) and await self._cached_commit(ref):
            return ref  # a commit never changes, so no fetch is needed
        await self._refresh(requested_at - (self._debounce if max_age is None else max_age), share=True)
        commit = await self._cached_commit(ref)
        if commit is None:
            await self._refresh(requested_at, share=False)
            commit = await self._cached_commit(ref)
        if commit is None and ref is not None and COMMIT.fullmatch(ref):
            commit = await self._fetch_commit(ref)
        if commit is None:
            name = "HEAD" if ref is None else ref
            raise WorkspaceError(f"The ref '{name}' is not in the repository.", retryable=False)
        return commit

    async def _cached_commit(self, ref: str | None) -> str | None:
        """Return the mirror's commit for a ref; git runs at most once for it between two fetches."""
        generation = self._generation
        commit = self._commit_cache.get(ref) or await self._rev_parse(ref)
        if (
            commit is not None
            and generation == self._generation
            and len(self._commit_cache) < _MAX_CACHED_REFS
        ):
            self._commit_cache[ref] = commit
        return commit

    async def _rev_parse(self, ref: str | None) -> str | None:
        if not self.folder.is_dir():
            return None
        names = [HEAD_REF] if ref in (None, "HEAD") else []
        if ref is not None and ref != "HEAD":
            names += [ref] if ref.startswith("refs/") else [f"refs/heads/{ref}", f"refs/tags/{ref}"]
            if COMMIT.fullmatch(ref) or _SHORT_COMMIT.fullmatch(ref):
                names.append(ref)
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
        return await self._rev_parse(ref)

    async def import_commit(self, repository: Path, commit: str, ref: str) -> None:
        """Fetch a commit from a bare repository of the service, and store it under `ref`. Raise `WorkspaceError`."""
        async with self._exclusive():
            await self._git.run(
                "fetch", "--quiet", "--no-write-fetch-head", "--no-auto-maintenance", "--update-shallow",
                "--", str(repository), f"+{commit}:{ref}", cwd=self.folder, seconds=self._fetch_seconds,
            )  # fmt: skip

    # --- fetching --------------------------------------------------------------------------

    async def _refresh(self, since: float, *, share: bool) -> None:
        """Fetch, unless a fetch started after `since` or (with `share`) ran while this call waited."""
        requested_at = time.monotonic()
        if self._lock.locked():
            await report_phase("fetching")  # it waits for the fetch of another job
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
                await self._lock.acquire()
        except TimeoutError as error:
            raise WorkspaceError(f"The repository '{self.source.display_name}' is busy.") from error
        try:
            yield
        finally:
            self._lock.release()

    async def _fetch(self) -> None:
        started = time.monotonic()
        try:
            await report_phase("fetching")
            await self._init()
            self.fetches += 1
            await self._run_fetch(
                "--prune", f"+HEAD:{HEAD_REF}", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"
            )
        except WorkspaceError as error:
            failed = WorkspaceError(
                f"The repository '{self.source.display_name}' could not be fetched: {error.detail}"
            )
            self._failure = (time.monotonic(), failed)
            raise failed from error
        self._started, self._finished = started, time.monotonic()
        await self._git.run(
            "gc", "--auto", "--quiet", cwd=self.folder, seconds=self._fetch_seconds, check=False
        )

    async def _fetch_commit(self, commit: str) -> str | None:
        """Fetch one commit that no branch or tag reaches; some servers refuse this."""
        async with self._exclusive():
            with contextlib.suppress(WorkspaceError):
                await self._run_fetch(f"+{commit}:refs/steadyhand/commits/{commit}")
        return await self._cached_commit(commit)

    async def _run_fetch(self, *arguments: str) -> None:
        options = [argument for argument in arguments if argument.startswith("--")]
        refspecs = [argument for argument in arguments if not argument.startswith("--")]
        upload_pack = self._remote_command("upload-pack")
        if upload_pack is not None:
            options.append(f"--upload-pack={upload_pack}")
        try:
            await self._run_remote_fetch(options, refspecs)
        finally:
            self._generation += 1
            self._commit_cache.clear()

    async def _run_remote_fetch(self, options: Sequence[str], refspecs: Sequence[str]) -> None:
        progress = (
            ("--progress",) if is_reported() else ()
        )  # with --quiet it prints the progress and nothing else
        await self._remote.run(
            "fetch", "--quiet", *progress, "--no-write-fetch-head", "--no-auto-maintenance", "--update-shallow",
            *options, "--", self.source.url, *refspecs, cwd=self.folder, seconds=self._fetch_seconds,
            on_stderr=GitProgress().feed if progress else None,
        )  # fmt: skip

    async def push(self, repository: Path, commit: str, branch: str, *, seconds: float) -> None:
        """Push `commit` of a bare repository of the service to `branch` of the source. Raise `WorkspaceError`.

        A branch with this name is replaced: an earlier run pushed it.
        """
        receive_pack = self._remote_command("receive-pack")
        options = [] if receive_pack is None else [f"--receive-pack={receive_pack}"]
        result = await self._remote.run(
            "push", "--quiet", "--porcelain", "--no-verify", "--force", *options,
            "--", self.source.url, f"{commit}:refs/heads/{branch}", cwd=repository, seconds=seconds, check=False,
        )  # fmt: skip
        if result.code != 0:
            raise WorkspaceError(f"git push failed: {push_failure(result)}")

    def _remote_command(self, verb: str) -> str | None:
        """Return the command that serves a local repository as its owner, without its code; `None` for a remote one.

        Anybody may have written its configuration and hooks, such as an agent that worked in place. Git does not pass
        the service's configuration to the other side, so it is repeated here.
        """
        folder = self.source.folder
        if folder is None:
            return None
        command = ["git", *itertools.chain.from_iterable(("-c", pair) for pair in _REMOTE_SIDE_CONFIG), verb]
        owner = repository_owner(folder)
        if owner is not None:
            command = [
                sys.executable,
                "-I",
                "-S",
                "-c",
                _DROP_AND_EXEC,
                str(owner[0]),
                str(owner[1]),
                *command,
            ]
        return shlex.join(command)

    async def _init(self) -> None:
        if self.source.folder is not None and not self.source.folder.is_dir():
            raise WorkspaceError("the directory does not exist", retryable=False)
        if (self.folder / "HEAD").is_file():
            self._drop_stale_locks()
            return
        make_dir(self.folder.parent, PRIVATE)
        make_dir(self.folder, PRIVATE)
        await self._git.run("init", "--quiet", "--bare", "--template=", ".", cwd=self.folder)

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
        upload_pack = self._remote_command("upload-pack")
        options = [] if upload_pack is None else [f"--upload-pack={upload_pack}"]
        await self._remote.run(
            "ls-remote", "--quiet", *options, "--", self.source.url, "HEAD", cwd=cwd, seconds=seconds
        )

    # --- reading ---------------------------------------------------------------------------

    async def refs(self) -> Sequence[tuple[str, str]]:
        """Return every branch and tag with the id of its object."""
        result = await self._git.run(
            "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags",
            cwd=self.folder, limit=64 * MIB,
        )  # fmt: skip
        pairs = (line.partition(" ") for line in result.text.splitlines())
        return [(name, value) for value, _, name in pairs]

    async def list_files(self, commit: str, paths: Sequence[str]) -> Sequence[TreeEntry]:
        """Return the regular files at or under these paths in a commit, without symlinks and submodules."""
        return await list_tree_files(self._git, self.folder, commit, paths)

    async def read_blobs(self, entries: Sequence[TreeEntry], limit: int) -> Sequence[bytes]:
        """Return the content of files as committed, without filters. Raise `WorkspaceError` above `limit` bytes."""
        return await read_tree_blobs(self._git, self.folder, entries, limit)


async def list_tree_files(git: Git, folder: Path, commit: str, paths: Sequence[str]) -> Sequence[TreeEntry]:
    """Return part of a commit's tree; see `Mirror.list_files`."""
    result = await git.run("ls-tree", "-r", "-z", "--long", "--full-tree", commit, "--", *paths, cwd=folder)
    entries = []
    for line in result.stdout.split(b"\x00"):
        head, _, name = line.partition(b"\t")
        fields = head.split()
        if len(fields) == 4 and fields[0].startswith(b"100"):  # noqa: PLR2004  # mode, type, blob, size
            with contextlib.suppress(UnicodeDecodeError):
                entries.append(TreeEntry(name.decode("utf-8"), fields[2].decode(), int(fields[3])))
    return entries


async def read_tree_blobs(
    git: Git, folder: Path, entries: Sequence[TreeEntry], limit: int
) -> Sequence[bytes]:
    """Return blobs by their ids; see `Mirror.read_blobs`."""
    if not entries:
        return []
    ids = "".join(f"{entry.blob}\n" for entry in entries).encode()
    result = await git.run("cat-file", "--batch", cwd=folder, stdin=ids, limit=limit + 128 * len(entries))
    contents, offset = [], 0
    for _ in entries:
        end = result.stdout.index(b"\n", offset)
        size = int(result.stdout[offset:end].split()[2])
        contents.append(result.stdout[end + 1 : end + 1 + size])
        offset = end + 1 + size + 1
    return contents


def repository_owner(folder: Path) -> tuple[int, int] | None:
    """Return the uid and gid that read a local repository; `None` if the service itself does."""
    try:
        info = (folder / ".git").lstat() if (folder / ".git").exists() else folder.stat()
    except OSError as error:
        raise WorkspaceError("the directory cannot be read", retryable=False) from error
    if os.geteuid() != 0 or info.st_uid == 0:
        return None
    return info.st_uid, info.st_gid


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


def remote_config(source: RepositorySource, settings: GitSettings) -> list[tuple[str, str]]:
    pairs = [("http.lowSpeedLimit", "1000"), ("http.lowSpeedTime", "30"), ("fetch.unpackLimit", "1000")]
    if settings.credential_file is not None:
        pairs.append(("credential.helper", f"store --file={shlex.quote(str(settings.credential_file))}"))
    if settings.ca_file is not None:
        pairs.append(("http.sslCAInfo", str(settings.ca_file)))
    if source.authorization is not None:
        pairs.append((f"http.{source.url}.extraHeader", source.authorization))
    return pairs


def remote_environment(settings: GitSettings, folder: Path) -> dict[str, str]:
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "StrictHostKeyChecking=accept-new"]
    ssh += ["-o", f"UserKnownHostsFile={folder / 'known_hosts'}"]
    if settings.ssh_key_file is not None:
        ssh += ["-o", "IdentitiesOnly=yes", "-i", str(settings.ssh_key_file)]
    return {"GIT_SSH_COMMAND": shlex.join(ssh)}
