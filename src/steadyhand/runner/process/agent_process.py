"""One agent's process, with its supervisor: start it, write to it, read from it, stop it.

Only this module starts agents. After `wait`, `stop` or the end of `async with` no process of the run is alive: no
child, no child in a session of its own, no daemon (see `supervisor.py`).
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from steadyhand.errors import SpawnError
from steadyhand.ports import Command, HoldSpec, OrphanedRun, StopSignal
from steadyhand.runner.process import cgroups, fork_server
from steadyhand.runner.process.agent_pipes import AgentPipes
from steadyhand.runner.process.cgroups import GONE_SECONDS, start_ticks
from steadyhand.runner.process.held_record import Holding, open_spools
from steadyhand.runner.process.kill_run import kill_run
from steadyhand.runner.process.launch_spec import LaunchSpec
from steadyhand.runner.process.paused_processes import PausedProcesses, kill_others
from steadyhand.runner.process.process_hold import ProcessHold
from steadyhand.runner.process.process_tree import descendants
from steadyhand.runner.process.process_watcher import ProcessWatcher
from steadyhand.runner.process.sandbox_setup import SandboxSetup
from steadyhand.runner.process.spool import SpoolReader
from steadyhand.runner.process.supervisor_channel import (
    REPLY_SECONDS,
    ExitStatus,
    SupervisorChannel,
    await_message,
)

__all__ = ["AgentProcess", "ExitStatus", "LaunchSpec", "start_ticks"]

TERM_SECONDS = 0.5
"""Seconds for the agent to end by itself after SIGTERM; then everything is killed."""
_CHUNK = 1 << 16
_ATOMIC_BYTES = 4096  # PIPE_BUF: the kernel takes so much whole or not at all


def _create_holding(hold: HoldSpec | None) -> Holding | None:
    """Return the files of a run that is to be held, or None. Raise `SpawnError` if they cannot be made.

    A run without them must not start: the next service would take it for one whose agent had not started.
    """
    try:
        return None if hold is None else Holding.create(hold)
    except OSError as error:
        raise SpawnError(f"The files of the run could not be made: {error.strerror}.") from error


def _open_spools(folder: Path) -> tuple[int, int]:
    try:
        return open_spools(folder)
    except OSError as error:
        raise SpawnError(f"The files of the run could not be opened: {error.strerror}.") from error


def _pass_descriptors(descriptors: Sequence[int], receiver: Callable[[Sequence[int]], None] | None) -> None:
    if receiver is not None and descriptors:
        receiver(descriptors)
        return
    for descriptor in descriptors:
        os.close(descriptor)


class AgentProcess:
    """A running agent. Use it as `async with AgentProcess.start(...) as process`."""

    def __init__(self, channel: SupervisorChannel, *, sandboxed: bool) -> None:
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
        self.hold = ProcessHold(channel)
        """The service's part of a run that may outlive it."""
        self._channel = channel
        self._cgroups: Sequence[Path] = ()
        self._input: asyncio.StreamWriter | None = None
        self._readers: list[asyncio.ReadTransport] = []
        self._watcher: ProcessWatcher | None = None
        self._paused: PausedProcesses | None = None
        self._stuck = False
        self._agent: tuple[int, int | None] = (0, None)
        """The pid and the start time of the agent itself, once it was looked for."""

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
        holding = _create_holding(launch.hold)
        service_end, supervisor_end = socket.socketpair()
        pipes = AgentPipes.make()
        setup_descriptors = () if sandbox_setup is None else sandbox_setup.descriptors
        held_descriptors = () if holding is None else holding.descriptors(pipes.service_ends)
        try:
            fork_server_pid = await fork_server.fork_supervisor(
                (*pipes.agent_ends, supervisor_end.fileno(), *setup_descriptors, *held_descriptors)
            )
        except BaseException:  # also when cancelled: nobody else has these ends yet, and none may stay open
            service_end.close()
            pipes.close()
            if holding is not None:
                holding.close()
            raise
        finally:
            supervisor_end.close()
            pipes.close_agent_ends()
            if sandbox_setup is not None:
                sandbox_setup.close_supervisor_end()
        if holding is not None:
            holding.close_supervisor_end()
        channel = SupervisorChannel()
        process = cls(channel, sandboxed=sandbox_setup is not None)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=service_end)
            await process._await_supervisor(fork_server_pid, stop)
            if spawned is not None:
                spawned(process.pid, process.started_ticks)
            name = cgroups.cgroup_name(process.pid, process.started_ticks)
            channel.send({"start": launch.to_message(name, sandbox_setup, holding)})
            if holding is None:
                await process._open_pipes(pipes)
            else:
                process._open_spools(holding.take_spools(), pipes)
                process.hold.open(holding, process._write_record)
            await process._open_input(pipes)
            await process._await_start(launch.command, stop)
            yield process
        finally:
            if holding is not None:
                holding.close()
            await process._close(service_end, pipes)
            process.hold.close()

    @classmethod
    @contextlib.asynccontextmanager
    async def attach(
        cls, orphan: OrphanedRun, listening: Callable[[Sequence[int]], None] | None = None
    ) -> AsyncIterator["AgentProcess"]:
        """Attach to a run that an earlier service left; when the block ends, all of its processes are dead.

        Its output is read from the beginning. Raises `SpawnError` if its files are gone.
        """
        channel = SupervisorChannel()
        process = cls(channel, sandboxed=orphan.sandboxed)
        process.hold.reopen(orphan.folder, is_alive=False)
        process.containment = orphan.containment
        process._cgroups = [Path(group) for group in orphan.groups]
        service_ends, connection = orphan.take_pipes(), orphan.take_connection()
        pipes = None if service_ends is None else AgentPipes.of(service_ends)
        try:
            offsets = orphan.facts.get("offsets", (0, 0))
            process._open_spools(_open_spools(orphan.folder), pipes, offsets)
            if connection is None or pipes is None:
                channel.set_ended(orphan.exit or {})
            else:
                process.pid, process.started_ticks = orphan.pid, orphan.started
                process._watcher = ProcessWatcher(orphan.pid, orphan.started)
                await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=connection)
                process.hold.reopen(orphan.folder, is_alive=True)
                if orphan.input_open:
                    await process._open_input(pipes)
            _pass_descriptors(orphan.take_sandbox_listeners(), listening)
            yield process
        finally:
            await process._close(connection, pipes)

    async def _await_supervisor(self, fork_server_pid: int, stop: StopSignal | None) -> None:
        """Wait for the supervisor's pid. `fork_server_pid` is that of the server that got the request.

        Raises `SpawnError`.
        """
        try:
            pid = await await_message(self._channel.supervisor_pid, stop)
        except TimeoutError as error:
            fork_server.discard(fork_server_pid)
            raise SpawnError("The supervisor did not start in time.") from error
        ticks = None if pid is None else start_ticks(pid)
        if pid is None or ticks is None:
            raise SpawnError("The supervisor died as it started.")
        self.pid, self.started_ticks, self._watcher = pid, ticks, ProcessWatcher(pid, ticks)

    def _open_spools(
        self, files: tuple[int, int], pipes: AgentPipes | None, offsets: Sequence[int] = (0, 0)
    ) -> None:
        """Read the output through files, which a later service reads again from these offsets on."""
        out, err = (None, None) if pipes is None else (pipes.stdout[0], pipes.stderr[0])
        self.stdout, self.stderr = (
            SpoolReader(
                file,
                None if pipes is None or pipe is None else pipes.release(pipe),
                self.hold.drop,
                int(offset),
            )
            for file, pipe, offset in zip(files, (out, err), offsets, strict=True)
        )

    def _write_record(self, holding: Holding) -> bool:
        return holding.write_record(self.pid, self.started_ticks, sandboxed=self.sandboxed)

    async def _open_pipes(self, pipes: AgentPipes) -> None:
        loop = asyncio.get_running_loop()
        for reader, descriptor in ((self.stdout, pipes.stdout[0]), (self.stderr, pipes.stderr[0])):
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_read_pipe(
                lambda protocol=protocol: protocol,  # type: ignore[misc]  # the default is the binding
                pipes.open_file(descriptor),
            )
            self._readers.append(transport)

    async def _open_input(self, pipes: AgentPipes) -> None:
        loop = asyncio.get_running_loop()
        # A reader's protocol is also the only public one that can wait for a writer.
        sink = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        writer, _ = await loop.connect_write_pipe(lambda: sink, pipes.open_file(pipes.stdin[0]))
        self._input = asyncio.StreamWriter(writer, sink, None, loop)
        if self.hold.folder is not None:
            writer.set_write_buffer_limits(high=0)  # `drain` then waits until the pipe has everything

    async def _await_start(self, command: Command, stop: StopSignal | None) -> None:
        try:
            message = await await_message(self._channel.started, stop)
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
        is_divisible = self.hold.is_kept and len(data) > _ATOMIC_BYTES
        try:
            if is_divisible:
                self.hold.send_keep(is_kept=False)  # half a message would be no good to a later service
            self._input.write(data)
            await self._input.drain()
        except (BrokenPipeError, ConnectionResetError):
            return False
        if is_divisible and self.hold.is_kept:
            self.hold.send_keep(is_kept=True)
        return True

    def end_input(self) -> None:
        """Close the agent's stdin once all written data has been read."""
        if self._input is not None and not self._input.is_closing():
            self._input.close()
            if self.hold.folder is not None:
                self._channel.send({"close_input": True})

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
        """Return the path of the root directory of the agent itself; None if it has ended.

        To find the agent takes a look at every process of the machine; it is found once.
        """
        if not self.running:
            return None
        pid, ticks = self._agent
        if ticks is None or start_ticks(pid) != ticks:
            pids = descendants(self.pid)
            if not pids:
                return None
            pid = pids[-1]
            self._agent = pid, start_ticks(pid)
        return Path(f"/proc/{pid}/root")

    def leave(self) -> bool:
        """Let the run go on without this service when the block ends; return False if it is not kept."""
        return self.hold.leave(is_running=self.running)

    # --- pausing it ------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop the agent, and all that it started, until `resume`.

        The supervisor goes on, and can end the run at any time. So do the processes between the two, which do nothing
        but notice the end of the agent.
        """
        if self._paused is None and self.running:
            self._paused = PausedProcesses.below(self.pid, wrappers=self._wrappers, cgroups=self._cgroups)

    def resume(self) -> None:
        """Let the processes go on that `pause` has stopped."""
        if self._paused is not None:
            self._paused.resume()
            self._paused = None

    async def kill_others(self) -> bool:
        """Kill each process of the run but the agent itself; return False if that does not end."""
        return self.running and await kill_others(self.pid, 1 + self._wrappers, self._cgroups)

    @property
    def _wrappers(self) -> int:
        """Return the number of processes between the supervisor and the agent."""
        return (self.containment == "pid_namespace") + (2 if self.sandboxed else 0)

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
            self.hold.drop()
            self.resume()
            self._resume_supervisor()
            self._channel.send({"signal": int(signal.SIGTERM)})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TERM_SECONDS):
                    await self.exited()
        return await self.kill()

    async def kill(self, *, has_answered: bool = False) -> ExitStatus:
        """Kill every process at once, by the supervisor, or without it if it does not answer. Takes a limited time.

        A run that `has_answered` is held on: a later service reads its output, as if it had ended by itself.
        """
        if self.running:
            if has_answered:
                self.hold.settle()
            else:
                self.hold.drop()
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
        self._channel.set_killed(cleaned_up=True)

    def _abort_input(self) -> None:
        if self._input is None:
            return
        transport = self._input.transport
        # A transport that is closed and has written all is gone already; asyncio's `abort` fails on it.
        if not transport.is_closing() or transport.get_write_buffer_size() > 0:
            transport.abort()

    async def _close(self, service_end: socket.socket | None, pipes: AgentPipes | None) -> None:
        try:
            if self._channel.transport is None:
                if service_end is not None:
                    service_end.close()
            elif not self.hold.is_left:
                await self.kill()
        finally:
            # In any case, even after a second cancellation: when its socket closes the supervisor kills everything.
            self.resume()
            if self._channel.transport is not None:
                self._channel.transport.close()
            for transport in self._readers:
                transport.close()
            for reader in (self.stdout, self.stderr):
                if isinstance(reader, SpoolReader):
                    reader.close()
            self._abort_input()
            if pipes is not None:
                pipes.close()
        await asyncio.sleep(0)  # the transports close in the next iteration of the loop
        if self._watcher is not None:
            if not self.hold.is_left:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(GONE_SECONDS):
                        await self._watcher.wait()
            self._watcher.close()
