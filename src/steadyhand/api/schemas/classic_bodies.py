"""Response bodies of the routes of the earlier service; see `native_bodies`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from steadyhand.api.schemas.field_types import Timestamp
from steadyhand.api.schemas.native_bodies import (
    FieldProblem,
    JobId,
    JobState,
    NullIfAbsent,
    OpenaiError,
)

ClassicStatus = Literal["running", "completed", "failed", "timeout", "error"]


class ClassicInputError(TypedDict):
    """One wrong field in the classic profile, as FastAPI lists it."""

    type: str
    loc: list[str | int]
    msg: str
    input: Annotated[Any, Field(description="The value; above 1 KB the beginning of its text.")]


class ClassicProblem(TypedDict):
    """The body of a 422 in the classic profile: that of all routes, with the earlier service's `detail`."""

    type: str
    title: str
    status: int
    detail: list[ClassicInputError]
    code: Annotated[str, Field(description="Stable; branch on this.")]
    request_id: str
    errors: list[FieldProblem]
    error: OpenaiError


class Executed(TypedDict):
    """An accepted job of the classic route."""

    job_id: JobId
    status: Literal["running"]


class ClassicJob(TypedDict):
    """A job in the words of the earlier service. The last five keys are there once it has ended."""

    job_id: str
    status: ClassicStatus
    state: JobState
    prompt: str
    agent: str
    metadata: Mapping[str, Any] | None
    started_at: Timestamp
    finished_at: NotRequired[NullIfAbsent[Timestamp]]
    exit_code: NotRequired[NullIfAbsent[int]]
    output: NotRequired[
        Annotated[
            NullIfAbsent[list[str]], Field(description="Lines with their newlines; join and parse them.")
        ]
    ]
    stderr: NotRequired[NullIfAbsent[str]]
    error: NotRequired[
        Annotated[NullIfAbsent[str], Field(description="One line, there whenever `status` is `error`.")]
    ]


class ClassicFailure(TypedDict):
    """A failure of the classic chat route."""

    error: Literal["execution failed", "streaming not supported"]
    detail: Annotated[str, Field(max_length=200)]


class ConversationalReply(TypedDict):
    """The agent's reply in a conversation."""

    session_id: str
    reply: str
