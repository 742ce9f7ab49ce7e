"""The page of keys, for a key with the scope `admin`: list, create, rotate and revoke."""

from typing import get_args

from starlette.responses import Response

from steadyhand.api.native.keys import key_limits
from steadyhand.api.schemas.requests import KeyRequest
from steadyhand.api.transport.body import validate_body
from steadyhand.ports import ApiKey, Scope
from steadyhand.web.job_actions import read_fields
from steadyhand.web.web_app import Visit

_SCOPES: tuple[Scope, ...] = get_args(Scope)
_DEFAULT_SCOPES = ("submit", "read", "cancel")


async def keys_page(visit: Visit) -> Response:
    """Show all keys, without their secrets."""
    return _page(visit)


def _page(visit: Visit, created: ApiKey | None = None, secret: str | None = None) -> Response:
    visit.caller.require_scope("admin")
    keyring = visit.context.keyring
    rows = [(key, keyring.is_fixed(key.id)) for key in keyring.list_keys()]
    return visit.page(
        "keys.html",
        keys=rows,
        created=created,
        secret=secret,
        all_scopes=_SCOPES,
        default_scopes=_DEFAULT_SCOPES,
    )


async def create_key(visit: Visit) -> Response:
    """Create a key and show its secret, once."""
    fields = await visit.read_form()
    visit.caller.require_scope("admin")
    body = read_fields(fields, "name")
    body["scopes"] = [scope for scope in _SCOPES if fields.get(f"scope-{scope}")]
    limits = read_fields(fields, "budget_usd_per_day", "max_budget_usd")
    if limits:
        body["limits"] = limits
    request = validate_body(KeyRequest, {**body, "strict": True})
    key, secret = await visit.context.keyring.create(
        request.name, frozenset(request.scopes), key_limits(request.limits), unique=True
    )
    return _page(visit, key, secret)


async def rotate_key(visit: Visit) -> Response:
    """Replace the secret of a key and show the new one, once; the old one ends at once."""
    await visit.read_form()
    visit.caller.require_scope("admin")
    key, secret = await visit.context.keyring.rotate(visit.request.path_params["key_id"])
    if visit.key.id == key.id:
        # This very session has ended with the secret; the page still shows the new one.
        await visit.end_session()
    return _page(visit, key, secret)


async def revoke_key(visit: Visit) -> Response:
    """Revoke a key at once."""
    await visit.read_form()
    visit.caller.require_scope("admin")
    await visit.context.keyring.revoke(visit.request.path_params["key_id"])
    return visit.redirect("/ui/keys")
