"""A supervisor that does not answer holds nothing: its run ends without it, within a bound, and with nothing alive."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest
from tests.runner.freezing import each_with_each_way, freezer, ways
from tests.runner.sandboxed_process import SandboxHarness, sandbox_harness, wait_until_ready

from steadyhand.agents import Agent
from steadyhand.errors import SpawnError
from steadyhand.outcome import StopReason
from steadyhand.ports import Checkout, Command, RunSpec, StopSignal
from steadyhand.redact import Redactor
from steadyhand.runner.process import (
    agent_process,
    cgroups,
    fork_server,
    process_tree,
    run_loop,
    supervisor_channel,
)
from steadyhand.runner.process.agent_process import AgentProcess, ExitStatus, LaunchSpec, start_ticks
from steadyhand.runner.process.kill_run import kill_leftover_run
from steadyhand.runner.process.output import OutputCapture
from steadyhand.runner.process.run_loop import RunLoop
from steadyhand.testing.contracts.samples import make_job
from steadyhand.testing.processes import pids_with_mark, wait_until_gone

Python = Callable[..., Command]
UNRULY = (Path(__file__).parents[1] / "unruly_agent.py").read_text(encoding="utf-8")
MEANS = ("pid_namespace", "cgroup", "walk")
BOUND_SECONDS = 20.0
"""Longer than any step of the ladder takes; without the ladder nothing ends at all."""


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (agent_process, supervisor_channel):
        monkeypatch.setattr(module, "REPLY_SECONDS", 0.3)


def _launch(command: Command, means: str) -> LaunchSpec:
    return LaunchSpec(command, containment_methods=(means, "walk"))


def _name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.parametrize(("means", "way"), each_with_each_way(MEANS))
def test_a_run_ends_without_its_frozen_supervisor(unruly: Python, mark: str, means: str, way: str) -> None:
    async def scenario(freeze: Callable[[int], None]) -> None:
        async with AgentProcess.start(_launch(unruly("reforking", "deaf", "stay"), means)) as process:
            await wait_until_ready(process)
            freeze(process.pid)
            async with asyncio.timeout(BOUND_SECONDS):
                ended = await process.stop()
            assert (ended.code, ended.signal, ended.unkillable) == (None, signal.SIGKILL, False)
            assert wait_until_gone(mark)
            assert start_ticks(process.pid) != process.started_ticks
            groups = process._cgroups
        assert not any(group.exists() for group in groups)

    with freezer(way) as freeze:
        asyncio.run(scenario(freeze))


@pytest.mark.parametrize("way", ways("group of version 2"))
def test_a_supervisor_that_is_frozen_after_the_agents_end_is_not_waited_for(
    unruly: Python, mark: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(agent_process, "GONE_SECONDS", 0.6)

    async def scenario(freeze: Callable[[int], None]) -> None:
        # What it leaves behind keeps the supervisor from its last message.
        async with AgentProcess.start(LaunchSpec(unruly("daemon", "deaf", "stay"))) as process:
            await wait_until_ready(process)
            channel = process._channel
            report = channel._handle_message

            def freeze_on_report(message: dict[str, object]) -> None:
                if "exited" in message:
                    freeze(process.pid)
                elif "gone" in message:
                    return  # it was faster than the freezer
                report(message)

            monkeypatch.setattr(channel, "_handle_message", freeze_on_report)
            async with asyncio.timeout(BOUND_SECONDS):
                ended = await process.kill()
            assert not ended.unkillable
            assert start_ticks(process.pid) != process.started_ticks
        assert wait_until_gone(mark)

    with freezer(way) as freeze:
        asyncio.run(scenario(freeze))


@pytest.mark.parametrize(("means", "way"), each_with_each_way(MEANS))
def test_a_frozen_agent_is_ended_like_any_other(unruly: Python, mark: str, means: str, way: str) -> None:
    async def scenario(freeze: Callable[[int], None]) -> None:
        async with AgentProcess.start(_launch(unruly("daemon", "mortal", "stay"), means)) as process:
            await wait_until_ready(process)
            for pid in pids_with_mark(mark):
                freeze(pid)
            async with asyncio.timeout(BOUND_SECONDS):
                ended = await process.stop()
            assert (ended.code, ended.unkillable) == (None, False)
            assert ended.signal in (
                signal.SIGTERM,
                signal.SIGKILL,
            )  # a frozen group lets what is fatal through
            assert wait_until_gone(mark)

    with freezer(way) as freeze:
        asyncio.run(scenario(freeze))


@pytest.mark.parametrize("way", ways("group of version 1"))
def test_a_frozen_supervisor_of_an_earlier_service_is_ended_at_the_next_start(
    unruly: Python, mark: str, way: str
) -> None:
    async def scenario(freeze: Callable[[int], None]) -> None:
        async with AgentProcess.start(LaunchSpec(unruly("daemon", "deaf", "stay"))) as process:
            await wait_until_ready(process)
            freeze(process.pid)
            async with asyncio.timeout(BOUND_SECONDS):
                assert await kill_leftover_run(process.pid, process.started_ticks, seconds=1.0)
            assert wait_until_gone(mark)

    with freezer(way) as freeze:
        asyncio.run(scenario(freeze))


def test_a_start_that_hangs_is_given_up_once_a_stop_is_requested(unruly: Python, mark: str) -> None:
    async def scenario(freeze: Callable[[int], None]) -> None:
        stop = StopSignal()

        def spawned(pid: int, _started: int) -> None:
            freeze(pid)
            asyncio.get_running_loop().call_later(0.1, stop.request, StopReason.CANCEL)

        launch = LaunchSpec(unruly("plain", "deaf", "stay"))
        async with asyncio.timeout(BOUND_SECONDS):
            async with AgentProcess.start(launch, spawned, stop=stop) as process:
                assert process.running
                ended = await process.stop()
                assert (ended.code, ended.unkillable) == (None, False)
            assert start_ticks(process.pid) != process.started_ticks
        assert wait_until_gone(mark)

    with freezer("signal") as freeze:
        asyncio.run(scenario(freeze))


@pytest.mark.parametrize("way", ways("group of version 1"))
def test_a_frozen_fork_server_is_replaced_and_waited_for_no_longer_than_a_stop(
    python: Python, mark: str, way: str
) -> None:
    async def scenario(freeze: Callable[[int], None]) -> None:
        async with AgentProcess.start(LaunchSpec(python("pass"))):
            server = fork_server._servers[0]
        freeze(server.pid)
        stop = StopSignal()
        stop.request(StopReason.CANCEL)
        async with asyncio.timeout(BOUND_SECONDS):
            with pytest.raises(SpawnError):
                async with AgentProcess.start(LaunchSpec(python("pass")), stop=stop):
                    pass
            async with AgentProcess.start(LaunchSpec(python("pass"))) as process:
                assert (await process.wait()).code == 0
        assert fork_server._servers[0].pid != server.pid
        assert start_ticks(server.pid) is None

    with freezer(way) as freeze:
        asyncio.run(scenario(freeze))


@pytest.mark.skipif(os.geteuid() != 0, reason="agents are sealed off by root")
class TestInASandbox:
    """The same of sealed runs: their namespaces, mounts and groups go with them."""

    @pytest.fixture
    def world(self, mark: str) -> Iterator[SandboxHarness]:
        with sandbox_harness(mark) as made:
            yield made

    @pytest.mark.parametrize(("frozen", "way"), each_with_each_way(["supervisor", "bwrap", "agent", "all"]))
    def test_a_run_ends_whatever_of_it_is_frozen(self, world: SandboxHarness, frozen: str, way: str) -> None:
        known: list[tuple[int, int]] = []

        async def scenario(freeze: Callable[[int], None]) -> None:
            launch = LaunchSpec(world.python(UNRULY, "setsid", "deaf", "stay"))
            async with AgentProcess.start(launch, lambda *each: known.append(each)) as process:
                await wait_until_ready(process)
                tree = [process.pid, *process_tree.descendants(process.pid)]
                names = {pid: _name_of(pid) for pid in tree}
                targets = {
                    "supervisor": [process.pid],
                    "bwrap": [pid for pid, name in names.items() if name == "bwrap"],
                    "agent": [pid for pid in pids_with_mark(world.mark) if names.get(pid) != "bwrap"],
                    "all": tree,
                }[frozen]
                assert targets
                for pid in targets:
                    freeze(pid)
                async with asyncio.timeout(BOUND_SECONDS):
                    ended = await process.stop()
                assert (ended.code, ended.signal, ended.unkillable) == (None, signal.SIGKILL, False)

        with ExitStack() as stack:
            asyncio.run(scenario(stack.enter_context(freezer(way))))
            assert wait_until_gone(world.mark)
            assert str(world.data_dir) not in Path("/proc/self/mountinfo").read_text()
            ((supervisor, ticks),) = known
            assert start_ticks(supervisor) != ticks
            name = cgroups.cgroup_name(supervisor, ticks)
            assert [path for path in cgroups.detect_cgroups().paths(name) if path.exists()] == []


class _Silent:
    """A protocol for an agent that nobody talks to."""

    streams_output = False

    async def handle_line(self, line: bytes) -> None:
        """Pass the line over."""

    async def send_input(self) -> None:
        """Send nothing."""

    async def interrupt(self) -> None:
        """Ask for nothing."""


def test_a_stop_that_hangs_itself_holds_no_run(
    unruly: Python, mark: str, open_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_loop, "END_SECONDS", 0.2, raising=False)

    async def scenario() -> None:
        stop, capture = StopSignal(), OutputCapture(open_dir / "output", Redactor())
        spec = RunSpec(make_job(), 1, Agent("claude"), cast("Checkout", None), {}, lambda *_: None)
        async with AgentProcess.start(LaunchSpec(unruly("plain", "deaf", "stay"))) as process:

            async def hang() -> ExitStatus:
                await asyncio.Event().wait()
                raise AssertionError

            monkeypatch.setattr(process, "stop", hang)
            loop = RunLoop(spec, _ignore, stop, process, capture)
            stop.request(StopReason.DEADLINE)
            async with asyncio.timeout(BOUND_SECONDS):
                report = await loop.run(_Silent())
        capture.close()
        assert report.evidence.stop_reason is StopReason.DEADLINE
        assert wait_until_gone(mark)

    asyncio.run(scenario())


async def _ignore(body: object) -> None:
    """Take an event."""
