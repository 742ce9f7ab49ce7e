"""The forms of a job: cancel, steer, retry, resume and the next turn. Each answers with a redirect to the job's page.

Their fields are checked by the models of the API, so the same bounds hold.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from steadyhand.api.native.jobs import build_submission
from steadyhand.api.schemas.field_types import to_positive_micros
from steadyhand.api.schemas.requests import JobRequest, ResumeRequest, RetryRequest, SteerRequest
from steadyhand.api.transport.body import fingerprint, validate_body
from steadyhand.api.transport.params import parse_int, validate_job_id
from steadyhand.control import ResumeOptions
from steadyhand.errors import InvalidRequest
from steadyhand.ports import IdempotencyKey
from steadyhand.web.uploads import content_blocks
from steadyhand.web.web_app import Visit

_MAX_TOKEN_LENGTH = 64
_AMOUNTS = frozenset({"budget_usd", "timeout_seconds", "budget_usd_per_day", "max_budget_usd"})
_JOB_FIELDS = ("prompt", "title", "agent", "workspace", "ref", "model", "budget_usd", "timeout_seconds")


def path_job_id(visit: Visit) -> str:
    """Return the job's id of the path; raise `NotFound` if it cannot be one."""
    return validate_job_id(visit.request.path_params["job_id"])


def read_fields(fields: Mapping[str, str], *names: str) -> dict[str, Any]:
    """Return the fields of a form that are filled in, as the JSON of a request; raise `InvalidRequest`."""
    body: dict[str, Any] = {}
    for name in names:
        text = fields.get(name, "").strip()
        if not text:
            continue
        if name == "after_run":
            body[name] = parse_int(text, f"/{name}", minimum=0, maximum=2**31)
        elif name in _AMOUNTS:
            body[name] = _number(text.removeprefix("$").replace(",", "."), name)
        else:
            body[name] = text
    return body


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest.at(f"/{name}", "has to be a number") from error


async def submit(visit: Visit) -> Response:
    """Submit a new job; a form that is sent twice starts one."""
    fields, uploads = await visit.read_upload_form()
    body = read_fields(fields, *_JOB_FIELDS)
    submission = build_submission(validate_body(JobRequest, body))
    content = await asyncio.to_thread(content_blocks, submission.spec.prompt, uploads)
    submission = replace(submission, spec=replace(submission.spec, content=content))
    sent = [body, *(hashlib.sha256(upload.data).hexdigest() for upload in uploads)] if uploads else body
    submitted = await visit.control.submit(visit.caller, submission, _idempotency(fields, sent))
    return visit.redirect(f"/ui/jobs/{submitted.job.id}")


def _idempotency(fields: Mapping[str, str], request: Any) -> IdempotencyKey | None:
    token = fields.get("once", "")[:_MAX_TOKEN_LENGTH]
    return IdempotencyKey(f"page {token}", fingerprint(request)) if token else None


async def cancel(visit: Visit) -> Response:
    """Stop the job."""
    await visit.read_form()
    job_id = path_job_id(visit)
    await visit.control.cancel(visit.caller, job_id)
    return visit.redirect(f"/ui/jobs/{job_id}")


async def retry(visit: Visit) -> Response:
    """Run the job again from the start; a form that is sent twice does it once."""
    fields = await visit.read_form()
    job_id = path_job_id(visit)
    request = validate_body(RetryRequest, read_fields(fields, "after_run"))
    await visit.control.retry(visit.caller, job_id, request.after_run)
    return visit.redirect(f"/ui/jobs/{job_id}")


async def resume(visit: Visit) -> Response:
    """Go on with the job, with a message and another budget if the form has them."""
    fields = await visit.read_form()
    job_id = path_job_id(visit)
    request = validate_body(ResumeRequest, read_fields(fields, "budget_usd", "prompt", "after_run"))
    budget = None if request.budget_usd is None else to_positive_micros(request.budget_usd)
    options = ResumeOptions(budget_micros=budget, prompt=request.prompt, after_run=request.after_run)
    await visit.control.resume(visit.caller, job_id, options)
    return visit.redirect(f"/ui/jobs/{job_id}")


async def steer(visit: Visit) -> Response:
    """Send a message to the running turn; a form that is sent twice sends one."""
    fields = await visit.read_form()
    job_id = path_job_id(visit)
    request = validate_body(SteerRequest, read_fields(fields, "text"))
    token = fields.get("once", "")[:_MAX_TOKEN_LENGTH]
    await visit.control.steer(visit.caller, job_id, request.text, f"page {token}" if token else None)
    return visit.redirect(f"/ui/jobs/{job_id}")


async def next_turn(visit: Visit) -> Response:
    """Start the next turn of the job's session as a new job; a form that is sent twice starts one."""
    fields = await visit.read_form()
    job_id = path_job_id(visit)
    body = read_fields(fields, "prompt", "budget_usd")
    submission = replace(build_submission(validate_body(JobRequest, body)), parent=job_id)
    idempotency = _idempotency(fields, [job_id, body])
    submitted = await visit.control.submit(visit.caller, submission, idempotency)
    return visit.redirect(f"/ui/jobs/{submitted.job.id}")
