"""Find the content that a commit only points to: submodules, and files of Git LFS.

`.gitmodules` and `.gitattributes` are read from the commit, never from a work tree, and are as hostile as any other
file of it.
"""

import asyncio
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steadyhand.errors import WorkspaceError
from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.workspace.git import MIB, Git, scrub
from steadyhand.workspace.mirror import Mirror

MAX_TREE_BYTES = 128 * MIB
"""The longest list of files that is looked through; a commit with a longer one is taken to have no such content."""
MAX_MODULES_BYTES = 1 * MIB
MAX_POINTER_BYTES = 1024
"""The size of the largest pointer file; the specification of Git LFS has the same."""
_MAX_ATTRIBUTES_BYTES = 256 * 1024
_MAX_ATTRIBUTES_FILES = 1000
_MAX_CACHED = 64
_MAX_NAMED = 20
_MODULES_FILE, _ATTRIBUTES_FILE, _LFS_CONFIG_FILE = b".gitmodules", b".gitattributes", b".lfsconfig"
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:ext-[^\n]+\n)*oid sha256:([0-9a-f]{64})\nsize ([0-9]{1,15})\n"
)
_CONFIG_KEY = re.compile(rb"submodule\.(.+)\.(path|url)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Submodule:
    """A submodule as the commit names it: `url` and `name` are those of `.gitmodules`, `None` without a valid entry."""

    path: str
    commit: str
    name: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class LfsFile:
    """A pointer file, with the SHA-256 and the size of the content that it stands for."""

    path: str
    oid: str
    size: int

    @property
    def pointer(self) -> bytes:
        """The pointer file in its usual form."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {self.size}\n".encode(
                "ascii"
            )
        )


@dataclass(frozen=True, slots=True)
class ExternalContent:
    """The submodules and the LFS files of a commit."""

    submodules: tuple[Submodule, ...] = ()
    lfs_files: tuple[LfsFile, ...] = ()
    unusual_pointers: tuple[str, ...] = ()
    """The paths of pointer files in another form than git-lfs writes today."""
    lfs_url: str | None = None
    """The address in `.lfsconfig`."""


class ExternalContentCache:
    """The external content of commits; the latest ones are cached."""

    def __init__(self) -> None:
        self._cache: dict[tuple[str, str], ExternalContent] = {}

    async def load(self, mirror: Mirror, commit: str) -> ExternalContent:
        """Return the external content of a commit of the mirror. Raise `WorkspaceError`."""
        key = (mirror.folder.name, commit)
        if key not in self._cache:
            content = await find_external_content(mirror.folder, commit)
            while len(self._cache) >= _MAX_CACHED:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = content
        return self._cache[key]


@dataclass(frozen=True, slots=True)
class _Listing:
    gitlinks: Sequence[tuple[bytes, str]]
    modules_blob: str | None
    lfs_config_blob: str | None
    attributes_blobs: Sequence[str]
    small_files: Mapping[bytes, str]


async def find_external_content(folder: Path, commit: str) -> ExternalContent:
    """Return the external content of a commit of a repository of the service. Raise `WorkspaceError`."""
    git = Git(env={"GIT_NO_REPLACE_OBJECTS": "1"})
    result = await git.run(
        "ls-tree", "-r", "-z", "--long", "--full-tree", commit, cwd=folder, limit=MAX_TREE_BYTES, check=False
    )
    if result.overflowed:
        return ExternalContent()
    if result.code != 0:
        raise WorkspaceError(f"The files of the commit could not be listed: {result.reason}")
    listing = await asyncio.to_thread(_parse_listing, result.stdout)
    submodules: tuple[Submodule, ...] = ()
    if listing.gitlinks:
        entries = await _read_modules(git, folder, listing.modules_blob)
        submodules = tuple(
            Submodule(os.fsdecode(path), target, *entries.get(path, (None, None)))
            for path, target in listing.gitlinks
        )
    lfs_files, unusual = await _find_lfs_files(git, folder, commit, listing)
    lfs_url = None
    if lfs_files and listing.lfs_config_blob is not None:
        lfs_url = (await _read_config(git, folder, listing.lfs_config_blob)).get(b"lfs.url")
    return ExternalContent(submodules, lfs_files, unusual, None if lfs_url is None else os.fsdecode(lfs_url))


def _parse_listing(out: bytes) -> _Listing:
    gitlinks: list[tuple[bytes, str]] = []
    attributes: list[str] = []
    small: dict[bytes, str] = {}
    modules = lfs_config = None
    for line in out.split(b"\x00"):
        head, _, name = line.partition(b"\t")
        mode, _, rest = head.partition(b" ")
        fields = rest.split()
        if mode == b"160000":
            gitlinks.append((name, fields[1].decode("ascii")))
        elif mode.startswith(b"100") and fields[2].isdigit():
            blob, size = fields[1].decode("ascii"), int(fields[2])
            if name == _MODULES_FILE and size <= MAX_MODULES_BYTES:
                modules = blob
            elif name == _LFS_CONFIG_FILE and size <= MAX_MODULES_BYTES:
                lfs_config = blob
            elif name.rpartition(b"/")[2] == _ATTRIBUTES_FILE:
                if size <= _MAX_ATTRIBUTES_BYTES and len(attributes) < _MAX_ATTRIBUTES_FILES:
                    attributes.append(blob)
            elif size <= MAX_POINTER_BYTES:
                small[name] = blob
    return _Listing(gitlinks, modules, lfs_config, attributes, small)


async def _read_modules(
    git: Git, folder: Path, blob: str | None
) -> Mapping[bytes, tuple[str | None, str | None]]:
    """Return name and URL of the submodules in `.gitmodules`, by their paths. What is no configuration is empty."""
    values: dict[bytes, dict[bytes, bytes]] = {}
    for key, value in (await _read_config(git, folder, blob) if blob is not None else {}).items():
        match = _CONFIG_KEY.fullmatch(key)
        if match is not None:
            values.setdefault(match[1], {})[match[2]] = value
    return {
        each[b"path"]: (os.fsdecode(name), os.fsdecode(each[b"url"]))
        for name, each in values.items()
        if b"path" in each and b"url" in each
    }


async def _read_config(git: Git, folder: Path, blob: str) -> Mapping[bytes, bytes]:
    """Return the values of a file in git's form by their keys; what is no such file is empty."""
    result = await git.run(
        "config", "--no-includes", "--blob", blob, "-z", "--list", cwd=folder, limit=4 * MIB, check=False
    )
    pairs = (entry.partition(b"\n") for entry in result.stdout.split(b"\x00") if entry)
    return {key: value for key, _, value in pairs} if result.code == 0 else {}


async def _find_lfs_files(
    git: Git, folder: Path, commit: str, listing: _Listing
) -> tuple[tuple[LfsFile, ...], tuple[str, ...]]:
    """Return the pointer files that an attribute `filter=lfs` holds for, and the paths of those in an unusual form."""
    attributes = await _read_blobs(git, folder, listing.attributes_blobs, MIB * 64)
    if not listing.small_files or not any(b"filter=lfs" in text for text in attributes):
        return (), ()
    paths = await _with_lfs_attribute(folder, commit, list(listing.small_files))
    contents = await _read_blobs(git, folder, [listing.small_files[path] for path in paths], MAX_TREE_BYTES)
    files, unusual = [], []
    for path, content in zip(paths, contents, strict=True):
        match = _POINTER.fullmatch(content)
        if match is not None:
            file = LfsFile(os.fsdecode(path), match[1].decode("ascii"), int(match[2]))
            files.append(file)
            if file.pointer != content:
                unusual.append(file.path)
    return tuple(files), tuple(unusual)


async def _with_lfs_attribute(folder: Path, commit: str, paths: Sequence[bytes]) -> list[bytes]:
    with tempfile.TemporaryDirectory(prefix="steadyhand-attributes-") as scratch:
        indexed = Git(env={"GIT_INDEX_FILE": str(Path(scratch) / "index")})
        await indexed.run("read-tree", commit, cwd=folder)
        result = await indexed.run(
            "check-attr", "--cached", "-z", "--stdin", "filter", cwd=folder,
            stdin=b"".join(path + b"\x00" for path in paths), limit=2 * MAX_TREE_BYTES,
        )  # fmt: skip
    fields = result.stdout.split(b"\x00")
    triples = zip(fields[0::3], fields[2::3], strict=False)  # path, attribute, value
    return [path for path, value in triples if value == b"lfs"]


async def _read_blobs(git: Git, folder: Path, blobs: Sequence[str], limit: int) -> Sequence[bytes]:
    if not blobs:
        return []
    stdin = "".join(f"{blob}\n" for blob in blobs).encode("ascii")
    result = await git.run("cat-file", "--batch", cwd=folder, stdin=stdin, limit=limit + 128 * len(blobs))
    contents, offset = [], 0
    for _ in blobs:
        end = result.stdout.index(b"\n", offset)
        size = int(result.stdout[offset:end].split()[2])
        contents.append(result.stdout[end + 1 : end + 1 + size])
        offset = end + 1 + size + 1
    return contents


def missing_content_warnings(content: ExternalContent, reason: str | None = None) -> tuple[JobWarning, ...]:
    """Return the warnings about content that a checkout has no more than the pointers of, with the reason if set."""
    end = "." if reason is None else f" ({reason})."
    warnings = []
    if content.submodules:
        names = list_names([each.path for each in content.submodules])
        text = f"The submodules are empty folders: {names}{end}"
        warnings.append(JobWarning(WarningCode.SUBMODULES_EMPTY, text))
    if content.lfs_files:
        names = list_names([each.path for each in content.lfs_files])
        text = f"Files of Git LFS are pointers without their content: {names}{end}"
        warnings.append(JobWarning(WarningCode.LFS_POINTERS, text))
    return tuple(warnings)


def list_names(names: Sequence[str]) -> str:
    """Return names of a repository in one line of bounded length."""
    shown = [scrub(" ".join(_printable(name).split()))[:200] for name in names[:_MAX_NAMED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _printable(name: str) -> str:
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
