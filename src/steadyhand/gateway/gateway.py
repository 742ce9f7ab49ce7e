"""The gateway of a node: the model's sockets for as long as the service runs, and each run's way out."""

import asyncio
import contextlib
import functools
import ipaddress
import os
import socket
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from steadyhand.addresses import Address
from steadyhand.agents import Agent
from steadyhand.clock import utc_now
from steadyhand.errors import RunError
from steadyhand.gateway.egress import connect_proxy as proxy
from steadyhand.gateway.egress.connect_proxy import ConnectProxy, ProxyTimeouts, Resolve
from steadyhand.gateway.egress.rules import EgressRules
from steadyhand.gateway.file_limit import raised_file_limit
from steadyhand.gateway.model import unix_listener
from steadyhand.gateway.model.metered_run import BillingContext, MeteredRun
from steadyhand.gateway.model.provider_rate_limits import ProviderRateLimits, RetryLimits
from steadyhand.gateway.model.providers import PLACEHOLDER_CREDENTIAL, Provider, Providers
from steadyhand.gateway.model.rejected_credentials import RejectedCredentials
from steadyhand.gateway.model.reverse_proxy import ReverseProxy
from steadyhand.gateway.model.shared_credentials import SharedCredentials
from steadyhand.gateway.model.tcp_listener import TcpListener, TokenHolder
from steadyhand.gateway.model.unix_listener import SocketHolder, UnixListener, slot_dir
from steadyhand.gateway.money.budgets import NEAR_SHARE, BudgetAccount, Budgets
from steadyhand.gateway.money.call_journal import CallJournal
from steadyhand.gateway.money.ledger_writer import LedgerWriter
from steadyhand.gateway.money.prices import Prices
from steadyhand.gateway.run_events import RunEvents
from steadyhand.gateway.run_sockets import serve_run_sockets
from steadyhand.metrics import ServiceMetrics
from steadyhand.ports import (
    NO_TRACING,
    BudgetLimit,
    CalendarPeriod,
    Checkout,
    Emit,
    GetBudgetLimits,
    JobTracing,
    Ledger,
    ModelAccess,
    ModelCall,
    OnListening,
    OrphanedRun,
    RunContext,
    UsageQuery,
    UsageTotal,
)
from steadyhand.ports.cluster_limits import BudgetLeases, CredentialStates

APIS_BY_PORT = frozenset({"openai", "gemini"})
"""The APIs whose agents take the address of a model and no path of a socket."""
PLACEHOLDER_URL = "http://model.invalid"
"""The model's address for sandboxed agents; only the socket matters."""
_RESOLVER_THREADS = 8
"""Threads that ask for names: their own, so that a slow name keeps nothing else of the service waiting."""
_RESERVED_FILES = 512
"""Open files that the rest of the service needs."""


@dataclass(frozen=True, slots=True)
class GrantedAccess:
    """The access of one run; see `ports.RunAccess`."""

    model_access: ModelAccess
    on_listening: OnListening | None
    run: MeteredRun
    secrets: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    listener: int = -1

    @property
    def rate_limited_until(self) -> datetime | None:
        """Return the end of the model's rate limit that has turned this run away, or None."""
        return self.run.rate_limited_until

    @property
    def credential_rejected_until(self) -> datetime | None:
        """Return the end of the rest of a rejected credential that has turned this run away, or None."""
        return self.run.credential_rejected_until

    @property
    def exhausted_budget(self) -> str | None:
        """Return the budget that has turned this run away, or None."""
        return self.run.exhausted_budget

    @property
    def last_status(self) -> int | None:
        """Return the status of the last answer to the run; see `ports.RunAccess`."""
        return self.run.last_status

    async def until_calls_fail(self) -> None:
        """Wait until the calls of the run keep failing; see `ports.RunAccess`."""
        await self.run.failed_calls.wait()

    async def final_usage(self) -> UsageTotal:
        """Wait, for a bounded time, until the calls are stored; return their usage."""
        usage = await self.run.final_usage()
        await self.run.report_near_budgets()  # of a last call whose connection broke off
        return usage


