"""Who asks: a Bearer token is looked up by its digest, never by its text."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from steadyhand.control import Caller
from steadyhand.errors import Unauthenticated
from steadyhand.ports import ApiKey


class Keyring:
    """The keys that open the service. With none at all, nobody gets in."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._callers: dict[bytes, tuple[bytes, Caller]] = {}
        for key in keys:
            self.add(key)

    def add(self, key: ApiKey) -> None:
        """Take in a key; one with the same digest is replaced."""
        digest = key.digest.lower().encode("ascii")
        self._callers[digest] = (digest, Caller(key.id, key.scopes))

    def caller(self, token: bytes) -> Caller:
        """Give the caller with this token; raises `Unauthenticated` for an empty or unknown one."""
        if not token:
            raise Unauthenticated("The token is empty.")
        digest = hashlib.sha256(token).hexdigest().encode("ascii")
        found = self._callers.get(digest)
        # A caller cannot steer a digest, so finding it by hash tells nothing; what is found is compared in full.
        if found is None or not hmac.compare_digest(found[0], digest):
            raise Unauthenticated("This token is not known here.")
        return found[1]

    def authenticate(self, headers: Sequence[tuple[bytes, bytes]]) -> Caller:
        """Give the caller whose `Authorization: Bearer` header this is, from raw ASGI headers."""
        values = [value for name, value in headers if name == b"authorization"]
        if not values:
            raise Unauthenticated("An Authorization header with a Bearer token is needed.")
        if len(values) > 1:
            raise Unauthenticated("There is more than one Authorization header.")
        scheme, _, token = values[0].strip(b" \t").partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthenticated("The Authorization header has to be a Bearer token.")
        return self.caller(token.strip(b" \t"))
