"""The answer of a run, stored before the run has ended: who waits for the answer alone waits for nothing else.

The agent's exit and the harvest follow. Until then the job is `running` and has its answer and its outcome already;
what happens after the answer is a warning and no other outcome.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from steadyhand.errors import Conflict, NotFound
from steadyhand.events import EventDraft, PhaseStarted
from steadyhand.job import Cost, Job, JobWarning, Outcome, OutcomeType, State, Usage
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import OUTCOMES, RunEvidence, decide_outcome
from steadyhand.ports import RunAccess, RunOutput, RunReport
from steadyhand.worker.results import require_run, with_run_result
from steadyhand.worker.run_cost import with_metered_usage
from steadyhand.worker.run_event_writer import RunEventWriter


def may_answer_early(job: Job) -> bool:
    """Return True if the callers of a job wait for its answer alone: who asked by OpenAI's routes."""
    return job.spec.origin == "openai"


@dataclass(slots=True)
class EarlyAnswer:
    """Stores the answer of one run as soon as it is final."""

    event_writer: RunEventWriter
    job: Job
    access: RunAccess | None
    clock: Callable[[], datetime]
    outcome: Outcome | None = None
    """The outcome once it is stored; it does not change any more."""
    before: tuple[Usage, Cost] | None = None
    """Usage and cost of the job without those of this run, which its end counts anew."""

    async def store(self, evidence: RunEvidence) -> None:
        """Store the answer, the outcome and the usage so far, if this evidence is a success."""
        if evidence.result is None:
            return
        report = RunReport(evidence, RunOutput([], ""), evidence.result.session_id)
        run_result = await with_metered_usage(report, self.access)
        outcome = decide_outcome(run_result.report.evidence)
        if outcome.type != OutcomeType.SUCCESS:
            return
        before: tuple[Usage, Cost] | None = None

        def update(old: Job) -> Job:
            nonlocal before
            require_run(old, self.job.run)
            before = old.usage, old.cost
            return replace(with_run_result(old, run_result), outcome=outcome)

        draft = EventDraft(self.job.run, self.clock(), PhaseStarted("harvesting"))
        try:
            await self.event_writer.update_job(frozenset({State.RUNNING}), update, [draft])
        except (Conflict, NotFound):
            return
        self.outcome, self.before = outcome, before


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
