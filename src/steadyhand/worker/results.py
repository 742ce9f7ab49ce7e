"""How a job changes when a run of it ends. Pure."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from steadyhand.job import Cost, Job, JobWarning, Outcome, State, Usage, transition
from steadyhand.job_warnings import WarningCode
from steadyhand.money import format_dollars
from steadyhand.outcome import OUTCOMES, AgentResult, error_info
from steadyhand.ports import Harvest, RunReport, TokenCounts, UsageTotal
from steadyhand.retry import elapsed_seconds, recovery_start_mode

MAX_COST_DIFFERENCE_PERCENT = 5
"""How far the agent's own figure may be from what was counted before the job says so."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to: what its agent said of itself, and what the gateway knows of it, if it went through one."""

    report: RunReport
    usage: UsageTotal | None = None
    rate_limited_until: datetime | None = None
    """Until when the model's rate limit turned the run away, if that is what stopped it."""


def update_newest_run(job: Job, **values: Any) -> Job:
    """Give a job with its newest run changed."""
    return replace(job, runs=(*job.runs[:-1], replace(job.runs[-1], **values)))


def ended_job(
    job: Job,
    outcome: Outcome,
    now: datetime,
    *,
    result: RunResult | None,
    harvest: Harvest | None,
    planned: bool,
) -> Job:
    """Give a job as it stands when it, or its run, has come to this; `planned` is false after a crash."""
    target = OUTCOMES[outcome.type].state
    changed = replace(
        job,
        state=transition(job.state, target),
        outcome=outcome,
        error=error_info(outcome),
        finished_at=now,
        at_start=recovery_start_mode(job, outcome, planned=planned),
    )
    if job.state is State.RUNNING:
        changed = update_newest_run(
            changed,
            state=target,
            outcome=outcome,
            finished_at=now,
            exit_code=result.report.evidence.exit_code if result else None,
        )
    if harvest is not None and harvest.changes is not None:
        changed = replace(changed, changes=harvest.changes)
    return with_run_result(changed, result) if result is not None else changed


def parked_job(
    job: Job, until: datetime, outcome: Outcome, now: datetime, *, result: RunResult, harvest: Harvest
) -> Job:
    """Give a job that waits for the model's rate limit; its next run goes on where this one stopped."""
    changed = update_newest_run(
        replace(
            job,
            state=transition(job.state, State.PARKED),
            parked_until=until,
            begin="resume",
            continue_prompt=None,
            used_seconds=elapsed_seconds(job, now),
            changes=harvest.changes or job.changes,
        ),
        state=State.PARKED,
        outcome=outcome,
        finished_at=now,
        exit_code=result.report.evidence.exit_code,
    )
    # Its answer is how the CLI words the refusal; the job has none yet.
    return replace(
        with_run_result(changed, result), answer=job.answer, structured_output=job.structured_output
    )


def unparked_job(job: Job, now: datetime) -> Job:
    """Give a parked job queued again."""
    return replace(job, state=transition(job.state, State.QUEUED), queued_at=now, parked_until=None)


def with_run_result(job: Job, run_result: RunResult) -> Job:
    """Give a job with what its newest run came to; what the gateway counted outweighs what the agent said."""
    report, result = run_result.report, run_result.report.evidence.result
    job = replace(job, session_id=report.session_id or job.session_id)
    if result is not None:
        job = replace(job, answer=result.text, structured_output=result.structured_output)
    reported_usage = None if result is None else result.usage
    if run_result.usage is None:
        usage = job.usage if reported_usage is None else job.usage.plus(reported_usage)
        return replace(job, usage=usage, cost=_with_reported_cost(job.cost, result))
    job = replace(job, cost=replace(_with_reported_cost(job.cost, result), micros=job.cost.micros))
    return with_counted_usage(
        job, run_result.usage, run_result.usage.calls if reported_usage is None else reported_usage.turns
    )


def with_counted_usage(job: Job, total: UsageTotal, turns: int) -> Job:
    """Give a job with what was counted of a run of it."""
    cost = replace(
        job.cost,
        micros=job.cost.micros + total.micros,
        source="ledger",
        priced=job.cost.priced and total.priced,
    )
    return replace(job, usage=job.usage.plus(usage_from_tokens(total.tokens, turns)), cost=cost)


def _with_reported_cost(cost: Cost, result: AgentResult | None) -> Cost:
    if result is None or result.cost_micros is None:
        return cost
    return replace(
        cost,
        micros=cost.micros + result.cost_micros,
        reported_micros=(cost.reported_micros or 0) + result.cost_micros,
    )


def usage_from_tokens(tokens: TokenCounts, turns: int) -> Usage:
    """Give counted tokens as a job shows them."""
    return Usage(
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        cache_read_input_tokens=tokens.cache_read,
        cache_creation_input_tokens=tokens.cache_write_5m + tokens.cache_write_1h,
        turns=turns,
    )


def cost_difference_warning(run_result: RunResult) -> JobWarning | None:
    """Say so when what the agent says that it cost is not what was counted."""
    result, counted = run_result.report.evidence.result, run_result.usage
    if counted is None or result is None or result.cost_micros is None or not counted.complete:
        return None
    larger = max(counted.micros, result.cost_micros)
    if abs(counted.micros - result.cost_micros) * 100 <= larger * MAX_COST_DIFFERENCE_PERCENT:
        return None
    reported, metered = format_dollars(result.cost_micros), format_dollars(counted.micros)
    text = f"The agent says {reported} USD; {metered} USD were counted."
    return JobWarning(WarningCode.COST_DIFFERS, text)
