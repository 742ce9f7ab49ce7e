"""Response bodies of the statistics of tools; see `native_bodies`."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from steadyhand.api.schemas.native_bodies import JobId


class ToolRow(TypedDict):
    """The calls of one tool in a group; a field that is not grouped by is null."""

    object: Literal["tool_usage"]
    tool: str
    agent: str | None
    api_key_id: str | None
    job_id: JobId | None
    calls: int
    failures: Annotated[int, Field(description="Calls whose result is an error.")]
    unfinished: Annotated[int, Field(description="Calls without a result: the run ended before, or goes on.")]
    seconds: Annotated[float, Field(description="Of the finished calls together.")]


class ToolList(TypedDict):
    """Rows with the most calls first."""

    object: Literal["list"]
    data: list[ToolRow]
    has_more: bool
    next_cursor: Annotated[None, Field(description="Always null: raise `limit` for more.")]
    jobs: Annotated[int, Field(description="The jobs that were looked at.")]
