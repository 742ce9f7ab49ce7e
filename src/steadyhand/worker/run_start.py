"""The change of a job at the start of a run. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from steadyhand.events import EventBody, StateChanged, WarningEvent
from steadyhand.job import Job, JobWarning, Run, State, transition
from steadyhand.job_warnings import WarningCode
from steadyhand.retry import continues_parent
from steadyhand.worker.parents import Ancestor

_SESSION_LOST = JobWarning(
    WarningCode.SESSION_LOST, "No earlier job of the conversation ran; the agent started a new session."
)


def started_job(job: Job, now: datetime, ancestor: Ancestor | None, *, node: str, new_session_id: str) -> Job:
    """Return a queued job with a new run. The run continues the conversation of `ancestor`, if any."""
    number = job.run + 1
    begins_anew = job.begin == "fresh" or continues_parent(job)
    session_id = None if begins_anew else job.session_id
    started = replace(
        job,
        state=transition(job.state, State.RUNNING),
        started_at=now,
        since_run=number if begins_anew else job.since_run,
        session_id=session_id or new_session_id,
        runs=(*job.runs, Run(number, State.RUNNING, started_at=now, node=node)),
    )
    if ancestor is None:
        return replace(started, begin="fresh") if begins_anew else started
    return replace(
        started,
        begin="resume" if ancestor.has_session else "fresh",
        parent_job_id=ancestor.job.id,
        commit=ancestor.job.commit,
        session_id=ancestor.job.session_id or started.session_id,
        warnings=(*job.warnings, *_warnings(ancestor)),
    )


def start_events(ancestor: Ancestor | None) -> Sequence[EventBody]:
    """Return the first events of the run."""
    warnings = [] if ancestor is None else _warnings(ancestor)
    return [
        StateChanged(State.QUEUED, State.RUNNING),
        *(WarningEvent(warning.code, warning.message) for warning in warnings),
    ]


def _warnings(ancestor: Ancestor) -> list[JobWarning]:
    return [] if ancestor.has_session else [_SESSION_LOST]
