"""Response bodies of operations on all jobs that a filter selects; see `native_bodies`."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from steadyhand.api.schemas.field_types import Timestamp
from steadyhand.api.schemas.native_bodies import JobId, JobState


class BulkFault(TypedDict):
    """The reason why a job was not changed."""

    code: str
    detail: str


class BulkItem(TypedDict):
    """One job of a call: as it is now, or with `error` as it was when it was selected."""

    object: Literal["bulk_item"]
    id: JobId
    state: JobState
    run: int
    title: str | None
    agent: str
    workspace: str | None
    api_key_id: str
    error: BulkFault | None


class BulkStop(TypedDict):
    """The reason why a call stopped before its last job. The next call begins at the same place."""

    code: str
    detail: str
    retry_after: Annotated[int, Field(description="Seconds.")]


class BulkResult(TypedDict):
    """The jobs that a call selected, newest first, and what became of each."""

    object: Literal["list"]
    data: list[BulkItem]
    has_more: Annotated[
        bool, Field(description="Send the same again with `as_of` and `next_cursor` as `cursor`.")
    ]
    next_cursor: str | None
    dry_run: bool
    as_of: Timestamp
    matched: Annotated[int, Field(description="The jobs of this call.")]
    changed: Annotated[
        int, Field(description="Of them, those without an error; with `dry_run` none were changed yet.")
    ]
    failed: Annotated[int, Field(description="Those with an error.")]
    stopped: BulkStop | None
