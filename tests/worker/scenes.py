"""Scenes in a service whose agents are functions."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.store.faults import Fault, FaultClock
from tests.worker.failing_store import Agent, FailingService, failing_service, make_template
from tests.worker.fakes import SUCCESS

from steadyhand.outcome import RunEvidence
from steadyhand.ports import Emit, RunReport, RunSpec, StopSignal


async def succeed(_service: FailingService, _spec: RunSpec, _emit: Emit, _stop: StopSignal) -> RunReport:
    return SUCCESS


async def stay(_service: FailingService, _spec: RunSpec, _emit: Emit, stop: StopSignal) -> RunReport:
    return replace(SUCCESS, evidence=RunEvidence(stop_reason=await stop.wait()))


@pytest.fixture
def run_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[FailingService], Awaitable[None]]], None]:
    """Play a scene in a service that has agents `work`, which succeeds at once, and `stay`."""
    monkeypatch.setattr("steadyhand.worker.worker.MAINTENANCE_SECONDS", 0.01)

    def run(
        scene: Callable[[FailingService], Awaitable[None]],
        agent: Agent = succeed,
        fault: Fault | None = None,
        capacity: int = 2,
    ) -> None:
        async def play() -> None:
            await make_template(tmp_path / "empty.db")
            root = Path(tempfile.mkdtemp(dir=tmp_path))
            async with (
                asyncio.timeout(60),
                failing_service(
                    root,
                    tmp_path / "empty.db",
                    fault or Fault(FaultClock()),
                    {"work": agent, "stay": stay},
                    capacity=capacity,
                ) as service,
            ):
                await scene(service)

        asyncio.run(play())

    return run
