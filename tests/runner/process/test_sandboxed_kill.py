"""Nothing of a sealed run outlives it: every kind of child, every way to end, with the real sandbox around it."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runner.sandboxed_process import MIB, SandboxHarness, sandbox_harness, shared_etc, wait_until_ready

from steadyhand.agents import Agent
from steadyhand.runner.process import cgroups
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec, start_ticks
from steadyhand.runner.process.kill_run import kill_leftover_run
from steadyhand.testing.processes import pids_with_mark, wait_until_gone

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

KINDS = ("plain", "setsid", "daemon", "reforking")
UNRULY = (Path(__file__).parents[1] / "unruly_agent.py").read_text(encoding="utf-8")
AFTER_SECONDS = 1.0
"""How long after the end something may still be dying."""


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
def test_nothing_is_left_after_a_stop(world: SandboxHarness, kind: str) -> None:
    known: list[tuple[int, int]] = []

    async def scenario() -> None:
        launch = LaunchSpec(world.python(UNRULY, kind, "deaf", "stay"))
        async with AgentProcess.start(launch, lambda *each: known.append(each)) as process:
            await wait_until_ready(process)
            assert pids_with_mark(world.mark)
            async with asyncio.timeout(5):
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
            async with asyncio.timeout(5):
                ended = await process.wait()
            assert (ended.code, ended.signal, ended.unkillable) == (None, signal.SIGKILL, False)

    asyncio.run(scenario())
    gone(world, known)


@pytest.mark.parametrize("both", ["service", "service and supervisor"])
@pytest.mark.parametrize("kind", KINDS)
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
            killed = time.monotonic()
            if both != "service":
                os.kill(supervisor, signal.SIGKILL)
    try:
        assert wait_until_gone(mark, AFTER_SECONDS)
        assert time.monotonic() - killed < 2 * AFTER_SECONDS
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
