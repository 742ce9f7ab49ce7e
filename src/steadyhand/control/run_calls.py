"""Calls to the node that runs a job: it has the process that a message or the results of tools are for."""

from steadyhand.control.deps import ControlDeps
from steadyhand.job import Job, State

STEER_CALL = "steer"
TOOL_RESULTS_CALL = "tool_results"

STEER_SECONDS = 30.0
"""The time for a message on another node, which passes one after the other to a run."""
TOOL_RESULTS_SECONDS = 30.0


def node_of_run(deps: ControlDeps, job: Job) -> str | None:
    """Return the other node on which the newest run of a job goes on, or None."""
    node = job.runs[-1].node if job.runs and job.state is State.RUNNING else None
    return node if deps.node_calls.is_elsewhere(node) else None
