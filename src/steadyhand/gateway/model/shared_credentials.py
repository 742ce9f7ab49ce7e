"""Blocks and rejections of credentials that all nodes share (`ports.CredentialStates`).

What this node learns of a credential it stores soon, and what others have learned it takes over. So a rate limit that
one node met holds on all, and after a rest one run of all nodes tries a rejected credential.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

import structlog

from steadyhand.errors import StoreError
from steadyhand.gateway.model.provider_rate_limits import ProviderRateLimits, RateLimitKey
from steadyhand.gateway.model.providers import Provider
from steadyhand.ports.cluster_limits import CredentialState, CredentialStates

RETRY_SECONDS = 1.0


def limit_id(key: RateLimitKey) -> str:
    """Return the digest of an address and a secret by which nodes know a rate limit."""
    return _digest("limit", key[0], key[1].encode("utf-8", "surrogatepass"))


def credential_id(provider: Provider, secret: bytes) -> str:
    """Return the digest of a provider's address and a secret by which nodes know a rejected credential."""
    return _digest("credential", provider.url, secret)


def _digest(kind: str, url: str, secret: bytes) -> str:
    return hashlib.sha256(b"\0".join((kind.encode(), url.encode(), secret))).hexdigest()


class RejectionUpdates(Protocol):
    """The rejections of this node, as far as others change them; see `RejectedCredentials`."""

    def adopt(self, provider: Provider, until: datetime, rest: timedelta) -> None:
        """Adopt a rejection that another node has met."""
        ...

    def drop(self, provider: Provider) -> None:
        """Forget a rejection: another node's call was accepted."""
        ...


class SharedCredentials:
    """The credentials of this node's providers, as the database knows them. `run` has to run."""

    def __init__(
        self,
        states: CredentialStates,
        providers: Iterable[Provider],
        rate_limits: ProviderRateLimits,
        rejections: RejectionUpdates,
    ) -> None:
        self._states = states
        self._providers = tuple(providers)
        self._rate_limits = rate_limits
        self._rejections = rejections
        self._unsent: deque[Callable[[], Awaitable[None]]] = deque()
        self._is_stale = True
        self._changed = asyncio.Event()
        self._changed.set()
        self._log = structlog.get_logger("steadyhand.gateway")
        states.on_change(self._look_again)
        rate_limits.on_block = self._save_block

    def _look_again(self) -> None:
        self._is_stale = True
        self._changed.set()

    # --- what this node has learned ----------------------------------------------------------

    def _send(self, change: Callable[[], Awaitable[None]]) -> None:
        self._unsent.append(change)
        self._changed.set()

    def _save_block(self, key: RateLimitKey, until: datetime) -> None:
        self._send(partial(self._states.save_block, limit_id(key), until))

    def save_rejection(self, provider: Provider, secret: bytes, until: datetime, rest: timedelta) -> None:
        """Store that a provider has rejected a secret, soon."""
        self._send(partial(self._states.save_rejection, credential_id(provider, secret), until, rest))

    def remove_rejection(self, provider: Provider, secret: bytes) -> None:
        """Store that a secret is accepted or replaced, soon."""
        self._send(partial(self._states.remove_rejection, credential_id(provider, secret)))

    def release_try(self, provider: Provider, secret: bytes, run: object) -> None:
        """Store that a run does not try a credential any more, soon."""
        self._send(partial(self._states.release_try, credential_id(provider, secret), _run_id(run)))

    async def claim_try(self, provider: Provider, secret: bytes, run: object) -> bool:
        """Return True if a run is the only one of all nodes that tries a credential after its rest.

        Without an answer of the database it may: a call more does less harm than jobs that wait for ever.
        """
        try:
            return await self._states.claim_try(credential_id(provider, secret), _run_id(run))
        except StoreError as error:
            self._log.warning("credentials.claim_failed", error=error.detail)
            return True

    # --- what others have learned ------------------------------------------------------------

    async def run(self) -> None:
        """Store what this node learns, and take over what others learn, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                while self._unsent:
                    await self._unsent[0]()
                    self._unsent.popleft()
                if self._is_stale:
                    self._is_stale = False
                    await self.load()
            except StoreError as error:
                self._log.warning("credentials.failed", error=error.detail)
                self._is_stale = True
                self._changed.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def load(self) -> None:
        """Adopt the stored states."""
        states = {state.id: state for state in await self._states.list_states()}
        if self._unsent:  # this node has learned something meanwhile
            self._is_stale = True
            return
        for provider in self._providers:
            limit = states.get(limit_id(provider.rate_limit_key))
            if limit is not None and limit.blocked_until is not None:
                self._rate_limits.adopt_block(provider.rate_limit_key, limit.blocked_until)
            self._take_rejection(provider, states.get(credential_id(provider, provider.current_secret())))

    def _take_rejection(self, provider: Provider, state: CredentialState | None) -> None:
        if state is None or state.rejected_until is None:
            self._rejections.drop(provider)
        else:
            self._rejections.adopt(provider, state.rejected_until, state.rest)


def _run_id(run: object) -> str:
    return f"{id(run):x}"
