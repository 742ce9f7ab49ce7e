"""The routes that cancel, retry and resume all jobs of a filter (docs/http-api.md#many-jobs-at-once)."""

from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.native.serializers import bulk_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas.field_types import to_positive_micros
from steadyhand.api.schemas.requests import BulkRequest, BulkResumeRequest
from steadyhand.api.schemas.route_table import RouteTable
from steadyhand.api.transport.body import parse_body
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import REDACTOR_SCOPE_KEY, json_response
from steadyhand.api.transport.params import parse_query
from steadyhand.control import BulkResult, JobSelection, ResumeOptions
from steadyhand.errors import InvalidRequest
from steadyhand.job import State
from steadyhand.ports import JobFilter
from steadyhand.redact import NO_REDACTION

BodyT = TypeVar("BodyT", BulkRequest, BulkResumeRequest)

router = RouteTable(prefix="/v1/jobs", tags=["jobs"])


@router.post("/cancel", operation_id="cancelJobs", summary="Stop many jobs", **operations.CANCEL_JOBS)
async def cancel_jobs(request: Request) -> Response:
    """Stop the jobs of a filter that have not ended, at most 200 in a call."""
    caller, body = get_caller(request), await _parse(request, BulkRequest)
    return _respond(request, await get_context(request).control.cancel_jobs(caller, build_selection(body)))


@router.post("/retry", operation_id="retryJobs", summary="Run many jobs again", **operations.RETRY_JOBS)
async def retry_jobs(request: Request) -> Response:
    """Queue the ended jobs of a filter for a new run from the start, at most 200 in a call.

    Without `state` these are the jobs that are failed, timeout, interrupted or error.
    """
    caller, body = get_caller(request), await _parse(request, BulkRequest)
    return _respond(request, await get_context(request).control.retry_jobs(caller, build_selection(body)))


@router.post("/resume", operation_id="resumeJobs", summary="Go on with many jobs", **operations.RESUME_JOBS)
async def resume_jobs(request: Request) -> Response:
    """Queue the ended jobs of a filter for a new run in their sessions, at most 200 in a call.

    Without `state` these are the jobs that are failed, timeout, interrupted or error.
    """
    caller, body = get_caller(request), await _parse(request, BulkResumeRequest)
    budget = None if body.budget_usd is None else to_positive_micros(body.budget_usd)
    options = ResumeOptions(budget_micros=budget, prompt=body.prompt)
    control = get_context(request).control
    return _respond(request, await control.resume_jobs(caller, build_selection(body), options))


async def _parse(request: Request, model: type[BodyT]) -> BodyT:
    parse_query(request)
    return (await parse_body(request, model, get_context(request).options.max_body_bytes))[0]


def build_selection(body: BulkRequest | BulkResumeRequest) -> JobSelection:
    """Build the selection of a body; raise `InvalidRequest` if it has no filter, or one beside `all`."""
    if not body.filters and not body.all:
        raise InvalidRequest.at("", "The filter is empty. With `all: true` it means all jobs.")
    if body.filters and body.all:
        raise InvalidRequest.at("/all", f"cannot stand beside a filter ({', '.join(body.filters)})")
    job_filter = JobFilter(
        api_key_id=body.api_key,
        states=frozenset(State(text) for text in body.state or ()),
        agent=body.agent,
        workspace=body.workspace,
        metadata=body.metadata or {},
        created_after=body.created_after,
        created_before=body.created_before,
        id_prefix=body.id_prefix,
        search=body.q,
    )
    return JobSelection(job_filter, body.limit, body.cursor, body.as_of, body.dry_run)


def _respond(request: Request, result: BulkResult) -> Response:
    redactor = request.scope.get(REDACTOR_SCOPE_KEY, NO_REDACTION)
    return json_response(bulk_json(result, redactor.text))
