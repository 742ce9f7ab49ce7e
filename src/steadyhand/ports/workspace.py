"""The checkouts port: the directories where agents work."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from steadyhand.agents import AgentDefinition, Workspace
from steadyhand.job import Changes, Job, JobWarning, Publish


@dataclass(frozen=True, slots=True)
class JobPaths:
    """Where one job's files lie: `root` is `<data-dir>/jobs/<id>`; the agent owns `home config checkout` only."""

    root: Path

    @property
    def checkout(self) -> Path:
        """The private checkout; gone after the job."""
        return self.root / "checkout"

    @property
    def home(self) -> Path:
        """The agent's home; gone after the job."""
        return self.root / "home"

    @property
    def config_dir(self) -> Path:
        """The CLI's config directory, with the session in it."""
        return self.root / "config"

    @property
    def artifacts(self) -> Path:
        """What outlives the checkout; the service alone owns it."""
        return self.root / "kept"

    @property
    def diff(self) -> Path:
        """The diff that `git apply` takes."""
        return self.artifacts / "changes.diff"

    @property
    def bundle(self) -> Path:
        """The commits, as a git bundle."""
        return self.artifacts / "commits.bundle"

    @property
    def transcript(self) -> Path:
        """The agent's own record, NDJSON."""
        return self.artifacts / "transcript.jsonl"

    def run_output(self, run: int) -> Path:
        """The folder of what a run printed."""
        return self.artifacts / f"run-{run}"


@dataclass(frozen=True, slots=True)
class AgentPaths:
    """Where the agent sees its folders. Inside the sandbox these are the same for every job."""

    directory: Path
    home: Path
    config_dir: Path | None


@dataclass(frozen=True, slots=True)
class OverlayLayers:
    """A checkout laid over a warm one: `lower` is shared and never written; the rest is this job's.

    `image`, when there is one, is a file system of the disk limit's size that holds `upper` and `work`, which are
    then relative to it. `owner` is who the lower's files belong to on disk.
    """

    lower: Path
    upper: Path
    work: Path
    owner: int
    image: Path | None = None
    change_owner: bool = False
    """Whether what is in the image is another user's and has to be given to the run's."""


@dataclass(frozen=True, slots=True)
class BindMount:
    """A file or folder of this machine that the agent sees at `at`.

    `owner`, when given, is who it belongs to on disk and is shown as the run's user.
    """

    source: Path
    target: Path
    writable: bool = False
    owner: int | None = None


@dataclass(frozen=True, slots=True)
class Checkout:
    """A checkout made ready for one run. `user` is the uid (and gid) the agent runs as; null is the service's.

    With `layers` the checkout exists only where the supervisor mounts it, and `directory` is its mount point.
    """

    workspace: Workspace
    paths: JobPaths
    directory: Path
    """Where the agent works: the private checkout, or the workspace itself when in place."""
    home: Path
    config_dir: Path | None
    """The CLI's config directory; null leaves it to the CLI (in place in the classic profile)."""
    uid: int | None
    commit: str | None
    definitions: Mapping[str, AgentDefinition] = field(default_factory=dict)
    full_trust: bool = False
    warnings: tuple[JobWarning, ...] = ()
    layers: OverlayLayers | None = None
    binds: tuple[BindMount, ...] = ()
    slot: int = 0
    publish: Publish = "none"

    @property
    def host_paths(self) -> AgentPaths:
        """The folders as they lie on this machine: what an agent without a sandbox sees."""
        return AgentPaths(self.directory, self.home, self.config_dir)


@dataclass(frozen=True, slots=True)
class Harvest:
    """What was kept of a job's work; `changes` is null when there is no repository or no change."""

    changes: Changes | None
    warnings: tuple[JobWarning, ...] = ()


class Checkouts(Protocol):
    """Repositories made into places where an agent can work. Verbs raise `WorkspaceError`."""

    async def agent_definitions(self, workspace: Workspace) -> Mapping[str, AgentDefinition]:
        """Give the agent definitions that the workspace brings along, by its trust, at its ref."""
        ...

    async def prepare(self, job: Job, workspace: Workspace, slot: int) -> Checkout:
        """Make a private copy (or take the directory in place) with home, config directory and instructions.

        A job whose run goes on (`begin` is `resume`) gets what was kept of it; of a job that let go of its checkout,
        or of its parent, a copy is made anew with the work that was harvested and the session.
        """
        ...

    async def harvest(self, checkout: Checkout) -> Harvest:
        """Keep the diff, the commits and the transcript, and say what changed."""
        ...

    async def release(self, checkout: Checkout) -> None:
        """Remove the checkout and the home. Call it when nothing is alive in them."""
        ...

    async def retain(self, checkout: Checkout) -> None:
        """Leave checkout, home and session where they are, for a later run. Call it when nothing is alive in them."""
        ...

    async def list_retained(self) -> Mapping[str, datetime]:
        """Give the jobs whose checkout is there, running ones among them, and since when."""
        ...

    async def discard(self, job_id: str) -> None:
        """Remove the checkout and the home that were kept of a job; what was harvested stays."""
        ...

    async def delete_job(self, job_id: str) -> None:
        """Remove all that is kept of a job."""
        ...

    async def apply_retention(
        self, now: datetime, max_transcript_age: timedelta | None, max_bytes: int | None
    ) -> None:
        """Remove transcripts, sessions and printed output of that age, then the oldest of what is too much."""
        ...

    async def remove_leftovers(self, kept_jobs: Collection[str] = ()) -> None:
        """Remove the checkouts and homes that an earlier life of the service left, but for those of spared jobs.

        Call it before any run.
        """
        ...

    def job_paths(self, job_id: str) -> JobPaths:
        """Say where a job's files lie."""
        ...
