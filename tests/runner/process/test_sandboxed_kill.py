"""Nothing of a sealed run outlives it: every kind of child, every way to end, with the real sandbox around it."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.runner.sandboxed_process import MIB, SandboxHarness, sandbox_harness, shared_etc, wait_until_ready

from steadyhand.agents import Agent
from steadyhand.runner.process import cgroups, paused_processes, process_tree
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec, start_ticks
from steadyhand.runner.process.kill_run import kill_leftover_run
from steadyhand.testing.live_folders import paths_in
from steadyhand.testing.processes import pids_with_mark, wait_until_gone
from steadyhand.testing.service import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

KINDS = (
    *(pytest.param(kind, marks=pytest.mark.long) for kind in ("plain", "setsid")),  # a daemon is both
    "daemon",
    "reforking",
)
UNRULY = (Path(__file__).parents[1] / "unruly_agent.py").read_text(encoding="utf-8")
AFTER_SECONDS = 10.0
"""How long after the end something may still be dying on a busy machine; left alone it would live for 30 s."""


@pytest.fixture
def world(mark: str) -> Iterator[SandboxHarness]:
    with sandbox_harness(mark) as made:
        yield made


def gone(world: SandboxHarness, known: list[tuple[int, int]]) -> None:
    """Hold that nothing of the world's runs is there."""
    assert wait_until_gone(world.mark, AFTER_SECONDS)
    assert str(world.data_dir) not in Path("/proc/self/mountinfo").read_text()
    for supervisor, ticks in known:
        assert start_ticks(supervisor) != ticks
        name = cgroups.cgroup_name(supervisor, ticks)
        assert [path for path in cgroups.detect_cgroups().paths(name) if path.exists()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_a_normal_end(world: SandboxHarness, kind: str) -> None:
    known: list[tuple[int, int]] = []

    async def scenario() -> None:
        launch = LaunchSpec(world.python(UNRULY, kind, "deaf", "end"))
        async with AgentProcess.start(launch, lambda *each: known.append(each)) as process:
            await wait_until_ready(process)
            async with asyncio.timeout(10):
                ended = await process.wait()
            assert (ended.code, ended.unkillable) == (0, False)
            assert pids_with_mark(world.mark) == []

    asyncio.run(scenario())
    gone(world, known)


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_agent_itself_is_ended_or_it_says_that_it_could_not(
    world: SandboxHarness, kind: str
) -> None:
    async def scenario() -> None:
        launch = LaunchSpec(world.python(UNRULY, kind, "deaf", "stay"))
        async with AgentProcess.start(launch) as process:
            await wait_until_ready(process)
            before = pids_with_mark(world.mark)
            ended = await process.kill_others()
            assert process.running
            if kind != "reforking":
                assert ended
                assert len(pids_with_mark(world.mark)) == len(before) - 1
            elif ended:
                assert all(len(pids_with_mark(world.mark)) == 1 for _ in range(20))
            else:  # each generation ends before it can be killed
                assert any(len(pids_with_mark(world.mark)) > 1 for _ in range(1000))

    asyncio.run(scenario())


def _states(mark: str) -> set[str]:
    """Return the states of the processes with a mark, as the kernel has them."""
    stats = [Path(f"/proc/{pid}/stat").read_text("ascii") for pid in pids_with_mark(mark)]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}


