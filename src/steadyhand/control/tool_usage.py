"""Statistics of tools: their calls, failures and time, in one job or in the newest jobs of agents and keys."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

from steadyhand.control.deps import ControlDeps
from steadyhand.control.queries import JobQueries
from steadyhand.control.requests import Caller
from steadyhand.ports import JobFilter, ToolUsage

ToolGroup = Literal["api_key", "agent", "job"]
MAX_TOOL_JOBS = 500
"""The most jobs of one request: all events of each are read."""


@dataclass(frozen=True, slots=True)
class ToolQuery:
    """A request for statistics: the groups beside the tool, one job or filters, and the number of the newest jobs."""

    by: frozenset[ToolGroup] = frozenset()
    job_id: str | None = None
    agent: str | None = None
    workspace: str | None = None
    api_key_id: str | None = None
    days: int = 30
    jobs: int = 100


@dataclass(frozen=True, slots=True)
class ToolRow:
    """The calls of a tool in a group. A name that is not grouped by is None."""

    tool: str
    job_id: str | None
    api_key_id: str | None
    agent: str | None
    calls: int = 0
    failures: int = 0
    unfinished: int = 0
    milliseconds: int = 0

    def plus(self, usage: ToolUsage) -> "ToolRow":
        """Return the sum with the calls of one more job."""
        return replace(
            self,
            calls=self.calls + usage.calls,
            failures=self.failures + usage.failures,
            unfinished=self.unfinished + usage.unfinished,
            milliseconds=self.milliseconds + usage.milliseconds,
        )


@dataclass(frozen=True, slots=True)
class ToolStatistics:
    """Rows with the most calls first, and the number of jobs that were looked at."""

    jobs: int
    rows: Sequence[ToolRow]


class ToolStatisticsReader:
    """Adds up the calls of tools. Changes nothing."""

    def __init__(self, deps: ControlDeps, queries: JobQueries) -> None:
        self._deps = deps
        self._queries = queries

    async def tool_statistics(self, caller: Caller, query: ToolQuery) -> ToolStatistics:
        """Return the calls of tools in jobs that the caller may see. Raise `NotFound` for a job that it may not."""
        caller.require_scope("read")
        job_filter = JobFilter(query.api_key_id, agent=query.agent, workspace=query.workspace)
        if query.job_id is not None:
            job_filter = replace(job_filter, id_prefix=(await self._queries.get(caller, query.job_id)).id)
        else:
            job_filter = replace(job_filter, created_after=self._deps.clock() - timedelta(days=query.days))
        if not caller.has_scope("read:all"):
            if query.api_key_id not in (None, caller.key_id):
                return ToolStatistics(0, [])
            job_filter = replace(job_filter, api_key_id=caller.key_id)
        sample = await self._deps.store.sample_tools(job_filter, min(query.jobs, MAX_TOOL_JOBS))
        return ToolStatistics(sample.jobs, _group(sample.rows, query.by))


def _group(rows: Sequence[ToolUsage], by: frozenset[ToolGroup]) -> list[ToolRow]:
    groups: dict[ToolRow, ToolRow] = {}
    for row in rows:
        empty = ToolRow(
            tool=row.tool,
            job_id=row.job_id if "job" in by else None,
            api_key_id=row.api_key_id if "api_key" in by else None,
            agent=row.agent if "agent" in by else None,
        )
        groups[empty] = groups.get(empty, empty).plus(row)
    names = ("tool", "agent", "api_key_id", "job_id")
    return sorted(
        groups.values(), key=lambda row: (-row.calls, *(getattr(row, name) or "" for name in names))
    )
