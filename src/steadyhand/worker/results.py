"""How a job changes when a run of it ends. Pure."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from steadyhand.job import MICROS, Cost, Job, Notice, State, Usage, Verdict, advance
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import OUTCOMES, Result, fault_of
from steadyhand.ports import Harvest, Report, Spent, Tokens
from steadyhand.retry import at_start, run_seconds

MOST_DIFFERENCE_PERCENT = 5
"""How far the agent's own figure may be from what was counted before the job says so."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run came to: what its agent said of itself, and what the gateway knows of it, if it went through one."""

    report: Report
    spent: Spent | None = None
    wall: datetime | None = None
    """Until when the model's rate limit turned the run away, if that is what stopped it."""


def with_run(job: Job, **values: Any) -> Job:
    """Give a job with its newest run changed."""
    return replace(job, runs=(*job.runs[:-1], replace(job.runs[-1], **values)))


def ended(
    job: Job,
    verdict: Verdict,
    now: datetime,
    *,
    ran: Ran | None,
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
            exit_code=ran.report.evidence.exit_code if ran else None,
        )
    if harvest is not None and harvest.changes is not None:
        changed = replace(changed, changes=harvest.changes)
    return with_ran(changed, ran) if ran is not None else changed


def parked(job: Job, until: datetime, verdict: Verdict, now: datetime, *, ran: Ran, harvest: Harvest) -> Job:
    """Give a job that waits for the model's rate limit; its next run goes on where this one stopped."""
    changed = with_run(
        replace(
            job,
            state=advance(job.state, State.PARKED),
            parked_until=until,
            begin="resume",
            continue_prompt=None,
            used_seconds=run_seconds(job, now),
            changes=harvest.changes or job.changes,
        ),
        state=State.PARKED,
        outcome=verdict,
        finished_at=now,
        exit_code=ran.report.evidence.exit_code,
    )
    # Its answer is how the CLI words the refusal; the job has none yet.
    return replace(with_ran(changed, ran), answer=job.answer, structured_output=job.structured_output)


def unparked(job: Job, now: datetime) -> Job:
    """Give a parked job queued again."""
    return replace(job, state=advance(job.state, State.QUEUED), queued_at=now, parked_until=None)


def with_ran(job: Job, ran: Ran) -> Job:
    """Give a job with what its newest run came to; what the gateway counted outweighs what the agent said."""
    report, result = ran.report, ran.report.evidence.result
    job = replace(job, session_id=report.session_id or job.session_id)
    if result is not None:
        job = replace(job, answer=result.text, structured_output=result.structured_output)
    said = None if result is None else result.usage
    if ran.spent is None:
        usage = job.usage if said is None else job.usage.plus(said)
        return replace(job, usage=usage, cost=_reported(job.cost, result))
    job = replace(job, cost=replace(_reported(job.cost, result), micros=job.cost.micros))
    return with_spent(job, ran.spent, ran.spent.calls if said is None else said.turns)


def with_spent(job: Job, spent: Spent, turns: int) -> Job:
    """Give a job with what was counted of a run of it."""
    cost = replace(
        job.cost,
        micros=job.cost.micros + spent.micros,
        source="ledger",
        priced=job.cost.priced and spent.priced,
    )
    return replace(job, usage=job.usage.plus(usage_of(spent.tokens, turns)), cost=cost)


def _reported(cost: Cost, result: Result | None) -> Cost:
    if result is None or result.cost_micros is None:
        return cost
    return replace(
        cost,
        micros=cost.micros + result.cost_micros,
        reported_micros=(cost.reported_micros or 0) + result.cost_micros,
    )


def usage_of(tokens: Tokens, turns: int) -> Usage:
    """Give counted tokens as a job shows them."""
    return Usage(
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        cache_read_input_tokens=tokens.cache_read,
        cache_creation_input_tokens=tokens.cache_write_5m + tokens.cache_write_1h,
        turns=turns,
    )


def differs(ran: Ran) -> Notice | None:
    """Say so when what the agent says that it cost is not what was counted."""
    result, spent = ran.report.evidence.result, ran.spent
    if spent is None or result is None or result.cost_micros is None or not spent.complete:
        return None
    most = max(spent.micros, result.cost_micros)
    if abs(spent.micros - result.cost_micros) * 100 <= most * MOST_DIFFERENCE_PERCENT:
        return None
    text = f"The agent says {_dollars(result.cost_micros)} USD; {_dollars(spent.micros)} USD were counted."
    return Notice(WarningCode.COST_DIFFERS, text)


def _dollars(micros: int) -> str:
    return f"{micros // MICROS}.{micros % MICROS:06d}"
