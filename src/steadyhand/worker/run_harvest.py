"""The harvest of a run: after its process has ended, or beside one that stays."""

from dataclasses import replace

from steadyhand.job import Job
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import Checkout, Harvest
from steadyhand.worker.job_end import JobEnder
from steadyhand.worker.results import RunResult
from steadyhand.worker.warm_pool import WarmPool

_INCOMPLETE = frozenset({WarningCode.HARVEST_FAILED, WarningCode.HARVEST_PARTIAL})


async def harvest_run(
    ender: JobEnder, warm_pool: WarmPool, job: Job, checkout: Checkout, result: RunResult
) -> tuple[RunResult, Harvest]:
    """Harvest a run, beside its process if that stays, and return the result with the harvest.

    With any warning the process does not stay: a next turn would not find what a new checkout has. If a part of the
    changes is missing the process ends first, and the harvest is made again.
    """
    held = warm_pool.held_checkout(job) if result.report.process_kept else None
    if held is None:
        return result, await ender.harvest(job, checkout)
    harvest = await ender.harvest(job, held)
    if harvest.warnings:
        result = replace(result, report=replace(result.report, process_kept=False))
    if held.commit is not None and _INCOMPLETE & {each.code for each in harvest.warnings}:
        slot = warm_pool.slot_of(job.id)
        if slot is not None:
            await warm_pool.end_process(slot)
        harvest = await ender.harvest(job, checkout)
    return result, harvest
