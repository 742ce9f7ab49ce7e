"""Package managers' caches that the jobs of one workspace share, read and write."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from steadyhand.agents import NAME, Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.ports import Bind
from steadyhand.workspace.filesystem import PRIVATE, TRAVERSABLE, make_folder

_HOME = Path("/home/agent")
PLACES: Mapping[str, Sequence[str]] = {
    "pip": (".cache/pip",),
    "npm": (".npm",),
    "cargo": (".cargo/registry", ".cargo/git"),
    "go": ("go/pkg/mod", ".cache/go-build"),
}
"""Where each package manager keeps its cache, below the agent's home."""


class Caches:
    """The shared caches of a data directory, in `folder`; on disk they belong to `owner` (null is the service)."""

    def __init__(self, folder: Path, owner: int | None) -> None:
        self._folder = folder
        self._owner = owner

    def of(self, workspace: Workspace) -> tuple[Bind, ...]:
        """Give what to bind for a workspace; the folders are made when they are not there. Blocks."""
        if not workspace.caches:
            return ()
        name = workspace.name
        if NAME.fullmatch(name) is None:  # a path or a URL
            name = "-" + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        binds = []
        for cache in workspace.caches:
            if cache not in PLACES:
                raise WorkspaceError(
                    f"There is no cache '{cache}'; there are {', '.join(PLACES)}.", retryable=False
                )
            for place in PLACES[cache]:
                source = self._folder / name / f"{cache}-{Path(place).name}"
                for parent in (self._folder, source.parent):
                    make_folder(parent, TRAVERSABLE)
                make_folder(source, PRIVATE, self._owner)
                binds.append(Bind(source, _HOME / place, writable=True, owner=self._owner))
        return tuple(binds)
