"""What the core needs of the world, named by domain verbs; adapters are in the rooms.

One contract suite per port (`steadyhand.testing.contracts`) is passed by every adapter of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, Protocol

from steadyhand.agents import Agent, Definition, Workspace
from steadyhand.events import Body, Draft, Event, TextDelta
from steadyhand.job import Changes, Job, Notice, State
from steadyhand.outcome import Evidence, Stop

Scope = Literal["submit", "read", "cancel", "read:all", "workspace:any", "admin"]
ALL_SCOPES: frozenset[Scope] = frozenset({"submit", "read", "cancel", "read:all", "workspace:any", "admin"})


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a caller authenticates with. Only `digest` (SHA-256, hex) of the secret is known."""

    id: str
    name: str
    digest: str
    scopes: frozenset[Scope]
    created_at: datetime


# --- the store ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A caller's `Idempotency-Key` and the SHA-256 of the parsed request it came with."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Added:
    """A job that was stored, or the one that an earlier request with the same key stored."""

    job: Job
    replayed: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs to list; null means any. `states` empty means any."""

    api_key_id: str | None = None
    states: frozenset[State] = frozenset()
    agent: str | None = None
    workspace: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None
    id_prefix: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of jobs, newest first; `next_cursor` is null on the last page.

    They are listed in brief: 200 characters of the prompt, no history, answer or structured output.
    """

    jobs: Sequence[Job]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class RunOutput:
    """What a run printed, bounded as contract.md A says: `output` lines keep their newlines."""

    output: Sequence[str]
    stderr: str


class Store(Protocol):
    """Jobs, runs, events and keys, durable once a verb returns.

    Verbs raise `StoreError` when the store itself fails. Everything that one verb does is one commit.
    """

    async def add(self, job: Job, drafts: Sequence[Draft], idempotency: Idempotency | None = None) -> Added:
        """Keep a new job with its first events, unless its idempotency key is known for 24 hours.

        Raises `InvalidRequest` (`idempotency_mismatch`) when the key is known with another fingerprint.
        The job that comes back has its `sequence` and `last_event`.
        """
        ...

    async def replay(self, api_key_id: str, idempotency: Idempotency) -> Job | None:
        """Give the job that this key already made; raises as `add` does."""
        ...

    async def get(self, job_id: str) -> Job | None:
        """Give a job with its runs, or null."""
        ...

    async def page(self, which: Filter, limit: int, cursor: str | None = None) -> Page:
        """List jobs, newest first. Raises `InvalidRequest` (`bad_cursor`)."""
        ...

    async def change(
        self,
        job_id: str,
        expected: frozenset[State],
        update: Callable[[Job], Job],
        drafts: Sequence[Draft] = (),
    ) -> tuple[Job, Sequence[Event]]:
        """Replace a job by `update(job)` and append events, if its state is one of `expected`.

        `update` is pure and runs inside the transaction. Raises `Conflict` (`invalid_state`) when the
        state is another, `NotFound` when the job is gone.
        """
        ...

    async def append(self, job_id: str, drafts: Sequence[Draft]) -> Sequence[Event]:
        """Number and keep events; they are durable when this returns. Commits are shared between callers."""
        ...

    async def events(self, job_id: str, after: int = 0, limit: int = 500) -> Sequence[Event]:
        """Give the events numbered above `after`, in order."""
        ...

    async def keep_output(self, job_id: str, run: int, output: RunOutput) -> None:
        """Keep what a run printed."""
        ...

    async def output(self, job_id: str) -> RunOutput | None:
        """Give what the newest run with any output printed."""
        ...

    async def in_states(self, states: frozenset[State]) -> Sequence[Job]:
        """Give every job in these states, in the order of acceptance."""
        ...

    async def ended_before(self, moment: datetime, limit: int) -> Sequence[str]:
        """Give ids of jobs that ended before `moment`, oldest first."""
        ...

    async def delete(self, job_id: str) -> bool:
        """Forget an ended job and all that the store has of it. Raises `Conflict` when it has not ended."""
        ...

    async def keys(self) -> Sequence[ApiKey]:
        """Give the keys that are kept in the store."""
        ...

    async def keep_key(self, key: ApiKey) -> None:
        """Keep a key; one with the same id is replaced."""
        ...

    async def check(self) -> None:
        """Answer when the store can be read; for readiness."""
        ...

    async def close(self) -> None:
        """Commit what waits and let go of the store."""
        ...


