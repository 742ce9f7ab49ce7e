"""The outermost layer: an id for every request, the check of Host and Origin, and a 500 for unexpected errors."""

import ipaddress
import random
import re
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steadyhand.api.transport.auth import bearer_token
from steadyhand.api.transport.context import CALLER_KEY_SCOPE_KEY, ApiOptions
from steadyhand.api.transport.errors import (
    CLASSIC_SCOPE_KEY,
    REDACTOR_SCOPE_KEY,
    REQUEST_ID_SCOPE_KEY,
    caller_error_response,
    internal_error_response,
    route_group,
)
from steadyhand.errors import CallerError, Forbidden, RetryLater, Unauthenticated
from steadyhand.log_context import set_log_fields
from steadyhand.read_patience import set_read_patience
from steadyhand.redact import Redactor

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_LOGGED_PATH = 200
_PROBE_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
_UNLOGGED_PATHS = _PROBE_PATHS | {"/health"}
_PATHS_OF_REFUSED_CONNECTIONS = _UNLOGGED_PATHS
_SLASHES = re.compile("/{2,}")
REFUSED_SCOPE_KEY = "steadyhand.refused"
"""The key in the ASGI scope that the server sets on a connection above its bounds: only probes are answered."""


def parse_host(authority: str) -> str:
    """Return the host of `host:port`, in lower case and without brackets; empty if there is none."""
    try:
        name = urlsplit(f"//{authority}").hostname
    except ValueError:
        return ""
    return (name or "").rstrip(".")


def _is_loopback(name: str) -> bool:
    if name in _LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class AllowedHosts:
    """The host names of this service.

    They are checked on the native routes, against DNS rebinding and requests of other origins. The classic and the
    OpenAI routes rely on their key, since their callers use the changing names of containers. Probes of the platform
    use an address.
    """

    def __init__(self, options: ApiOptions) -> None:
        names = {parse_host(name) for name in options.allowed_hosts if name != "*"}
        if options.bind_host:
            names.add(options.bind_host.lower())
        if options.public_url:
            names.add(parse_host(urlsplit(options.public_url).netloc))
        self._names = names - {""}
        self._allow_any = "*" in options.allowed_hosts
        self._cors_origins = frozenset(options.cors_origins)

    def check(self, scope: Scope) -> None:
        """Raise `Forbidden` if the Host or the Origin is not one of this service."""
        path: str = scope["path"]
        if self._allow_any or path in _PROBE_PATHS or route_group(path) != "native":
            return
        has_host = False
        for header, value in scope["headers"]:
            if header == b"host":
                has_host = True
                if not self._is_allowed(parse_host(value.decode("latin-1"))):
                    raise Forbidden(
                        "This service is not known under the host of this request; see server.allowed_hosts.",
                        code="forbidden_host",
                    )
            elif header == b"origin" and not self._is_allowed_origin(value.decode("latin-1")):
                raise Forbidden("Requests from this origin are not allowed.", code="forbidden_origin")
        if not has_host:
            raise Forbidden("The request has no Host header.", code="forbidden_host")

    def _is_allowed(self, name: str) -> bool:
        return bool(name) and (name in self._names or _is_loopback(name))

    def _is_allowed_origin(self, origin: str) -> bool:
        if "*" in self._cors_origins or origin in self._cors_origins:
            return True
        return self._is_allowed(_origin_host(origin))


def _origin_host(origin: str) -> str:
    scheme, separator, authority = origin.partition("://")
    return parse_host(authority) if separator and scheme in ("http", "https") else ""


def _check_connection(scope: Scope) -> None:
    if REFUSED_SCOPE_KEY in scope and scope["path"] not in _PATHS_OF_REFUSED_CONNECTIONS:
        raise RetryLater("Too many connections are open.", code="unavailable")


def _normalize_path(path: str) -> str:
    """Return a path below `/v1` without double slashes and a slash at its end; any other path as it is."""
    normalized = _SLASHES.sub("/", path).rstrip("/")
    return normalized if normalized.startswith("/v1/") else path


def _token(scope: Scope) -> bytes:
    """Return the Bearer token of a request; empty if there is none."""
    try:
        return bearer_token(scope["headers"])
    except Unauthenticated:
        return b""


class RequestMiddleware:
    """Pure ASGI middleware: sets `x-request-id` on every response and turns every exception into a response."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: AllowedHosts,
        redactor: Redactor,
        is_classic: bool = False,
        on_response: Callable[[str, int, float], None] = lambda _routes, _status, _seconds: None,
        learn_key: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        """Create it. `learn_key` is awaited with each token, if other nodes may have created its key."""
        self._app = app
        self._learn_key = learn_key
        self._on_response = on_response
        self._is_classic = is_classic
        self._redactor = redactor
        self._hosts = hosts
        self._id_source = random.Random()  # noqa: S311  # an id to look for in the log, not a secret
        self._log = structlog.get_logger("steadyhand.api")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{self._id_source.getrandbits(64):016x}"
        scope[REQUEST_ID_SCOPE_KEY] = request_id
        set_log_fields({"request_id": request_id})
        set_read_patience(scope["method"])
        scope[REDACTOR_SCOPE_KEY] = self._redactor
        if self._is_classic:
            scope[CLASSIC_SCOPE_KEY] = True
        id_header = (b"x-request-id", request_id.encode("ascii"))
        begun_at = time.monotonic()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if (path := scope["path"]) not in _UNLOGGED_PATHS:
                    self._on_response(route_group(path), message["status"], time.monotonic() - begun_at)
                message["headers"] = [*message.get("headers", ()), id_header]
            await send(message)

        path: str = scope["path"]
        if "//" in path or path.endswith("/"):
            scope["path"] = _normalize_path(path)
        try:
            _check_connection(scope)
            self._hosts.check(scope)
            await self._learn(scope)
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass  # nobody is left to be answered
        except CallerError as error:
            if status is not None:
                raise
            await caller_error_response(scope, error)(scope, receive, send_with_id)
        except Exception:  # the boundary of a request: logged, and never a half answer that looks whole
            self._log.exception("request failed", request_id=request_id, method=scope["method"])
            if status is not None:
                raise  # the server cuts the connection, so that a half answer does not look whole
            await internal_error_response(scope)(scope, receive, send_with_id)
        finally:
            self._log_request(scope, status, time.monotonic() - begun_at)

    async def _learn(self, scope: Scope) -> None:
        if self._learn_key is not None:
            await self._learn_key(_token(scope))

    def _log_request(self, scope: Scope, status: int | None, seconds: float) -> None:
        """Log one line for a request that is no probe; `status` is `None` if it was not answered."""
        path: str = scope["path"]
        if path in _UNLOGGED_PATHS:
            return
        self._log.info(
            "request",
            request_id=scope[REQUEST_ID_SCOPE_KEY],
            method=scope["method"],
            path=path[:_MAX_LOGGED_PATH],  # without the query, which may hold a secret
            status=status,
            key=scope.get(CALLER_KEY_SCOPE_KEY),
            seconds=round(seconds, 4),
        )
