"""The order to hold a run, so that it may outlive the service."""

from steadyhand.ports import HoldSpec, RunAccess, RunContext
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.run_scope import RunScope
from steadyhand.worker.warm_slot import WarmSlot


def hold_spec(
    deps: WorkerDeps,
    context: RunContext,
    access: RunAccess | None,
    scope: RunScope,
    slot: WarmSlot | None,
) -> HoldSpec | None:
    """Return the order to hold a run; None for one that ends with the service."""
    job, held_runs = context.job, deps.held_runs
    if held_runs is None or access is None:
        return None
    if slot is not None and not deps.warm_runners[job.runner].is_sandboxed:
        return None  # the process knows its files by a path that the next service removes
    facts = {
        "slot": scope.claim.slot,
        "place": context.checkout.slot,
        "deadline": scope.deadline.ends_at,
        **access.facts,
    }
    folder = held_runs.folder_of(job.id, job.run)
    return HoldSpec(folder, job.id, job.run, held_runs.seconds, access.listener, facts)
