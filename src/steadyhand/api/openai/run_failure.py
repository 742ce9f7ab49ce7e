"""The response to a request whose run did not complete."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.transport.errors import error_response
from steadyhand.api.transport.text import one_line
from steadyhand.job import Job, OutcomeType, State
from steadyhand.outcome import OUTCOMES

RETRY_COUNT_HEADER = "x-stainless-retry-count"
TURN_HEADER = "x-codex-turn-metadata"
"""Sent by the Codex CLI, whose bodies name their turn: if two are equal, the second one is a retry."""
_SILENT_RETRY_USER_AGENT = "ai-sdk"
"""In the user agent of the Vercel AI SDK, which retries without announcing it and ignores `x-should-retry`."""


def is_silent_retrier(request: Request) -> bool:
    """Return true for a client's library that retries by itself without announcing it."""
    return RETRY_COUNT_HEADER not in request.headers and _SILENT_RETRY_USER_AGENT in request.headers.get(
        "user-agent", ""
    )


def may_reconnect(request: Request) -> bool:
    """Return true if the client's library retries a request that was cut, and the retry is recognized."""
    headers = request.headers
    return RETRY_COUNT_HEADER in headers or TURN_HEADER in headers or is_silent_retrier(request)


def job_headers(job: Job, *, retry: bool = True) -> dict[str, str]:
    """Return the headers that name the job; `retry=False` tells a client's library not to retry."""
    headers = {"x-steadyhand-job-id": job.id}
    if not retry:
        headers["x-should-retry"] = "false"
    return headers


def refusal_text(job: Job) -> str | None:
    """Return the text of an ended job's refusal by the model; None if the model did not refuse."""
    if not job.is_final or job.outcome is None or job.outcome.type != OutcomeType.REFUSED:
        return None
    return job.answer or job.outcome.detail or OUTCOMES[OutcomeType.REFUSED].message


def is_answered(job: Job) -> bool:
    """Return true for a job that ended with an answer; a refusal of the model is one."""
    return job.state is State.COMPLETED or refusal_text(job) is not None


def failure_reason(job: Job) -> tuple[str, str]:
    """Return the code and the message for a run that did not complete."""
    if not job.state.ended:
        return "draining", "The service is stopping; the job can be looked up later."
    return "execution_failed", one_line(job.error.message if job.error else f"The job ended as {job.state}.")


def failure_status(job: Job) -> int:
    """Return the status for a run that did not complete: that of the model's service, if it refused a call for good."""
    status = None if job.outcome is None or not job.state.ended else job.outcome.model_status
    return 503 if status is None else status


def failure_response(request: Request, job: Job, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response for a run that did not complete; it keeps a client from running it again by itself."""
    code, detail = failure_reason(job)
    all_headers = {**job_headers(job, retry=False), **(headers or {})}
    if is_silent_retrier(request):
        # It will ask again, and be told the same: that need not take it six seconds.
        all_headers["retry-after-ms"] = "0"
    return error_response(request.scope, failure_status(job), code, detail, headers=all_headers)
