"""The parts that all pages share: sessions, templates, files; and the frame in which a page answers a request."""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from steadyhand.api.transport.body import read_body
from steadyhand.api.transport.context import CALLER_KEY_SCOPE_KEY, ApiContext, get_context
from steadyhand.api.transport.errors import STORE_RETRY_AFTER_SECONDS, http_status
from steadyhand.control import Caller, Control
from steadyhand.errors import (
    CallerError,
    Forbidden,
    InvalidRequest,
    RetryLater,
    StoreUnavailable,
    Unauthenticated,
)
from steadyhand.event_log import Pulse
from steadyhand.ports import ApiKey, PageSessions
from steadyhand.web.browser_sessions import (
    BrowserSession,
    BrowserSessions,
    SignInFailures,
    SignInLinks,
    new_token,
)
from steadyhand.web.doctor_runs import DoctorRuns
from steadyhand.web.headers import add_security_headers, check_same_origin, cookie_name, is_secure
from steadyhand.web.renderer import Renderer
from steadyhand.web.shared_sessions import SharedSessions
from steadyhand.web.static_files import StaticFiles
from steadyhand.web.uploads import MAX_BODY_BYTES as MAX_UPLOAD_FORM_BYTES
from steadyhand.web.uploads import MEDIA_TYPE, Upload, parse_upload_form

MAX_FORM_BYTES = 2 << 20
PULSE_SECONDS = 0.05
"""The time in which the events of all jobs are gathered for the browsers: each wake-up and each write costs."""
_MAX_FORM_FIELDS = 200


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A signed-in browser: its session, the key it belongs to, and the caller that `Control` takes."""

    session: BrowserSession
    key: ApiKey
    caller: Caller


class Visit:
    """One request for a page, by a browser that may be signed in."""

    def __init__(self, app: "WebApp", request: Request) -> None:
        self.app = app
        self.request = request
        self.context: ApiContext = get_context(request)
        self.nonce = secrets.token_urlsafe(16)
        self.is_secure = is_secure(request, self.context.options.public_url)
        self.signed_in: SignedIn | None = None
        self._sign_in()

    def _sign_in(self) -> None:
        self.signed_in = self._find_session()
        if self.signed_in is not None:
            self.request.scope[CALLER_KEY_SCOPE_KEY] = self.signed_in.key.id

    @property
    def _shared(self) -> SharedSessions | None:
        return self.app.shared_sessions(self.context.options.page_sessions)

    async def look_elsewhere(self) -> None:
        """Look for the session of this browser on other nodes, if there are any."""
        shared = self._shared
        if shared is None or not self.cookie:
            return
        if self.signed_in is not None:
            await shared.touch(self.cookie)
        elif await shared.learn(self.cookie):
            self._sign_in()

    async def begin_session(self, key_digest: str) -> str:
        """Begin a session, on all nodes, and return the token for its cookie."""
        if self._shared is None:
            return self.app.sessions.begin(key_digest)
        token = new_token()
        await self._shared.begin(token, key_digest)
        return token

    async def end_session(self) -> None:
        """End the session of this browser, on all nodes."""
        self.app.sessions.end(self.cookie)
        if self._shared is not None:
            await self._shared.end(self.cookie)

    async def redeem_link(self, secret: str) -> str | None:
        """Return the digest of the secret of a link's key, and end the link; None if there is no such link."""
        if self._shared is not None:
            return await self._shared.redeem_link(secret)
        return self.app.links.redeem(secret)

    @property
    def control(self) -> Control:
        """The operations of the service."""
        return self.context.control

    @property
    def caller(self) -> Caller:
        """The caller of the session's key; raise `Unauthenticated` for a browser that is not signed in."""
        return self._require().caller

    @property
    def key(self) -> ApiKey:
        """The key of the session."""
        return self._require().key

    @property
    def cookie(self) -> str:
        """The token of the session's cookie; empty without one."""
        return self.request.cookies.get(cookie_name(self.request, secure=self.is_secure), "")

    @property
    def address(self) -> str:
        """The address of the browser, or of the proxy before it."""
        return self.request.client.host if self.request.client else ""

    def _require(self) -> SignedIn:
        if self.signed_in is None:
            raise Unauthenticated("Sign in first.")
        return self.signed_in

    def _find_session(self) -> SignedIn | None:
        token = self.cookie
        session = self.app.sessions.find(token) if token else None
        if session is None:
            return None
        key = self.context.keyring.find_by_digest(session.key_digest)
        if key is None:
            self.app.sessions.end(token)
            return None
        return SignedIn(session, key, Caller(key.id, key.scopes))

    def is_session_open(self) -> bool:
        """Return True while the session and the secret of its key are valid."""
        session = self._require().session
        return session.is_open and self.context.keyring.find_by_digest(session.key_digest) is not None

    async def read_form(self) -> Mapping[str, str]:
        """Return the fields of a form; raise `Forbidden` (`forbidden_origin`) without the token of the session."""
        return self._check_csrf(await self.read_open_form())

    def _check_csrf(self, fields: Mapping[str, str]) -> Mapping[str, str]:
        if not self._require().session.has_csrf_token(fields.get("csrf", "")):
            raise Forbidden("The form is not of this session: load the page again.", code="forbidden_origin")
        return fields

    async def read_upload_form(self) -> tuple[Mapping[str, str], Sequence[Upload]]:
        """Return the fields of a form as `read_form` does, and its files."""
        content_type = self.request.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
            return await self.read_form(), ()
        check_same_origin(self.request)
        self._require()  # before anything large is read
        pairs, uploads = await parse_upload_form(
            content_type, await read_body(self.request, MAX_UPLOAD_FORM_BYTES)
        )
        return self._check_csrf(_form_fields(pairs)), uploads

    async def read_open_form(self) -> Mapping[str, str]:
        """Return the fields of a form that needs no session; it has to come from a page of this service."""
        check_same_origin(self.request)
        content_type = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/x-www-form-urlencoded":
            raise InvalidRequest("The body has to be a form.", code="unsupported_media_type")
        body = await read_body(self.request, MAX_FORM_BYTES)
        try:
            pairs = parse_qsl(
                body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FORM_FIELDS
            )
        except ValueError as error:
            raise InvalidRequest("The form is not valid.", code="malformed_json") from error
        return _form_fields(pairs)

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """Return a template as a response."""
        signed_in = self.signed_in
        text = self.app.renderer.render(
            template,
            nonce=self.nonce,
            csrf="" if signed_in is None else signed_in.session.csrf_token,
            key=None if signed_in is None else signed_in.key,
            caller=None if signed_in is None else signed_in.caller,
            path=self.request.url.path,
            **values,
        )
        return Response(text.encode("utf-8", "replace"), status, media_type="text/html; charset=utf-8")

    def redirect(self, path: str) -> Response:
        """Return a redirect to a page, after a form as well."""
        return RedirectResponse(path, 303)


