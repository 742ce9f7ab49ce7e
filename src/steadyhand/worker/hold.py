"""The order to hold a run, so that it may outlive the service."""

from steadyhand.agents import Workspace
from steadyhand.ports import HeldRuns, HoldSpec, RunAccess, RunContext
from steadyhand.worker.run_scope import RunScope
from steadyhand.worker.warm_slot import WarmSlot


def is_in_place(workspace: Workspace) -> bool:
    """Return True if agents work in the directory of a workspace itself."""
    return workspace.repository is not None and workspace.mode == "in_place"


def hold_spec(
    held_runs: HeldRuns | None,
    context: RunContext,
    access: RunAccess | None,
    scope: RunScope,
    slot: WarmSlot | None,
) -> HoldSpec | None:
    """Return the order to hold a run; None for one that ends with the service."""
    job = context.job
    if held_runs is None or access is None or slot is not None:
        return None
    if job.spec.tools or is_in_place(context.checkout.workspace):
        return None
    facts = {"slot": scope.claim.slot, "deadline": scope.deadline.ends_at, **access.facts}
    folder = held_runs.folder_of(job.id, job.run)
    return HoldSpec(folder, job.id, job.run, held_runs.seconds, access.listener, facts)