@pytest.mark.skipif(not cgroups.detect_cgroups().parents, reason="needs control groups")
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_pause_stops_each_process_of_the_run_and_looks_at_no_other(
    world: SandboxHarness, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[set[int] | None] = []

    def recorded(only: Iterable[int] | None = None) -> Iterator[tuple[int, int]]:
        looked_at.append(None if only is None else set(only))
        return process_tree.parents(only)

    async def scenario() -> None:
        launch = LaunchSpec(world.python(UNRULY, kind, "deaf", "stay"))
        async with AgentProcess.start(launch) as process:
            await wait_until_ready(process)
            monkeypatch.setattr(paused_processes, "parents", recorded)
            process.pause()
            # A signal to stop takes effect once its process is about to run.
            wait_until(lambda: _states(world.mark) == {"T"})
            members = set[int]()
            for each in looked_at:
                assert each is not None  # that would be all of the machine
                members |= each
            assert set(pids_with_mark(world.mark)) <= members
            assert len(members) < 10
            process.resume()
            wait_until(lambda: "T" not in _states(world.mark))

    asyncio.run(scenario())
    gone(world, [])


def _policies(mark: str) -> set[int]:
    """Return the scheduling policies of all threads of the processes with a mark."""
    found = set()
    for thread in [each for pid in pids_with_mark(mark) for each in paths_in(Path(f"/proc/{pid}/task"))]:
        with suppress(ProcessLookupError):  # it has ended
            found.add(os.sched_getscheduler(int(thread.name)))
    return found


@pytest.mark.parametrize("kind", [pytest.param("plain", marks=pytest.mark.long), "setsid"])
def test_a_preparation_in_the_background_has_the_idle_priority_with_all_that_it_starts(
    world: SandboxHarness, kind: str
) -> None:
    supervisors: list[int] = []

    async def scenario() -> None:
        launch = LaunchSpec(world.python(UNRULY, kind, "deaf", "stay"))
        async with AgentProcess.start(launch, lambda pid, _ticks: supervisors.append(pid)) as process:
            await wait_until_ready(process)
            assert _policies(world.mark) == {os.SCHED_OTHER}
            paused_processes.lower_priority(supervisors[0])
            assert _policies(world.mark) == {os.SCHED_IDLE}
            paused_processes.restore_priority(supervisors[0])
            assert _policies(world.mark) == {os.SCHED_OTHER}

    asyncio.run(scenario())
    gone(world, [])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_a_stop(world: SandboxHarness, kind: str) -> None:
    known: list[tuple[int, int]] = []

    async def scenario() -> None:
        launch = LaunchSpec(world.python(UNRULY, kind, "deaf", "stay"))
        async with AgentProcess.start(launch, lambda *each: known.append(each)) as process:
            await wait_until_ready(process)
            assert pids_with_mark(world.mark)
            async with asyncio.timeout(20):
                ended = await process.stop()
            assert (ended.code, ended.signal, ended.unkillable) == (None, signal.SIGKILL, False)
            assert pids_with_mark(world.mark) == []

    asyncio.run(scenario())
    gone(world, known)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_the_supervisor_was_killed(world: SandboxHarness, kind: str) -> None:
    known: list[tuple[int, int]] = []

    async def scenario() -> None:
        launch = LaunchSpec(world.python(UNRULY, kind, "deaf", "stay"))
        async with AgentProcess.start(launch, lambda *each: known.append(each)) as process:
            await wait_until_ready(process)
            assert pids_with_mark(world.mark)
            os.kill(process.pid, signal.SIGKILL)
            assert wait_until_gone(world.mark, AFTER_SECONDS)
            async with asyncio.timeout(20):
                ended = await process.wait()
            assert (ended.code, ended.signal, ended.unkillable) == (None, signal.SIGKILL, False)

    asyncio.run(scenario())
    gone(world, known)


@pytest.mark.parametrize(
    ("kind", "both"),
    [
        ("daemon", "service"),
        ("reforking", "service and supervisor"),
        *(
            pytest.param(kind, both, marks=pytest.mark.long)
            for kind, both in (
                ("plain", "service"),
                ("plain", "service and supervisor"),
                ("setsid", "service"),
                ("setsid", "service and supervisor"),
                ("daemon", "service and supervisor"),
                ("reforking", "service"),
            )
        ),
    ],
)
def test_nothing_is_left_after_the_service_was_killed(mark: str, kind: str, both: str) -> None:
    words = [
        sys.executable,
        "-m",
        "tests.runner.sandboxed_process",
        mark,
        str(shared_etc()),
        UNRULY,
        kind,
        "deaf",
        "stay",
    ]
    root = Path(__file__).parents[3]
    service = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=root, env={"PATH": os.defpath})
    with service:
        try:
            assert service.stdout is not None
            supervisor, ticks, data = json.loads(service.stdout.readline())
            assert pids_with_mark(mark)
        finally:
            service.kill()
            if both != "service":
                os.kill(supervisor, signal.SIGKILL)
    try:
        assert wait_until_gone(mark, AFTER_SECONDS)
        assert asyncio.run(kill_leftover_run(supervisor, ticks))
        asyncio.run(cgroups.sweep_cgroups())
        name = cgroups.cgroup_name(supervisor, ticks)
        assert [path for path in cgroups.detect_cgroups().paths(name) if path.exists()] == []
    finally:
        shutil.rmtree(data)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_the_memory_limit(world: SandboxHarness, kind: str) -> None:
    if cgroups.detect_cgroups().memory is None:
        pytest.skip("no control group for memory here")
    world.agent = Agent("claude", memory_bytes=100 * MIB)
    known: list[tuple[int, int]] = []
    hog = "kept = []\nwhile True: kept.append(b'x' * (1 << 20))\n"
    code = UNRULY.replace("time.sleep(LIFETIME_SECONDS)\n\n\nmain()", f"exec({hog!r})\n\n\nmain()")
    assert code != UNRULY

    async def scenario() -> None:
        launch = LaunchSpec(world.python(code, kind, "deaf", "stay"))
        async with AgentProcess.start(launch, lambda *each: known.append(each)) as process:
            await wait_until_ready(process)
            async with asyncio.timeout(20):
                ended = await process.wait()
            assert (ended.code, ended.signal, ended.out_of_memory, ended.unkillable) == (
                None,
                signal.SIGKILL,
                True,
                False,
            )
            assert pids_with_mark(world.mark) == []

    asyncio.run(scenario())
    gone(world, known)
