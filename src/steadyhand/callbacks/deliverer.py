"""Delivers the outbox: at least once, in order for each job and receiver, a bounded number at once.

A delivery stays pending until its receiver has taken it or its attempts are over, so a crash repeats at most those that
were under way.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from steadyhand.callbacks.backoff import AnswerKind, Circuit, classify_answer, next_attempt, parse_retry_after
from steadyhand.errors import StoreError
from steadyhand.ports import AttemptResult, Delivery, Outbox

MAX_PER_CIRCUIT = 4
"""The deliveries to one receiver that are under way at once; a slow one leaves room for the others."""
REREAD_SECONDS = 60.0
"""The time after which the store is asked for circuits that nobody has told of."""
_STORE_PAUSE_SECONDS = 1.0
_MAX_ERROR_LENGTH = 300


@dataclass(frozen=True, slots=True)
class SendResult:
    """The answer of a receiver; without a status there was none, and `error` says why."""

    status: int | None = None
    retry_after: str | None = None
    error: str | None = None
    refused: bool = False
    """The address may not be called."""


class Courier(Protocol):
    """Knows the receivers of deliveries, and sends their messages."""

    def knows(self, delivery: Delivery) -> bool:
        """Return False if the receiver of a delivery was removed."""
        ...

    def held_until(self, delivery: Delivery, now: datetime) -> datetime | None:
        """Return the time before which a delivery is not sent, or None."""
        ...

    async def send(self, delivery: Delivery) -> SendResult:
        """Send the message of a delivery and return the answer. It raises nothing that a receiver can cause."""
        ...


def _any_circuit(_circuit: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class DelivererConfig:
    """The bounds of the deliverer. `owns` returns True for the circuits whose deliveries it sends.

    With `claim_seconds` other nodes send deliveries as well: each belongs for that time to the node that sends it.
    `refresh` reads the receivers again that other nodes may have changed.
    """

    clock: Callable[[], datetime]
    max_in_flight: int = 16
    claim_seconds: float | None = None
    refresh: Callable[[], Awaitable[None]] | None = None
    owns: Callable[[str], bool] = _any_circuit
    jitter: Callable[[], float] = field(default=random.random)


class CallbackDeliverer:
    """Sends what the outbox holds. `run` is its only task; each delivery under way is a task of its group."""

    def __init__(self, outbox: Outbox, courier: Courier, config: DelivererConfig) -> None:
        self._outbox = outbox
        self._courier = courier
        self._config = config
        self._circuits: dict[str, Circuit] = {}
        self._in_flight = 0
        self._waiting = 0
        self._counts = dict.fromkeys(("delivered", "postponed", "failed", "cancelled"), 0)
        self._wake = asyncio.Event()
        self._log = structlog.get_logger("steadyhand.callbacks")

    def counts(self) -> Mapping[str, int]:
        """Return the attempts since the start by their results, those under way, and the circuits that are open.

        `waiting` is the number of deliveries that waited in the store when it was last read, once a minute.
        """
        open_circuits = sum(circuit.is_failing for circuit in self._circuits.values())
        return {
            **self._counts,
            "in_flight": self._in_flight,
            "open_circuits": open_circuits,
            "waiting": self._waiting,
        }

    def notify(self, circuits: frozenset[str]) -> None:
        """Look at these circuits: something was stored for them."""
        now = self._config.clock()
        for name in filter(self._config.owns, circuits):
            self._circuits.setdefault(name, Circuit(name)).look_at = now
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled. A delivery under way at that time is repeated by the next start."""
        loop = asyncio.get_running_loop()
        reread_at = loop.time()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                try:
                    if loop.time() >= reread_at:
                        await self.take_up()
                        reread_at = loop.time() + REREAD_SECONDS
                    seconds = min(await self.step(group), reread_at - loop.time())
                except StoreError as error:  # the store has logged its outage
                    self._log.debug("callbacks.postponed", reason=error.detail)
                    await asyncio.sleep(_STORE_PAUSE_SECONDS)
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(seconds, 0)):
                        await self._wake.wait()

    async def take_up(self) -> None:
        """Look at each circuit that the store has something for and that is not known to have anything.

        Count what waits, too.
        """
        waiting = await self._outbox.count_waiting()
        known = {circuit.name for circuit in self._circuits.values() if circuit.look_at or circuit.in_flight}
        self.notify(frozenset(waiting) - known)
        self._waiting = sum(count for circuit, count in waiting.items() if self._config.owns(circuit))

    async def step(self, group: asyncio.TaskGroup) -> float:
        """Start the deliveries that are due, and return the seconds until others may be."""
        now = self._config.clock()
        # The one that was looked at longest ago goes first, so that no receiver keeps the others waiting.
        for circuit in list(self._circuits.values()):
            ready_at = circuit.ready_at()
            if ready_at is not None and ready_at <= now and self._room(circuit) > 0:
                self._circuits[circuit.name] = self._circuits.pop(circuit.name)
                await self._start_due(circuit, now, group)
        self._forget_idle_circuits(now)
        return self._seconds_to_next(now)

    def _room(self, circuit: Circuit) -> int:
        most = 1 if circuit.is_failing else MAX_PER_CIRCUIT
        return min(most - len(circuit.in_flight), self._config.max_in_flight - self._in_flight)

    async def _start_due(self, circuit: Circuit, now: datetime, group: asyncio.TaskGroup) -> None:
        room = self._room(circuit)
        limit = room + len(circuit.in_flight) + 1
        circuit.look_at = None  # set again by what is stored, or ends, while the store is read
        # One that ends meanwhile may still be pending in what is read.
        under_way = frozenset(circuit.in_flight)
        try:
            due, next_due = await self._outbox.list_due(circuit.name, now, limit)
        except StoreError:
            circuit.look_at = now
            raise
        waiting = [delivery for delivery in due if delivery.sequence not in under_way]
        for delivery in waiting[:room]:
            circuit.in_flight.add(delivery.sequence)
            self._in_flight += 1
            group.create_task(self._deliver(circuit, delivery), name=f"callback {delivery.id}")
        if len(waiting) > room and circuit.look_at is None:
            circuit.look_at = now
        elif next_due is not None and circuit.look_at is None:
            circuit.look_at = next_due

    def _forget_idle_circuits(self, now: datetime) -> None:
        """Drop the circuits of which nothing is known, as there are as many as callers name receivers."""
        for circuit in list(self._circuits.values()):
            is_closed = circuit.closed_at is not None and circuit.closed_at > now
            if circuit.look_at is None and not circuit.in_flight and not is_closed:
                del self._circuits[circuit.name]

    def _seconds_to_next(self, now: datetime) -> float:
        times = [
            ready_at
            for circuit in self._circuits.values()
            if (ready_at := circuit.ready_at()) is not None and self._room(circuit) > 0
        ]
        # A circuit without room is looked at when one of its deliveries ends.
        return max(0.0, (min(times) - now).total_seconds()) if times else REREAD_SECONDS

    async def _deliver(self, circuit: Circuit, delivery: Delivery) -> None:
        try:
            await self._attempt(circuit, delivery)
        except Exception:  # noqa: BLE001  # the boundary of a delivery: it stays pending, and the others go on
            self._log.exception("callback.failed", delivery=delivery.id)
            circuit.closed_at = self._config.clock() + timedelta(seconds=REREAD_SECONDS)
        finally:
            circuit.in_flight.discard(delivery.sequence)
            self._in_flight -= 1
            circuit.look_at = self._config.clock()
            self._wake.set()

    async def _attempt(self, circuit: Circuit, delivery: Delivery) -> None:
        now = self._config.clock()
        if not await self._claim(circuit, delivery, now):
            return
        if not self._courier.knows(delivery):
            removed = AttemptResult(now, "cancelled", now, None, "The endpoint was removed.")
            self._counts["cancelled"] += 1
            await self._outbox.save_attempt(delivery, removed)
            return
        held_until = self._courier.held_until(delivery, now)
        if held_until is not None:
            await self._outbox.postpone(delivery, held_until)
            return
        result = await self._courier.send(delivery)
        now = self._config.clock()
        kind = AnswerKind.RETRY if result.refused else classify_answer(result.status, result.retry_after)
        pause = parse_retry_after(result.retry_after, now)
        circuit.note(kind, pause, now)
        saved = self._result(delivery, result, kind, pause, now)
        self._counts["postponed" if saved.state == "pending" else saved.state] += 1
        self._log_attempt(delivery, saved)
        await self._outbox.save_attempt(delivery, saved)

    async def _claim(self, circuit: Circuit, delivery: Delivery, now: datetime) -> bool:
        """Return True if this node may send a delivery: the only one does always."""
        seconds = self._config.claim_seconds
        if seconds is None:
            return True
        try:
            if not self._courier.knows(delivery) and self._config.refresh is not None:
                await self._config.refresh()
            if not self._courier.knows(delivery) and now < delivery.expires_at:
                # Others may know its receiver: what is removed by the API cancels its deliveries by itself.
                circuit.closed_at = now + timedelta(seconds=REREAD_SECONDS)
                return False
            return await self._outbox.claim(delivery, now, now + timedelta(seconds=seconds))
        except StoreError:  # it stays due
            return False

    def _result(
        self,
        delivery: Delivery,
        result: SendResult,
        kind: AnswerKind,
        pause: timedelta | None,
        now: datetime,
    ) -> AttemptResult:
        if kind is AnswerKind.DELIVERED:
            return AttemptResult(now, "delivered", now, result.status)
        error = (result.error or _status_text(result.status))[:_MAX_ERROR_LENGTH]
        due_at = None
        if kind is not AnswerKind.GONE:
            due_at = next_attempt(delivery.attempts + 1, pause, now, delivery.expires_at, self._config.jitter)
        if due_at is None:
            return AttemptResult(now, "failed", now, result.status, error)
        return AttemptResult(now, "pending", due_at, result.status, error)

    def _log_attempt(self, delivery: Delivery, saved: AttemptResult) -> None:
        """Log one line without the receiver's address, which may hold a secret."""
        fields = {
            "delivery": delivery.id,
            **({"job": delivery.job_id} if delivery.schedule is None else {"schedule": delivery.schedule}),
            "endpoint": delivery.endpoint,
            "status": saved.status,
        }
        if saved.state == "delivered":
            self._log.debug("callback.delivered", **fields)
        elif saved.state == "failed":
            self._log.warning(
                "callback.given_up", **fields, attempts=delivery.attempts + 1, reason=saved.error
            )
        else:
            self._log.info("callback.postponed", **fields, reason=saved.error)


def _status_text(status: int | None) -> str:
    if status is not None and 300 <= status < 400:  # noqa: PLR2004  # the class of the status
        return f"The receiver redirects ({status}), and redirects are not followed."
    return f"The receiver answered with {status}."