# --- the queue ---------------------------------------------------------------------------------


class StopSignal:
    """Asks one run to stop. The first reason wins; asking again changes nothing."""

    def __init__(self) -> None:
        self.reason: Stop | None = None
        self._asked = asyncio.Event()

    def request(self, reason: Stop) -> None:
        """Ask. Call from the event loop's own thread."""
        if self.reason is None:
            self.reason = reason
            self._asked.set()

    async def wait(self) -> Stop:
        """Wait until somebody asks; the caller bounds the wait."""
        await self._asked.wait()
        assert self.reason is not None  # noqa: S101  # set before the event, in the same thread
        return self.reason


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that a worker holds: its slot on this node, counted from 0, and how it is asked to stop."""

    job: Job
    slot: int
    stop: StopSignal


@dataclass(frozen=True, slots=True)
class Load:
    """How full the queue is. `busy` is true when a new job would not start at once."""

    active: int
    queued: int
    capacity: int

    @property
    def busy(self) -> bool:
        """Whether a new job would have to wait."""
        return self.active + self.queued >= self.capacity


class Queue(Protocol):
    """Who runs next: by priority (higher first), then in the order of acceptance; bounded."""

    async def admit(self, job: Job, drafts: Sequence[Draft], idempotency: Idempotency | None = None) -> Added:
        """Store a new job and enqueue it in one commit, or raise `TryLater` (`queue_full`, `draining`).

        A replayed job (see `Store.add`) is not enqueued again and is never refused for want of room.
        """
        ...

    async def readmit(self, job: Job) -> None:
        """Enqueue a stored job that became `queued` again, or was so when the node stopped."""
        ...

    async def claim(self) -> Claim:
        """Wait for the next job and a free slot, and take both. Nothing is claimed while draining."""
        ...

    def ending(self, job_id: str) -> None:
        """Say that a held job's end is about to be told: its slot counts as free, and is claimed after `done`.

        Who reads of the end and at once asks for the next job must not hear that there is no room.
        """
        ...

    async def done(self, claim: Claim) -> None:
        """Give the slot back."""
        ...

    async def cancel(
        self, job_id: str, reason: Stop = Stop.CANCEL
    ) -> Literal["withdrawn", "stopping", "unknown"]:
        """Take a job out of the queue, or ask its run to stop; `unknown` when it is neither here."""
        ...

    async def overdue(self, now: datetime) -> Sequence[str]:
        """Give ids of queued jobs that have waited longer than their `expires_in_seconds`."""
        ...

    def position(self, job_id: str) -> int | None:
        """Give a queued job's place, 1 being next; null when it is not queued here."""
        ...

    def load(self) -> Load:
        """Say how full it is."""
        ...

    def drain(self) -> None:
        """Admit and claim nothing more."""
        ...

    def stop_all(self, reason: Stop) -> None:
        """Ask every run that is held here to stop."""
        ...


# --- checkouts and the sandbox -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobFiles:
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
    def config(self) -> Path:
        """The CLI's config directory, with the session in it."""
        return self.root / "config"

    @property
    def kept(self) -> Path:
        """What outlives the checkout; the service alone owns it."""
        return self.root / "kept"

    @property
    def diff(self) -> Path:
        """The diff that `git apply` takes."""
        return self.kept / "changes.diff"

    @property
    def bundle(self) -> Path:
        """The commits, as a git bundle."""
        return self.kept / "commits.bundle"

    @property
    def transcript(self) -> Path:
        """The agent's own record, NDJSON."""
        return self.kept / "transcript.jsonl"

    def spool(self, run: int) -> Path:
        """The folder of what a run printed."""
        return self.kept / f"run-{run}"


