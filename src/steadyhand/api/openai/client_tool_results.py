"""Results of the client's tools in a request, and the job that made the calls."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from steadyhand.api.transport.context import ApiContext
from steadyhand.control import Caller
from steadyhand.errors import InvalidRequest, NotFound
from steadyhand.job import Job, ToolOutput

UNKNOWN_CALL = "unknown_call"
_PENDING_CALL_ID = re.compile(r"call_([0-9a-f]{12})_[0-9]+_[0-9]+")
_FINAL_CALL_ID = re.compile(r"call_([0-9a-f]{12})(?:_[0-9]+)?")
"""The id of a call that was itself the answer of a run, so that no process waits for its result."""


class ToolResult(NamedTuple):
    """The result of one call; `location` is the place of its id in the request."""

    location: str
    call_id: str
    output: ToolOutput


class ToolResults(NamedTuple):
    """The results for calls of one job; if `results` is empty, the calls were the answer of a run that has ended."""

    job_id: str
    results: dict[str, ToolOutput]


def group_tool_results(parsed: Sequence[ToolResult], location: str) -> ToolResults | None:
    """Return the results by the calls' ids, or None for no results. `location` is the place of all of them.

    Raise `InvalidRequest` if the ids are not of one job's calls.
    """
    results: dict[str, ToolOutput] = {}
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
        results[result.call_id] = result.output
        job_ids.add(match[1])
    if len(job_ids | ended_job_ids) > 1:
        raise InvalidRequest.at(f"/{location}", "has results for the calls of two runs", code=UNKNOWN_CALL)
    return ToolResults((job_ids | ended_job_ids).pop(), results) if parsed else None


async def get_calling_job(
    context: ApiContext, owner: Caller, tool_results: ToolResults, location: str
) -> Job:
    """Return the caller's own job that made these calls; raise `InvalidRequest` (`unknown_call`)."""
    try:
        return await context.control.get(replace(owner, scopes=frozenset({"read"})), tool_results.job_id)
    except NotFound as error:
        raise InvalidRequest.at(
            f"/{location}", "has results for calls of no run of yours", code=UNKNOWN_CALL
        ) from error
