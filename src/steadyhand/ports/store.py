"""The store port: jobs, runs, events and keys, durable."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from steadyhand.events import Event, EventDraft
from steadyhand.job import Job, State
from steadyhand.ports.schedules import TickClaim

Scope = Literal["submit", "read", "cancel", "read:all", "workspace:any", "admin"]
ALL_SCOPES: frozenset[Scope] = frozenset({"submit", "read", "cancel", "read:all", "workspace:any", "admin"})


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of a key; None is no limit. Amounts are micro-dollars, days and months are those of UTC."""

    agents: tuple[str, ...] | None = None
    workspaces: tuple[str, ...] | None = None
    per_minute: int | None = None
    """Requests for work in a minute."""
    running: int | None = None
    """Jobs that run at once; others wait."""
    queued: int | None = None
    """Jobs that may wait."""
    day_micros: int | None = None
    month_micros: int | None = None
    max_budget_micros: int | None = None
    """The highest budget that a job may ask for."""
    max_timeout_seconds: float | None = None
    models: tuple[str, ...] | None = None
    """The models that a job may name."""


NO_LIMITS = KeyLimits()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key. Only the `digest` (SHA-256, hex) of its secret is stored."""

    id: str
    name: str
    digest: str
    scopes: frozenset[Scope]
    created_at: datetime
    limits: KeyLimits = NO_LIMITS
    revoked_at: datetime | None = None
    previous_digest: str | None = None
    """The digest of the secret before the newest, valid until `previous_valid_until`."""
    previous_valid_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's `Idempotency-Key` and the SHA-256 of its parsed request."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class AddResult:
    """The stored job; if `replayed`, the job of an earlier request with the same idempotency key."""

    job: Job
    replayed: bool


@dataclass(frozen=True, slots=True)
class JobFilter:
    """The filter of a list of jobs; None and empty `states` match any job."""

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
    search: str | None = None
    """Words of the title or the prompt; all of them must be there. Words in quotes follow each other. Case and accents
    do not count. A store may know only the first 16,384 characters of a prompt."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of jobs, newest first; `next_cursor` is None on the last page.

    A listed job has 200 characters of its prompt, and no history, answer or structured output.
    """

    jobs: Sequence[Job]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class JobSample:
    """The cost of an ended job in micro-dollars, and the seconds of its runs together. None is not known.

    The cost is None if a model of the job has no price, and if nobody has counted or reported one.
    """

    micros: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class ToolUsage:
    """The calls of a tool in one job. `milliseconds` are those of the finished calls together."""

    job_id: str
    api_key_id: str
    agent: str
    tool: str
    calls: int
    failures: int
    unfinished: int
    """Calls without a result, because the run ended or still goes on."""
    milliseconds: int


@dataclass(frozen=True, slots=True)
class ToolSample:
    """The calls of tools in some jobs, by job; `jobs` is their number, also of those without calls."""

    jobs: int
    rows: Sequence[ToolUsage]


@dataclass(frozen=True, slots=True)
class RunOutput:
    """The output of a run, bounded (docs/http-api.md); the lines of `output` keep their newlines."""

    output: Sequence[str]
    stderr: str


class Store(Protocol):
    """Jobs, runs, events and keys, durable once a method returns.

    Every method raises `StoreError` if the store itself fails: `StoreUnavailable` in an outage, such as a full disk.
    With `hold`, and always in `save_output`, it waits for the end of the outage instead. A write that raised
    `StoreUnavailable` has had no effect, except after a timeout: then it may have one later. Each method is one commit.
    """

    @property
    def outage(self) -> str | None:
        """The reason why nothing can be written now, or None."""
        ...

    @property
    def failures(self) -> int:
        """A number that grows with each outage and each read that failed: then something may have been missed."""
        ...

    def add(
        self,
        job: Job,
        drafts: Sequence[EventDraft],
        idempotency: IdempotencyKey | None = None,
        *,
        claim: TickClaim | None = None,
    ) -> Awaitable[AddResult]:
        """Store a new job with its first events, unless a job with its idempotency key was stored within 24 hours.

        The tick of a schedule that the job is for is claimed with it, else nothing is stored; see `TickClaim`.

        Raise `InvalidRequest` (`idempotency_mismatch`) if the key is stored with another fingerprint, and `NotFound`
        if the job's parent does not exist. The returned job has its `sequence` and `last_event`.
        """
        ...

    async def get_replayed(self, api_key_id: str, idempotency: IdempotencyKey) -> Job | None:
        """Return the job of an earlier request with this idempotency key, or None. Raise as `add` does."""
        ...

    async def get(self, job_id: str) -> Job | None:
        """Return a job with its runs, or None."""
        ...

    async def list_jobs(self, job_filter: JobFilter, limit: int, cursor: str | None = None) -> JobPage:
        """List jobs, newest first. Raise `InvalidRequest` (`bad_cursor`, or a search without words), `QueryTooSlow`."""
        ...

    async def find_conversation(self, api_key_id: str, conversation: str) -> Job | None:
        """Return the only job of a key whose `conversation` is this one; None if there is none, or several."""
        ...

    async def sample_jobs(
        self, job_filter: JobFilter, limit: int, model: str | None = None
    ) -> Sequence[JobSample]:
        """Return cost and time of the newest ended jobs that match, at most `limit`, without a sum over all.

        With `model`, those of them are left out whose spec has another one. Raise as `list_jobs` does.
        """
        ...

    async def sample_tools(self, job_filter: JobFilter, limit: int) -> ToolSample:
        """Return the calls of tools in the newest jobs that match, at most `limit` jobs. Raise as `list_jobs` does."""
        ...

    async def update_job(
        self,
        job_id: str,
        expected: frozenset[State],
        update: Callable[[Job], Job],
        drafts: Sequence[EventDraft] = (),
        *,
        hold: bool = False,
        as_new: bool = False,
    ) -> tuple[Job, Sequence[Event]]:
        """Replace a job by `update(job)` and append events, if its state is one of `expected`.

        `update` is pure and runs inside the transaction. Raise `Conflict` (`invalid_state`) if the job is in
        another state, `NotFound` if it does not exist.

        With `as_new` the job counts against the limit of its key on waiting jobs, as a new one does, if several nodes
        share the database; raise `RetryLater` (`too_many_jobs`) if it is one too many.
        """
        ...

    async def append_events(
        self, job_id: str, drafts: Sequence[EventDraft], *, hold: bool = False, run: int | None = None
    ) -> Sequence[Event]:
        """Store events with their numbers; they are durable when this returns. Callers may share a commit.

        With the number of a `run` they are stored only while it goes on; else raise `Conflict`.
        """
        ...

    async def list_events(self, job_id: str, after: int = 0, limit: int = 500) -> Sequence[Event]:
        """Return the events numbered above `after`, in order."""
        ...

    async def list_newest_events(
        self, job_id: str, types: frozenset[str], tools: frozenset[str], limit: int
    ) -> Sequence[Event]:
        """Return the newest events of these types, the newest calls of these tools, and the results of those calls.

        They are in order. There are at most `limit`, without the results.
        """
        ...

    async def save_output(self, job_id: str, run: int, output: RunOutput) -> None:
        """Store the output of a run."""
        ...

    async def get_output(self, job_id: str) -> RunOutput | None:
        """Return the output of the newest run with any, or None."""
        ...

    async def list_in_states(self, states: frozenset[State]) -> Sequence[Job]:
        """Return every job in these states, in the order of acceptance."""
        ...

    async def list_restarted(self) -> Sequence[Job]:
        """Return the interrupted jobs that the next start queues again (`at_start`), in the order of acceptance.

        They are as brief as those of `list_jobs`.
        """
        ...

    async def list_ended_before(self, moment: datetime, limit: int) -> Sequence[str]:
        """Return the ids of jobs that ended before `moment`, oldest first, without those of `list_awaited`."""
        ...

    async def list_awaited(self) -> Mapping[str, str]:
        """Return the jobs whose session a turn still needs for its start, each with the id of such a turn."""
        ...

    async def delete(self, job_id: str) -> bool:
        """Delete an ended job with its runs, events and output.

        Raise `Conflict` if it has not ended, or if it is one of `list_awaited`.
        """
        ...

    async def delete_all(self, job_ids: Sequence[str]) -> Sequence[str]:
        """Delete those of these jobs that `delete` would delete; return the ids of those that it refuses.

        It is for retention. Nothing can be read of these jobs any more, but a store may keep their events for a while
        and get rid of many at once.
        """
        ...

    async def list_deleted(self, job_ids: Sequence[str]) -> Sequence[str]:
        """Return those of these jobs, a few hundred at most, that the store itself has deleted in the last 30 days.

        A job that it does not know may be one of another database, or newer than a backup that was restored.
        """
        ...

    async def maintain(self) -> bool:
        """Do a small piece of the upkeep of the store itself; return True if there is more of it to do now.

        A search finds jobs that an earlier version stored once that work is done.
        """
        ...

    async def list_keys(self) -> Sequence[ApiKey]:
        """Return the stored keys."""
        ...

    async def save_key(self, key: ApiKey) -> None:
        """Store a key; one with the same id is replaced. The saved items of a revoked one are deleted."""
        ...

    async def check(self) -> None:
        """Return if the store can be read and no outage lasts; for readiness."""
        ...

    async def close(self) -> None:
        """Commit the pending changes and close the store."""
        ...
