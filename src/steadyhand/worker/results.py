"""Changes of a job at the end of a run. Pure."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from steadyhand.errors import Conflict, RunError
from steadyhand.job import Cost, Job, JobWarning, Outcome, OutcomeType, State, Usage, transition
from steadyhand.job_warnings import WarningCode
from steadyhand.money import format_dollars
from steadyhand.outcome import OUTCOMES, AgentResult, error_info
from steadyhand.ports import Harvest, RunReport, TokenCounts, UsageTotal
from steadyhand.retry import MAX_NODE_DEATHS, count_node_deaths, elapsed_seconds, recovery_start_mode

MAX_COST_DIFFERENCE_PERCENT = 5
"""The maximum difference between the reported and the counted cost without a warning."""


_RATE_LIMIT_OUTCOMES = frozenset(
    {OutcomeType.RATE_LIMITED, OutcomeType.AGENT_ERROR, OutcomeType.MODEL_ERROR, OutcomeType.NO_RESULT}
)
"""Outcomes of a run that a rate limit of the model may have stopped."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run: the runner's report, and the gateway's usage if it made calls through one."""

    report: RunReport
    usage: UsageTotal | None = None
    rate_limited_until: datetime | None = None
    """The end of the model's rate limit, if that stopped the run."""
    credential_rejected_until: datetime | None = None
    """The end of the rest of a rejected credential, if that stopped the run."""
    asks_again_at: datetime | None = None
    """When a run that was taken up asks again, if it met a rate limit whose end the earlier service alone knew."""
    waited_seconds: float = 0.0
    """The seconds in which the run waited for its client."""
    early_outcome: Outcome | None = None
    """The outcome that was stored with the answer, before the end of the run."""
    before_early: tuple[Usage, Cost] | None = None
    """Usage and cost of the job before those were added that were stored with the answer."""

    def park_until(self, outcome: Outcome) -> datetime | None:
        """Return the time until which the job is parked; None if another thing than an obstacle ended the run."""
        if outcome.type == OutcomeType.UNAUTHORIZED:
            return self.credential_rejected_until
        if self.rate_limited_until is None and outcome.type == OutcomeType.RATE_LIMITED:
            return self.asks_again_at
        return self.rate_limited_until if outcome.type in _RATE_LIMIT_OUTCOMES else None


def park_reason(outcome: Outcome) -> str:
    """Return the reason why a job is parked after a run with this outcome."""
    if outcome.type == OutcomeType.UNAUTHORIZED:
        return "the model's service rejects the credential"
    return "the model's rate limit"


def update_newest_run(job: Job, **values: Any) -> Job:
    """Return a job with its newest run changed."""
    return replace(job, runs=(*job.runs[:-1], replace(job.runs[-1], **values)))


def node_death_outcome(job: Job, detail: str) -> Outcome:
    """Return the outcome of the newest run of a job, whose node died."""
    outcome = Outcome(OutcomeType.INTERRUPTED, detail, node_died=True)
    deaths = count_node_deaths(job, outcome)
    if deaths < MAX_NODE_DEATHS:
        return outcome
    reason = f"{detail} {deaths} nodes died while this job ran on them, so it is not run again by itself."
    return replace(outcome, detail=reason)


def update_run(job: Job, run: int, **values: Any) -> Job:
    """Return a job with a run changed, which is its newest; else raise `Conflict`."""
    require_run(job, run)
    return update_newest_run(job, **values)


def require_run(job: Job, run: int) -> None:
    """Raise `Conflict` if another run of the job has begun."""
    if job.run != run:
        raise Conflict("The job has a newer run.")


def with_left_out_events(result: RunResult, left_out: int) -> RunResult:
    """Return the result of a run with a warning for the events that could not be held during an outage, if any."""
    if not left_out:
        return result
    text = f"{left_out} events of the agent could not be held while the store did not answer."
    warning = JobWarning(WarningCode.EVENTS_LEFT_OUT, text)
    return replace(result, report=replace(result.report, warnings=(*result.report.warnings, warning)))


def ended_job(
    job: Job,
    outcome: Outcome,
    now: datetime,
    *,
    result: RunResult | None,
    harvest: Harvest | None,
    planned: bool,
) -> Job:
    """Return a job ended with this outcome; `planned` is False after a crash."""
    target = OUTCOMES[outcome.type].state
    if result is not None and result.before_early is not None:
        job = replace(job, usage=result.before_early[0], cost=result.before_early[1])
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
    """Return a job parked for the model's rate limit; its next run resumes this one."""
    changed = update_newest_run(
        replace(
            job,
            state=transition(job.state, State.PARKED),
            parked_until=until,
            begin="resume",
            continue_prompt=None,
            used_seconds=elapsed_seconds(job, now, result.waited_seconds),
            changes=harvest.changes or job.changes,
        ),
        state=State.PARKED,
        outcome=outcome,
        finished_at=now,
        exit_code=result.report.evidence.exit_code,
    )
    # The answer of this run is the CLI's text of the refusal; the job has no answer yet.
    return replace(
        with_run_result(changed, result), answer=job.answer, structured_output=job.structured_output
    )


def unparked_job(job: Job, now: datetime) -> Job:
    """Return a parked job queued again."""
    return replace(job, state=transition(job.state, State.QUEUED), queued_at=now, parked_until=None)


def with_run_result(job: Job, run_result: RunResult) -> Job:
    """Return a job with the result of its newest run; counted usage wins over reported usage."""
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
    """Return a job with the counted usage of a run added."""
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
    """Return counted tokens as the usage of a job."""
    return Usage(
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        cache_read_input_tokens=tokens.cache_read,
        cache_creation_input_tokens=tokens.cache_write_5m + tokens.cache_write_1h,
        turns=turns,
    )


def cost_difference_warning(run_result: RunResult) -> JobWarning | None:
    """Return a warning if the reported cost differs from the counted cost, else None."""
    result, counted = run_result.report.evidence.result, run_result.usage
    if counted is None or result is None or result.cost_micros is None or not counted.complete:
        return None
    larger = max(counted.micros, result.cost_micros)
    if abs(counted.micros - result.cost_micros) * 100 <= larger * MAX_COST_DIFFERENCE_PERCENT:
        return None
    reported, metered = format_dollars(result.cost_micros), format_dollars(counted.micros)
    text = f"The agent says {reported} USD; {metered} USD were counted."
    return JobWarning(WarningCode.COST_DIFFERS, text)


def failed_outcome(kind: OutcomeType, error: RunError) -> Outcome:
    """Return the outcome of a run that failed before its agent ran."""
    return Outcome(kind, error.detail, is_permanent=None if error.retryable else True)
