"""The caller, and the requests that the operations take."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from steadyhand.agents import Agent
from steadyhand.errors import Forbidden, InvalidRequest
from steadyhand.job import (
    ClientTool,
    Job,
    OnInterrupt,
    Origin,
    Publish,
    Turn,
)
from steadyhand.ports import (
    Scope,
)
from steadyhand.suggest import closest_name

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Caller:
    """The id of the caller's key and its scopes."""

    key_id: str
    scopes: frozenset[Scope]

    def require_scope(self, scope: Scope) -> None:
        """Raise `Forbidden` (`scope_missing`) if the key lacks this scope; `admin` includes all scopes."""
        if not self.has_scope(scope):
            raise Forbidden(f"This key lacks the scope {scope!r}.")

    def has_scope(self, scope: Scope) -> bool:
        """Return True if the key has the scope."""
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for a job, with values of the right types. None stands for the agent's value, then the service's.

    With `strict` an agent without a definition is an error; the classic routes accept it and the run fails.
    """

    prompt: str
    agent: str | None = None
    model: str | None = None
    workspace: str | None = None
    ref: str | None = None
    budget_micros: int | None = None
    timeout_seconds: float | None = None
    idle_timeout_seconds: float | None = None
    priority: int = 0
    metadata: dict[str, Any] | None = None
    title: str | None = None
    output_schema: dict[str, Any] | None = None
    on_interrupt: OnInterrupt | None = None
    publish: Publish | None = None
    expires_in_seconds: float | None = None
    max_turns: int | None = None
    effort: str | None = None
    append_system_prompt: str | None = None
    history: tuple[Turn, ...] = ()
    parent: str | None = None
    """The job whose session and changes this one continues; `session` and `session_name` mean their newest job."""
    session: str | None = None
    session_name: str | None = None
    content: tuple[Mapping[str, Any], ...] = ()
    request: Mapping[str, Any] | None = None
    tools: tuple[ClientTool, ...] = ()
    one_call: bool = False
    origin: Origin = "api"
    strict: bool = True


@dataclass(frozen=True, slots=True)
class ResumeOptions:
    """Options of a resume: a new total budget, and a prompt. With `after_run` a repeat of the call is harmless."""

    budget_micros: int | None = None
    prompt: str | None = None
    after_run: int | None = None


@dataclass(frozen=True, slots=True)
class AvailableAgent:
    """An agent that a job may name, with the values of a job that sets none of its own."""

    agent: Agent
    workspace: str | None
    budget_micros: int
    timeout_seconds: float
    idle_timeout_seconds: float


def unchanged(job: Job) -> Job:
    """Return the job itself: an update that changes nothing."""
    return job


def new_job_id() -> str:
    """Create an id: 12 lower-case hexadecimal digits."""
    return secrets.token_hex(6)


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
    if submission.origin == "openai":
        # Such a client sends its instructions, its output schema and its model each time.
        return inherited_submission
    return replace(
        inherited_submission,
        model=submission.model or parent.model,
        append_system_prompt=submission.append_system_prompt or parent.append_system_prompt,
    )


def first_set(*values: _T | None) -> _T:
    """Return the first value that is not None; the last one must not be None."""
    return next(value for value in values if value is not None)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the end of an error text: the nearest known name, or the list of known names."""
    closest = closest_name(name, known)
    if closest:
        return f"; did you mean {closest!r}?"
    return f"; there are: {', '.join(known)}" if known else ""
