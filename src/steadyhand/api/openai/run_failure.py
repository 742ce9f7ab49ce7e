"""The answer to a request whose run did not complete."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.transport.errors import error_response
from steadyhand.api.transport.text import one_line
from steadyhand.job import Job

RETRY_COUNT_HEADER = "x-stainless-retry-count"
_SILENT_RETRY_USER_AGENT = "ai-sdk"
"""In the user agent of the Vercel AI SDK, which asks again without saying so and passes over `x-should-retry`."""


def is_silent_retrier(request: Request) -> bool:
    """Return true for a client's library that asks again by itself and does not say so."""
    return RETRY_COUNT_HEADER not in request.headers and _SILENT_RETRY_USER_AGENT in request.headers.get(
        "user-agent", ""
    )


def job_headers(job: Job, *, retry: bool = True) -> dict[str, str]:
    """Give the headers that name the job; without `retry` a client's library is told not to ask again."""
    headers = {"x-steadyhand-job-id": job.id}
    if not retry:
        headers["x-should-retry"] = "false"
    return headers


def failure_reason(job: Job) -> tuple[str, str]:
    """Give the code and the sentence for a run that did not complete."""
    if not job.state.ended:
        return "draining", "The service is stopping; the job can be looked up later."
    return "execution_failed", one_line(job.error.message if job.error else f"The job ended as {job.state}.")


def failure_response(request: Request, job: Job, headers: Mapping[str, str] | None = None) -> Response:
    """Answer for a run that did not complete; a client that asked again by itself would run it again."""
    code, detail = failure_reason(job)
    all_headers = {**job_headers(job, retry=False), **(headers or {})}
    if is_silent_retrier(request):
        # It will ask again, and be told the same: that need not take it six seconds.
        all_headers["retry-after-ms"] = "0"
    return error_response(request.scope, 503, code, detail, headers=all_headers)
