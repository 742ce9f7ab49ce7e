"""The checkouts port: the directories where agents work."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from steadyhand.agents import AgentDefinition, Workspace
from steadyhand.job import Changes, Job, JobWarning, Publish
from steadyhand.ports.artifacts import FileName


@dataclass(frozen=True, slots=True)
class JobPaths:
    """The paths of one job's files: `root` is `<data-dir>/jobs/<id>`; the agent owns `home config checkout` only."""

    root: Path

    @property
    def checkout(self) -> Path:
        """The private checkout; removed after the job."""
        return self.root / "checkout"

    @property
    def home(self) -> Path:
        """The agent's home; removed after the job."""
        return self.root / "home"

    @property
    def config_dir(self) -> Path:
        """The agent's config directory, with the session in it."""
        return self.root / "config"

    @property
    def artifacts(self) -> Path:
        """The files that outlive the checkout; the service alone owns them."""
        return self.root / "kept"

    @property
    def diff(self) -> Path:
        """The diff, for `git apply`."""
        return self.artifacts / "changes.diff"

    @property
    def bundle(self) -> Path:
        """The commits, as a git bundle."""
        return self.artifacts / "commits.bundle"

    @property
    def transcript(self) -> Path:
        """The agent's transcript, NDJSON."""
        return self.artifacts / "transcript.jsonl"

    def run_output(self, run: int) -> Path:
        """Return the folder of a run's output."""
        return self.artifacts / f"run-{run}"


