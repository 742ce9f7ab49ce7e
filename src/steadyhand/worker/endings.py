"""How a job changes when a run of it ends. Pure."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from steadyhand.job import Job, State, Verdict, advance
from steadyhand.outcome import OUTCOMES, Result, fault_of
from steadyhand.ports import Harvest, Report
from steadyhand.rerun import at_start


def with_run(job: Job, **values: Any) -> Job:
    """Give a job with its newest run changed."""
    return replace(job, runs=(*job.runs[:-1], replace(job.runs[-1], **values)))


def ended(
    job: Job,
    verdict: Verdict,
    now: datetime,
    *,
    report: Report | None,
    harvest: Harvest | None,
    planned: bool,
) -> Job:
    """Give a job as it stands when it, or its run, has come to this; `planned` is false after a crash."""
    target = OUTCOMES[verdict.type].state
    changed = replace(
        job,
        state=advance(job.state, target),
        outcome=verdict,
        error=fault_of(verdict),
        finished_at=now,
        at_start=at_start(job, verdict, planned=planned),
    )
    if job.state is State.RUNNING:
        changed = with_run(
            changed,
            state=target,
            outcome=verdict,
            finished_at=now,
            exit_code=report.evidence.exit_code if report else None,
        )
    if harvest is not None and harvest.changes is not None:
        changed = replace(changed, changes=harvest.changes)
    return with_report(changed, report) if report is not None else changed


def with_report(job: Job, report: Report) -> Job:
    """Give a job with what its newest run's agent said of itself."""
    job = replace(job, session_id=report.session_id or job.session_id)
    result = report.evidence.result
    return job if result is None else _with_result(job, result)


def _with_result(job: Job, result: Result) -> Job:
    cost = job.cost
    if result.cost_micros is not None:
        total = cost.micros + result.cost_micros
        cost = replace(cost, micros=total, reported_micros=total)
    return replace(
        job,
        answer=result.text,
        structured_output=result.structured_output,
        usage=job.usage if result.usage is None else job.usage.plus(result.usage),
        cost=cost,
    )
