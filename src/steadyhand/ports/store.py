"""The store: jobs, runs, events and keys, durable."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from steadyhand.events import Event, EventDraft
from steadyhand.job import Job, State

Scope = Literal["submit", "read", "cancel", "read:all", "workspace:any", "admin"]
ALL_SCOPES: frozenset[Scope] = frozenset({"submit", "read", "cancel", "read:all", "workspace:any", "admin"})


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key may ask for; null is no limit. Amounts are micro-dollars, days and months are those of UTC."""

    agents: tuple[str, ...] | None = None
    workspaces: tuple[str, ...] | None = None
    per_minute: int | None = None
    """Requests for work."""
    running: int | None = None
    """Jobs that run at once; others wait."""
    queued: int | None = None
    """Jobs that may wait."""
    day_micros: int | None = None
    month_micros: int | None = None


NO_LIMITS = KeyLimits()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a caller authenticates with. Only `digest` (SHA-256, hex) of the secret is known."""

    id: str
    name: str
    digest: str
    scopes: frozenset[Scope]
    created_at: datetime
    limits: KeyLimits = NO_LIMITS
    revoked_at: datetime | None = None
    previous_digest: str | None = None
    """Of the secret before the newest, which is good `former_until`."""
    previous_valid_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's `Idempotency-Key` and the SHA-256 of the parsed request it came with."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class AddResult:
    """A job that was stored, or the one that an earlier request with the same key stored."""

    job: Job
    replayed: bool


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs to list; null means any. `states` empty means any."""

    api_key_id: str | None = None
    states: frozenset[State] = frozenset()
    agent: str | None = None
    workspace: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None
    id_prefix: str | None = None
    session_id: str | None = None
    session_name: str | None = None
    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class JobPage:
    """A stretch of jobs, newest first; `next_cursor` is null on the last page.

    They are listed in brief: 200 characters of the prompt, no history, answer or structured output.
    """

    jobs: Sequence[Job]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class RunOutput:
    """What a run printed, bounded as docs/http-api.md says: `output` lines keep their newlines."""

    output: Sequence[str]
    stderr: str


class Store(Protocol):
    """Jobs, runs, events and keys, durable once a verb returns.

    Verbs raise `StoreError` when the store itself fails. Everything that one verb does is one commit.
    """

    def add(
        self, job: Job, drafts: Sequence[EventDraft], idempotency: IdempotencyKey | None = None
    ) -> Awaitable[AddResult]:
        """Keep a new job with its first events, unless its idempotency key is known for 24 hours.

        Raises `InvalidRequest` (`idempotency_mismatch`) when the key is known with another fingerprint.
        The job that comes back has its `sequence` and `last_event`.
        """
        ...

    async def get_replayed(self, api_key_id: str, idempotency: IdempotencyKey) -> Job | None:
        """Give the job that this key already made; raises as `add` does."""
        ...

    async def get(self, job_id: str) -> Job | None:
        """Give a job with its runs, or null."""
        ...

    async def list_jobs(self, job_filter: JobFilter, limit: int, cursor: str | None = None) -> JobPage:
        """List jobs, newest first. Raises `InvalidRequest` (`bad_cursor`)."""
        ...

    async def update_job(
        self,
        job_id: str,
        expected: frozenset[State],
        update: Callable[[Job], Job],
        drafts: Sequence[EventDraft] = (),
    ) -> tuple[Job, Sequence[Event]]:
        """Replace a job by `update(job)` and append events, if its state is one of `expected`.

        `update` is pure and runs inside the transaction. Raises `Conflict` (`invalid_state`) when the
        state is another, `NotFound` when the job is gone.
        """
        ...

    async def append_events(self, job_id: str, drafts: Sequence[EventDraft]) -> Sequence[Event]:
        """Number and keep events; they are durable when this returns. Commits are shared between callers."""
        ...

    async def list_events(self, job_id: str, after: int = 0, limit: int = 500) -> Sequence[Event]:
        """Give the events numbered above `after`, in order."""
        ...

    async def save_output(self, job_id: str, run: int, output: RunOutput) -> None:
        """Keep what a run printed."""
        ...

    async def get_output(self, job_id: str) -> RunOutput | None:
        """Give what the newest run with any output printed."""
        ...

    async def list_in_states(self, states: frozenset[State]) -> Sequence[Job]:
        """Give every job in these states, in the order of acceptance."""
        ...

    async def list_ended_before(self, moment: datetime, limit: int) -> Sequence[str]:
        """Give ids of jobs that ended before `moment`, oldest first."""
        ...

    async def delete(self, job_id: str) -> bool:
        """Forget an ended job and all that the store has of it. Raises `Conflict` when it has not ended."""
        ...

    async def list_keys(self) -> Sequence[ApiKey]:
        """Give the keys that are kept in the store."""
        ...

    async def save_key(self, key: ApiKey) -> None:
        """Keep a key; one with the same id is replaced."""
        ...

    async def check(self) -> None:
        """Answer when the store can be read; for readiness."""
        ...

    async def close(self) -> None:
        """Commit what waits and let go of the store."""
        ...
