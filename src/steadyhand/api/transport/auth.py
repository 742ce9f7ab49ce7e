"""Authentication: the Bearer token of a request and the caller that it belongs to."""

from collections.abc import Sequence

from steadyhand.control import Caller
from steadyhand.errors import Unauthenticated
from steadyhand.keyring import Keyring


def bearer_token(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the token of the `Authorization: Bearer` header, from raw ASGI headers; it may be empty.

    Raise `Unauthenticated` unless there is exactly one such header.
    """
    values = [value for name, value in headers if name == b"authorization"]
    if not values:
        raise Unauthenticated("An Authorization header with a Bearer token is needed.")
    if len(values) > 1:
        raise Unauthenticated("There is more than one Authorization header.")
    scheme, _, token = values[0].strip(b" \t").partition(b" ")
    if scheme.lower() != b"bearer":
        raise Unauthenticated("The Authorization header has to be a Bearer token.")
    return token.strip(b" \t")


def authenticate(
    keyring: Keyring, headers: Sequence[tuple[bytes, bytes]], *, is_classic: bool = False
) -> Caller:
    """Return the caller that the request's token belongs to; raise `Unauthenticated` for no token or an unknown one.

    With `is_classic` its texts are those of the earlier service.
    """
    try:
        key = keyring.authenticate(bearer_token(headers))
    except Unauthenticated as error:
        if not is_classic:
            raise
        raise Unauthenticated(_classic_detail(keyring, headers)) from error
    return Caller(key.id, key.scopes)


def _classic_detail(keyring: Keyring, headers: Sequence[tuple[bytes, bytes]]) -> str:
    if keyring.is_empty:
        return "Service unauthenticated"
    try:
        return "Invalid token" if bearer_token(headers) else "Missing bearer token"
    except Unauthenticated:
        return "Missing bearer token"