@dataclass(frozen=True, slots=True)
class Place:
    """A checkout made ready for one run. `user` is the uid (and gid) the agent runs as; null is the service's."""

    workspace: Workspace
    files: JobFiles
    directory: Path
    """Where the agent works: the private checkout, or the workspace itself when in place."""
    home: Path
    config: Path | None
    """The CLI's config directory; null leaves it to the CLI (in place in the classic profile)."""
    user: int | None
    commit: str | None
    definitions: Mapping[str, Definition] = field(default_factory=dict)
    trust_full: bool = False
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Harvest:
    """What was kept of a job's work; `changes` is null when there is no repository or no change."""

    changes: Changes | None
    notices: tuple[Notice, ...] = ()


class Checkouts(Protocol):
    """Repositories made into places where an agent can work. Verbs raise `WorkspaceError`."""

    async def definitions(self, workspace: Workspace) -> Mapping[str, Definition]:
        """Give the agent definitions that the workspace brings along, by its trust, at its ref."""
        ...

    async def prepare(self, job: Job, workspace: Workspace, slot: int) -> Place:
        """Make a private copy (or take the directory in place) with home, config directory and instructions."""
        ...

    async def harvest(self, place: Place) -> Harvest:
        """Keep the diff, the commits and the transcript, and say what changed."""
        ...

    async def release(self, place: Place) -> None:
        """Remove the checkout and the home. Call it when nothing is alive in them."""
        ...

    async def forget(self, job_id: str) -> None:
        """Remove all that is kept of a job."""
        ...

    async def trim(self, now: datetime, transcripts: timedelta | None, max_bytes: int | None) -> None:
        """Remove transcripts, sessions and printed output of that age, then the oldest of what is too much."""
        ...

    async def sweep(self) -> None:
        """Remove the checkouts and homes that an earlier life of the service left. Call it before any run."""
        ...

    def files(self, job_id: str) -> JobFiles:
        """Say where a job's files lie."""
        ...


@dataclass(frozen=True, slots=True)
class Command:
    """A process to be: arguments, its whole environment, its directory and its uid (null is the service's)."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    user: int | None = None


class Sandbox(Protocol):
    """A boundary around an agent. `wrap` is pure: it gives the command that runs the agent inside."""

    level: Literal["none", "bwrap"]

    def wrap(self, command: Command, place: Place) -> Command:
        """Give the command to spawn in place of `command`."""
        ...


# --- the runner --------------------------------------------------------------------------------

Emit = Callable[[Body | TextDelta], Awaitable[None]]
"""Takes what happened, in order; waits when the store is behind."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All that a runner needs for one run. `environment` is what the service grants the agent."""

    job: Job
    number: int
    agent: Agent
    place: Place
    environment: Mapping[str, str]
    spawned: Callable[[int, int], None]
    """Called with the supervisor's pid and start time (clock ticks since boot) once it is there."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to: the evidence, what it printed, and the session that it left."""

    evidence: Evidence
    output: RunOutput
    session_id: str | None = None
    notices: tuple[Notice, ...] = ()


class Runner(Protocol):
    """Drives one kind of agent process."""

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> Report:
        """Run an agent to its end or until asked to stop; nothing of it is alive when this returns.

        Asks itself to stop (`Stop.IDLE`) when nothing was heard for the job's idle limit. Cancelling the
        call stops the agent as well. Raises `SpawnError` when there was nothing to run.
        """
        ...


# --- the doctor --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that `doctor` looked at; `remedy` says what to do when it is not `ok`."""

    name: str
    ok: bool
    detail: str
    remedy: str | None = None
