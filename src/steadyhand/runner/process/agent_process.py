"""One agent's process, with its supervisor: spawned, fed, drained, stopped.

The only place in the house that spawns an agent. After `wait`, `stop` or the end of `async with` nothing of the run is
alive: no child, no child of its own session, no daemon (see `supervisor.py`).
"""

import asyncio
import contextlib
import marshal
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steadyhand.errors import SpawnError
from steadyhand.ports import Command
from steadyhand.runner.process import cgroups, fork_server, process_tree, supervisor
from steadyhand.runner.process.cgroups import GONE_SECONDS, start_ticks
from steadyhand.runner.process.sandbox_setup import SandboxSetup

__all__ = ["AgentProcess", "ExitStatus", "LaunchSpec", "kill_leftover_run", "start_ticks"]

START_SECONDS = 30.0
TERM_SECONDS = 0.5
"""How long the agent may take to end by itself after SIGTERM; then everything is killed."""
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How the agent ended: an exit code, or the signal that ended it. `stuck` says something may still be there.

    `memory` says that the kernel killed something of the run at its memory limit, `disk` that its disk is full,
    `forks_refused` how often it may not have one process more.
    """

    code: int | None
    signal: int | None
    unkillable: bool = False
    out_of_memory: bool = False
    disk_full: bool = False
    forks_refused: int = 0


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """A command and what goes with it: files (absolute path, content) and folders made as its user before it starts.

    A file is never written over one that is there: there must be none, but for those of `laid`, which are then left
    out. `means` are tried in order (`supervisor.MEANS`); `file_size` is the largest file that it may write, in bytes.
    """

    command: Command
    files: Sequence[tuple[Path, bytes]] = ()
    optional_files: Sequence[tuple[Path, bytes]] = ()
    folders: Sequence[Path] = ()
    containment_methods: Sequence[str] = supervisor.CONTAINMENT_METHODS
    file_size: int | None = None

    def to_message(self, name: str, sandbox_setup: SandboxSetup | None) -> dict[str, Any]:
        """Give it as the supervisor reads it; `name` is that of the run's groups."""
        command, kill_cgroup = self.command, cgroups.detect_cgroups().kill
        return {
            "argv": [os.fsencode(word) for word in command.argv],
            "env": {os.fsencode(name): os.fsencode(value) for name, value in command.env.items()},
            "cwd": os.fsencode(command.cwd),
            "user": command.uid,
            "files": [(os.fsencode(path), content) for path, content in self.files],
            "laid": [(os.fsencode(path), content) for path, content in self.optional_files],
            "folders": [os.fsencode(path) for path in self.folders],
            "file_size": self.file_size,
            "means": list(self.containment_methods),
            "cgroup": None if kill_cgroup is None else str(kill_cgroup / name),
            "seal": None if sandbox_setup is None else sandbox_setup.to_message(name, self.file_size),
        }


class _SupervisorChannel(asyncio.Protocol):
    """The service's end of the socket pair: what the supervisor says, as futures."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.supervisor_pid: asyncio.Future[int | None] = loop.create_future()
        self.started: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        self.exited: asyncio.Future[ExitStatus] = loop.create_future()
        self.cleaned_up: asyncio.Future[bool] = loop.create_future()
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # what a socket pair gives
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 4:  # noqa: PLR2004  # the frame's head
            end = 4 + int.from_bytes(self._buffer[:4], "little")
            if len(self._buffer) < end:
                return
            message = marshal.loads(self._buffer[4:end])  # noqa: S302  # from our own supervisor
            del self._buffer[:end]
            self._handle_message(message)

    def _handle_message(self, message: Mapping[str, Any]) -> None:
        if "exited" in message:
            limit_evidence = message["felt"]
            refused = limit_evidence.get("forks_refused", 0)
            exit_status = ExitStatus(
                message["exited"],
                message["signal"],
                False,
                limit_evidence.get("oom", 0) > 0,
                limit_evidence.get("full", 0) > 0,
                refused,
            )
            _resolve_future(self.exited, exit_status)
        elif "gone" in message:
            _resolve_future(self.cleaned_up, True)
        elif "here" in message:
            _resolve_future(self.supervisor_pid, message["here"])
        else:
            _resolve_future(self.started, message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        # Without a word: somebody killed the supervisor, and with it the agent.
        _resolve_future(self.supervisor_pid, None)
        _resolve_future(self.started, {"failed": "its supervisor died"})
        _resolve_future(self.exited, ExitStatus(None, signal.SIGKILL))
        _resolve_future(self.cleaned_up, False)

    def send(self, message: Mapping[str, Any]) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(_encode_frame(dict(message)))


class _ProcessWatcher:
    """The end of a process that is no child of ours: told by the kernel, or looked for where it has no such word."""

    def __init__(self, pid: int, ticks: int) -> None:
        self._identity = pid, ticks
        self._exited = asyncio.Event()
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            self._pidfd = -1
        else:
            asyncio.get_running_loop().add_reader(self._pidfd, self._exited.set)

    async def wait(self) -> None:
        """Wait for it; the caller bounds the wait."""
        if self._pidfd >= 0:
            await self._exited.wait()
        else:
            await _wait_gone(*self._identity, GONE_SECONDS)

    def close(self) -> None:
        """Let go of it."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)


