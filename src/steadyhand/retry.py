"""Rules for another run of a job: whether it starts, how it starts, and which files are kept for it. Pure."""

from dataclasses import replace
from datetime import datetime

from steadyhand.job import Job, Outcome, OutcomeType, StartMode, State, transition

MAX_NODE_DEATHS = 2
"""A job during whose runs so many nodes died is not run again by itself: it may be the cause."""

MAX_ANCESTORS = 100
"""The maximum number of earlier jobs in which files and a session are looked for."""


def recovery_start_mode(job: Job, outcome: Outcome, *, planned: bool) -> StartMode | None:
    """Return how the next start of the service runs an interrupted job again; None if it does not.

    `planned` is False after a crash. A run of an agent is not idempotent, so a crash repeats it only on request.
    """
    if outcome.type != OutcomeType.INTERRUPTED or count_node_deaths(job, outcome) >= MAX_NODE_DEATHS:
        return None
    if job.on_interrupt == "restart":
        return "fresh"
    if job.on_interrupt == "resume" or (job.on_interrupt == "auto" and planned):
        return "resume"
    return None


def count_node_deaths(job: Job, outcome: Outcome | None = None) -> int:
    """Return the number of runs of a job whose nodes died; with an `outcome`, as if its newest run had that one."""
    runs = job.runs if outcome is None else job.runs[:-1]
    outcomes = [run.outcome for run in runs]
    return sum(bool(each is not None and each.node_died) for each in (*outcomes, outcome))


def is_resumable(job: Job) -> bool:
    """Return True if a later run may continue in this job's checkout, so that it is kept."""
    if job.state in (State.PARKED, State.WAITING):
        return True
    if job.state is State.QUEUED:
        return job.begin == "resume"
    if job.state is State.INTERRUPTED:
        # The client may still send the results of its tool calls.
        return bool(job.spec.tools) or job.on_interrupt not in ("fail", "restart")
    return job.outcome is not None and job.outcome.type == OutcomeType.BUDGET


def continues_parent(job: Job) -> bool:
    """Return True if the run that is next, or that runs now, begins with the session and the changes of the parent.

    That is each run that does not resume one of the job itself.
    """
    if job.parent_job_id is None:
        return False
    if job.state is State.RUNNING:
        return job.begin == "resume" and job.run <= job.since_run
    return job.run == 0 or job.begin == "fresh"


def awaits_parent(job: Job) -> bool:
    """Return True if a run still has to take the session over from the parent: before its agent has started."""
    has_agent = job.state is State.RUNNING and (
        job.runs[-1].supervisor is not None or job.outcome is not None
    )
    return continues_parent(job) and not job.state.ended and not has_agent


def has_started_agent(job: Job) -> bool:
    """Return True if a run has come as far as its agent: then the job had a session."""
    return any(run.supervisor is not None for run in job.runs)


def requeued(job: Job, start_mode: StartMode, now: datetime) -> Job:
    """Return an ended job queued for a new run: its result is cleared, its runs are kept.

    With the start mode `resume` it keeps its session, and is given the results that its process did not get. Its
    deadline starts anew (`used_seconds` is 0).
    """
    return replace(
        job,
        state=transition(job.state, State.QUEUED),
        begin=start_mode,
        requeues=job.requeues + 1,
        continue_prompt=job.undelivered_results if start_mode == "resume" else None,
        undelivered_results=None,
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


def elapsed_seconds(job: Job, now: datetime, waited_seconds: float = 0.0) -> float:
    """Return the seconds of all runs that share the deadline; the newest has waited for its client for some of them."""
    started = job.runs[-1].started_at if job.runs else None
    if started is None:
        return job.used_seconds
    return job.used_seconds + max(0.0, (now - started).total_seconds() - waited_seconds)
