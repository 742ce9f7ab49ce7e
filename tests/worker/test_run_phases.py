"""The phases of a run: emitted as its events, with progress that is live and rare."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from steadyhand.event_log import EventLog
from steadyhand.events import LiveProgress, PhaseStarted, TextDelta, WarningEvent
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import is_reported, phases_reported_to, report_phase, report_progress
from steadyhand.testing.contracts.samples import NOON, make_job
from steadyhand.worker.run_phases import RunPhases, with_running_phase
from steadyhand.workspace.git_progress import GitProgress


def run_async(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Let a test be a coroutine."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(cast("Coroutine[Any, Any, None]", test(**arguments)))

    return run


class Log:
    def __init__(self) -> None:
        self.emitted: list[Any] = []
        self.live: list[LiveProgress] = []

    async def emit(self, body: Any) -> None:
        self.emitted.append(body)

    def publish_live(self, item: LiveProgress) -> None:
        self.live.append(item)

    @contextmanager
    def reported(self) -> Iterator[None]:
        with phases_reported_to(RunPhases(cast("EventLog", self), make_job(), lambda: NOON, self.emit)):
            yield


@pytest.fixture
def log() -> Log:
    return Log()


@run_async
async def test_a_phase_is_emitted_once_and_nobody_needs_to_listen(log: Log) -> None:
    await report_phase("fetching")
    report_progress("nobody sees this")
    assert not is_reported()
    with log.reported():
        assert is_reported()
        await report_phase("fetching")
        await report_phase("fetching")
        await report_phase("setup", "npm ci")
    await report_phase("checking_out")
    assert log.emitted == [PhaseStarted("fetching"), PhaseStarted("setup", "npm ci")]


@run_async
async def test_progress_is_live_and_at_most_once_a_second(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("steadyhand.worker.run_phases.time.monotonic", lambda: now[0])
    with log.reported():
        await report_phase("fetching")
        git = GitProgress()
        for percent in range(101):
            git.feed(f"\rReceiving objects: {percent:3}% (1/2), 1.00 MiB | 1 MiB/s\r".encode())
            now[0] += 0.1
    assert 9 <= len(log.live) <= 12
    assert log.live[0].body.phase == "fetching"
    assert log.live[0].body.detail == "receiving objects 0 %"
    assert log.emitted == [PhaseStarted("fetching")]


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        ([b"Resolving deltas:  50% (1/2)\r"], ["resolving deltas 50 %"]),
        ([b"\nremote: Counting obj", b"ects: 7% (1/9)\r"], ["counting objects 7 %"]),
        ([b"remote: \x1b[2J Receiving objects: 5% \r", b"fatal: no\n", b"evil: 5%\r"], []),
        ([b"Receiving objects: 999% (1/2)\r"], ["receiving objects 100 %"]),
        ([b"x" * 100_000, b"\rReceiving objects: 5% (1/2)\r"], ["receiving objects 5 %"]),
    ],
)
@run_async
async def test_the_progress_of_git_is_told_in_our_own_words(chunks: list[bytes], told: list[str]) -> None:
    details: list[str] = []

    class Reporter:
        async def report_phase(self, phase: Any, detail: Any) -> None: ...

        def report_progress(self, detail: str) -> None:
            details.append(detail)

    with phases_reported_to(Reporter()):
        git = GitProgress()
        for chunk in chunks:
            git.feed(chunk)
    assert details == told


@run_async
async def test_the_agent_runs_from_its_first_event_on() -> None:
    emitted: list[Any] = []

    async def emit(body: Any) -> None:
        emitted.append(body)

    first, second = TextDelta("m", "a"), WarningEvent(WarningCode.RATE_LIMIT, "b")
    wrapped = with_running_phase(emit)
    await wrapped(first)
    await wrapped(second)
    assert emitted == [PhaseStarted("running"), first, second]
