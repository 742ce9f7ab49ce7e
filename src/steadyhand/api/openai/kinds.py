"""The kind of answer that a job was asked for as."""

from steadyhand.job import Job

RESPONSE_KIND = "response"


def is_response(job: Job) -> bool:
    """Say whether a job was asked for as a response."""
    return job.request is not None and job.request.get("kind") == RESPONSE_KIND
