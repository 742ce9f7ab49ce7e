"""The caller, and the requests that the operations take."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from steadyhand.agents import Agent
from steadyhand.errors import Forbidden, InvalidRequest
from steadyhand.job import Job, JobSpec, OnInterrupt, Publish
from steadyhand.money import MICROS_PER_DOLLAR
from steadyhand.ports import Scope
from steadyhand.suggest import closest_name

_T = TypeVar("_T")
_REPOSITORY_URL = re.compile(r"(https?|ssh|git|file)://.+|[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:.+")
LARGEST_BUDGET_MICROS = 1_000_000 * MICROS_PER_DOLLAR
LARGEST_TIMEOUT_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Caller:
    """The id of the caller's key and its scopes, and the trace of its request, if it has one."""

    key_id: str
    scopes: frozenset[Scope]
    traceparent: str | None = None

    def require_scope(self, scope: Scope) -> None:
        """Raise `Forbidden` (`scope_missing`) if the key lacks this scope; `admin` includes all scopes."""
        if not self.has_scope(scope):
            raise Forbidden(f"This key lacks the scope {scope!r}.")

    def has_scope(self, scope: Scope) -> bool:
        """Return True if the key has the scope."""
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for a job: the spec that the job holds, and the values that are resolved first.

    None stands for the agent's value, then the service's.

    With `strict` an agent without a definition is an error; the classic routes accept it and the run fails.
    """

    spec: JobSpec
    agent: str | None = None
    workspace: str | None = None
    ref: str | None = None
    budget_micros: int | None = None
    timeout_seconds: float | None = None
    idle_timeout_seconds: float | None = None
    on_interrupt: OnInterrupt | None = None
    publish: Publish | None = None
    parent: str | None = None
    """The job whose session and changes this one continues.

    Without it, that is the newest job of `session` or of the session name in `spec`.
    """
    parent_job: Job | None = None
    """The job `parent`, if this request has just read it and found that its session can be continued."""
    session: str | None = None
    default_budget_micros: int | None = None
    """The budget of the route, in place of the agent's, if the request names none; it is lowered to the ceilings."""
    default_timeout_seconds: float | None = None
    max_budget: bool = False
    """The budget is the nearest ceiling, in place of the agent's value."""
    max_timeout: bool = False
    """The time limit is the nearest ceiling, in place of the agent's value."""
    may_be_unlimited: bool = False
    """Without a ceiling, `max_budget` and `max_timeout` mean the largest value; else they are an error."""
    strict: bool = True


@dataclass(frozen=True, slots=True)
class ResumeOptions:
    """Options of a resume: a new total budget, and a prompt. With `after_run` a repeat of the call is harmless."""

    budget_micros: int | None = None
    prompt: str | None = None
    after_run: int | None = None


@dataclass(frozen=True, slots=True)
class AvailableAgent:
    """An agent that a job may name, with the values of a job that sets none of its own, and the caller's ceilings."""

    agent: Agent
    workspace: str | None
    budget_micros: int
    timeout_seconds: float
    idle_timeout_seconds: float
    max_budget_micros: int | None = None
    max_timeout_seconds: float | None = None
    models: tuple[str, ...] | None = None


def unchanged(job: Job) -> Job:
    """Return the job itself: an update that changes nothing."""
    return job


class JobIds:
    """Creates ids of jobs: 12 lower-case hexadecimal digits.

    The random bytes are read for many ids at once: a read gives the interpreter to another thread, and a request would
    wait for it.
    """

    _BATCH = 256

    def __init__(self) -> None:
        self._ids: list[str] = []

    def new(self) -> str:
        """Create an id."""
        if not self._ids:
            digits = secrets.token_hex(6 * self._BATCH)
            self._ids = [digits[at : at + 12] for at in range(0, len(digits), 12)]
        return self._ids.pop()


def inherit_from_parent(parent: Job, submission: Submission) -> Submission:
    """Return a request for the next turn with the values that it inherits from the turn before.

    Raise `InvalidRequest` if it names another agent, workspace or ref than the session has.
    """
    for name, requested, inherited in (
        ("agent", submission.agent, parent.agent),
        ("workspace", submission.workspace, parent.workspace),
        ("ref", submission.ref, parent.ref),
    ):
        if requested is not None and requested != inherited:
            raise InvalidRequest.at(
                f"/{name}", f"differs from the {name} of the session, which cannot change"
            )
    inherited_submission = replace(submission, agent=parent.agent, strict=False)
    if submission.spec.origin == "openai":
        # Such a client sends its instructions, its output schema and its model each time.
        return inherited_submission
    spec = replace(
        submission.spec,
        model=submission.spec.model or parent.spec.model,
        append_system_prompt=submission.spec.append_system_prompt or parent.spec.append_system_prompt,
        labels=submission.spec.labels or parent.spec.labels,
        not_on_nodes=submission.spec.not_on_nodes or parent.spec.not_on_nodes,
    )
    return replace(inherited_submission, spec=replace(spec, callback=spec.callback or parent.spec.callback))


def first_set(*values: _T | None) -> _T:
    """Return the first value that is not None; the last one must not be None."""
    return next(value for value in values if value is not None)


def is_path_or_url(workspace: str) -> bool:
    """Return True for a workspace that is not the name of a configured one."""
    return workspace.startswith("/") or _REPOSITORY_URL.fullmatch(workspace) is not None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the end of an error text: the nearest known name, or the list of known names."""
    closest = closest_name(name, known)
    if closest:
        return f"; did you mean {closest!r}?"
    return f"; there are: {', '.join(known)}" if known else ""
