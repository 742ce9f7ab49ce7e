"""Credentials that a provider has rejected with 401.

Such a credential rests, each time twice as long. After a rest one run tries it; the others wait until it is accepted or
its file changes. With `shared` the rests are those of all nodes, and one run of them all tries it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from steadyhand.gateway.model.providers import Provider
from steadyhand.gateway.model.shared_credentials import SharedCredentials

FIRST_REST = timedelta(seconds=30)
MAX_REST = timedelta(hours=1)
CHECK_SECONDS = 1.0
"""The time between two looks at the files of rejected credentials."""
_FIRST_SERVER_ERROR = 500
UNAUTHORIZED = 401
_RATE_LIMITED = 429


@dataclass(slots=True)
class _Rejection:
    provider: Provider
    secret: bytes
    until: datetime
    rest: timedelta = FIRST_REST
    probe: object | None = None
    """The run that tries the credential."""
    is_claimed: bool = False
    """True once no run of another node may try it."""
    is_due: bool = False
    """True once the end of the rest was reported."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The refusal of a call until a time; `is_new` for the call that found out."""

    until: datetime
    is_new: bool


class RejectedCredentials:
    """The rejected credentials of a node. It belongs to one event loop."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._rejections: dict[tuple[str, str], _Rejection] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._added = asyncio.Event()
        self.shared: SharedCredentials | None = None
        self._log = structlog.get_logger("steadyhand.gateway")

    def on_change(self, callback: Callable[[], None]) -> None:
        """Register a callback for each rejection, each end of a rest and each acceptance."""
        self._callbacks.append(callback)

    # --- queries ---------------------------------------------------------------------------

    def providers(self) -> Sequence[Provider]:
        """Return a provider for each rejected credential."""
        return [each.provider for each in self._rejections.values() if not _has_changed(each)]

    def rejected_until(self, provider: Provider) -> datetime | None:
        """Return the end of the rest of a provider's credential, which may have passed; None if it is not rejected."""
        rejection = self._find(provider)
        return None if rejection is None else rejection.until

    def _find(self, provider: Provider) -> _Rejection | None:
        rejection = self._rejections.get(provider.credential_key)
        return None if rejection is None or _has_changed(rejection) else rejection

    # --- calls -----------------------------------------------------------------------------

    def refusal(self, provider: Provider, run: object) -> Refusal | None:
        """Return None if a run may call now; the first run after a rest is the one that tries the credential."""
        rejection = self._find(provider)
        if rejection is None:
            return None
        now = self._clock()
        if now < rejection.until:
            return Refusal(rejection.until, is_new=False)
        if rejection.probe is None:
            rejection.probe = run
        return None if rejection.probe is run else Refusal(now + rejection.rest, is_new=False)

    async def admit(self, provider: Provider, run: object) -> Refusal | None:
        """Return None if a run may call now, as `refusal` does; after a rest one run of all nodes may."""
        refusal = self.refusal(provider, run)
        rejection = self._rejections.get(provider.credential_key)
        if refusal is not None or rejection is None or self.shared is None or rejection.probe is not run:
            return refusal
        if rejection.is_claimed or await self.shared.claim_try(provider, rejection.secret, run):
            rejection.is_claimed = rejection.probe is run
            return None
        if rejection.probe is run:
            rejection.probe = None
        return Refusal(self._clock() + rejection.rest, is_new=False)

    def reject(self, provider: Provider, secret: bytes, run: object) -> Refusal | None:
        """Note that a provider has rejected this secret; None if the provider has another one by now."""
        if provider.current_secret() != secret:
            return None
        rejection = self._find(provider)
        is_new = rejection is None
        if rejection is None:
            rejection = _Rejection(provider, secret, self._clock() + FIRST_REST)
            self._rejections[provider.credential_key] = rejection
        elif rejection.probe is run:
            rejection.rest = min(2 * rejection.rest, MAX_REST)
            rejection.until = self._clock() + rejection.rest
            rejection.probe, rejection.is_claimed, rejection.is_due = None, False, False
        else:
            return Refusal(rejection.until, is_new=False)
        if self.shared is not None:
            self.shared.save_rejection(provider, secret, rejection.until, rejection.rest)
        self._added.set()
        if is_new:
            self._log.error(
                "credential.rejected",
                provider=provider.name,
                meaning="The model's service answered 401; jobs of this credential wait.",
                remedy=provider.credential_remedy,
            )
        self._notify()
        return Refusal(rejection.until, is_new)

    def note_status(self, provider: Provider, status: int) -> None:
        """Accept a credential whose call was answered, unless the response says nothing of it."""
        if status not in (UNAUTHORIZED, _RATE_LIMITED) and status < _FIRST_SERVER_ERROR:
            self._accept(provider.credential_key)

    def release(self, run: object) -> None:
        """Let another run try the credential: this one has ended."""
        for rejection in self._rejections.values():
            if rejection.probe is run:
                if self.shared is not None and rejection.is_claimed:
                    self.shared.release_try(rejection.provider, rejection.secret, run)
                rejection.probe, rejection.is_claimed = None, False

    def adopt(self, provider: Provider, until: datetime, rest: timedelta) -> None:
        """Adopt a rejection that another node has met."""
        rejection = self._find(provider)
        if rejection is not None and until <= rejection.until:
            return
        if rejection is None:
            rejection = _Rejection(provider, provider.current_secret(), until)
            self._rejections[provider.credential_key] = rejection
        rejection.until, rejection.rest, rejection.is_due = until, max(rest, FIRST_REST), False
        rejection.probe, rejection.is_claimed = None, False
        self._added.set()
        self._notify()

    def drop(self, provider: Provider) -> None:
        """Forget a rejection: another node's call was accepted."""
        if self._find(provider) is not None:
            self._accept(provider.credential_key, is_told=True)

    def _accept(self, key: tuple[str, str], *, is_told: bool = False) -> None:
        rejection = self._rejections.pop(key, None)
        if rejection is not None:
            if self.shared is not None and not is_told:
                self.shared.remove_rejection(rejection.provider, rejection.secret)
            self._log.info("credential.accepted", provider=rejection.provider.name)
            self._notify()

    async def watch(self) -> None:
        """Report the end of each rest and each change of a file, until cancelled."""
        while True:
            if not self._rejections:
                self._added.clear()
                await self._added.wait()
            now = self._clock()
            for key, rejection in list(self._rejections.items()):
                if _has_changed(rejection):
                    self._accept(key)
                elif now >= rejection.until and not rejection.is_due:
                    rejection.is_due = True
                    self._notify()
            await asyncio.sleep(CHECK_SECONDS)

    def _notify(self) -> None:
        for callback in self._callbacks:
            callback()


def _has_changed(rejection: _Rejection) -> bool:
    return rejection.provider.current_secret() != rejection.secret
