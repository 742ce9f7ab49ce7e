"""The process that supervisors are forked from: one for all runs, replaced when it is gone, ended with the service."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from steadyhand.errors import SpawnError
from steadyhand.ports import Command
from steadyhand.runner.process import fork_server, supervisor_channel
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec, start_ticks
from steadyhand.testing.processes import pids_with_mark
from steadyhand.testing.service import wait_until

Python = Callable[..., Command]

HELLO = "print('hello', flush=True); input()"


def _parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/stat").read_bytes()
    return int(status[status.rindex(b")") + 2 :].split()[1])


async def _greeted(agent: AgentProcess) -> None:
    async with asyncio.timeout(10):
        assert await agent.stdout.readline() == b"hello\n"


async def _answered_and_ended(agent: AgentProcess) -> None:
    await agent.write(b"\n")
    async with asyncio.timeout(10):
        ended = await agent.wait()
    assert (ended.code, ended.signal, ended.unkillable) == (0, None, False)


def _open_in(pid: int) -> list[int]:
    return sorted(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir())


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_all_runs_are_forked_from_one_process_that_has_nothing_open_of_the_services(
    python: Python, open_dir: Path
) -> None:
    inherited = os.open(open_dir, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    fork_server.discard()

    async def scenario() -> None:
        async with (
            AgentProcess.start(LaunchSpec(python(HELLO))) as one,
            AgentProcess.start(LaunchSpec(python(HELLO))) as other,
        ):
            parent = _parent(one.pid)
            assert parent == _parent(other.pid)
            assert _parent(parent) == os.getpid()
            # Its own streams (the program it read, nothing, our stderr) and the door.
            wait_until(lambda: _open_in(parent) == [0, 1, 2, 3], 10)
            assert _environment(parent) == b""

    try:
        asyncio.run(scenario())
    finally:
        os.close(inherited)


def test_when_it_is_killed_runs_go_on_and_the_next_has_another(python: Python, mark: str) -> None:
    async def scenario() -> None:
        async with AgentProcess.start(LaunchSpec(python(HELLO))) as before:
            await _greeted(before)
            first = _parent(before.pid)
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: start_ticks(first) is None, 10)
            async with AgentProcess.start(LaunchSpec(python(HELLO))) as after:
                await _greeted(after)
                assert _parent(after.pid) != first
                await _answered_and_ended(before)
                await _answered_and_ended(after)
        assert pids_with_mark(mark) == []

    asyncio.run(scenario())


def test_one_that_hangs_fails_a_run_within_its_bound_and_is_replaced(
    python: Python, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with AgentProcess.start(LaunchSpec(python(HELLO))) as before:
            hung = _parent(before.pid)
            os.kill(hung, signal.SIGSTOP)
            with monkeypatch.context() as patched:
                patched.setattr(supervisor_channel, "START_SECONDS", 0.5)
                with pytest.raises(SpawnError, match="did not start in time"):
                    async with AgentProcess.start(LaunchSpec(python(HELLO))):
                        pass
            assert start_ticks(hung) is None
            async with AgentProcess.start(LaunchSpec(python(HELLO))) as after:
                await _greeted(after)
                fork_server.discard(hung)  # another run that waited for it as well gives up now
                async with AgentProcess.start(LaunchSpec(python(HELLO))) as next_one:
                    assert _parent(next_one.pid) == _parent(after.pid)
                await _answered_and_ended(after)
            await _greeted(before)
            await _answered_and_ended(before)
        assert pids_with_mark(mark) == []

    asyncio.run(scenario())


def test_a_run_that_is_called_off_before_its_supervisor_is_there_leaves_nothing(
    python: Python, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = fork_server.fork_supervisor

    async def scenario() -> None:
        asked = asyncio.Event()

        async def ask(descriptors: Sequence[int]) -> int:
            pid = await fork(descriptors)
            asked.set()
            return pid

        async with AgentProcess.start(LaunchSpec(python(HELLO))) as before:
            parent = _parent(before.pid)
            os.kill(parent, signal.SIGSTOP)
            with monkeypatch.context() as patched:
                patched.setattr(fork_server, "fork_supervisor", ask)
                starting = asyncio.create_task(_start_only(LaunchSpec(python(HELLO))))
                async with asyncio.timeout(10):
                    await asked.wait()
            starting.cancel()
            await asyncio.wait([starting])
            assert starting.cancelled()
            os.kill(parent, signal.SIGCONT)
            await _greeted(before)
            await _answered_and_ended(before)
            async with AgentProcess.start(LaunchSpec(python(HELLO))) as after:
                # It serves in order: what was called off is born by now, and has found nobody.
                assert _parent(after.pid) == parent
                wait_until(lambda: _children(parent) == [after.pid], 10)
        assert pids_with_mark(mark) == []

    asyncio.run(scenario())


async def _start_only(launch: LaunchSpec) -> None:
    async with AgentProcess.start(launch):
        pass


def test_it_ends_with_the_service_also_when_that_is_killed(open_dir: Path) -> None:
    code = """
        import asyncio, sys
        from pathlib import Path
        from steadyhand.ports import Command
        from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec

        async def main():
            command = Command(["/bin/cat"], {}, Path(sys.argv[1]), None)
            async with AgentProcess.start(LaunchSpec(command)) as process:
                print(process.pid, flush=True)
                await asyncio.sleep(60)

        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(open_dir)], stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        supervisor = int(service.stdout.readline())
        parent = _parent(supervisor)
        born = start_ticks(parent)
        assert born is not None
        service.kill()
        service.wait(10)
        wait_until(lambda: start_ticks(parent) != born, 10)


def test_a_run_ends_as_well_where_the_kernel_gives_no_handle_of_a_process(
    python: Python, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(pid: int, flags: int = 0) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    async def scenario() -> None:
        monkeypatch.setattr(os, "pidfd_open", refused)
        async with AgentProcess.start(LaunchSpec(python(HELLO))) as agent:
            await _greeted(agent)
            await _answered_and_ended(agent)
        assert start_ticks(agent.pid) is None
        assert pids_with_mark(mark) == []

    asyncio.run(scenario())
