"""The context of every route: `Control`, the keyring and the options, and how a route gets them from a request."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from starlette.requests import Request

from steadyhand.api.transport.auth import authenticate, bearer_token
from steadyhand.api.transport.sse import FrameCache
from steadyhand.api.transport.waiting_clients import WaitingClients
from steadyhand.control import Caller, Control
from steadyhand.keyring import Keyring
from steadyhand.ports import Scope, ToolNames
from steadyhand.redact import NO_REDACTION, Redactor

MEBIBYTE = 1024 * 1024
ReasoningMode = Literal["none", "thinking", "tools", "all"]
"""The parts of a run that a chat completion has as its reasoning."""


class ModelAlias(NamedTuple):
    """The agent that a model's name of the OpenAI routes stands for, and optionally a model for it."""

    agent: str
    model: str | None = None
    reasoning: ReasoningMode = "none"


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """Options of the routes. Sizes are bytes.

    `allowed_hosts` are the host names that callers of the native routes may use, beside loopback, `bind_host` and
    the host of `public_url`; `*` allows any. Pages of `cors_origins` may call every route; `*` allows any.
    `readiness_check` raises the error that keeps the service from working (`TryLater` with `draining` while the
    service stops); without it the store is asked. `get_rejected_providers` returns the names of the providers whose
    credential the model's service rejects, and `get_warm_processes` the counts of those that wait for jobs.
    `redactor` removes live secrets from errors.
    """

    profile: Literal["default", "classic"] = "default"
    allowed_hosts: tuple[str, ...] = ()
    bind_host: str | None = None
    public_url: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 * MEBIBYTE
    max_openai_body_bytes: int = 32 * MEBIBYTE
    openai_default_agent: str | None = None
    openai_models: Mapping[str, ModelAlias] = field(default_factory=dict)
    version: str = "0"
    readiness_check: Callable[[], Awaitable[None]] | None = None
    get_rejected_providers: Callable[[], Sequence[str]] = tuple
    get_warm_processes: Callable[[], Mapping[str, Any] | None] = lambda: None
    redactor: Redactor = NO_REDACTION


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The parts of the service that the routes use."""

    control: Control
    keyring: Keyring
    options: ApiOptions
    tool_names: ToolNames
    waiting_clients: WaitingClients = field(default_factory=WaitingClients)
    event_frames: FrameCache = field(default_factory=FrameCache)


CALLER_KEY_SCOPE_KEY = "steadyhand.key"
"""The id of the caller's key in the scope of a request, for the log."""


def get_context(request: Request) -> ApiContext:
    """Return the context of the app that received this request."""
    context: ApiContext = request.app.state.context
    return context


def get_caller(request: Request) -> Caller:
    """Return the caller. Every route calls this first, before it reads the body."""
    context = get_context(request)
    caller = authenticate(
        context.keyring, request.scope["headers"], is_classic=context.options.profile == "classic"
    )
    request.scope[CALLER_KEY_SCOPE_KEY] = caller.key_id
    return caller


def authorization_check(request: Request) -> Callable[[], bool]:
    """Return a function that returns whether the key of this request is still valid."""
    return get_context(request).keyring.validity_of(bearer_token(request.scope["headers"]))


def as_job_owner(caller: Caller) -> Caller:
    """Return the caller with the rights over its own jobs that a route needs after it has let the caller in.

    A chat request submits, waits and, if its client disconnects, cancels; its key needs the scope `submit` only.
    """
    owner_scopes: frozenset[Scope] = frozenset({"submit", "read", "cancel"})
    return replace(caller, scopes=caller.scopes | owner_scopes)
