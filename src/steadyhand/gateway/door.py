"""The gateway of a node: the model's sockets for as long as the service runs, and each run's way out."""

import asyncio
import functools
import ipaddress
import resource
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from steadyhand.gateway import egress as proxy
from steadyhand.gateway import sockets
from steadyhand.gateway.egress import Patience, Resolve, open_doors
from steadyhand.gateway.forward import Credential, Forwarder
from steadyhand.gateway.reports import Reports
from steadyhand.gateway.rules import Address, Rules
from steadyhand.gateway.sockets import SlotSocket, slot_folder
from steadyhand.ports import SOCKET_VARIABLE, Emit, Listening, Work

PLACEHOLDER = "sk-ant-placeholder-the-gateway-adds-the-key"
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


class ModelGateway:
    """Forwards to the model for every slot, and to the hosts on an agent's list.

    `socket_inside` is where an agent finds its slot's socket. `upstream` null is the maker's own address;
    `credential` null adds none (a model that wants none).
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        slots: int,
        socket_inside: str,
        upstream: str | None = None,
        credential: Credential | None = None,
        resolve: Resolve | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._socket = socket_inside
        self._credential = credential
        self._forwarder = Forwarder(upstream, credential)
        self._slots = [SlotSocket(slot_folder(data_dir, slot), self._forwarder) for slot in range(slots)]
        self._pool = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolve")
        self._resolve = resolve or self._look_up
        self._patience = patience or Patience()

    def _told(self) -> Mapping[str, str]:
        """Give what an agent is told: an address, and in place of the credential one of its kind, worth nothing."""
        oauth = self._credential is not None and self._credential.kind == "oauth"
        return {
            "ANTHROPIC_BASE_URL": NO_ADDRESS,
            SOCKET_VARIABLE: self._socket,
            "CLAUDE_CODE_OAUTH_TOKEN" if oauth else "ANTHROPIC_API_KEY": PLACEHOLDER,
        }

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Listen on every slot's socket for the length of the block. Raises `ConfigError` when it cannot."""
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(_room_for_connections(len(self._slots)))
                for slot in self._slots:
                    await stack.enter_async_context(slot.listening())
                yield
        finally:
            await self._forwarder.close()
            self._pool.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def attend(self, work: Work, emit: Emit) -> AsyncIterator[Attended]:
        """Let a run out for the length of the block: to the model, and to the hosts on its agent's list.

        Raises `RunError` when its slot is taken, `ConfigError` for a list that means nothing.
        """
        place = work.place
        with self._slots[place.slot].held(Reports(emit), place.user):
            async with self.doors(work.agent.egress, emit) as listening:
                yield Attended(self._told(), listening)

    def doors(self, egress: Sequence[str], emit: Emit) -> AbstractAsyncContextManager[Listening]:
        """Let out to the hosts on a list alone. Raises `ConfigError` for a list that means nothing."""
        return open_doors(Rules.of(egress), emit, self._resolve, self._patience)

    async def _look_up(self, name: str, port: int) -> list[Address]:
        ask = functools.partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._pool, ask)
        return [ipaddress.ip_address(str(address[4][0])) for address in found]


@contextmanager
def _room_for_connections(slots: int) -> Iterator[None]:
    """Let the service open as many files as agents can make it open: else they could keep its callers out."""
    wanted = _OWN_FILES + slots * 2 * (sockets.MOST_CONNECTIONS + proxy.MOST_CONNECTIONS)
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
