"""The security of a page beside its session: response headers, the session's cookie, and the origin of a request."""

from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.errors import Forbidden
from steadyhand.web.browser_sessions import LONGEST_SECONDS

_COOKIE = "steadyhand_session"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def content_security_policy(nonce: str | None) -> str:
    """Return the policy of a response: nothing from elsewhere, no inline script or style.

    A page's scripts carry the `nonce`; of another response nothing runs. A shared worker has its own response.
    """
    scripts = "'self'" if nonce is None else f"'nonce-{nonce}'"
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {scripts}",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "manifest-src 'self'",
            "worker-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types htmx steadyhand",
        )
    )


def add_security_headers(response: Response, nonce: str | None) -> None:
    """Add the headers that every response of the page has; without a header of its own it is not cached."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["content-security-policy"] = content_security_policy(nonce)
    response.headers.setdefault("cache-control", "no-store")


def is_secure(request: Request, public_url: str | None) -> bool:
    """Return True if the browser uses TLS: by the service's public URL, or a proxy that says so.

    A browser that lies only makes its own cookie stricter.
    """
    forwarded = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    return request.url.scheme == "https" or forwarded == "https" or (public_url or "").startswith("https://")


def cookie_name(request: Request, *, secure: bool) -> str:
    """Return the name of the session's cookie. Ports of one host share cookies, so the name has the port."""
    port = _authority(request.headers.get("host", ""))[1]
    suffix = "" if port is None else f"_{port}"
    return f"__Host-{_COOKIE}{suffix}" if secure else f"{_COOKIE}{suffix}"


def set_session_cookie(request: Request, response: Response, token: str, *, secure: bool) -> None:
    """Set the token of a browser's session as its cookie; an empty one removes the cookie."""
    response.set_cookie(
        cookie_name(request, secure=secure),
        token,
        max_age=int(LONGEST_SECONDS) if token else 0,
        path="/",
        secure=secure,
        httponly=True,
        samesite="lax",
    )


def check_same_origin(request: Request) -> None:
    """Raise `Forbidden` (`forbidden_origin`) for a request that another site's page has caused."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    own_host = _authority(request.headers.get("host", ""))
    if site not in ("same-origin", "none") or (
        origin is not None and _authority(urlsplit(origin).netloc if "://" in origin else "") != own_host
    ):
        raise Forbidden("This request comes from a page of another site.", code="forbidden_origin")


def _authority(text: str) -> tuple[str, int | None]:
    """Return the host and the port of `host:port`; the ports of HTTP and HTTPS are None."""
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        return "", None
    return (parts.hostname or "").lower(), None if port in (80, 443) else port
