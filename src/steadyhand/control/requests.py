"""Who asks, and for what."""

import difflib
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

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the id of the key and what it may do."""

    key_id: str
    scopes: frozenset[Scope]

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` (`scope_missing`) without this scope; `admin` holds them all."""
        if not self.may(scope):
            raise Forbidden(f"This key lacks the scope {scope!r}.")

    def may(self, scope: Scope) -> bool:
        """Say whether this key has the scope."""
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for work, already of the right types. Null falls to the agent's value, then the service's.

    `strict` refuses an agent that nobody defined; the classic routes accept it and let the run fail.
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
    """The job whose session and work this one goes on with; `session` and `session_name` mean the newest of theirs."""
    session: str | None = None
    session_name: str | None = None
    content: tuple[Mapping[str, Any], ...] = ()
    request: Mapping[str, Any] | None = None
    tools: tuple[ClientTool, ...] = ()
    one_call: bool = False
    origin: Origin = "api"
    strict: bool = True


@dataclass(frozen=True, slots=True)
class Continuation:
    """How an ended job is to go on: a new budget in all, what to say in place of going on; a repeat is harmless."""

    budget_micros: int | None = None
    prompt: str | None = None
    after_run: int | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """An agent that can be asked for, with what a job of it gets when it does not say."""

    agent: Agent
    workspace: str | None
    budget_micros: int
    timeout_seconds: float
    idle_timeout_seconds: float


def new_job_id() -> str:
    """Make an id: 12 lower-case hexadecimal digits."""
    return secrets.token_hex(6)


def going_on_from(parent: Job, asked: Submission) -> Submission:
    """Give a request for the next turn with what it takes over from the turn before.

    Raises `InvalidRequest` for what would be another session.
    """
    for name, given, before in (
        ("agent", asked.agent, parent.agent),
        ("workspace", asked.workspace, parent.workspace),
        ("ref", asked.ref, parent.ref),
    ):
        if given is not None and given != before:
            raise InvalidRequest.at(
                f"/{name}", f"is another than that of the session, which keeps its {name}"
            )
    going_on = replace(asked, agent=parent.agent, strict=False)
    if asked.origin == "openai":
        return (
            going_on  # such a client says its instructions, what its answer has to be and its model each time
        )
    return replace(
        going_on,
        model=asked.model or parent.model,
        append_system_prompt=asked.append_system_prompt or parent.append_system_prompt,
    )


def first_of(*values: _T | None) -> _T:
    """Give the first value that is there; the last one always is."""
    return next(value for value in values if value is not None)


def nearest(name: str, known: Sequence[str]) -> str:
    """Say which known name is meant, or which ones there are."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(known)}" if known else ""
