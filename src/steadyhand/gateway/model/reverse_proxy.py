"""The reverse proxy to the model providers: it replaces the agent's placeholder by the credential and streams.

An ASGI app. `scope["state"]` has the `connection` of the agent, the `target` as it was written, and `write_body`, which
writes a part of the response's body at once or returns False.
Only the routes of the run's provider are allowed. A call that costs money is admitted by the budgets, metered as it
passes and settled at its end. If the provider is busy for a moment, the call is repeated before the agent sees it.
"""

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
from starlette.types import Message, Receive, Scope, Send

from steadyhand.gateway.http_messages import end_to_end_headers
from steadyhand.gateway.model import request_body
from steadyhand.gateway.model.error_response import (
    BUDGET,
    BUDGET_STATUS,
    RATE_LIMIT,
    RATE_LIMIT_STATUS,
    Rejected,
    error_format_of,
    send_error,
)
from steadyhand.gateway.model.http_client import (
    HttpClient,
    UpstreamError,
    UpstreamRequest,
    UpstreamResponse,
)
from steadyhand.gateway.model.metered_requests import metered_body
from steadyhand.gateway.model.metered_run import MeteredRun, OpenCall
from steadyhand.gateway.model.provider_rate_limits import (
    RATE_LIMITED,
    Blocked,
    ProviderRateLimits,
    RetryAfter,
)
from steadyhand.gateway.model.providers import Provider, Route
from steadyhand.gateway.model.rejected_credentials import UNAUTHORIZED, Refusal, RejectedCredentials
from steadyhand.gateway.model.request_body import (
    ClientDisconnected,
    StreamedBody,
    requested_model,
    too_large,
)
from steadyhand.gateway.model.usage_meter import UsageMeter
from steadyhand.gateway.money.budgets import BudgetExhausted, BudgetQueueFull
from steadyhand.log_context import set_log_fields
from steadyhand.metrics import ServiceMetrics

MAX_HEAD_BYTES = 64 * 1024

_VERSIONS = frozenset({"1.0", "1.1"})
_METHODS = frozenset({"GET", "POST"})
_PATH = re.compile(rb"[A-Za-z0-9._~:@%/-]{1,2048}")
_QUERY = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:@/?%-]{0,8192}")
_MIN_STATUS, _MAX_STATUS = 200, 599
_ERROR_BODY_BYTES = 64 * 1024
_NO_CREDIT = b'"insufficient_quota"'
"""The code in OpenAI's 429 for an account without credit, which no wait mends."""
_DROPPED_RESPONSE_HEADERS = frozenset({b"set-cookie", b"transfer-encoding", b"alt-svc"})


@dataclass(frozen=True, slots=True)
class AgentConnection:
    """One connection of an agent: whose it is, and how it is cut."""

    run: MeteredRun
    abort: Callable[[], None]
    on_close: "CancelOnClose"


