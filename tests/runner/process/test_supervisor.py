"""Nothing of a run outlives it: every kind of child, every way to end, every means."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from steadyhand.ports import Command
from steadyhand.runner.process import agent_process, spawn, supervisor
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec, start_ticks
from steadyhand.runner.process.kill_run import kill_leftover_run
from steadyhand.testing.processes import pids_with_mark, wait_until_gone

Python = Callable[..., Command]

KINDS = (
    *(pytest.param(kind, marks=pytest.mark.long) for kind in ("plain", "setsid")),  # a daemon is both
    "daemon",
    "reforking",
)
MEANS = [
    pytest.param("pid_namespace", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")),
    pytest.param("cgroup", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")),
    "walk",
]


async def _ready(process: AgentProcess) -> None:
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"ready\n"


def _nothing(mark: str) -> bool:
    # One look may miss what forks between two steps of it.
    return all(pids_with_mark(mark) == [] for _ in range(5))


def _skip_unless(process: AgentProcess, means: str) -> None:
    if process.containment != means:
        pytest.skip(f"{means} is not to be had here")


def _launch(command: Command, means: str) -> LaunchSpec:
    return LaunchSpec(command, containment_methods=(means, "walk"))


@pytest.mark.parametrize("means", MEANS)
@pytest.mark.parametrize("deaf", ["deaf", pytest.param("mortal", marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_a_normal_end(
    unruly: Python, mark: str, kind: str, deaf: str, means: str
) -> None:
    async def scenario() -> None:
        async with AgentProcess.start(_launch(unruly(kind, deaf, "end"), means)) as process:
            _skip_unless(process, means)
            await _ready(process)
            async with asyncio.timeout(10):
                ended = await process.wait()
            assert (ended.code, ended.signal, ended.unkillable) == (0, None, False)
            assert _nothing(mark)

    asyncio.run(scenario())


@pytest.mark.parametrize("means", MEANS)
@pytest.mark.parametrize("deaf", ["deaf", "mortal"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_a_stop(  # noqa: PLR0917  # parameters and fixtures
    unruly: Python, mark: str, kind: str, deaf: str, means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if deaf == "mortal":  # on a busy machine it may take longer to end by SIGTERM
        monkeypatch.setattr(agent_process, "TERM_SECONDS", 8.0)

    async def scenario() -> None:
        async with AgentProcess.start(_launch(unruly(kind, deaf, "stay"), means)) as process:
            _skip_unless(process, means)
            await _ready(process)
            assert pids_with_mark(mark)
            async with asyncio.timeout(10):
                ended = await process.stop()
            assert ended.code is None
            assert ended.signal == (signal.SIGKILL if deaf == "deaf" else signal.SIGTERM)
            assert _nothing(mark)

    asyncio.run(scenario())


@pytest.mark.parametrize("means", MEANS)
def test_a_kept_agent_loses_all_that_it_has_started(unruly: Python, mark: str, means: str) -> None:
    async def scenario() -> None:
        async with AgentProcess.start(_launch(unruly("daemon", "deaf", "stay"), means)) as process:
            _skip_unless(process, means)
            await _ready(process)
            assert len(pids_with_mark(mark)) == 2
            assert await process.kill_others()
            assert process.running
            assert len(pids_with_mark(mark)) == 1

    asyncio.run(scenario())


# A service of its own, so that it can be killed: it starts the command that it is given and says both pids.
SERVICE = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from steadyhand.ports import Command
    from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec

    means, mark, cwd, user, *argv = sys.argv[1:]

    async def main():
        command = Command(argv, {"SH_MARK": mark}, Path(cwd), int(user) if user else None)
        async with AgentProcess.start(LaunchSpec(command, containment_methods=(means, "walk"))) as process:
            assert await process.stdout.readline() == b"ready\\n"
            print(process.containment, process.pid, process.started_ticks, flush=True)
            await asyncio.sleep(60)

    asyncio.run(main())
""")


