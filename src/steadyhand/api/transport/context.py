"""What every route needs: the verbs, the keys and the options, and how a route finds them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from starlette.requests import Request

from steadyhand.api.transport.auth import authenticate, bearer_token
from steadyhand.api.transport.waiting_clients import WaitingClients
from steadyhand.control import Caller, Control
from steadyhand.keyring import Keyring
from steadyhand.ports import Scope
from steadyhand.redact import NO_REDACTION, Redactor

MEBIBYTE = 1024 * 1024


class ModelAlias(NamedTuple):
    """What a model's name of the OpenAI routes means: an agent, and perhaps a model for it.

    With `reasoning` `tools`, what its tools do goes out as the reasoning of a streamed chat completion.
    """

    agent: str
    model: str | None = None
    reasoning: Literal["none", "tools"] = "none"


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """How the routes behave. Sizes are bytes.

    `allowed_hosts` are the names that callers of the native routes may use, beside loopback, `bind_host` and
    the host of `public_url`; `*` allows any. `ready` raises what stands in the way of work (`TryLater` with
    `draining` while the service stops); without it the store is asked. `redactor` takes live secrets out of errors.
    """

    profile: Literal["default", "classic"] = "default"
    allowed_hosts: tuple[str, ...] = ()
    bind_host: str | None = None
    public_url: str | None = None
    max_body_bytes: int = 8 * MEBIBYTE
    max_openai_body_bytes: int = 32 * MEBIBYTE
    openai_default_agent: str | None = None
    openai_models: Mapping[str, ModelAlias] = field(default_factory=dict)
    version: str = "0"
    readiness_check: Callable[[], Awaitable[None]] | None = None
    redactor: Redactor = NO_REDACTION


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The service as the routes see it."""

    control: Control
    keyring: Keyring
    options: ApiOptions
    waiting_clients: WaitingClients = field(default_factory=WaitingClients)


def get_context(request: Request) -> ApiContext:
    """Give the door of the app that this request came to."""
    context: ApiContext = request.app.state.context
    return context


def get_caller(request: Request) -> Caller:
    """Give who asks. Called first in every route, before the body is read."""
    return authenticate(get_context(request).keyring, request.scope["headers"])


def authorization_check(request: Request) -> Callable[[], bool]:
    """Give what says whether the key that let this request in would still do so."""
    keyring, token = get_context(request).keyring, bearer_token(request.scope["headers"])
    return lambda: keyring.is_valid(token)


def as_job_owner(caller: Caller) -> Caller:
    """Give the caller the rights over its own jobs that a route needs once it has been let in.

    A chat call submits, waits and, when its client goes away, cancels; a key needs `submit` for it and no more.
    """
    owner_scopes: frozenset[Scope] = frozenset({"submit", "read", "cancel"})
    return replace(caller, scopes=caller.scopes | owner_scopes)