@dataclass(frozen=True, slots=True)
class Instructions:
    """Instructions of a commit: `texts` by their path below the config directory, and `definitions` by name."""

    texts: Mapping[str, str] = field(default_factory=dict)
    definitions: Mapping[str, AgentDefinition] = field(default_factory=dict)
    warnings: tuple[JobWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentPaths:
    """The folders as the agent sees them. In the sandbox they are the same for every job."""

    directory: Path
    home: Path
    config_dir: Path | None


@dataclass(frozen=True, slots=True)
class OverlayLayers:
    """A checkout laid over a warm one: `lower` is shared and never written; the rest is this job's.

    `image`, if not None, is a file system of the disk limit's size that holds `upper` and `work`, which are then
    relative to it. `owner` is the user who owns the files of `lower` and `refs` on disk.
    """

    lower: Path
    upper: Path
    work: Path
    owner: int
    image: Path | None = None
    change_owner: bool = False
    """True if the files in the image belong to another user and have to be changed to the run's."""
    refs: Path | None = None
    """A folder laid over `lower` and below `upper`, with the refs of the job's repository; never written."""


@dataclass(frozen=True, slots=True)
class BindMount:
    """A file or folder of this machine that the agent sees at `target`.

    Files of the user `owner` on disk appear as files of the run's user.
    """

    source: Path
    target: Path
    writable: bool = False
    owner: int | None = None


@dataclass(frozen=True, slots=True)
class Checkout:
    """A checkout prepared for one run. `uid` is the uid (and gid) of the agent; None is the service's.

    With `layers` the checkout exists only where the supervisor mounts it, and `directory` is its mount point.
    """

    workspace: Workspace
    paths: JobPaths
    directory: Path
    """The agent's working directory: the private checkout, or the workspace itself if in place."""
    home: Path
    config_dir: Path | None
    """The agent's config directory; None leaves it to the agent (in place in the classic profile)."""
    uid: int | None
    commit: str | None
    definitions: Mapping[str, AgentDefinition] = field(default_factory=dict)
    full_trust: bool = False
    warnings: tuple[JobWarning, ...] = ()
    layers: OverlayLayers | None = None
    binds: tuple[BindMount, ...] = ()
    slot: int = 0
    publish: Publish = "none"
    runner: str = "claude"
    """The name of the runner of its agent, whose kind of files it has."""
    holder: tuple[int, int] | None = None
    """The pid and start time of the supervisor that has the layers mounted; None if none has.

    Layers can be mounted once. Whoever works in the checkout meanwhile uses the mounts of that supervisor.
    """

    @property
    def host_paths(self) -> AgentPaths:
        """The folders on this machine, which an agent without a sandbox sees."""
        return AgentPaths(self.directory, self.home, self.config_dir)


@dataclass(frozen=True, slots=True)
class Harvest:
    """The stored changes of a job; `changes` is None without a repository or a change."""

    changes: Changes | None
    warnings: tuple[JobWarning, ...] = ()


class Checkouts(Protocol):
    """Creates checkouts of repositories for runs, and stores their changes. Methods raise `WorkspaceError`."""

    async def agent_definitions(self, workspace: Workspace) -> Mapping[str, AgentDefinition]:
        """Return the agent definitions of a workspace, by its trust, at its ref."""
        ...

    async def prepare(self, job: Job, workspace: Workspace, slot: int) -> Checkout:
        """Create a private copy (or use the directory in place) with home, config directory and instructions.

        A resumed job (`begin` is `resume`) gets its retained checkout. If that was released, or the job continues its
        parent, a new copy is made with the harvested changes and the session.
        """
        ...

    async def prepare_ahead(self, job: Job, workspace: Workspace, slot: int) -> Checkout:
        """Create a checkout for jobs like `job`, which has an id of its own and is none that a caller asked for."""
        ...

    async def list_ahead(self) -> Sequence[JobPaths]:
        """Return the folders of checkouts that were prepared ahead and have no job, also of earlier processes."""
        ...

    async def hand_over(self, checkout: Checkout, job: Job, agent_root: Path | None) -> Checkout | None:
        """Move a checkout that was prepared ahead to the folder of a job and return it as the job's.

        Return None, and move nothing, if it is not as a new one would be. The agent's processes may use it meanwhile;
        `agent_root` is the path by which the service sees their files.
        """
        ...

    async def take_back(self, checkout: Checkout, checkout_id: str) -> Checkout | None:
        """Move the checkout of a job that has ended back, for a later job in the same process; instead of `release`.

        The job keeps a copy of its config directory, with the session. None if it cannot be moved.
        """
        ...

    async def save_progress(self, job: Job, checkout: Checkout) -> None:
        """Store the session and the work of a run that goes on where other nodes find them; on one machine do nothing.

        Raise `StoreError`, `NotFound`, or `Conflict` (`run_is_over`) if a later run of the job has begun.
        """
        ...

    async def save_pending(self) -> None:
        """Store the files of ended runs for other nodes that could not be stored then. Raise `StoreUnavailable`."""
        ...

    async def harvest(self, checkout: Checkout) -> Harvest:
        """Store the diff, the commits and the transcript, and return the changes."""
        ...

    async def release(self, checkout: Checkout) -> None:
        """Remove the checkout and the home. Call it when no process uses them."""
        ...

    async def retain(self, checkout: Checkout) -> None:
        """Keep checkout, home and session for a later run. Call it when no process uses them."""
        ...

    async def reopen(self, job: Job, workspace: Workspace) -> Checkout | None:
        """Return the private checkout that a run left when the service stopped, to harvest it; `None` without one."""
        ...

    async def rejoin(self, job: Job, workspace: Workspace) -> Checkout:
        """Return the checkout of a run that an earlier service left and whose agent still works in it.

        Call it after `remove_leftovers`, which has to spare the job. Raises `WorkspaceError` without one.
        """
        ...

    async def list_retained(self) -> Mapping[str, datetime]:
        """Return the ids of the jobs with a checkout, also of running ones, each with its time."""
        ...

    async def discard(self, job_id: str) -> None:
        """Remove the retained checkout and home of a job; its harvested changes stay."""
        ...

    async def delete_job(self, job_id: str) -> None:
        """Remove all files of a job."""
        ...

    async def list_job_ids(self) -> Sequence[str]:
        """Return the ids of the jobs that have files on this node."""
        ...

    async def apply_retention(
        self,
        now: datetime,
        max_transcript_age: timedelta | None,
        max_bytes: int | None,
        spared: Collection[str] = (),
    ) -> None:
        """Remove transcripts, sessions and outputs above that age, then the oldest until the rest fits `max_bytes`.

        The jobs in `spared` lose nothing.
        """
        ...

    async def remove_leftovers(self, kept_jobs: Collection[str] = ()) -> None:
        """Remove the checkouts and homes that were left before a restart, except those of `kept_jobs`.

        Call it before any run.
        """
        ...

    def job_paths(self, job_id: str) -> JobPaths:
        """Return the paths of a job's files."""
        ...

    async def has_session(self, job_id: str) -> bool:
        """Return True if a run of the job has left a session that a later run on this node can resume."""
        ...

    async def find_file(self, job_id: str, name: FileName) -> Path | None:
        """Return the path of a file that a job has left, on this node or brought to it; None if there is none."""
        ...