def _pass_descriptors(descriptors: Sequence[int], receiver: Callable[[Sequence[int]], None] | None) -> None:
    if receiver is not None and descriptors:
        receiver(descriptors)
        return
    for descriptor in descriptors:
        os.close(descriptor)


def _resolve_future(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


@dataclass(slots=True)
class _Pipes:
    """The three pipes between the service and the agent, as (ours, theirs)."""

    stdin: tuple[int, int]
    stdout: tuple[int, int]
    stderr: tuple[int, int]
    open: set[int] = field(default_factory=set)

    @classmethod
    def make(cls) -> "_Pipes":
        agent_stdin, stdin = os.pipe()
        stdout, agent_stdout = os.pipe()
        stderr, agent_stderr = os.pipe()
        descriptors = {agent_stdin, stdin, stdout, agent_stdout, stderr, agent_stderr}
        return cls((stdin, agent_stdin), (stdout, agent_stdout), (stderr, agent_stderr), descriptors)

    def open_file(self, descriptor: int) -> Any:
        """Hand one over to somebody who closes it."""
        self.open.discard(descriptor)
        return os.fdopen(descriptor, "wb" if descriptor == self.stdin[0] else "rb", buffering=0)

    @property
    def agent_ends(self) -> tuple[int, int, int]:
        """The agent's stdin, stdout and stderr."""
        return self.stdin[1], self.stdout[1], self.stderr[1]

    def close_agent_ends(self) -> None:
        for descriptor in self.agent_ends:
            self._close(descriptor)

    def close(self) -> None:
        for descriptor in tuple(self.open):
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        if descriptor in self.open:
            self.open.discard(descriptor)
            os.close(descriptor)


class AgentProcess:
    """A running agent. Use it as `async with AgentProcess.start(...) as process`."""

    def __init__(self, channel: _SupervisorChannel, *, sandboxed: bool) -> None:
        self.pid = 0
        """The supervisor's pid, once it is there."""
        self.started_ticks = 0
        """When the supervisor started, in clock ticks since boot: with the pid it knows the process for sure."""
        self.containment = ""
        """What makes sure that nothing is left: one of `supervisor.MEANS`."""
        self.sandboxed = sandboxed
        """Whether it runs behind a seal."""
        self.stdout = asyncio.StreamReader(limit=_CHUNK)
        self.stderr = asyncio.StreamReader(limit=_CHUNK)
        self._channel = channel
        self._cgroups: Sequence[Path] = ()
        self._input: asyncio.StreamWriter | None = None
        self._readers: list[asyncio.ReadTransport] = []
        self._watcher: _ProcessWatcher | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        launch: LaunchSpec,
        spawned: Callable[[int, int], None] | None = None,
        listening: Callable[[Sequence[int]], None] | None = None,
    ) -> AsyncIterator["AgentProcess"]:
        """Start an agent; on leaving, by whatever way, all of it is dead. Call from the main thread.

        `spawned` is called with the supervisor's pid and start time as soon as it is there, `listening` with the
        descriptors of sockets that listen in a sealed run's network, which it closes. Raises `SpawnError` when the
        agent's program cannot be run, or its seal not be made.
        """
        sandbox_setup = await SandboxSetup.prepare(launch.command.sandbox, launch.command.uid)
        try:
            async with cls._start(launch, sandbox_setup, spawned) as process:
                if sandbox_setup is not None:
                    _pass_descriptors(sandbox_setup.receive_listeners(), listening)
                yield process
        finally:
            if sandbox_setup is not None:
                sandbox_setup.close()

    @classmethod
    @contextlib.asynccontextmanager
    async def _start(
        cls,
        launch: LaunchSpec,
        sandbox_setup: SandboxSetup | None,
        spawned: Callable[[int, int], None] | None,
    ) -> AsyncIterator["AgentProcess"]:
        service_end, supervisor_end = socket.socketpair()
        pipes = _Pipes.make()
        setup_descriptors = () if sandbox_setup is None else sandbox_setup.descriptors
        try:
            fork_server_pid = await fork_server.fork_supervisor(
                (*pipes.agent_ends, supervisor_end.fileno(), *setup_descriptors)
            )
        except BaseException:
            service_end.close()
            pipes.close()
            raise
        finally:
            supervisor_end.close()
            pipes.close_agent_ends()
            if sandbox_setup is not None:
                sandbox_setup.close_supervisor_end()
        channel = _SupervisorChannel()
        process = cls(channel, sandboxed=sandbox_setup is not None)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=service_end)
            await process._await_supervisor(fork_server_pid)
            if spawned is not None:
                spawned(process.pid, process.started_ticks)
            name = cgroups.cgroup_name(process.pid, process.started_ticks)
            channel.send({"start": launch.to_message(name, sandbox_setup)})
            await process._open_pipes(pipes)
            await process._await_start(launch.command)
            yield process
        finally:
            await process._close(service_end, pipes)

    async def _await_supervisor(self, fork_server_pid: int) -> None:
        """Learn who the supervisor is; `asked` is the fork server's pid. Raises `SpawnError`."""
        try:
            async with asyncio.timeout(START_SECONDS):
                pid = await asyncio.shield(self._channel.supervisor_pid)
        except TimeoutError as error:
            fork_server.discard(fork_server_pid)
            raise SpawnError("The supervisor did not start in time.") from error
        ticks = None if pid is None else start_ticks(pid)
        if pid is None or ticks is None:
            raise SpawnError("The supervisor died as it started.")
        self.pid, self.started_ticks, self._watcher = pid, ticks, _ProcessWatcher(pid, ticks)

    async def _open_pipes(self, pipes: _Pipes) -> None:
        loop = asyncio.get_running_loop()
        for reader, descriptor in ((self.stdout, pipes.stdout[0]), (self.stderr, pipes.stderr[0])):
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_read_pipe(
                lambda protocol=protocol: protocol,  # type: ignore[misc]  # the default is the binding
                pipes.open_file(descriptor),
            )
            self._readers.append(transport)
        # A reader's protocol is also the public one that knows how to wait for a writer.
        sink = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        writer, _ = await loop.connect_write_pipe(lambda: sink, pipes.open_file(pipes.stdin[0]))
        self._input = asyncio.StreamWriter(writer, sink, None, loop)

    async def _await_start(self, command: Command) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                message = await asyncio.shield(self._channel.started)
        except TimeoutError as error:
            raise SpawnError("The agent's program did not start in time.") from error
        if message.get("sealing"):
            raise SpawnError(f"The sandbox could not be made: {message['failed']}.")
        if "failed" in message:
            name = Path(command.argv[0]).name
            raise SpawnError(f"The agent's program {name} could not be run: {message['failed']}.")
        self.containment = message["means"]
        self._cgroups = [Path(group) for group in message["groups"]]

    # --- talking to the agent --------------------------------------------------------------------

    async def write(self, data: bytes) -> bool:
        """Write to the agent's stdin, waiting while it does not read; False when it reads no more."""
        if self._input is None or self._input.is_closing():
            return False
        try:
            self._input.write(data)
            await self._input.drain()
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def end_input(self) -> None:
        """Close the agent's stdin once what was written has been read."""
        if self._input is not None and not self._input.is_closing():
            self._input.close()

    @property
    def running(self) -> bool:
        """Whether the agent itself has not ended yet, as far as is known."""
        return not self._channel.exited.done()

    # --- ending it -------------------------------------------------------------------------------

    async def exited(self) -> ExitStatus:
        """Wait for the agent itself to end; what it left behind may still be dying. The caller bounds the wait."""
        return await asyncio.shield(self._channel.exited)

    async def wait(self) -> ExitStatus:
        """Wait until the agent has ended and nothing of it is alive. The caller bounds the wait until its end."""
        exit_status = await self.exited()
        try:
            async with asyncio.timeout(GONE_SECONDS):
                cleaned_up = await asyncio.shield(self._channel.cleaned_up)
        except TimeoutError:
            return replace(exit_status, unkillable=True)
        if not cleaned_up:
            # The supervisor was killed, so nobody else will.
            await cgroups.kill_cgroups(self._cgroups)
        return exit_status

    async def stop(self) -> ExitStatus:
        """Ask the agent to end (SIGTERM), and after `TERM_SECONDS` kill all that there is. Bounded."""
        if self.running:
            self._channel.send({"signal": int(signal.SIGTERM)})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TERM_SECONDS):
                    await self.exited()
        return await self.kill()

    async def kill(self) -> ExitStatus:
        """Kill all that there is, at once. Bounded by `GONE_SECONDS` twice."""
        if self.running:
            self._channel.send({"kill": True})
        try:
            async with asyncio.timeout(GONE_SECONDS):
                return await self.wait()
        except TimeoutError:
            return ExitStatus(None, signal.SIGKILL, unkillable=True)

    def _abort_input(self) -> None:
        if self._input is None:
            return
        transport = self._input.transport
        # One that is closed and has written all has let go already; asyncio's `abort` fails on it.
        if not transport.is_closing() or transport.get_write_buffer_size() > 0:
            transport.abort()

    async def _close(self, service_end: socket.socket, pipes: _Pipes) -> None:
        try:
            if self._channel.transport is None:
                service_end.close()
            else:
                await self.kill()
        finally:
            # Whatever comes, also a second cancellation: at the end of its socket the supervisor kills everything.
            if self._channel.transport is not None:
                self._channel.transport.close()
            for transport in self._readers:
                transport.close()
            self._abort_input()
            pipes.close()
        await asyncio.sleep(0)  # what was let go of is closed at the next turn of the loop
        if self._watcher is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GONE_SECONDS):
                    await self._watcher.wait()
            self._watcher.close()


def _encode_frame(value: Any) -> bytes:
    data = marshal.dumps(value)
    return len(data).to_bytes(4, "little") + data


# --- processes of an earlier life of the service -------------------------------------------------


async def kill_leftover_run(pid: int, started: int, seconds: float = GONE_SECONDS) -> bool:
    """Make sure that a supervisor of an earlier life of the service, and its run, are gone; True when they are.

    It ends by itself when the service dies, so this mostly only waits. When it has not after half of `seconds`, its
    descendants are killed, then it.
    """
    is_gone = await _wait_gone(pid, started, seconds, force=True)
    if is_gone:
        await cgroups.kill_cgroups(cgroups.detect_cgroups().paths(cgroups.cgroup_name(pid, started)))
    return is_gone


async def _wait_gone(pid: int, started: int, seconds: float, *, force: bool = False) -> bool:
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    killed = False
    while start_ticks(pid) == started:
        waited = loop.time() - started_at
        if waited > seconds:
            return False
        if force and not killed and waited > seconds / 2:
            _kill_tree(pid)
            killed = True
        await asyncio.sleep(0.01)
    return True


def _kill_tree(pid: int) -> None:
    for target_pid in (*process_tree.descendants(pid), pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(target_pid, signal.SIGKILL)