class HeldRunAccess:
    """The access of a process that waits for jobs; see `ports.HeldAccess`."""

    def __init__(
        self,
        model_access: ModelAccess,
        hold: TokenHolder | SocketHolder,
        metered_run: Callable[[RunContext, Emit], AbstractAsyncContextManager[MeteredRun]],
        open_egress: Callable[[Sequence[str], Emit], AbstractAsyncContextManager[OnListening]],
        listener: int,
    ) -> None:
        self.model_access = model_access
        self.listener = listener
        """The descriptor of the gateway's socket for the process."""
        self._hold = hold
        self._metered_run = metered_run
        self._open_egress = open_egress
        self._sockets: list[socket.socket] = []

    @property
    def can_rehearse(self) -> bool:
        """True if the gateway can answer a call by itself, which it does in the format of the Messages API alone."""
        return self.model_access.api in ("anthropic", "vertex")

    def rehearsing(self) -> AbstractContextManager[None]:
        """Answer the calls of the process for the length of the block, without a provider and a ledger."""
        return self._hold.rehearsing()

    def on_listening(self, descriptors: Sequence[int]) -> None:
        """Keep the sockets that listen in the network of the process. Without a run nobody accepts on them."""
        self._sockets += [socket.socket(fileno=descriptor) for descriptor in descriptors]

    @asynccontextmanager
    async def open_run(self, work: RunContext, emit: Emit) -> AsyncIterator[GrantedAccess]:
        """Let a run of the process out for the length of the block, as `ModelGateway.open_run` does."""
        async with self._metered_run(work, emit) as run:
            with self._hold.serve_run(run):
                secrets = (self._hold.token,) if isinstance(self._hold, TokenHolder) else ()
                if isinstance(self._hold, TokenHolder):
                    yield GrantedAccess(self.model_access, None, run, secrets, listener=self.listener)
                    return
                async with self._open_egress(work.agent.egress, emit) as listening:

                    def on_listening(descriptors: Sequence[int]) -> None:
                        """Keep the sockets of a process that starts in this run, and let it out by copies of them."""
                        self.on_listening(descriptors)
                        listening([os.dup(each) for each in descriptors])

                    if self._sockets:
                        self._reject_pending()
                        listening([os.dup(each.fileno()) for each in self._sockets])
                    yield GrantedAccess(self.model_access, on_listening, run, secrets, listener=self.listener)

    def _reject_pending(self) -> None:
        """Close the connections that were made before the run: they are nobody's."""
        for each in self._sockets:
            each.setblocking(False)
            with contextlib.suppress(OSError):
                while True:
                    each.accept()[0].close()

    def close(self) -> None:
        """Close the sockets."""
        for each in self._sockets:
            each.close()


@dataclass(frozen=True, slots=True)
class BillingDeps:
    """The dependencies of billing: the ledger, the prices and the budgets."""

    ledger: Ledger
    prices: Prices
    get_limits: GetBudgetLimits
    near_share: float = NEAR_SHARE
    leases: BudgetLeases | None = None
    """The budgets that several nodes spend; None for a service that is alone."""


