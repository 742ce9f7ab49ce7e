"""The API keys of this node, by the digest of their secret and by their id.

Fixed keys come from the environment or from `admin.key` and are changed there. The others are created here and stored.
A secret is returned once, when it is created; only its SHA-256 is stored.
"""

import asyncio
import contextlib
import hashlib
import hmac
import math
import secrets
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from steadyhand.clock import utc_now
from steadyhand.errors import Conflict, InvalidRequest, NotFound, StoreError, Unauthenticated
from steadyhand.ports import NO_LIMITS, ApiKey, KeyLimits, Scope, Store

ID_LENGTH = 10
SECRET_LENGTH = 43
"""Letters and digits: 256 bits, and no character that is special in a shell, a URL or a double click."""
MAX_GRACE = timedelta(days=7)
LEARN_SECONDS = 0.5
"""The least time between two reads of the keys for secrets that are not known."""
_SECRET_ALPHABET = string.ascii_letters + string.digits
_ID_ALPHABET = string.ascii_lowercase + string.digits


def secret_digest(secret: bytes) -> str:
    """Return the SHA-256 of a secret in lower-case hex: the only part of it that is stored."""
    return hashlib.sha256(secret).hexdigest()


def _random_text(count: int, alphabet: str) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(count))


class Keyring:
    """The API keys of the service. Without a key no request is accepted. It belongs to one event loop."""

    def __init__(
        self,
        fixed: Iterable[ApiKey],
        store: Store,
        *,
        is_shared: bool = False,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Create it with `fixed` keys, which cannot be changed here; of two with one secret the later one counts.

        With `is_shared` other nodes change the stored keys as well: they are read before a change, and again by
        `refresh`.
        """
        self._store = store
        self.is_shared = is_shared
        self._looked_at = -math.inf
        self._learn_lock = asyncio.Lock()
        self._clock = clock
        self._fixed = list(fixed)
        self._keys: dict[str, ApiKey] = {}
        self._by_digest: dict[str, tuple[str, str, datetime | None]] = {}
        """By digest: the digest itself, the key's id, and the end of its validity (None is no end)."""
        self._limits: dict[str, KeyLimits] = {}
        self._lock = asyncio.Lock()
        for key in self._fixed:
            self._index(key)

    async def load(self) -> None:
        """Load the stored keys. Call it before the first request."""
        for key in await self._store.list_keys():
            known = self._keys.get(key.id)
            if key == known:
                continue
            if known is None or known.revoked_at is None or key.revoked_at is not None:
                self._index(key)  # one that was revoked here stays so, even if that could not be stored
        for key in self._fixed:  # a fixed key wins over a stored one with the same secret
            self._index(key)

    async def refresh(self) -> None:
        """Load the changes of other nodes."""
        async with self._lock:  # not between a change here and its write
            await self.load()

    async def learn(self, token: bytes) -> None:
        """Load the keys if a secret is not known: another node may have created it a moment ago.

        Strangers cannot make it read more often than once in `LEARN_SECONDS`; they wait as long.
        """
        if not self.is_shared or not token or secret_digest(token) in self._by_digest:
            return
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        async with self._learn_lock:
            if self._looked_at > asked_at:  # a read that began since then is enough
                return
            await asyncio.sleep(max(0.0, self._looked_at + LEARN_SECONDS - loop.time()))
            self._looked_at = loop.time()
            with contextlib.suppress(StoreError):  # then it is a secret that is not known here
                await self.refresh()

    def _index(self, key: ApiKey) -> None:
        for digest in [digest for digest, entry in self._by_digest.items() if entry[1] == key.id]:
            del self._by_digest[digest]
        self._keys[key.id] = key
        self._limits.pop(key.id, None)
        if key.limits != NO_LIMITS:
            self._limits[key.id] = key.limits
        if key.revoked_at is not None:
            return
        self._by_digest[key.digest.lower()] = (key.digest.lower(), key.id, None)
        if key.previous_digest is not None:
            self._by_digest[key.previous_digest] = (key.previous_digest, key.id, key.previous_valid_until)

    # --- queries ---------------------------------------------------------------------------

    def authenticate(self, token: bytes) -> ApiKey:
        """Return the key with this secret. Raise `Unauthenticated` for an empty, unknown or revoked one."""
        if not token:
            raise Unauthenticated("The token is empty.")
        key = self._find(secret_digest(token))
        if key is None:
            raise Unauthenticated("This token is not known here.")
        return key

    @property
    def is_empty(self) -> bool:
        """Return True if no key is valid, so that nobody can be let in."""
        return not self._by_digest

    def validity_of(self, token: bytes) -> Callable[[], bool]:
        """Return a function that returns True while a secret is valid."""
        digest = secret_digest(token)
        return lambda: self._find(digest) is not None

    def find_by_digest(self, digest: str) -> ApiKey | None:
        """Return the key whose secret has this digest, or None if it is not valid any more."""
        return self._find(digest)

    def _find(self, digest: str) -> ApiKey | None:
        # A caller cannot choose a digest, so a lookup by hash reveals nothing; the digests are then compared in full.
        entry = self._by_digest.get(digest)
        if entry is None or not hmac.compare_digest(entry[0], digest):
            return None
        _, key_id, valid_until = entry
        return None if valid_until is not None and self._clock() >= valid_until else self._keys[key_id]

    def limits_of(self, key_id: str) -> KeyLimits:
        """Return the limits of a key; `NO_LIMITS` itself if it has none or is not known."""
        return self._limits.get(key_id, NO_LIMITS)

    def list_limited(self) -> Sequence[str]:
        """Return the ids of the valid keys that have limits."""
        return [key_id for key_id in self._limits if self._keys[key_id].revoked_at is None]

    def list_keys(self) -> Sequence[ApiKey]:
        """Return every key, also revoked ones: the fixed keys first, then the oldest first."""
        return sorted(
            self._keys.values(), key=lambda key: (not self.is_fixed(key.id), key.created_at, key.id)
        )

    def get(self, key_id: str) -> ApiKey:
        """Return a key by its id, or raise `NotFound`."""
        key = self._keys.get(key_id)
        if key is None:
            raise NotFound("Key not found")
        return key

    def name_of(self, key_id: str) -> str:
        """Return the name of a key; the id itself if there is no such key."""
        key = self._keys.get(key_id)
        return key_id if key is None else key.name

    def find_valid(self, key_id: str) -> ApiKey | None:
        """Return a key by its id if it is not revoked, else None."""
        key = self._keys.get(key_id)
        return None if key is None or key.revoked_at is not None else key

    def is_fixed(self, key_id: str) -> bool:
        """Return True if a key cannot be changed here."""
        return any(key.id == key_id for key in self._fixed)

    # --- changing --------------------------------------------------------------------------

    async def create(
        self, name: str, scopes: frozenset[Scope], limits: KeyLimits, *, unique: bool = False
    ) -> tuple[ApiKey, str]:
        """Create and store a key; return it with its secret, which is not shown again.

        With `unique` raise `InvalidRequest` (`key_exists`) if another valid key has the name.
        """
        async with self._lock:
            await self._load_if_shared()
            if unique:
                self._check_name_is_free(name)
            key_id = f"k_{_random_text(ID_LENGTH, _ID_ALPHABET)}"
            while key_id in self._keys:
                key_id = f"k_{_random_text(ID_LENGTH, _ID_ALPHABET)}"
            secret = _new_secret(key_id)
            key = ApiKey(key_id, name, secret_digest(secret.encode()), scopes, self._clock(), limits)
            await self._save(key)
            return key, secret

    async def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key at once; a key that was revoked before stays as it is.

        Raise `NotFound`, and `Conflict` for a fixed key and for the last one with the scope `admin`.
        """
        async with self._lock:
            await self._load_if_shared()
            key = self._get_changeable(key_id)
            if key.revoked_at is not None:
                return key
            if "admin" in key.scopes and not self._has_other_admin(key_id):
                raise Conflict(
                    "This is the last key with the scope 'admin': make another first, or set STEADYHAND_API_KEY."
                )
            revoked = replace(key, revoked_at=self._clock(), previous_digest=None, previous_valid_until=None)
            # It is refused from now on, even if the store then fails, which the caller is told.
            self._index(revoked)
            await self._save(revoked)
            return revoked

    async def rotate(self, key_id: str, grace_seconds: float = 0) -> tuple[ApiKey, str]:
        """Replace the secret of a key; the old one ends at once, or after `grace_seconds`.

        Raise `NotFound`, and `Conflict` for a fixed or revoked key.
        """
        async with self._lock:
            await self._load_if_shared()
            key = self._get_changeable(key_id)
            if key.revoked_at is not None:
                raise Conflict("This key is revoked; make another.")
            secret = _new_secret(key_id)
            previous_valid_until = self._clock() + timedelta(seconds=grace_seconds) if grace_seconds else None
            rotated = replace(
                key,
                digest=secret_digest(secret.encode()),
                previous_digest=None if previous_valid_until is None else key.digest,
                previous_valid_until=previous_valid_until,
            )
            await self._save(rotated)
            return rotated, secret

    async def _load_if_shared(self) -> None:
        if self.is_shared:
            await self.load()

    def _check_name_is_free(self, name: str) -> None:
        for key in self._keys.values():
            if key.name == name and key.revoked_at is None:
                raise InvalidRequest.at(
                    "/name", f"{key.id} is a valid key of this name; rotate or revoke it", code="key_exists"
                )

    async def _save(self, key: ApiKey) -> None:
        await self._store.save_key(key)
        self._index(key)

    def _get_changeable(self, key_id: str) -> ApiKey:
        key = self.get(key_id)
        if self.is_fixed(key_id):
            raise Conflict(
                f"This key is set by {key.name}, outside the service; change it there and restart."
            )
        return key

    def _has_other_admin(self, key_id: str) -> bool:
        return any(
            "admin" in key.scopes
            for key in self._keys.values()
            if key.id != key_id and key.revoked_at is None
        )


def _new_secret(key_id: str) -> str:
    return f"sh_{key_id}_{_random_text(SECRET_LENGTH, _SECRET_ALPHABET)}"
