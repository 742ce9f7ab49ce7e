"""Bodies of the routes for nodes."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from steadyhand.api.schemas.field_types import Timestamp
from steadyhand.ports.nodes import NodeRole


class NodeActionRequest(BaseModel):
    """The body of an action on a node: none, or an empty object."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class DrainRequest(BaseModel):
    """A request to drain a node."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    until_restart: bool = Field(
        default=False, description="The next start of the node ends it; else it holds until it is undrained."
    )


class Node(TypedDict):
    """A process that runs jobs of this service."""

    object: Literal["node"]
    name: str
    role: Annotated[NodeRole, Field(description="`serve` also answers callers; `worker` only runs jobs.")]
    state: Annotated[
        Literal["alive", "silent", "away"],
        Field(
            description="`silent`: its heartbeat stopped and its jobs are taken from it. "
            "`away`: it is drained and not there."
        ),
    ]
    version: Annotated[str, Field(description="Its version of Steadyhand.")]
    schema: Annotated[str, Field(description="The newest revision of the database's schema that it knows.")]
    host: Annotated[str, Field(description="The name of its machine.")]
    labels: list[str]
    slots: Annotated[int, Field(description="The jobs that it runs at once.")]
    running: int
    waiting: Annotated[int, Field(description="Runs whose processes wait for their clients' tools.")]
    load: Annotated[float, Field(description="The machine's load of the last minute, divided by its cores.")]
    warm: Annotated[int, Field(description="The processes that wait for jobs or for a next turn.")]
    drained: Annotated[bool, Field(description="It takes no new runs.")]
    drained_at: Timestamp | None
    until_restart: Annotated[bool, Field(description="The next start of the node undrains it.")]
    heartbeat_seconds: Annotated[
        float | None,
        Field(description="The age of its heartbeat by the clock of the database; null if it is away."),
    ]
    started_at: Timestamp | None
    here: Annotated[bool, Field(description="It is the node that answered this request.")]


class NodeList(TypedDict):
    """The nodes, by name."""

    object: Literal["list"]
    has_more: bool
    next_cursor: str | None
    data: list[Node]
