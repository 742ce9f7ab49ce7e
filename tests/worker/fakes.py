"""Parts of a worker that stand in for checkouts and agents in its tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steadyhand.agents import Workspace
from steadyhand.job import Job, OutcomeType
from steadyhand.outcome import AgentResult, RunEvidence
from steadyhand.ports import Checkout, JobPaths, RunOutput, RunReport

IN_PLACE = Workspace("site", repository="/srv/site", mode="in_place")
SUCCESS = RunReport(
    RunEvidence(exit_code=0, result=AgentResult(OutcomeType.SUCCESS, is_error=False, text="done")),
    RunOutput((), ""),
)


@dataclass
class FakeCheckouts:
    """Checkouts without files. `calls` has the operations, in order, that end a checkout."""

    root: Path
    calls: list[tuple[str, str]] = field(default_factory=list)

    def job_paths(self, job_id: str) -> JobPaths:
        return JobPaths(self.root / "jobs" / job_id)

    async def has_session(self, job_id: str) -> bool:
        return self.job_paths(job_id).config_dir.is_dir()

    async def prepare_ahead(self, job: Job, workspace: Workspace, slot: int) -> Checkout:
        paths = self.job_paths(job.id)
        return Checkout(workspace, paths, paths.root, paths.home, paths.config_dir, None, None, slot=slot)

    async def save_progress(self, job: Job, checkout: Checkout) -> None:
        pass

    async def save_pending(self) -> None:
        pass

    async def list_job_ids(self) -> Sequence[str]:
        return sorted(path.name for path in (self.root / "jobs").glob("*"))

    async def list_ahead(self) -> Sequence[JobPaths]:
        return ()

    async def hand_over(self, checkout: Checkout, job: Job, agent_root: Path | None) -> Checkout | None:
        del checkout, job, agent_root
        return None

    async def take_back(self, checkout: Checkout, checkout_id: str) -> Checkout | None:
        del checkout, checkout_id
        return None

    async def release(self, checkout: Checkout) -> None:
        self.calls.append(("release", checkout.paths.root.name))

    async def retain(self, checkout: Checkout) -> None:
        self.calls.append(("retain", checkout.paths.root.name))

    async def discard(self, job_id: str) -> None:
        self.calls.append(("discard", job_id))
