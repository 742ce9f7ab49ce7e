"""A process that was kept for the next turn of a conversation ends if the turn starts on another node."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.async_tests import in_loop
from tests.worker.test_warm_pool import World, world

from steadyhand.agents import BUILT_IN_AGENTS, Catalog
from steadyhand.errors import NodeGone
from steadyhand.job import Job, Run, State
from steadyhand.ports import CallBody, LocalNodeCalls
from steadyhand.testing.contracts.samples import NOON, change_job
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.parent_process import ParentProcesses
from steadyhand.worker.warm_pool import WarmPool


@dataclass
class _Calls(LocalNodeCalls):
    """The calls of one node to `there`, the only other one."""

    others: dict[str, LocalNodeCalls] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        super().__init__("here")

    def is_elsewhere(self, node: str | None) -> bool:
        return node is not None and node != self.node

    async def call(self, node: str, kind: str, body: CallBody, timeout_seconds: float) -> CallBody:
        try:
            if node not in self.others:
                self.failures.append(node)
                raise NodeGone("It is dead.")
            return await self.others[node].call(node, kind, body, timeout_seconds)
        finally:
            self.done.set()


def _parent_processes(calls: LocalNodeCalls, pool: WarmPool, live_seconds: float = 60.0) -> ParentProcesses:
    agents = {**BUILT_IN_AGENTS, "chat": replace(BUILT_IN_AGENTS["chat"], live_seconds=live_seconds)}
    deps: Any = type("Deps", (), {"node_calls": calls, "catalog": Catalog(agents)})()
    return ParentProcesses(cast("WorkerDeps", deps), pool)


@asynccontextmanager
async def _two_nodes(made: World) -> AsyncIterator[tuple[ParentProcesses, _Calls]]:
    """Yield the part of a node without processes; the pool is that of the other node."""
    there = LocalNodeCalls("there")
    _parent_processes(there, made.pool)
    calls = _Calls(others={"there": there})
    here = _parent_processes(calls, cast("WarmPool", None))
    task = asyncio.ensure_future(here.run())
    try:
        yield here, calls
    finally:
        task.cancel()


def _parent(made: World, node: str, run: int = 1) -> Job:
    runs = (Run(run, State.COMPLETED, started_at=NOON, node=node),)
    return change_job(made.job(api_key_id="k_one"), id="parent", runs=runs)


@in_loop
async def test_the_process_of_a_conversation_that_goes_on_elsewhere_ends_and_others_stay(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, live_seconds=60.0) as made, _two_nodes(made) as (here, _):
        await made.until(lambda: len(made.pool.waiting) == 1)
        parent = _parent(made, "there")
        async with made.pool.claimed(parent) as slot:
            assert slot is not None
            assert await made.pool.hand_over(slot, parent) is not None
            assert await made.pool.keep(slot, parent)
        await made.until(lambda: len(made.pool.waiting) == 2)
        here.continued_here(change_job(parent, id="another"))
        here.continued_here(_parent(made, "there", run=2))
        here.continued_here(parent)
        await made.until(slot.ended.is_set)
        assert len(made.pool.waiting) == 1


@in_loop
async def test_a_node_that_is_dead_is_told_once_and_the_next_one_all_the_same(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, live_seconds=60.0) as made, _two_nodes(made) as (here, calls):
        here.continued_here(_parent(made, "dead"))
        here.continued_here(_parent(made, "there"))
        async with asyncio.timeout(20):
            await calls.done.wait()
            while len(calls.failures) != 1:  # noqa: ASYNC110  # it is looked at from outside
                await asyncio.sleep(0.005)
        assert calls.failures == ["dead"]


@pytest.mark.parametrize(("node", "live_seconds"), [("here", 60.0), ("there", 0.0)])
def test_nobody_is_told_of_a_parent_of_the_same_node_or_without_kept_processes(
    tmp_path: Path, node: str, live_seconds: float
) -> None:
    async def main() -> None:
        async with world(tmp_path) as made:
            here = _parent_processes(_Calls(), cast("WarmPool", None), live_seconds)
            here.continued_here(_parent(made, node))
            assert here._due.empty()

    asyncio.run(main())
