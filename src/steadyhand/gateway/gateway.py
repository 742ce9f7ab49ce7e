"""The gateway of a node: the model's sockets for as long as the service runs, and each run's way out."""

import asyncio
import contextlib
import functools
import ipaddress
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from steadyhand.agents import Agent
from steadyhand.gateway.egress import connect_proxy as proxy
from steadyhand.gateway.egress.connect_proxy import Patience, Resolve, open_doors
from steadyhand.gateway.egress.rules import Address, Rules
from steadyhand.gateway.model import unix_listener
from steadyhand.gateway.model.metered_run import Office, Visit
from steadyhand.gateway.model.provider_rate_limits import Waits, Walls
from steadyhand.gateway.model.providers import PLACEHOLDER, Provider, Providers
from steadyhand.gateway.model.reverse_proxy import Forwarder
from steadyhand.gateway.model.tcp_listener import Loopback
from steadyhand.gateway.model.unix_listener import SlotSocket, slot_folder
from steadyhand.gateway.money.budgets import Budgets, Payer
from steadyhand.gateway.money.ledger_writer import Books
from steadyhand.gateway.money.prices import Prices
from steadyhand.gateway.run_events import Reports
from steadyhand.job import Job
from steadyhand.ports import (
    SOCKET_VARIABLE,
    Allowance,
    AllowancesOf,
    Call,
    Emit,
    Ledger,
    Listening,
    Spent,
    Work,
)

NO_ADDRESS = "http://model.invalid"
"""The address that sealed agents are told: what matters is the socket."""
_RESOLVERS = 8
"""Threads that ask for names: their own, so that a slow name keeps nothing else of the service waiting."""
_OWN_FILES = 512
"""Open files that the rest of the service needs."""


@dataclass(frozen=True, slots=True)
class Attended:
    """A run that is let out; see `ports.Attendance`."""

    environment: Mapping[str, str]
    listening: Listening | None
    visit: Visit
    secrets: tuple[str, ...] = ()

    @property
    def wall(self) -> datetime | None:
        """Until when the model's rate limit has turned this run away."""
        return self.visit.wall

    @property
    def spent_out(self) -> str | None:
        """Which budget has turned this run away."""
        return self.visit.spent_out

    async def settled(self) -> Spent:
        """Wait, bounded, until its calls are kept; give what they came to."""
        return await self.visit.settled()


@dataclass(frozen=True, slots=True)
class Accounts:
    """What the gateway counts by: where calls are kept, what they cost, and what may be spent."""

    ledger: Ledger
    prices: Prices
    allowances_of: AllowancesOf


def _now() -> datetime:
    return datetime.now(UTC)


def budget_of(job: Job, _agent: Agent) -> Sequence[Allowance]:
    """Give the limit that a job itself has."""
    return [Allowance("job", job.id, "job", job.budget_micros)]


