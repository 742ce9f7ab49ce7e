"""The artifacts port: the files that a job leaves, in a store that every node reaches.

One node keeps them in its data directory alone and needs no such store.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

FileName = Literal["diff", "bundle", "transcript"]
ArtifactName = Literal[FileName, "session"]
"""A session is an archive of the agent's config directory."""


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """A stored file. `run` is the number of the run that left it, `digest` the SHA-256 of its content in hex."""

    id: int
    name: str
    run: int
    size: int
    digest: str
    object_key: str | None = None
    """The name of its object; None if the database has its content."""


class Artifacts(Protocol):
    """The files that jobs leave. Methods raise `StoreUnavailable` if a store is away, and `StoreError` if it fails."""

    async def save(self, job_id: str, run: int, files: Mapping[str, Path | None]) -> None:
        """Store files of a run in place of earlier ones of the same names, all of them at once; None removes one.

        Raise `NotFound` if the job is deleted, `Conflict` (`run_is_over`) if a later run of it has begun, and
        `ArtifactTooLarge` if a file is larger than the stores take. Then nothing is changed.
        """
        ...

    async def list_stored(self, job_id: str) -> Mapping[str, StoredArtifact]:
        """Return the stored files of a job by name."""
        ...

    async def load(self, artifact: StoredArtifact, target: Path) -> None:
        """Write the content of a file to `target`, which must not exist, and check its digest.

        Raise `NotFound` if another file has taken its place meanwhile, and `StoreError` if its content is damaged.
        `target` is not there then.
        """
        ...

    async def remove_unused(self) -> bool:
        """Remove some of the files that no job has any more; return True if there may be more of them."""
        ...

    async def remove_older(self, names: Collection[str], moment: datetime, spared: Collection[str]) -> None:
        """Remove the files of these names that were stored before `moment`, except those of the jobs in `spared`."""
        ...
