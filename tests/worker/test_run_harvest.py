"""The harvest beside a process that stays: what ends the process, and what is then harvested again."""

from pathlib import Path
from typing import Any

import pytest
from tests.async_tests import in_loop
from tests.worker.fakes import SUCCESS

from steadyhand.agents import Workspace
from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import Checkout, Harvest, JobPaths
from steadyhand.testing.contracts.samples import make_job
from steadyhand.worker.results import RunResult
from steadyhand.worker.run_harvest import harvest_run

PLACE = Checkout(Workspace("site"), JobPaths(Path("/j")), Path("/j"), Path("/j"), None, None, "a" * 40)
HELD = Checkout(
    Workspace("site"), JobPaths(Path("/j")), Path("/j"), Path("/j"), None, None, "a" * 40, holder=(7, 8)
)


class _Ender:
    """Harvests a checkout with `warnings` as long as a process holds it."""

    def __init__(self, *warnings: JobWarning) -> None:
        self.warnings = warnings
        self.harvested: list[Checkout] = []

    async def harvest(self, _job: object, checkout: Checkout) -> Harvest:
        self.harvested.append(checkout)
        return Harvest(None, self.warnings if checkout.holder is not None else ())


class _Pool:
    def __init__(self) -> None:
        self.ended = 0

    def held_checkout(self, _job: object) -> Checkout:
        return HELD

    def slot_of(self, _job_id: str) -> object:
        return self

    async def end_process(self, _slot: object) -> None:
        self.ended += 1


async def _harvest(ender: Any, pool: Any, *, kept: bool = True) -> tuple[RunResult, Harvest]:
    report = SUCCESS.__class__(SUCCESS.evidence, SUCCESS.output, process_kept=kept)
    return await harvest_run(ender, pool, make_job(), PLACE, RunResult(report))


@in_loop
async def test_a_process_that_stays_keeps_its_mounts_and_is_harvested_once() -> None:
    ender, pool = _Ender(), _Pool()
    result, _ = await _harvest(ender, pool)
    assert (result.report.process_kept, ender.harvested, pool.ended) == (True, [HELD], 0)


@in_loop
async def test_a_process_that_ended_is_harvested_without_its_mounts() -> None:
    ender, pool = _Ender(), _Pool()
    result, _ = await _harvest(ender, pool, kept=False)
    assert (result.report.process_kept, ender.harvested, pool.ended) == (False, [PLACE], 0)


@in_loop
async def test_a_warning_costs_the_process_and_not_a_second_harvest() -> None:
    ender, pool = _Ender(JobWarning(WarningCode.FILES_TOO_LARGE, "One file.")), _Pool()
    result, harvest = await _harvest(ender, pool)
    assert (result.report.process_kept, ender.harvested) == (False, [HELD])
    assert [each.code for each in harvest.warnings] == [WarningCode.FILES_TOO_LARGE]


@pytest.mark.parametrize("code", [WarningCode.HARVEST_FAILED, WarningCode.HARVEST_PARTIAL])
def test_what_a_harvest_beside_the_process_has_lost_is_harvested_after_its_end(code: WarningCode) -> None:
    @in_loop
    async def play() -> None:
        ender, pool = _Ender(JobWarning(code, "Something is missing.")), _Pool()
        result, harvest = await _harvest(ender, pool)
        assert (result.report.process_kept, ender.harvested, pool.ended) == (False, [HELD, PLACE], 1)
        assert harvest.warnings == ()

    play()