class ModelGateway:
    """Forwards to the models for every run, and to the hosts on an agent's list for sealed ones.

    `socket_inside` is where a sealed agent finds its slot's socket; null serves agents that are not sealed off, on
    loopback. `clock` and `sleep` are what time is for rate limits and budgets.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        slots: int,
        socket_inside: str | None,
        accounts: Accounts,
        providers: Sequence[Provider] = (Provider(),),
        resolve: Resolve | None = None,
        patience: Patience | None = None,
        waits: Waits | None = None,
        clock: Callable[[], datetime] = _now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Raises `ConfigError` for a provider that cannot be."""
        self._data_dir = data_dir
        self._socket = socket_inside
        self._providers = Providers(providers)
        self._ledger = accounts.ledger
        self._walls = Walls(clock, sleep, waits or Waits())
        self._budgets = Budgets(accounts.ledger, clock)
        self._books = Books(accounts.ledger)
        self._office = Office(self._budgets, self._books, accounts.prices, clock, accounts.allowances_of)
        self._forwarder = Forwarder(self._walls)
        for provider in providers:
            self._forwarder.add(provider)
        sealed = range(slots) if socket_inside is not None else ()
        self._slots = [SlotSocket(slot_folder(data_dir, slot), self._forwarder) for slot in sealed]
        self._loopback = None if socket_inside is not None else Loopback(self._forwarder, slots)
        self._connections = slots * unix_listener.MOST_CONNECTIONS
        self._pool = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolve")
        self._resolve = resolve or self._look_up
        self._patience = patience or Patience()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Listen for the length of the block; see `ports.Gateway.serving`."""
        left = await self._ledger.settle_open()
        if left:
            structlog.get_logger("steadyhand.gateway").warning("ledger.left_open", calls=left)
        await self._budgets.seed()
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(_room_for(self._connections))
                await stack.enter_async_context(self._books.open())
                await stack.enter_async_context(_beside(self._walls.watch()))
                for slot in self._slots:
                    await stack.enter_async_context(slot.listening())
                if self._loopback is not None:
                    await stack.enter_async_context(self._loopback.listening())
                yield
        finally:
            self._forwarder.close()
            self._pool.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def attend(self, work: Work, emit: Emit) -> AsyncIterator[Attended]:
        """Let a run out for the length of the block: to the model, and to the hosts on its agent's list.

        Raises `RunError` when its slot is taken, `ConfigError` for a list that means nothing.
        """
        visit = Visit(work, self._providers.named(work.agent.provider), self._office, Reports(emit))
        await self._budgets.open_job(work.job.id, work.job.since_run)
        try:
            async with self._let_in(visit, work, emit) as attended:
                yield attended
        finally:
            await visit.settled()
            self._budgets.close_job(work.job.id)

    @asynccontextmanager
    async def _let_in(self, visit: Visit, work: Work, emit: Emit) -> AsyncIterator[Attended]:
        place, provider = work.place, visit.provider
        if self._loopback is not None:
            with self._loopback.held(visit) as token:
                yield Attended(provider.told(self._loopback.address, token), None, visit, (token,))
            return
        told = {**provider.told(NO_ADDRESS, PLACEHOLDER), SOCKET_VARIABLE: str(self._socket)}
        with self._slots[place.slot].held(visit, place.user):
            async with self.doors(work.agent.egress, emit) as listening:
                yield Attended(told, listening, visit)

    def count(self, call: Call) -> None:
        """Count what was spent past this against the budgets that others share; see `ports.Gateway.count`."""
        self._budgets.count(Payer(call.job_id, call.agent, call.api_key_id), call.micros)

    def wall(self, agent: Agent) -> datetime | None:
        """Give until when the rate limit of an agent's credential turns everybody away."""
        return self._walls.until(self._providers.named(agent.provider).account)

    def on_wall(self, callback: Callable[[], None]) -> None:
        """Call this whenever a wall has risen or fallen."""
        self._walls.on_change(callback)

    def doors(self, egress: Sequence[str], emit: Emit) -> AbstractAsyncContextManager[Listening]:
        """Let out to the hosts on a list alone. Raises `ConfigError` for a list that means nothing."""
        return open_doors(Rules.of(egress), emit, self._resolve, self._patience)

    async def _look_up(self, name: str, port: int) -> list[Address]:
        ask = functools.partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._pool, ask)
        return [ipaddress.ip_address(str(address[4][0])) for address in found]


@asynccontextmanager
async def _beside(work: Awaitable[None]) -> AsyncIterator[None]:
    """Do something for the length of the block."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextmanager
def _room_for(connections: int) -> Iterator[None]:
    """Let the service open as many files as agents can make it open: else they could keep its callers out."""
    wanted = _OWN_FILES + 2 * (
        connections + connections // unix_listener.MOST_CONNECTIONS * proxy.MOST_CONNECTIONS
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        yield
        return
    given = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if given < wanted:
        structlog.get_logger("steadyhand.gateway").warning("files.few", allowed=given, wanted=wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (given, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
