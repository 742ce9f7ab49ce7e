"""Signing in with a key or with a link of `steadyhand open`, and signing out."""

import re

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.transport.auth import bearer_token
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.errors import Unauthenticated
from steadyhand.keyring import secret_digest
from steadyhand.web.browser_sessions import LINK_SECONDS
from steadyhand.web.headers import set_session_cookie
from steadyhand.web.web_app import Visit, WebApp

_OWN_PATH = re.compile(r"/(?:ui(?:/[^\\\x00-\x20]*)?)?(?:\?[^\\\x00-\x20]*)?")


def _next_path(text: str) -> str:
    """Return the path of a page here; any other text means the first page."""
    return text if _OWN_PATH.fullmatch(text) and not text.startswith("//") else "/"


async def sign_in_page(visit: Visit) -> Response:
    """Show the form for a key."""
    target = _next_path(visit.request.query_params.get("next", "/"))
    if visit.signed_in is not None:
        return visit.redirect(target)
    return visit.page("sign_in.html", next=target, message=None)


async def sign_in(visit: Visit) -> Response:
    """Begin a session for the key in the form; an address that fails too often is refused for a while."""
    fields = await visit.read_open_form()
    target = _next_path(fields.get("next", "/"))
    visit.app.failures.check(visit.address)
    secret = fields.get("key", "").strip().encode("utf-8")
    try:
        visit.context.keyring.authenticate(secret)
    except Unauthenticated:
        visit.app.failures.add(visit.address)
        return visit.page("sign_in.html", 401, next=target, message="This key is not known here.")
    return await _begin_session(visit, secret_digest(secret), target)


async def _begin_session(visit: Visit, key_digest: str, target: str) -> Response:
    if visit.cookie:
        await visit.end_session()  # a session never goes over to another key
    response = visit.redirect(target)
    token = await visit.begin_session(key_digest)
    set_session_cookie(visit.request, response, token, secure=visit.is_secure)
    return response


async def sign_out(visit: Visit) -> Response:
    """End the session of this browser."""
    await visit.read_form()
    await visit.end_session()
    response = visit.redirect("/ui/sign-in")
    set_session_cookie(visit.request, response, "", secure=visit.is_secure)
    return response


async def link_page(visit: Visit) -> Response:
    """Show the page that sends the secret in its fragment; a browser that is signed in is asked first."""
    return visit.page("open.html")


async def redeem_link(visit: Visit) -> Response:
    """Begin a session for the secret of a link, which ends the link."""
    # A link cannot be guessed, so it also opens the page for an address whose sign-ins with keys are refused for now.
    fields = await visit.read_open_form()
    key_digest = await visit.redeem_link(fields.get("secret", ""))
    if key_digest is None or visit.context.keyring.find_by_digest(key_digest) is None:
        visit.app.failures.add(visit.address)
        message = "This link was used or is older than a minute. Run `steadyhand open` again."
        return visit.page("sign_in.html", 401, next="/", message=message)
    return await _begin_session(visit, key_digest, "/")


async def create_link(app: WebApp, request: Request) -> Response:
    """Create a sign-in link for the key of the request's Bearer token, as JSON: for `steadyhand open`."""
    get_caller(request)
    key_digest = secret_digest(bearer_token(request.scope["headers"]))
    options = get_context(request).options
    secret = await app.create_link(key_digest, options.page_sessions)
    base = options.public_url.rstrip("/") if options.public_url else ""
    document = {
        "object": "sign_in_link",
        "url": f"{base}/ui/open#{secret}",
        "expires_in": int(LINK_SECONDS),
    }
    return json_response(document, 201, headers={"cache-control": "no-store"})
