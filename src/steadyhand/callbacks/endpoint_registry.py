"""All endpoints of callbacks: those of the configuration, and those that are made, changed and removed by the API."""

import asyncio
import base64
import secrets as random_secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import structlog

from steadyhand.callbacks.address_guard import parse_callback_url
from steadyhand.callbacks.endpoints import Endpoint
from steadyhand.errors import CallbackRefused, Conflict, InvalidRequest, NotFound
from steadyhand.ports import EndpointChange, EndpointInfo, EndpointStore, StoredEndpoint

MAX_STORED = 100
_SECRET_BYTES = 32
_KEPT_SECRETS = 2
"""The newest secret and the one before it sign, so that a receiver can be told of the new one without a gap."""


class EndpointRegistry:
    """The endpoints in memory. They are replaced as a whole: a plan reads them in a thread of the store."""

    def __init__(
        self,
        configured: Mapping[str, Endpoint],
        store: EndpointStore,
        *,
        check: Callable[[str], Awaitable[None]],
        add_secrets: Callable[[Iterable[bytes]], None],
        clock: Callable[[], datetime],
        is_shared: bool = False,
    ) -> None:
        """Keep the configured ones. `check` raises `CallbackRefused`, `add_secrets` hides secrets from all output.

        With `is_shared` other nodes change the stored ones as well: they are read before each change.
        """
        self._is_shared = is_shared
        self._hidden: frozenset[str] = frozenset()
        self._configured = dict(configured)
        self._store = store
        self._check = check
        self._add_secrets = add_secrets
        self._clock = clock
        self._stored: Mapping[str, StoredEndpoint] = {}
        self._endpoints: Mapping[str, Endpoint] = self._configured
        self._lock = asyncio.Lock()

    async def load(self) -> None:
        """Read the stored endpoints. One with the name of a configured endpoint is left out, with a warning."""
        async with self._lock:
            await self._load()

    async def _load_if_shared(self) -> None:
        if self._is_shared:
            await self._load()

    async def _load(self) -> None:
        stored = {each.name: each for each in await self._store.list_endpoints()}
        hidden = frozenset(stored.keys() & self._configured.keys())
        for name in hidden - self._hidden:
            structlog.get_logger("steadyhand.callbacks").warning("callback.endpoint_hidden", endpoint=name)
        self._hidden = hidden
        for name in hidden:
            del stored[name]
        self._use(stored)

    def all(self) -> Iterable[Endpoint]:
        """Return the endpoints as they are now."""
        return self._endpoints.values()

    def find(self, name: str) -> Endpoint | None:
        """Return an endpoint, or None."""
        return self._endpoints.get(name)

    def list_endpoints(self) -> Sequence[EndpointInfo]:
        """Return the endpoints: those of the configuration first, then the oldest first."""
        return [self._info(name) for name in (*self._configured, *self._stored)]

    def get(self, name: str) -> EndpointInfo:
        """Return an endpoint, or raise `NotFound`."""
        if name not in self._endpoints:
            raise NotFound("Endpoint not found")
        return self._info(name)

    async def create(self, name: str, change: EndpointChange) -> tuple[EndpointInfo, str]:
        """Create an endpoint and return it with its secret; see `CallbackEndpoints.create`."""
        url = await self._checked(change.url or "")
        async with self._lock:
            await self._load_if_shared()
            if name in self._endpoints:
                raise Conflict(f"There is an endpoint {name!r}; change or remove it.")
            if len(self._stored) >= MAX_STORED:
                raise Conflict(f"There are {MAX_STORED} endpoints already; remove one.")
            secret = _new_secret()
            endpoint = StoredEndpoint(
                name,
                url,
                change.events or ("job.ended",),
                change.agents or (),
                change.body or "thin",
                (secret,),
                self._clock(),
            )
            await self._save(endpoint)
            return self._info(name), secret

    async def change(self, name: str, change: EndpointChange) -> tuple[EndpointInfo, str | None]:
        """Change an endpoint; see `CallbackEndpoints.change`."""
        if not self._is_shared:
            self._require_changeable(name)
        url = None if change.url is None else await self._checked(change.url)
        async with self._lock:
            await self._load_if_shared()
            endpoint = self._require_changeable(name)
            fields = {"events": change.events, "agents": change.agents, "body": change.body, "url": url}
            changed = replace(endpoint, **{key: value for key, value in fields.items() if value is not None})  # type: ignore[arg-type]  # each is the type of its field
            secret = _new_secret() if change.rotate_secret else None
            if secret is not None:
                changed = replace(changed, secrets=(secret, *endpoint.secrets)[:_KEPT_SECRETS])
            await self._save(changed)
            return self._info(name), secret

    async def remove(self, name: str) -> None:
        """Remove an endpoint; see `CallbackEndpoints.remove`."""
        async with self._lock:
            await self._load_if_shared()
            self._require_changeable(name)
            await self._store.delete_endpoint(name)
            self._use({key: value for key, value in self._stored.items() if key != name})

    async def _save(self, endpoint: StoredEndpoint) -> None:
        self._add_secrets([endpoint.url.encode(), *(each.encode() for each in endpoint.secrets)])
        await self._store.save_endpoint(endpoint)
        self._use({**self._stored, endpoint.name: endpoint})

    def _use(self, stored: Mapping[str, StoredEndpoint]) -> None:
        made = {name: _endpoint(each) for name, each in stored.items()}
        self._add_secrets(text.encode() for each in stored.values() for text in (each.url, *each.secrets))
        self._stored = stored
        self._endpoints = {**self._configured, **made}

    async def _checked(self, url: str) -> str:
        try:
            await self._check(url)
        except CallbackRefused as error:
            raise InvalidRequest.at("/url", error.detail, code="callback_refused") from error
        return url

    def _require_changeable(self, name: str) -> StoredEndpoint:
        if name in self._configured:
            raise Conflict("This endpoint is set in the configuration; change it there and restart.")
        if name not in self._stored:
            raise NotFound("Endpoint not found")
        return self._stored[name]

    def _info(self, name: str) -> EndpointInfo:
        endpoint, stored = self._endpoints[name], self._stored.get(name)
        return EndpointInfo(
            name,
            endpoint.url.origin,
            sorted(endpoint.events),
            sorted(endpoint.agents),
            endpoint.body,
            "config" if stored is None else "api",
            None if stored is None else stored.created_at,
        )


def _endpoint(stored: StoredEndpoint) -> Endpoint:
    return Endpoint(
        stored.name,
        parse_callback_url(stored.url),
        frozenset(stored.events),
        frozenset(stored.agents),
        stored.body,
        stored.secrets,
    )


def _new_secret() -> str:
    return f"whsec_{base64.b64encode(random_secrets.token_bytes(_SECRET_BYTES)).decode()}"
