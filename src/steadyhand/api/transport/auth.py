"""Who asks: the Bearer token of a request, and the caller it stands for."""

from collections.abc import Sequence

from steadyhand.control import Caller
from steadyhand.errors import Unauthenticated
from steadyhand.keyring import Keyring


def bearer_token(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Give the token of the `Authorization: Bearer` header, from raw ASGI headers; it may be empty.

    Raises `Unauthenticated` without one such header.
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


def authenticate(keyring: Keyring, headers: Sequence[tuple[bytes, bytes]]) -> Caller:
    """Give the caller whose token this is; raises `Unauthenticated` for none and for one that is not known."""
    key = keyring.authenticate(bearer_token(headers))
    return Caller(key.id, key.scopes)
