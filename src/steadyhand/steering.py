"""Messages to running turns: they go from `Control` to the runner of the job, in this process."""

import asyncio
import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from steadyhand.errors import Conflict, InvalidRequest, RetryLater
from steadyhand.ports import DeliverSteer, SteerMessage

MAX_STEERS = 200
"""The messages that one run takes."""


def steer_id(job_id: str, api_key_id: str, idempotency_key: str | None) -> str:
    """Return the id of a message; a repeat with the same idempotency key has the same one."""
    if idempotency_key is None:
        return f"st_{secrets.token_hex(10)}"
    names = f"{job_id}\x00{api_key_id}\x00{idempotency_key}"
    return f"st_{hashlib.sha256(names.encode()).hexdigest()[:20]}"


class SteerableRun:
    """The messages to one run; a `ports.SteerInbox` for its runner."""

    def __init__(self) -> None:
        self._deliver: DeliverSteer | None = None
        self._is_refused = False
        self._accepted: dict[str, str] = {}
        self._lock = asyncio.Lock()

    @contextmanager
    def open(self, deliver: DeliverSteer) -> Iterator[None]:
        """Accept messages for the length of the block."""
        self._deliver = deliver
        try:
            yield
        finally:
            self._deliver = None

    def refuse(self) -> None:
        """Refuse all messages: this kind of agent takes none."""
        self._is_refused = True

    def has(self, message: SteerMessage) -> bool:
        """Return True if the agent has the message; raise `InvalidRequest` if it has another one with this id."""
        text = self._accepted.get(message.id)
        if text is not None and text != message.text:
            raise InvalidRequest(
                "This Idempotency-Key was used for another message to this run.", code="idempotency_mismatch"
            )
        return text is not None

    async def send(self, message: SteerMessage) -> None:
        """Pass a message to the agent, once however often it is sent; return when the agent has read it.

        One message is passed after the other. Raise `Conflict` if the agent takes none, or none any more.
        """
        async with self._lock:  # each delivery has a bound
            if self.has(message):
                return
            if self._is_refused:
                raise Conflict("This kind of agent takes no messages while it runs.", code="not_steerable")
            if self._deliver is None:
                raise Conflict("The agent has not begun its turn, or is about to end.", code="not_running")
            if len(self._accepted) >= MAX_STEERS:
                raise RetryLater(
                    f"This run has had {MAX_STEERS} messages.", code="rate_limited", retry_after=60
                )
            if not await self._deliver(message):
                text = "The agent has ended its turn, or did not read the message in time."
                raise Conflict(text, code="not_running")
            self._accepted[message.id] = message.text


class SteerBroker:
    """The runs of this process that go on, by their jobs."""

    def __init__(self) -> None:
        self._runs: dict[str, SteerableRun] = {}

    @contextmanager
    def run(self, job_id: str) -> Iterator[SteerableRun]:
        """Let the run of a job be found for the length of the block."""
        run = self._runs[job_id] = SteerableRun()
        try:
            yield run
        finally:
            del self._runs[job_id]

    def get(self, job_id: str) -> SteerableRun:
        """Return the run of a job; raise `Conflict` if none goes on here."""
        run = self._runs.get(job_id)
        if run is None:
            raise Conflict("The agent of the job does not run now.", code="not_running")
        return run
