"""Response bodies about the processes that wait for jobs; see `native_bodies`."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from steadyhand.api.schemas.field_types import Timestamp

WarmShortage = Literal["memory", "warm_memory", "trust", "in_place", "process", "checkout"]
"""The reasons why fewer processes wait for jobs than are configured."""


class WarmProcesses(TypedDict):
    """The processes that wait for jobs, and what became of those before them since the service started."""

    configured: Annotated[
        int, Field(description="How many are asked for, by the settings or by the jobs so far.")
    ]
    waiting: int
    oldest_seconds: Annotated[
        float, Field(description="The age of the oldest one that waits; 0 without one.")
    ]
    hits: Annotated[int, Field(description="Jobs that had a process that waited.")]
    live_hits: Annotated[int, Field(description="Turns that went on in the process of the turn before.")]
    misses: Annotated[int, Field(description="Jobs that could have had one and started their own.")]
    lost: Annotated[
        int, Field(description="Misses whose process did not answer, or ended before the prompt.")
    ]
    refills: int
    kept: Annotated[int, Field(description="Processes that stayed after a job.")]
    failures: int
    dropped: Annotated[int, Field(description="Processes that ended without another job.")]
    shortage: NotRequired[
        Annotated[
            WarmShortage,
            Field(description="The reason why fewer wait than are configured; `/v1/agents` has more."),
        ]
    ]


class WarmShortageDetail(TypedDict):
    """The reason why fewer processes wait than are configured."""

    reason: WarmShortage
    detail: str
    at: Timestamp


class AgentWarmProcesses(TypedDict):
    """The processes that wait for jobs of an agent."""

    configured: Annotated[
        int, Field(description="How many are asked for, by the setting or by the jobs so far.")
    ]
    waiting: Annotated[int, Field(description="Those that any job of the agent can have.")]
    kept: Annotated[int, Field(description="Those that stay for a conversation or a caller.")]
    hits: Annotated[int, Field(description="Jobs that had one since the start of the service.")]
    misses: Annotated[int, Field(description="Jobs that could have had one and started their own.")]
    shortage: WarmShortageDetail | None
