"""One agent's process, with its supervisor: start it, write to it, read from it, stop it.

Only this module starts agents. After `wait`, `stop` or the end of `async with` no process of the run is alive: no
child, no child in a session of its own, no daemon (see `supervisor.py`).
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
from typing import Any, TypeVar

from steadyhand.errors import SpawnError
from steadyhand.ports import Command, StopSignal
from steadyhand.runner.process import cgroups, fork_server, supervisor
from steadyhand.runner.process.cgroups import GONE_SECONDS, start_ticks
from steadyhand.runner.process.kill_run import kill_run
from steadyhand.runner.process.paused_processes import PausedProcesses
from steadyhand.runner.process.process_tree import descendants
from steadyhand.runner.process.process_watcher import ProcessWatcher
from steadyhand.runner.process.sandbox_setup import SandboxSetup

__all__ = ["AgentProcess", "ExitStatus", "LaunchSpec", "start_ticks"]

START_SECONDS = 30.0
TERM_SECONDS = 0.5
"""Seconds for the agent to end by itself after SIGTERM; then everything is killed."""
REPLY_SECONDS = 3.0
"""Seconds for a supervisor to report an end that it was asked for. One that is silent for longer hangs or is frozen."""
_CHUNK = 1 << 16
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """The end of the agent: an exit code, or the signal that ended it.

    `unkillable` is True if a process may still be alive, `out_of_memory` if the kernel killed a process of the run at
    its memory limit, `disk_full` if its disk is full. `forks_refused` counts the processes above its limit.
    """

    code: int | None
    signal: int | None
    unkillable: bool = False
    out_of_memory: bool = False
    disk_full: bool = False
    forks_refused: int = 0


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """A command with files (absolute path, content) and folders, which are created as its user before it starts.

    No existing file is overwritten: it is an error, except for `optional_files`, which are skipped. The
    `containment_methods` are tried in order; `file_size` is the largest file that it may write, in bytes.
    """

    command: Command
    files: Sequence[tuple[Path, bytes]] = ()
    optional_files: Sequence[tuple[Path, bytes]] = ()
    folders: Sequence[Path] = ()
    containment_methods: Sequence[str] = supervisor.CONTAINMENT_METHODS
    file_size: int | None = None

    def to_message(self, name: str, sandbox_setup: SandboxSetup | None) -> dict[str, Any]:
        """Return it as a message to the supervisor; `name` is that of the run's groups."""
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
    """The service's end of the socket pair: each message of the supervisor resolves a future."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.supervisor_pid: asyncio.Future[int | None] = loop.create_future()
        self.started: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        self.exited: asyncio.Future[ExitStatus] = loop.create_future()
        self.cleaned_up: asyncio.Future[bool] = loop.create_future()
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # a socket pair has one
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
        # No message came: somebody killed the supervisor, and with it the agent.
        _resolve_future(self.supervisor_pid, None)
        _resolve_future(self.started, {"failed": "its supervisor died"})
        _resolve_future(self.exited, ExitStatus(None, signal.SIGKILL))
        _resolve_future(self.cleaned_up, False)

    def send(self, message: Mapping[str, Any]) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(_encode_frame(dict(message)))


def _pass_descriptors(descriptors: Sequence[int], receiver: Callable[[Sequence[int]], None] | None) -> None:
    if receiver is not None and descriptors:
        receiver(descriptors)
        return
    for descriptor in descriptors:
        os.close(descriptor)


def _resolve_future(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


async def _await_message(message: asyncio.Future[_T], stop: StopSignal | None) -> _T:
    """Wait for a message at the start. Raise `TimeoutError` after `START_SECONDS`, or `REPLY_SECONDS` after a stop."""
    async with asyncio.timeout(START_SECONDS):
        if stop is None:
            return await asyncio.shield(message)
        async with asyncio.TaskGroup() as group:
            stop_request = group.create_task(stop.wait())
            waiting: set[asyncio.Future[Any]] = {message, stop_request}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            stop_request.cancel()
    async with asyncio.timeout(REPLY_SECONDS):
        return await asyncio.shield(message)


@dataclass(slots=True)
class _Pipes:
    """The three pipes between the service and the agent, as (service's end, agent's end)."""

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
        """Return a descriptor as a file. The caller closes it."""
        self.open.discard(descriptor)
        return os.fdopen(descriptor, "wb" if descriptor == self.stdin[0] else "rb", buffering=0)

    @property
    def agent_ends(self) -> tuple[int, int, int]:
        """Return the agent's stdin, stdout and stderr."""
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
        """The supervisor's pid, once it runs."""
        self.started_ticks = 0
        """The supervisor's start time in clock ticks since boot: with the pid it identifies the process."""
        self.containment = ""
        """The method by which no process is left: one of `supervisor.CONTAINMENT_METHODS`."""
        self.sandboxed = sandboxed
        """True if it runs in a sandbox."""
        self.stdout = asyncio.StreamReader(limit=_CHUNK)
        self.stderr = asyncio.StreamReader(limit=_CHUNK)
        self._channel = channel
        self._cgroups: Sequence[Path] = ()
        self._input: asyncio.StreamWriter | None = None
        self._readers: list[asyncio.ReadTransport] = []
        self._watcher: ProcessWatcher | None = None
        self._paused: PausedProcesses | None = None
        self._stuck = False

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        launch: LaunchSpec,
        spawned: Callable[[int, int], None] | None = None,
        listening: Callable[[Sequence[int]], None] | None = None,
        stop: StopSignal | None = None,
    ) -> AsyncIterator["AgentProcess"]:
        """Start an agent; when the block ends, all of its processes are dead. Call it from the main thread.

        If a `stop` is requested, a start that hangs is not waited for: the block begins, and has to stop the process.
        `spawned` is called with the supervisor's pid and start time once it runs, `listening` with the descriptors of
        sockets that listen in the network of a sandbox; it must close them. Raises `SpawnError` if the agent's program
        cannot be run, or its sandbox cannot be created.
        """
        sandbox_setup = await SandboxSetup.prepare(launch.command.sandbox, launch.command.uid)
        try:
            async with cls._start(launch, sandbox_setup, spawned, stop) as process:
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
        stop: StopSignal | None,
    ) -> AsyncIterator["AgentProcess"]:
        service_end, supervisor_end = socket.socketpair()
        pipes = _Pipes.make()
        setup_descriptors = () if sandbox_setup is None else sandbox_setup.descriptors
        try:
            fork_server_pid = await fork_server.fork_supervisor(
                (*pipes.agent_ends, supervisor_end.fileno(), *setup_descriptors)
            )
        except BaseException:  # also when cancelled: nobody else has these ends yet, and none may stay open
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
            await process._await_supervisor(fork_server_pid, stop)
            if spawned is not None:
                spawned(process.pid, process.started_ticks)
            name = cgroups.cgroup_name(process.pid, process.started_ticks)
            channel.send({"start": launch.to_message(name, sandbox_setup)})
            await process._open_pipes(pipes)
            await process._await_start(launch.command, stop)
            yield process
        finally:
            await process._close(service_end, pipes)

    async def _await_supervisor(self, fork_server_pid: int, stop: StopSignal | None) -> None:
        """Wait for the supervisor's pid. `fork_server_pid` is that of the server that got the request.

        Raises `SpawnError`.
        """
        try:
            pid = await _await_message(self._channel.supervisor_pid, stop)
        except TimeoutError as error:
            fork_server.discard(fork_server_pid)
            raise SpawnError("The supervisor did not start in time.") from error
        ticks = None if pid is None else start_ticks(pid)
        if pid is None or ticks is None:
            raise SpawnError("The supervisor died as it started.")
        self.pid, self.started_ticks, self._watcher = pid, ticks, ProcessWatcher(pid, ticks)

    async def _open_pipes(self, pipes: _Pipes) -> None:
        loop = asyncio.get_running_loop()
        for reader, descriptor in ((self.stdout, pipes.stdout[0]), (self.stderr, pipes.stderr[0])):
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_read_pipe(
                lambda protocol=protocol: protocol,  # type: ignore[misc]  # the default is the binding
                pipes.open_file(descriptor),
            )
            self._readers.append(transport)
        # A reader's protocol is also the only public one that can wait for a writer.
        sink = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        writer, _ = await loop.connect_write_pipe(lambda: sink, pipes.open_file(pipes.stdin[0]))
        self._input = asyncio.StreamWriter(writer, sink, None, loop)

    async def _await_start(self, command: Command, stop: StopSignal | None) -> None:
        try:
            message = await _await_message(self._channel.started, stop)
        except TimeoutError as error:
            if stop is not None and stop.reason is not None:
                return
            raise SpawnError("The agent's program did not start in time.") from error
        if message.get("sealing"):
            raise SpawnError(f"The sandbox could not be created: {message['failed']}.")
        if "failed" in message:
            name = Path(command.argv[0]).name
            raise SpawnError(f"The agent's program {name} could not be run: {message['failed']}.")
        self.containment = message["means"]
        self._cgroups = [Path(group) for group in message["groups"]]

    # --- talking to the agent --------------------------------------------------------------------

    async def write(self, data: bytes) -> bool:
        """Write to the agent's stdin and wait until it reads; return False if it has closed it."""
        if self._input is None or self._input.is_closing():
            return False
        try:
            self._input.write(data)
            await self._input.drain()
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def end_input(self) -> None:
        """Close the agent's stdin once all written data has been read."""
        if self._input is not None and not self._input.is_closing():
            self._input.close()

    @property
    def input_open(self) -> bool:
        """True if the agent can still read more input."""
        return self._input is not None and not self._input.is_closing()

    @property
    def running(self) -> bool:
        """Return True if the agent itself has not ended yet, as far as is known."""
        return not self._channel.exited.done()

    @property
    def root(self) -> Path | None:
        """Return the path of the root directory of the agent itself; None if it has ended."""
        pids = descendants(self.pid)
        return Path(f"/proc/{pids[-1]}/root") if pids and self.running else None

    # --- pausing it ------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop every process of the run until `resume`. The supervisor goes on, and can end the run at any time."""
        if self._paused is None and self.running:
            self._paused = PausedProcesses.below(self.pid)

    def resume(self) -> None:
        """Let the processes go on that `pause` has stopped."""
        if self._paused is not None:
            self._paused.resume()
            self._paused = None

    # --- ending it -------------------------------------------------------------------------------

    async def exited(self) -> ExitStatus:
        """Wait for the agent itself to end; its descendants may still be alive. The caller sets a time limit."""
        return await asyncio.shield(self._channel.exited)

    async def wait(self) -> ExitStatus:
        """Wait until the agent and all its descendants have ended. The caller sets a time limit for the agent's end."""
        exit_status = await self.exited()
        cleaned_up = await self._await_cleanup()
        if cleaned_up is None:
            await self._kill_without_supervisor()
        elif not cleaned_up:
            # The supervisor was killed, so the service does it.
            await cgroups.kill_cgroups(self._cgroups)
        return replace(exit_status, unkillable=self._stuck)

    async def _await_cleanup(self) -> bool | None:
        """Return True if the supervisor reports that no process is left, False if it died, None if it is silent."""
        for seconds in (REPLY_SECONDS, GONE_SECONDS - REPLY_SECONDS):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    return await asyncio.shield(self._channel.cleaned_up)
            self._resume_supervisor()
        return None

    async def stop(self) -> ExitStatus:
        """Send the agent SIGTERM, and after `TERM_SECONDS` kill every process. Takes a limited time."""
        if self.running:
            self.resume()
            self._resume_supervisor()
            self._channel.send({"signal": int(signal.SIGTERM)})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TERM_SECONDS):
                    await self.exited()
        return await self.kill()

    async def kill(self) -> ExitStatus:
        """Kill every process at once, by the supervisor, or without it if it does not answer. Takes a limited time."""
        if self.running:
            self._resume_supervisor()
            self._channel.send({"kill": True})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPLY_SECONDS):
                    await self.exited()
            if self.running:
                await self._kill_without_supervisor()
        return await self.wait()

    def _resume_supervisor(self) -> None:
        """Let a supervisor that somebody stopped go on, so that it ends its run in order."""
        if self._watcher is not None:
            self._watcher.resume()

    async def _kill_without_supervisor(self) -> None:
        """Kill the run and its supervisor, and note whether a process is left. Nothing waits for them after this."""
        if self.pid:
            name = cgroups.cgroup_name(self.pid, self.started_ticks)
            groups = [*self._cgroups] or cgroups.detect_cgroups().paths(name)
            self._stuck = not await kill_run(self.pid, self.started_ticks, groups)
        _resolve_future(self._channel.exited, ExitStatus(None, signal.SIGKILL))
        _resolve_future(self._channel.cleaned_up, True)

    def _abort_input(self) -> None:
        if self._input is None:
            return
        transport = self._input.transport
        # A transport that is closed and has written all is gone already; asyncio's `abort` fails on it.
        if not transport.is_closing() or transport.get_write_buffer_size() > 0:
            transport.abort()

    async def _close(self, service_end: socket.socket, pipes: _Pipes) -> None:
        try:
            if self._channel.transport is None:
                service_end.close()
            else:
                await self.kill()
        finally:
            # In any case, even after a second cancellation: when its socket closes the supervisor kills everything.
            self.resume()
            if self._channel.transport is not None:
                self._channel.transport.close()
            for transport in self._readers:
                transport.close()
            self._abort_input()
            pipes.close()
        await asyncio.sleep(0)  # the transports close in the next iteration of the loop
        if self._watcher is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GONE_SECONDS):
                    await self._watcher.wait()
            self._watcher.close()


def _encode_frame(value: Any) -> bytes:
    data = marshal.dumps(value)
    return len(data).to_bytes(4, "little") + data