def _service(command: Command, means: str) -> subprocess.Popen[str]:
    user = "" if command.uid is None else str(command.uid)
    words = [means, command.env["SH_MARK"], str(command.cwd), user, *command.argv]
    # Not with the mark in its own environment: it is in its arguments, which nobody looks at.
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE, *words], stdout=subprocess.PIPE, text=True, env={"PATH": os.defpath}
    )


@pytest.mark.parametrize("means", MEANS)
@pytest.mark.parametrize("deaf", ["deaf", pytest.param("mortal", marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_the_service_was_killed(
    unruly: Python, mark: str, kind: str, deaf: str, means: str
) -> None:
    with _service(unruly(kind, deaf, "stay"), means) as service:
        try:
            assert service.stdout is not None
            used, pid, started = service.stdout.readline().split()
            if used != means:
                pytest.skip(f"{means} is not to be had here")
            assert pids_with_mark(mark)
        finally:
            service.kill()
    assert wait_until_gone(mark)
    assert asyncio.run(kill_leftover_run(int(pid), int(started)))
    assert start_ticks(int(pid)) != int(started)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("means", ["pid_namespace", "cgroup"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_the_supervisor_was_killed(
    unruly: Python, mark: str, kind: str, means: str
) -> None:
    async def scenario() -> None:
        async with AgentProcess.start(_launch(unruly(kind, "deaf", "stay"), means)) as process:
            _skip_unless(process, means)
            await _ready(process)
            os.kill(process.pid, signal.SIGKILL)
            async with asyncio.timeout(20):
                ended = await process.wait()
            assert (ended.code, ended.signal) == (None, signal.SIGKILL)
            groups = process._cgroups
        assert wait_until_gone(mark)
        assert not any(group.exists() for group in groups)

    asyncio.run(scenario())


def test_leaving_the_block_by_cancellation_kills_everything(unruly: Python, mark: str) -> None:
    async def scenario() -> None:
        started = asyncio.Event()

        async def hold() -> None:
            async with AgentProcess.start(LaunchSpec(unruly("daemon", "deaf", "stay"))) as process:
                await _ready(process)
                started.set()
                await asyncio.sleep(60)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(hold())
            async with asyncio.timeout(10):
                await started.wait()
            task.cancel()
        assert _nothing(mark)

    asyncio.run(scenario())


def test_a_sweep_leaves_another_process_with_the_same_pid_alone() -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    assert asyncio.run(kill_leftover_run(os.getpid(), ticks + 1))
    assert start_ticks(os.getpid()) == ticks


def test_a_sweep_kills_what_does_not_end_by_itself() -> None:
    stuck = subprocess.Popen(["sleep", "60"])
    try:
        ticks = start_ticks(stuck.pid)
        assert ticks is not None
        assert asyncio.run(kill_leftover_run(stuck.pid, ticks, seconds=0.4))
    finally:
        stuck.kill()
        assert stuck.wait() == -signal.SIGKILL


def test_a_group_of_a_run_is_removed_with_it(python: Python) -> None:
    async def scenario() -> tuple[Path, bool]:
        async with AgentProcess.start(
            LaunchSpec(python("input()"), containment_methods=("cgroup", "walk"))
        ) as process:
            _skip_unless(process, "cgroup")
            (group,) = process._cgroups
            return group, group.is_dir()

    group, was_there = asyncio.run(scenario())
    assert was_there
    assert not group.exists()


def test_the_supervisor_reports_the_means_it_uses(python: Python) -> None:
    async def scenario() -> None:
        async with AgentProcess.start(LaunchSpec(python("pass"))) as process:
            assert process.containment in supervisor.CONTAINMENT_METHODS

    asyncio.run(scenario())


@pytest.mark.parametrize("group", [None, "missing", "no-group"])
def test_a_child_that_cannot_be_born_in_a_group_is_born_outside(tmp_path: Path, group: str | None) -> None:
    (tmp_path / "no-group").mkdir()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    pid, born_in = spawn._fork_into(None if group is None else str(tmp_path / group))
    if pid == 0:
        os._exit(0 if born_in is None else 1)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert born_in is None
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
