"""Running a job once more: when that is, how it begins, and what is kept for it. Pure."""

from dataclasses import replace
from datetime import datetime

from steadyhand.job import Job, Outcome, OutcomeType, StartMode, State, transition


def recovery_start_mode(job: Job, verdict: Outcome, *, planned: bool) -> StartMode | None:
    """Say how the next start takes up a job that was interrupted, by a planned stop or by a crash.

    An agent's run is no idempotent thing: what is not asked for after a crash is not done.
    """
    if verdict.type != OutcomeType.INTERRUPTED:
        return None
    if job.on_interrupt == "restart":
        return "fresh"
    if job.on_interrupt == "resume" or (job.on_interrupt == "auto" and planned):
        return "resume"
    return None


def is_resumable(job: Job) -> bool:
    """Say whether a later run may go on in this job's checkout, so that it is kept."""
    if job.state in (State.PARKED, State.WAITING):
        return True
    if job.state is State.QUEUED:
        return job.begin == "resume"
    if job.state is State.INTERRUPTED:
        # Whoever was to make calls for the agent may still bring what came of them.
        return bool(job.tools) or job.on_interrupt not in ("fail", "restart")
    return job.outcome is not None and job.outcome.type == OutcomeType.BUDGET


def requeued(job: Job, start_mode: StartMode, now: datetime) -> Job:
    """Give an ended job queued for a new run; what it came to is cleared, its runs are kept.

    A run that goes on keeps the session; the service itself says with `used_seconds` what it had of its deadline.
    """
    return replace(
        job,
        state=transition(job.state, State.QUEUED),
        begin=start_mode,
        continue_prompt=None,
        at_start=None,
        used_seconds=0.0,
        queued_at=now,
        started_at=None,
        finished_at=None,
        parked_until=None,
        outcome=None,
        error=None,
        answer=None,
        structured_output=None,
        changes=None,
        warnings=(),
        session_id=job.session_id if start_mode == "resume" else None,
    )


def elapsed_seconds(job: Job, now: datetime) -> float:
    """Give how long runs that share a deadline took, the newest among them."""
    started = job.runs[-1].started_at if job.runs else None
    return job.used_seconds + (0.0 if started is None else max(0.0, (now - started).total_seconds()))
