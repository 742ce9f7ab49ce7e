"""Results of the client's tools that a request brings, and the job whose calls they are of."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from steadyhand.api.transport.context import ApiContext
from steadyhand.control import Caller
from steadyhand.errors import InvalidRequest, NotFound
from steadyhand.job import Job

UNKNOWN_CALL = "unknown_call"
_PENDING_CALL_ID = re.compile(r"call_([0-9a-f]{12})_[0-9]+_[0-9]+")
_FINAL_CALL_ID = re.compile(r"call_([0-9a-f]{12})(?:_[0-9]+)?")
"""The id of a call that was itself the answer of a run, so that no process waits for what comes of it."""


class ToolResult(NamedTuple):
    """What came of one call; `where` is the place of its id in the request."""

    location: str
    call_id: str
    text: str


class ToolResults(NamedTuple):
    """What a client brings of calls of one job; without `results` they were the answer of a run that has ended."""

    job_id: str
    results: dict[str, str]


def group_tool_results(parsed: Sequence[ToolResult], location: str) -> ToolResults | None:
    """Give results by the calls' ids; null without any. `where` is the place of all of them.

    Raises `InvalidRequest` for ids that are not of one job's calls.
    """
    results: dict[str, str] = {}
    job_ids: set[str] = set()
    ended_job_ids: set[str] = set()
    for result in parsed:
        match = _FINAL_CALL_ID.fullmatch(result.call_id)
        if match is not None:
            ended_job_ids.add(match[1])
            continue
        match = _PENDING_CALL_ID.fullmatch(result.call_id)
        if match is None:
            raise InvalidRequest.at(f"/{result.location}", "is the id of no call of ours", code=UNKNOWN_CALL)
        if result.call_id in results:
            raise InvalidRequest.at(f"/{result.location}", "is there twice", code=UNKNOWN_CALL)
        results[result.call_id] = result.text
        job_ids.add(match[1])
    if len(job_ids | ended_job_ids) > 1:
        raise InvalidRequest.at(f"/{location}", "has results for the calls of two runs", code=UNKNOWN_CALL)
    return ToolResults((job_ids | ended_job_ids).pop(), results) if parsed else None


async def get_calling_job(
    context: ApiContext, owner: Caller, tool_results: ToolResults, location: str
) -> Job:
    """Give the caller's own job whose calls these are of; raises `InvalidRequest` (`unknown_call`)."""
    try:
        return await context.control.get(replace(owner, scopes=frozenset({"read"})), tool_results.job_id)
    except NotFound as error:
        raise InvalidRequest.at(
            f"/{location}", "has results for calls of no run of yours", code=UNKNOWN_CALL
        ) from error