def _form_fields(pairs: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """Return the fields of a form; of several with one name the last one."""
    if any("\0" in value for _, value in pairs):
        raise InvalidRequest("The form holds a NUL character.")
    # A browser sends the lines of a text with CRLF.
    return {name: value.replace("\r\n", "\n") for name, value in pairs}


PageHandler = Callable[[Visit], Awaitable[Response]]


class WebApp:
    """The operations page of one service."""

    def __init__(self) -> None:
        self.sessions = BrowserSessions()
        self.links = SignInLinks()
        self.failures = SignInFailures()
        self.files = StaticFiles()
        self.renderer = Renderer(self.files)
        self.doctor = DoctorRuns()
        self.pulse = Pulse(PULSE_SECONDS)
        self._shared: SharedSessions | None = None

    def shared_sessions(self, table: PageSessions | None) -> SharedSessions | None:
        """Return the sessions of all nodes; None if there is one node."""
        if table is not None and self._shared is None:
            self._shared = SharedSessions(self.sessions, table)
        return self._shared

    async def create_link(self, key_digest: str, table: PageSessions | None) -> str:
        """Return the secret of a new sign-in link."""
        shared = self.shared_sessions(table)
        return self.links.create(key_digest) if shared is None else await shared.create_link(key_digest)

    def route(self, path: str, handler: PageHandler, method: str = "GET") -> Route:
        """Return the route of a page. Errors become pages, and every response has the security headers."""

        async def handle(request: Request) -> Response:
            visit = Visit(self, request)
            try:
                await visit.look_elsewhere()
                response = await handler(visit)
            except Unauthenticated:
                response = _sign_in_redirect(visit)
            except (CallerError, StoreUnavailable) as error:
                response = _error_page(visit, error)
            add_security_headers(response, visit.nonce)
            return response

        route = Route(path, handle, methods=[method], name=handler.__name__, include_in_schema=False)
        route.methods = {method}
        return route

    def static_route(self, path: str) -> Route:
        """Return the route of the files of `static/`."""

        async def handle(request: Request) -> Response:
            response = await self.files.send(request)
            add_security_headers(response, None)
            return response

        return Route(path, handle, methods=["GET"], include_in_schema=False)


def _sign_in_redirect(visit: Visit) -> Response:
    request = visit.request
    if request.method != "GET" or "text/event-stream" in request.headers.get("accept", ""):
        return visit.page("sign_in.html", 401, next="/", message="The session has ended: sign in again.")
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    path = "/ui/sign-in" + ("" if target == "/" else f"?next={quote(target, safe='')}")
    if "hx-request" in request.headers:
        return Response(status_code=204, headers={"hx-redirect": path})
    return visit.redirect(path)


def _error_page(visit: Visit, error: CallerError | StoreUnavailable) -> Response:
    is_outage = isinstance(error, StoreUnavailable)
    status = 503 if isinstance(error, StoreUnavailable) else http_status(error)
    detail = visit.context.options.redactor.text(error.detail)
    fields = error.field_errors if isinstance(error, InvalidRequest) else ()
    response = visit.page("error.html", status, detail=detail, fields=fields, code=status)
    if is_outage:
        response.headers["retry-after"] = str(STORE_RETRY_AFTER_SECONDS)
    elif isinstance(error, RetryLater):
        response.headers["retry-after"] = str(max(1, error.retry_after))
    return response
