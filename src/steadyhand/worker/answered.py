"""The answer of a run, stored before the run has ended: who waits for the answer alone waits for nothing else.

The agent's exit and the harvest follow. Until then the job is `running` and has its answer and its outcome already;
what happens after the answer is a warning and no other outcome.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from steadyhand.errors import Conflict, NotFound
from steadyhand.event_log import EventLog, RunEventWriter
from steadyhand.events import EventDraft, PhaseStarted
from steadyhand.job import Job, JobWarning, Outcome, OutcomeType, State
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import OUTCOMES, RunEvidence, decide_outcome
from steadyhand.ports import RunAccess, RunReport
from steadyhand.worker.results import require_run


def may_answer_early(job: Job) -> bool:
    """Return True if the callers of a job wait for its answer alone: who asked by OpenAI's routes."""
    return job.spec.origin == "openai"


@dataclass(slots=True)
class EarlyAnswer:
    """Stores the answer of one run as soon as it is final."""

    event_log: EventLog
    event_writer: RunEventWriter
    job: Job
    access: RunAccess | None
    clock: Callable[[], datetime]
    outcome: Outcome | None = None
    """The outcome once it is stored; it does not change any more."""

    async def store(self, evidence: RunEvidence) -> None:
        """Store the answer and the outcome if this evidence is a success. The usage before it is stored too."""
        if self.access is not None:
            total = await self.access.final_usage()
            evidence = replace(
                evidence, exhausted_budget=self.access.exhausted_budget, counted_calls=total.calls
            )
        outcome, result = decide_outcome(evidence), evidence.result
        if outcome.type != OutcomeType.SUCCESS or result is None:
            return
        await self.event_writer.flush()

        def update(old: Job) -> Job:
            require_run(old, self.job.run)
            return replace(
                old,
                answer=result.text,
                structured_output=result.structured_output,
                session_id=result.session_id or old.session_id,
                outcome=outcome,
            )

        draft = EventDraft(self.job.run, self.clock(), PhaseStarted("harvesting"))
        try:
            await self.event_log.update_job(self.job.id, frozenset({State.RUNNING}), update, [draft])
        except (Conflict, NotFound):
            return
        self.outcome = outcome


def keep_early_outcome(
    early: Outcome, outcome: Outcome, report: RunReport, warnings: tuple[JobWarning, ...]
) -> tuple[Outcome, tuple[JobWarning, ...]]:
    """Return the outcome that the callers were told, with a warning if the run ended badly after it.

    A stop is not bad: it ends what is left of the run.
    """
    if outcome.type == early.type or report.evidence.stop_reason is not None:
        return early, warnings
    detail = "" if outcome.detail is None else f" {outcome.detail}"
    text = f"After its answer: {OUTCOMES[outcome.type].message}{detail}"
    return early, (*warnings, JobWarning(WarningCode.FAILED_AFTER_ANSWER, text))
