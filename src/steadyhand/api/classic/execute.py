"""The routes of the earlier service (docs/http-api.md#classic-routes). Its callers will not change."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.openapi import operations
from steadyhand.api.schemas import classic_bodies
from steadyhand.api.schemas.field_types import to_positive_micros
from steadyhand.api.schemas.requests import ExecuteRequest
from steadyhand.api.schemas.route_table import RouteTable
from steadyhand.api.transport.body import parse_body
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import JobId, validate_job_id
from steadyhand.api.transport.text import one_line
from steadyhand.control import Submission
from steadyhand.errors import Conflict, RetryLater
from steadyhand.job import Job, JobSpec, State
from steadyhand.ports import RunOutput

router = RouteTable(tags=["classic"])

CLASSIC_STATUS: Mapping[State, classic_bodies.ClassicStatus] = {
    State.QUEUED: "running",
    State.RUNNING: "running",
    State.PARKED: "running",
    State.WAITING: "running",
    State.COMPLETED: "completed",
    State.FAILED: "failed",
    State.TIMEOUT: "timeout",
    State.CANCELLED: "error",
    State.INTERRUPTED: "error",
    State.ERROR: "error",
}
"""The five states of the earlier service: a caller's loop ends at the first that is not `running`."""


class AgentBusy(RetryLater, Conflict):
    """No slot is free and the queue is full; on this route that is a 409, with `Retry-After`."""


@router.post(
    "/execute", status_code=202, operation_id="execute", summary="Accept a job", **operations.EXECUTE
)
async def execute(request: Request) -> Response:
    """Accept a prompt for an agent. The job is durable once the response is sent; poll it at `/jobs/{job_id}`."""
    caller = get_caller(request)
    context = get_context(request)
    asked, _ = await parse_body(
        request, ExecuteRequest, context.options.max_body_bytes, lenient=True, form=True
    )
    named = asked.model_fields_set
    budget = None if asked.max_budget_usd is None else to_positive_micros(asked.max_budget_usd)
    submission = Submission(
        spec=JobSpec(prompt=asked.prompt, metadata=asked.metadata, origin="classic"),
        agent=asked.agent,
        budget_micros=budget if "max_budget_usd" in named else None,
        default_budget_micros=budget,
        timeout_seconds=asked.timeout_seconds if "timeout_seconds" in named else None,
        default_timeout_seconds=asked.timeout_seconds,
        max_budget=asked.max_budget_usd is None,
        max_timeout=asked.timeout_seconds is None,
        may_be_unlimited=context.options.profile == "classic",
        strict=False,
    )
    try:
        submitted = await context.control.submit(caller, submission)
    except RetryLater as error:
        if error.code != "queue_full":
            raise
        raise AgentBusy("Agent is busy", code="queue_full", retry_after=error.retry_after) from error
    body: classic_bodies.Executed = {"job_id": submitted.job.id, "status": "running"}
    return json_response(body, 202)


@router.get(
    "/jobs/{job_id}", operation_id="getClassicJob", summary="How a job stands", **operations.CLASSIC_JOB
)
async def get_classic_job(request: Request, job_id: JobId) -> Response:
    """Return a job in the form of the earlier service, with its agent's output once it has ended."""
    caller = get_caller(request)
    control = get_context(request).control
    job = await control.get(caller, validate_job_id(job_id))
    output = await control.get_output(caller, job.id) if job.state.ended else None
    return json_response(classic_job_json(job, output))


def classic_job_json(job: Job, output: RunOutput | None) -> classic_bodies.ClassicJob:
    """Return a job as the classic route shows it; `output` is the output of its newest run."""
    # A job that the next start takes up again is not over: a caller that read `error` would look no more.
    is_finished = job.is_final
    status: classic_bodies.ClassicStatus = CLASSIC_STATUS[job.state] if is_finished else "running"
    document: classic_bodies.ClassicJob = {
        "job_id": job.id,
        "status": status,
        "state": job.state.value,
        "prompt": job.spec.prompt,
        "agent": job.agent,
        "metadata": job.spec.metadata,
        # Callers parse this with what they have; an offset is understood by more of them than a Z.
        "started_at": (job.started_at or job.created_at).isoformat(),
    }
    if not is_finished:
        return document
    ended_at = job.finished_at or job.created_at
    document["finished_at"] = ended_at.isoformat()
    document["exit_code"] = job.runs[-1].exit_code if job.runs else None
    document["output"] = list(output.output) if output else []
    document["stderr"] = output.stderr if output else ""
    if status == "error":
        document["error"] = one_line(job.error.message if job.error else f"The job is {job.state}.")
    return document
