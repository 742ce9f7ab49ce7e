"""The context of every route: `Control`, the keyring and the options, and how a route gets them from a request."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from starlette.requests import Request

from steadyhand.api.transport.auth import authenticate, bearer_token
from steadyhand.api.transport.rendered_items import RenderedItems
from steadyhand.api.transport.sse import FrameCache
from steadyhand.api.transport.trace_context import parse_traceparent
from steadyhand.api.transport.waiting_clients import WaitingClients
from steadyhand.control import Caller, Control
from steadyhand.keyring import Keyring
from steadyhand.log_context import add_log_fields
from steadyhand.metrics.exposition import Scrape
from steadyhand.metrics.names import MetricScope
from steadyhand.ports import (
    CallbackEndpoints,
    DoctorCheck,
    LocalNodeCalls,
    NodeCalls,
    PageSessions,
    Schedules,
    Scope,
    ToolNames,
)
from steadyhand.ports.nodes import Nodes
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
    credential the model's service rejects, `get_warm_processes` the counts of the processes that wait for jobs, and
    `get_warm_agents` the same of each agent. `get_callback_secret` returns the secret that signs the callbacks
    of a key, by its id, and `callback_endpoints` are the configured receivers.
    `redactor` removes live secrets from errors.
    `on_response` gets the group, the status and the seconds until the head of each response but those of probes.
    `scrape` returns the metrics of some scopes for an `Accept` header; without it there is no `/metrics`.
    `schedules` are the operations on schedules, `nodes` those on nodes. `node` is the name of this service in the runs
    of jobs. `run_doctor` runs the checks of `steadyhand doctor`. By `node_calls` other nodes are asked for the clients
    that wait there. `page_sessions` are those of all nodes, if there may be several.
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
    get_warm_agents: Callable[[], Mapping[str, Mapping[str, Any]]] = dict
    get_callback_secret: Callable[[str], str] | None = None
    callback_endpoints: CallbackEndpoints | None = None
    redactor: Redactor = NO_REDACTION
    on_response: Callable[[str, int, float], None] = lambda _routes, _status, _seconds: None
    scrape: Callable[[str, frozenset[MetricScope]], Awaitable[Scrape]] | None = None
    schedules: Schedules | None = None
    nodes: Nodes | None = None
    node: str = ""
    page_sessions: PageSessions | None = None
    run_doctor: Callable[[], AsyncGenerator[Sequence[DoctorCheck], None]] | None = None
    node_calls: NodeCalls = field(default_factory=LocalNodeCalls)


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The parts of the service that the routes use."""

    control: Control
    keyring: Keyring
    options: ApiOptions
    tool_names: ToolNames
    waiting_clients: WaitingClients = field(default_factory=WaitingClients)
    event_frames: FrameCache = field(default_factory=FrameCache)
    job_items: RenderedItems = field(default_factory=RenderedItems)


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
    traceparent = parse_traceparent(request.scope["headers"])
    if traceparent is None:
        return caller
    add_log_fields({"trace_id": traceparent.split("-")[1]})
    return replace(caller, traceparent=traceparent)


def authorization_check(request: Request) -> Callable[[], bool]:
    """Return a function that returns whether the key of this request is still valid."""
    return get_context(request).keyring.validity_of(bearer_token(request.scope["headers"]))


def as_job_owner(caller: Caller) -> Caller:
    """Return the caller with the rights over its own jobs that a route needs after it has let the caller in.

    A chat request submits, waits and, if its client disconnects, cancels; its key needs the scope `submit` only.
    """
    owner_scopes: frozenset[Scope] = frozenset({"submit", "read", "cancel"})
    return replace(caller, scopes=caller.scopes | owner_scopes)
