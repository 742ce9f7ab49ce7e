"""The end of a run without the help of its supervisor, which was stopped, is frozen, hangs, or had another service.

SIGKILL ends a stopped process, and one in a frozen group of version 2. In a frozen group of version 1 it has no effect
before the thaw, so such a process is moved out of that group first.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from steadyhand.runner.process import cgroups, process_tree
from steadyhand.runner.process.cgroups import GONE_SECONDS, start_ticks

_POLL_SECONDS = 0.01


async def kill_run(pid: int, started: int, groups: Sequence[Path], seconds: float = GONE_SECONDS) -> bool:
    """Kill a supervisor with this pid and start time, and its run. Return True if no process of them is left.

    The descendants go first: the supervisor is the parent of every orphan below it, also while it is stopped, so none
    gets lost. It goes with them after half of the time.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    known: dict[int, int] = {}
    while start_ticks(pid) == started:
        waited = loop.time() - began
        if waited > seconds:
            return False
        alive = _living_descendants(pid)
        known |= alive
        cgroups.kill_members(groups)
        for target in alive:
            _kill(target)
        if not alive or waited > seconds / 2:
            _kill(pid)
        await asyncio.sleep(_POLL_SECONDS)
    await cgroups.kill_cgroups(groups)
    while any(start_ticks(each) == ticks for each, ticks in known.items()):
        if loop.time() - began > seconds:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def _living_descendants(pid: int) -> dict[int, int]:
    """Return the start time of each process below a process, by pid, without those that only wait to be reaped."""
    ticks = {each: start_ticks(each) for each in process_tree.descendants(pid)}
    return {each: started for each, started in ticks.items() if started is not None}


def _kill(pid: int) -> None:
    cgroups.leave_freezer(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


async def kill_leftover_run(pid: int, started: int, seconds: float = GONE_SECONDS) -> bool:
    """End a supervisor that an earlier service process left, and its run; return True if both are gone.

    It ends by itself when the service dies, so this usually just waits, for half of `seconds`; then it is killed.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    while start_ticks(pid) == started and loop.time() - began < seconds / 2:  # noqa: ASYNC110  # there is no event for it
        await asyncio.sleep(_POLL_SECONDS)
    groups = cgroups.detect_cgroups().paths(cgroups.cgroup_name(pid, started))
    return await kill_run(pid, started, groups, seconds / 2)
