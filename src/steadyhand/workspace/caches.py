"""Caches of package managers that the jobs of one workspace share, read and write."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from steadyhand.agents import NAME_PATTERN, Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.ports import BindMount
from steadyhand.workspace.filesystem import PRIVATE, TRAVERSABLE, make_dir

_AGENT_HOME = Path("/home/agent")
CACHE_DIRS: Mapping[str, Sequence[str]] = {
    "pip": (".cache/pip",),
    "npm": (".npm",),
    "cargo": (".cargo/registry", ".cargo/git"),
    "go": ("go/pkg/mod", ".cache/go-build"),
}
"""The cache directory of each package manager, below the agent's home."""


class SharedCaches:
    """The shared caches of a data directory, in `folder`; on disk they belong to `owner` (`None` is the service)."""

    def __init__(self, folder: Path, owner: int | None) -> None:
        self._folder = folder
        self._owner = owner

    def binds_for(self, workspace: Workspace) -> tuple[BindMount, ...]:
        """Return the bind mounts of a workspace's caches, and create the missing folders. Blocks."""
        if not workspace.caches:
            return ()
        name = workspace.name
        if NAME_PATTERN.fullmatch(name) is None:  # a path or a URL
            name = "-" + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        binds = []
        for cache in workspace.caches:
            if cache not in CACHE_DIRS:
                raise WorkspaceError(
                    f"The cache '{cache}' is not known. Known caches: {', '.join(CACHE_DIRS)}.",
                    retryable=False,
                )
            for cache_dir in CACHE_DIRS[cache]:
                source = self._folder / name / f"{cache}-{Path(cache_dir).name}"
                for parent in (self._folder, source.parent):
                    make_dir(parent, TRAVERSABLE)
                make_dir(source, PRIVATE, self._owner)
                binds.append(BindMount(source, _AGENT_HOME / cache_dir, writable=True, owner=self._owner))
        return tuple(binds)
