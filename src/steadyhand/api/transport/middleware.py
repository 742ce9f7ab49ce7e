"""The outermost layer: an id for every request, the check of Host and Origin, and the last net for faults."""

import ipaddress
import random
from urllib.parse import urlsplit

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steadyhand.api.transport.context import ApiOptions
from steadyhand.api.transport.errors import REDACTOR, REQUEST_ID, group_of, internal, problem_of
from steadyhand.errors import CallerError, Forbidden
from steadyhand.redact import Redactor

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PROBES = frozenset({"/livez", "/readyz", "/metrics"})


def host_name(authority: str) -> str:
    """Give the host of `host:port`, in lower case and without brackets; empty when there is none."""
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


class Hosts:
    """The names that this service is known as.

    They are checked on the native routes, against rebound names and foreign pages. The classic and the OpenAI
    routes are left to their key, since their callers use whatever name a container has today, and the
    platform's probes come by address.
    """

    def __init__(self, options: ApiOptions) -> None:
        names = {host_name(name) for name in options.allowed_hosts if name != "*"}
        if options.bind_host:
            names.add(options.bind_host.lower())
        if options.public_url:
            names.add(host_name(urlsplit(options.public_url).netloc))
        self._names = names - {""}
        self._any = "*" in options.allowed_hosts

    def check(self, scope: Scope) -> None:
        """Raise `Forbidden` for a Host or an Origin that is not ours."""
        path: str = scope["path"]
        if self._any or path in _PROBES or group_of(path) != "native":
            return
        named = False
        for header, value in scope["headers"]:
            if header == b"host":
                named = True
                if not self._knows(host_name(value.decode("latin-1"))):
                    raise Forbidden(
                        "This service is not known under the host of this request; see server.allowed_hosts.",
                        code="forbidden_host",
                    )
            elif header == b"origin" and not self._knows(_origin_host(value.decode("latin-1"))):
                raise Forbidden("Requests from this origin are not taken.", code="forbidden_origin")
        if not named:
            raise Forbidden("The request names no host.", code="forbidden_host")

    def _knows(self, name: str) -> bool:
        return bool(name) and (name in self._names or _is_loopback(name))


def _origin_host(origin: str) -> str:
    scheme, separator, authority = origin.partition("://")
    return host_name(authority) if separator and scheme in ("http", "https") else ""


class Edge:
    """Pure ASGI: stamps `x-request-id` on every response and lets no exception out without an answer."""

    def __init__(self, app: ASGIApp, *, hosts: Hosts, redactor: Redactor | None = None) -> None:
        self._app = app
        self._redactor = redactor
        self._hosts = hosts
        self._random = random.Random()  # noqa: S311  # an id to look for in the log, not a secret
        self._log = structlog.get_logger("steadyhand.api")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{self._random.getrandbits(64):016x}"
        scope[REQUEST_ID] = request_id
        scope[REDACTOR] = self._redactor
        stamp = (b"x-request-id", request_id.encode("ascii"))
        started = False

        async def stamped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), stamp]
            await send(message)

        try:
            self._hosts.check(scope)
            await self._app(scope, receive, stamped)
        except ClientDisconnect:
            pass  # nobody is left to be answered
        except CallerError as error:
            if started:
                raise
            await problem_of(scope, error)(scope, receive, stamped)
        except Exception:
            self._log.exception("request failed", request_id=request_id, method=scope["method"])
            if started:
                raise  # the server cuts the connection, so that a half answer does not look whole
            await internal(scope)(scope, receive, stamped)