class CancelOnClose:
    """Cancels the work for a connection when the agent has closed it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        """Mark the connection as closed."""
        if self.task is not None:
            self.task.cancel()


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """An allowed request; `length` is None if its body has no known length. `headers` are those of the agent."""

    method: str
    target: bytes
    route: Route
    headers: Sequence[tuple[bytes, bytes]]
    length: int | None
    has_body: bool


class ReverseProxy:
    """The app. It keeps connections to the models' services open for the next request, whoever's that is."""

    def __init__(
        self,
        rate_limits: ProviderRateLimits,
        rejected_credentials: RejectedCredentials,
        metrics: ServiceMetrics,
    ) -> None:
        self._rate_limits = rate_limits
        self._rejected_credentials = rejected_credentials
        self._metrics = metrics
        self._clients: dict[str, HttpClient] = {}
        self._log = structlog.get_logger("steadyhand.gateway")

    def add_provider(self, provider: Provider) -> None:
        """Know the way to a provider. Raises `ConfigError` for an address that is none."""
        self._clients[provider.name] = HttpClient(provider.url)

    def close(self) -> None:
        """Close the connections to the models' services."""
        for upstream in self._clients.values():
            upstream.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry one request there and its answer back; ends early when the agent goes away."""
        connection: AgentConnection = scope["state"]["connection"]
        set_log_fields(connection.run.log_fields)
        body = StreamedBody(receive, connection.run)
        connection.on_close.task = asyncio.current_task()
        try:
            sender = _ResponseSender(send, scope["state"]["write_body"])
            await self._handle(scope, connection, body, sender)
        except Exception:  # noqa: BLE001  # the boundary of a request: logged, and never a half answer that looks whole
            self._log.exception("gateway.failed")
            connection.abort()
        finally:
            connection.on_close.task = None
            body.release()

    async def _handle(
        self, scope: Scope, connection: AgentConnection, body: StreamedBody, send: "_ResponseSender"
    ) -> None:
        try:
            request = await self._accept(scope, connection)
            if not request.has_body:
                body.mark_empty()
            await self._forward(request, connection.run, body, send)
            await connection.run.report_unpriced()
            await connection.run.report_near_budgets()
        except Rejected as rejected:
            self._metrics.request_refused(rejected.kind)
            connection.run.last_status = rejected.status
            is_final = rejected.headers.get(b"x-should-retry") == b"false"
            connection.run.failed_calls.note_answer(rejected.status, is_final=is_final)
            if send.started:
                connection.abort()
            else:
                await send_error(send, rejected, error_format_of(connection.run.provider.kind))
        except UpstreamError as error:
            self._metrics.provider_failed(connection.run.provider.name)
            self._log.warning("gateway.upstream_failed", error=str(error))
            if send.started:
                connection.abort()
            else:
                text = "The model's service could not be reached, or broke off."
                unreachable = Rejected(502, "api_error", text)
                await send_error(send, unreachable, error_format_of(connection.run.provider.kind))
        except ClientDisconnected:
            pass

    async def _accept(self, scope: Scope, connection: AgentConnection) -> AcceptedRequest:
        """Judge a request by its head. Raises `Turned`."""
        method, target = scope["method"], scope["state"]["target"]
        path, _, query = target.partition(b"?")
        provider = connection.run.provider
        well_formed = method in _METHODS and _PATH.fullmatch(path) and _QUERY.fullmatch(query)
        route = provider.route(method, path, query) if well_formed else None
        if route is None:
            is_upgrade = any(name == b"upgrade" for name, _ in scope["headers"])
            if is_upgrade and provider.route("POST", path, query) is not None:
                # By this status Codex goes on with HTTP at once; it counts others as failures first.
                raise Rejected(426, "invalid_request_error", "This gateway has no WebSockets: use HTTP.")
            await connection.run.events.report_refused_path(method, path.decode("latin-1"))
            raise Rejected(403, "permission_error", f"This gateway passes {provider.allowed_routes} only.")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD_BYTES:
            raise Rejected(431, "invalid_request_error", "The headers are too long.")
        if scope["http_version"] not in _VERSIONS:
            raise Rejected(400, "invalid_request_error", "This gateway speaks HTTP/1.1.")
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
        if len(lengths) + chunked > 1:
            raise Rejected(400, "invalid_request_error", "A request has one length.")
        length = int(lengths[0]) if lengths else None
        if length is not None and length > request_body.MAX_BODY_BYTES:
            raise too_large()
        return AcceptedRequest(method, target, route, scope["headers"], length, chunked or bool(length))

    # --- one call --------------------------------------------------------------------------

    async def _forward(
        self, request: AcceptedRequest, run: MeteredRun, body: StreamedBody, send: "_ResponseSender"
    ) -> None:
        """Forward a request after the checks of rate limit and budgets. Raises `Rejected`, `UpstreamError`."""
        missing = run.provider.missing_credential
        if missing is not None:
            # 403 is what makes the CLI stop at once; 401 it would try again.
            raise Rejected(403, "permission_error", missing, {b"x-should-retry": b"false"})
        self._check_rate_limit(run)
        refusal = await self._rejected_credentials.admit(run.provider, run)
        if refusal is not None:
            raise _credential_rejected(run, refusal)
        response_format = request.route.response_format
        billable = response_format != "none"
        is_openai = response_format in ("responses", "chat")
        needs_model = billable and request.route.model is None
        await body.prepare(request.length, needs_model=needs_model, needs_all=is_openai)
        buffered = body.buffered if is_openai else None
        if buffered is not None and (metered := metered_body(response_format, buffered)) is not buffered:
            body.replace(metered)
            request = replace(request, length=len(metered))
        if not billable:
            await self._send_with_retries(request, run, body, send, None)
            return
        model = request.route.model or requested_model(body.first_chunk)
        try:
            call = await run.begin_call(
                model, request.length if request.length is not None else len(body.first_chunk)
            )
        except BudgetExhausted as exhausted:
            raise Rejected(
                BUDGET_STATUS, BUDGET, exhausted.text, {b"x-should-retry": b"false"}
            ) from exhausted
        except BudgetQueueFull as queue_full:
            raise Rejected(529, "overloaded_error", "Too many calls wait for this budget.") from queue_full
        if request.length is None:
            body.report_size_to(call)
        try:
            await self._send_with_retries(request, run, body, send, call)
        except UpstreamError as error:
            call.settle(None, None, sent=error.sent)
            raise
        except Rejected as rejected:
            call.settle(None, rejected.status, sent=False)
            raise
        finally:
            call.settle(None, None, sent=call.sent)

    def _check_rate_limit(self, run: MeteredRun) -> None:
        until = self._rate_limits.blocked_until(run.provider.rate_limit_key)
        if until is not None:
            run.rate_limited_until = until
            seconds = math.ceil((until - self._rate_limits.clock()).total_seconds())
            raise Rejected(
                RATE_LIMIT_STATUS,
                RATE_LIMIT,
                f"The model's rate limit holds until {until:%Y-%m-%dT%H:%M:%SZ}.",
                {b"x-should-retry": b"false", b"retry-after": b"%d" % seconds},
            )

    async def _send_with_retries(
        self,
        request: AcceptedRequest,
        run: MeteredRun,
        body: StreamedBody,
        send: "_ResponseSender",
        call: OpenCall | None,
    ) -> None:
        """Ask, again after a pause where the service is busy for a moment, and pass the answer on."""
        client, provider = self._clients[run.provider.name], run.provider
        waited = 0.0
        retries = 0
        is_last_401 = False
        while True:
            secret = provider.current_secret()
            upstream_request = UpstreamRequest(
                request.method,
                client.base_path + provider.upstream_target(request.target),
                provider.upstream_headers(request.headers),
                request.length,
                request.has_body,
            )
            if call is not None:
                call.sent = True
            response = await client.send(upstream_request, body)
            self._rejected_credentials.note_status(provider, response.status)
            try:
                if response.status == UNAUTHORIZED:
                    can_repeat = not is_last_401 and (not request.has_body or body.replayable)
                    if await self._is_repeatable_401(response, run, secret, can_repeat=can_repeat):
                        is_last_401 = True
                        continue
                error_body = b""
                if response.status == RATE_LIMITED and provider.kind == "gemini":
                    error_body = await response.peek(_ERROR_BODY_BYTES)
                decision = self._rate_limits.decide(
                    response.status, response.headers, retries, waited, error_body
                )
                can_retry = isinstance(decision, RetryAfter) and (not request.has_body or body.replayable)
                if decision is None or not (can_retry or isinstance(decision, Blocked)):
                    await self._stream_response(response, request.route, send, call)
                    return
                if _NO_CREDIT in await response.read_up_to(_ERROR_BODY_BYTES):
                    raise _no_credit()
            finally:
                response.close()
            self._metrics.provider_limited(run.provider.name, blocked=isinstance(decision, Blocked))
            if isinstance(decision, Blocked):
                until = self._rate_limits.block(run.provider.rate_limit_key, decision.until)
                self._log.warning("gateway.wall", provider=run.provider.name, until=until.isoformat())
                self._check_rate_limit(run)
                continue  # it fell in this very moment
            if call is not None:
                call.sent = False  # what was turned away costs nothing
            await self._rate_limits.sleep(decision.seconds)
            waited += decision.seconds
            retries += 1
            self._check_rate_limit(run)

    async def _is_repeatable_401(
        self, response: UpstreamResponse, run: MeteredRun, secret: bytes, *, can_repeat: bool
    ) -> bool:
        """Read the secret again after a 401 and return True if the call is to be repeated.

        Raise `Rejected` if the credential is no good. Return False if there is a new secret but the call cannot be
        repeated: the agent repeats it.
        """
        if run.provider.credential is not None:
            run.provider.credential.reload()
        if can_repeat:
            await response.read_up_to(_ERROR_BODY_BYTES)
            return True
        refusal = self._rejected_credentials.reject(run.provider, secret, run)
        if refusal is None:
            return False
        await response.read_up_to(_ERROR_BODY_BYTES)
        raise _credential_rejected(run, refusal)

    async def _stream_response(
        self, response: UpstreamResponse, route: Route, send: "_ResponseSender", call: OpenCall | None
    ) -> None:
        """Pass an answer on, each piece when it comes, and read it on the way."""
        if not _MIN_STATUS <= response.status <= _MAX_STATUS:
            raise Rejected(502, "api_error", f"The model's service answered {response.status}.")
        headers = [
            (name, value)
            for name, value in end_to_end_headers(response.headers)
            if name not in _DROPPED_RESPONSE_HEADERS
        ]
        meter = None if call is None else UsageMeter(response.status, response.headers, route.response_format)
        complete = False
        try:
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            # There are many pieces, and each step between costs as much as reading one.
            response.pass_on(_piece_writer(send.write_body, meter))
            while chunk := await response.next_chunk():
                try:
                    await send.forward({"type": "http.response.body", "body": chunk, "more_body": True})
                finally:
                    if meter is not None:
                        meter.feed(chunk)
            complete = True
        finally:
            # Settled before the agent can know that it is over: what it asks next is judged by what this cost.
            if meter is not None and call is not None:
                call.settle(meter.finish(truncated=not complete), response.status)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _ResponseSender:
    """Sends the response, and knows if it has begun."""

    def __init__(self, send: Send, write_body: Callable[[bytes], bool]) -> None:
        self.forward = send
        self.write_body = write_body
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        await self.forward(message)


def _piece_writer(write_body: Callable[[bytes], bool], meter: UsageMeter | None) -> Callable[[bytes], bool]:
    """Return the function that writes a piece of an answer to the agent and to the meter, or returns False."""
    if meter is None:
        return write_body
    feed = meter.feed

    def write(piece: bytes) -> bool:
        if not write_body(piece):
            return False
        feed(piece)
        return True

    return write


def _no_credit() -> Rejected:
    text = "The account of this service at the model's service has no credit left."
    return Rejected(BUDGET_STATUS, BUDGET, text, {b"x-should-retry": b"false"})


def _credential_rejected(run: MeteredRun, refusal: Refusal) -> Rejected:
    """Return the response that ends the run at once.

    The job of the run that found out fails. Other jobs wait, and one that has waited before waits on.
    """
    run.found_rejection = run.found_rejection or refusal.is_new  # the CLI may ask once more
    if run.has_waited or not run.found_rejection:
        run.credential_rejected_until = refusal.until
    return Rejected(
        UNAUTHORIZED,
        "authentication_error",
        "The model's service does not accept the credential of this service.",
        {b"x-should-retry": b"false"},
    )