class ModelGateway:
    """Forwards calls to the models for every run, and to the hosts on an agent's list for sandboxed ones.

    `sandbox_socket` is the path of a slot's socket in the sandbox; None serves agents without a sandbox, on loopback.
    `sandbox_address` is the address there for agents that take no socket, whose runs listen on a port for the gateway.
    `adopted` are the sockets of an earlier service on which its runs connect, by their slot; that on loopback by None.
    `expected_tokens` are those of its runs. `credential_states` are those that several nodes share. Those whose agents
    make calls again that were cut are `repeated_runs`, by job and number.
    Tests replace `clock` and `sleep`, which rate limits and budgets use.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        slots: int,
        sandbox_socket: str | None,
        billing: BillingDeps,
        sandbox_address: str | None = None,
        providers: Sequence[Provider] = (Provider(),),
        resolve: Resolve | None = None,
        proxy_timeouts: ProxyTimeouts | None = None,
        retry_limits: RetryLimits | None = None,
        metrics: ServiceMetrics | None = None,
        tracing: JobTracing = NO_TRACING,
        adopted: Mapping[int | None, socket.socket] | None = None,
        expected_tokens: Collection[str] = (),
        credential_states: CredentialStates | None = None,
        repeated_runs: Collection[tuple[str, int]] = (),
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Create the gateway. Raises `ConfigError` for an invalid provider."""
        self._data_dir = data_dir
        self._repeated_runs = repeated_runs
        self._sandbox_socket = sandbox_socket
        self._sandbox_address = sandbox_address
        self._providers = Providers(providers)
        self._ledger = billing.ledger
        self._rate_limits = ProviderRateLimits(clock, sleep, retry_limits or RetryLimits())
        self._rejected_credentials = RejectedCredentials(clock)
        if credential_states is not None:
            self._rejected_credentials.shared = SharedCredentials(
                credential_states, self._providers, self._rate_limits, self._rejected_credentials
            )
        self._budgets = Budgets(billing.ledger, clock, near_share=billing.near_share, leases=billing.leases)
        self._shared_parts: list[Budgets | SharedCredentials] = []
        if billing.leases is not None:
            self._shared_parts.append(self._budgets)
        if self._rejected_credentials.shared is not None:
            self._shared_parts.append(self._rejected_credentials.shared)
        self._ledger_writer = LedgerWriter(billing.ledger, journal=CallJournal(data_dir))
        self._billing = BillingContext(
            self._budgets,
            self._ledger_writer,
            billing.prices,
            clock,
            billing.get_limits,
            metrics or ServiceMetrics(),
            tracing,
        )
        self._reverse_proxy = ReverseProxy(
            self._rate_limits, self._rejected_credentials, self._billing.metrics
        )
        for provider in providers:
            self._reverse_proxy.add_provider(provider)
        sandboxed_slots = range(slots) if sandbox_socket is not None else ()
        adopted = adopted or {}
        # Beside those of the queue's slots, those of runs that go on in processes that had waited.
        self._unix_listeners = {
            slot: UnixListener(slot_dir(data_dir, slot), self._reverse_proxy, adopted.get(slot))
            for slot in (*sandboxed_slots, *_more_slots(sandboxed_slots, adopted))
        }
        self._waiting_listeners: set[UnixListener] = set()
        """Those of processes that wait for jobs, or that had waited for theirs."""
        self._tcp_listener = (
            None
            if sandbox_socket is not None
            else TcpListener(self._reverse_proxy, slots, adopted.get(None), expected_tokens)
        )
        self._max_connections = slots * unix_listener.MAX_CONNECTIONS
        self._resolver_pool = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolve")
        self._resolve = resolve or self._resolve_name
        self._proxy_timeouts = proxy_timeouts or ProxyTimeouts()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Listen for the length of the block; see `ports.Gateway.serving`."""
        recovered = await self._ledger_writer.recover()
        if recovered:
            structlog.get_logger("steadyhand.gateway").warning("ledger.recovered", calls=recovered)
        if self._repeated_runs:
            await self._ledger.settle_repeated_calls(self._repeated_runs)
        open_calls = await self._ledger.settle_open_calls()
        if open_calls:
            structlog.get_logger("steadyhand.gateway").warning("ledger.left_open", calls=open_calls)
        await self._budgets.seed()
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(raised_file_limit(_needed_files(self._max_connections)))
                await stack.enter_async_context(self._ledger_writer.open())
                await stack.enter_async_context(_background_task(self._rate_limits.watch_expiry()))
                await stack.enter_async_context(_background_task(self._rejected_credentials.watch()))
                for shared in self._shared_parts:
                    await stack.enter_async_context(_background_task(shared.run()))
                for slot in self._unix_listeners.values():
                    await stack.enter_async_context(slot.listening())
                if self._tcp_listener is not None:
                    await stack.enter_async_context(self._tcp_listener.listening())
                yield
        finally:
            self._reverse_proxy.close()
            self._resolver_pool.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def open_run(
        self, work: RunContext, emit: Emit, orphan: OrphanedRun | None = None
    ) -> AsyncIterator[GrantedAccess]:
        """Let a run out for the length of the block: to the model, and to the hosts on its agent's list.

        An `orphan` has its access already, which is opened again. Raises `RunError` when its slot is taken, or if the
        access cannot be opened again, and `ConfigError` for a list that means nothing.
        """
        if orphan is not None and orphan.exit is None:
            self._check_access(orphan)
        async with (
            self._metered_run(work, emit, is_continued=orphan is not None) as run,
            self._grant_access(run, work, emit, orphan) as access,
        ):
            yield access

    def _check_access(self, orphan: OrphanedRun) -> None:
        """Raise `RunError` if an agent that runs could not reach this gateway."""
        address = None if self._tcp_listener is None else self._tcp_listener.address
        if orphan.facts.get("gateway") != address:
            raise RunError("The agent's way to the model is not the one of this service.")

    @asynccontextmanager
    async def hold_access(self, agent: Agent, place: Checkout) -> AsyncIterator["HeldRunAccess"]:
        """Keep the access of a process that waits for jobs for the length of the block; see `ports.Gateway`."""
        provider = self._providers.get(agent.provider)
        async with AsyncExitStack() as stack:
            hold: TokenHolder | SocketHolder
            if self._tcp_listener is not None:
                hold = stack.enter_context(self._tcp_listener.hold())
                access = provider.access_at(self._tcp_listener.address, hold.token)
                descriptor = self._tcp_listener.descriptor
            else:
                listener = UnixListener(slot_dir(self._data_dir, place.slot), self._reverse_proxy)
                await stack.enter_async_context(listener.listening())
                descriptor = listener.descriptor
                self._waiting_listeners.add(listener)
                stack.callback(self._waiting_listeners.discard, listener)
                hold = stack.enter_context(listener.hold(place.uid))
                access = self._sandbox_access(provider)
            held = HeldRunAccess(access, hold, self._metered_run, self.open_egress, descriptor)
            stack.callback(held.close)
            yield held

    @asynccontextmanager
    async def _metered_run(
        self, work: RunContext, emit: Emit, *, is_continued: bool = False
    ) -> AsyncIterator[MeteredRun]:
        spent = UsageTotal()
        await self._ledger_writer.flush_job(work.job.id)  # an outage of the store may have just ended
        if is_continued:
            (row,) = await self._ledger.usage(UsageQuery(job_id=work.job.id, since_run=work.job.run))
            spent = row.total
        provider = self._providers.get(work.agent.provider)
        run = MeteredRun(work, provider, self._billing, RunEvents(emit), spent)
        if (
            is_continued or work.job.since_run != work.job.run
        ):  # a run that counts alone has spent nothing yet
            await self._budgets.load_job(work.job.id, work.job.since_run)
        try:
            yield run
        finally:
            self._rejected_credentials.release(run)
            await run.final_usage()
            self._budgets.forget_job(work.job.id)

    @asynccontextmanager
    async def _grant_access(
        self, run: MeteredRun, work: RunContext, emit: Emit, orphan: OrphanedRun | None
    ) -> AsyncIterator[GrantedAccess]:
        place, provider = work.checkout, run.provider
        if self._tcp_listener is not None:
            listener = self._tcp_listener
            with listener.serve_run(run, None if orphan is None else orphan.facts.get("token")) as token:
                access = provider.access_at(listener.address, token)
                facts = {"gateway": listener.address, "token": token}
                yield GrantedAccess(access, None, run, (token,), facts, listener.descriptor)
            return
        access = self._sandbox_access(provider)
        if orphan is not None and orphan.exit is not None:
            yield GrantedAccess(access, None, run)  # nobody is left to connect
            return
        slot_listener = self._unix_listeners[place.slot]
        with slot_listener.serve_run(run, place.uid):
            egress = self._create_proxy(work.agent.egress, emit)
            async with serve_run_sockets([egress.serve, slot_listener.serve_port]) as listening:
                yield GrantedAccess(access, listening, run, listener=slot_listener.descriptor)

    def _sandbox_access(self, provider: Provider) -> ModelAccess:
        """Return the access of a sealed agent: by its socket, or by the port for agents that take none."""
        if provider.kind in APIS_BY_PORT and self._sandbox_address is not None:
            return provider.access_at(self._sandbox_address, PLACEHOLDER_CREDENTIAL)
        access = provider.access_at(PLACEHOLDER_URL, PLACEHOLDER_CREDENTIAL, self._sandbox_socket)
        return replace(access, port_url=self._sandbox_address)

    def leave_runs(self) -> None:
        """Accept no more connections; see `ports.Gateway.leave_runs`."""
        for listener in (*self._unix_listeners.values(), *self._waiting_listeners):
            listener.leave()
        if self._tcp_listener is not None:
            self._tcp_listener.leave()

    def count_unmetered_call(self, call: ModelCall) -> None:
        """Count spending that did not pass the gateway against the shared budgets; see `ports.Gateway`."""
        self._budgets.record_spend(BudgetAccount(call.job_id, call.agent, call.api_key_id), call.micros)

    async def spent_by_key(self, key_id: str, period: CalendarPeriod) -> int:
        """Return the settled micro-dollars of a key in this day or month, as its calls are held to."""
        return self._budgets.spent(BudgetLimit("key", key_id, period, 0))

    def rate_limited_until(self, agent: Agent) -> datetime | None:
        """Return the time until which the credential of an agent is blocked, or None."""
        return self._rate_limits.blocked_until(self._providers.get(agent.provider).rate_limit_key)

    def credential_rejected_until(self, agent: Agent) -> datetime | None:
        """Return the end of the rest of an agent's rejected credential; None if it is not rejected."""
        return self._rejected_credentials.rejected_until(self._providers.get(agent.provider))

    def rejected_providers(self) -> Sequence[str]:
        """Return the names of providers whose credential is rejected."""
        return [provider.name for provider in self._rejected_credentials.providers()]

    def blocked_providers(self) -> Mapping[str, bool]:
        """Return each provider by its name, with True while a rate limit blocks its credential."""
        return {
            each.name: self._rate_limits.blocked_until(each.rate_limit_key) is not None
            for each in self._providers
        }

    def may_start(self, agent: Agent, active: Iterable[Agent]) -> bool:
        """Return True if the credential of an agent is good; one job at a time tries a rejected one after its rest."""
        if self.rate_limited_until(agent) is not None:
            return False
        until = self.credential_rejected_until(agent)
        if until is None:
            return True
        key = self._providers.get(agent.provider).credential_key
        return until <= self._billing.clock() and not any(
            self._providers.get(other.provider).credential_key == key for other in active
        )

    def on_credential_change(self, callback: Callable[[], None]) -> None:
        """Register a callback for each change of `may_start`, by a rate limit or a rejected credential."""
        self._rate_limits.on_change(callback)
        self._rejected_credentials.on_change(callback)

    def open_egress(self, egress: Sequence[str], emit: Emit) -> AbstractAsyncContextManager[OnListening]:
        """Let out to the hosts on a list alone. Raises `ConfigError` for a list that means nothing."""
        return serve_run_sockets([self._create_proxy(egress, emit).serve])

    def _create_proxy(self, egress: Sequence[str], emit: Emit) -> ConnectProxy:
        return ConnectProxy(EgressRules.parse(egress), RunEvents(emit), self._resolve, self._proxy_timeouts)

    async def _resolve_name(self, name: str, port: int) -> list[Address]:
        lookup = functools.partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM)
        addresses = await asyncio.get_running_loop().run_in_executor(self._resolver_pool, lookup)
        return [ipaddress.ip_address(str(address[4][0])) for address in addresses]


def _more_slots(slots: Collection[int], adopted: Mapping[int | None, socket.socket]) -> Sequence[int]:
    return [slot for slot in adopted if slot is not None and slot not in slots]


@asynccontextmanager
async def _background_task(coroutine: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run a task until the block ends. If the task fails, cancel the block and raise the error of the task.

    An error of the block is raised as it is, without the group's wrapper.
    """
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(coroutine)
            try:
                yield
            finally:
                task.cancel()
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) > 1:
            raise
        (error,) = errors.exceptions
    else:
        return
    raise error


def _needed_files(connections: int) -> int:
    """Return the open files that so many connections of agents to the model can cost, with those of the proxies."""
    proxied = connections // unix_listener.MAX_CONNECTIONS * proxy.MAX_CONNECTIONS
    return _RESERVED_FILES + 2 * (connections + proxied)
