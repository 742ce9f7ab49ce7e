"""The kinds of answer that a job is requested as."""

from steadyhand.job import Job

RESPONSE_KIND = "response"


def is_response(job: Job) -> bool:
    """Return true if a job was requested as a response."""
    return job.spec.request is not None and job.spec.request.get("kind") == RESPONSE_KIND
