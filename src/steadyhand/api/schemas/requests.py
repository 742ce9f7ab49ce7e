"""Request bodies of the native and the classic routes; those of OpenAI's are in `openai_requests`.

Types are strict: a number is not a string, and a boolean is not a number.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from steadyhand.api.schemas.field_types import (
    MAX_SECONDS,
    AgentName,
    AgentNameOrPath,
    Base64,
    CallbackUrlText,
    CommandName,
    CommitId,
    Dollars,
    EndpointAgents,
    EndpointNameText,
    GitRef,
    JsonSchema,
    KeyName,
    Metadata,
    ModelName,
    NodeLabels,
    NodeNames,
    Prompt,
    Seconds,
    SessionId,
    SessionName,
    StringMetadata,
    Time,
    WholeSeconds,
    WorkspaceName,
    invalid_field,
)
from steadyhand.api.schemas.native_bodies import JobState
from steadyhand.control import MAX_BULK_JOBS
from steadyhand.job import CallbackBody, CallbackEvent, Effort, OnInterrupt, SlashCommand, State
from steadyhand.ports import Scope


class ExecuteRequest(BaseModel):
    """A request for work by the classic route. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt: Prompt
    agent: Annotated[AgentNameOrPath, Field(description="A name; a path means its last part without `.md`.")]
    max_budget_usd: Dollars | None = Field(default=5.0, description="Null means the nearest limit.")
    timeout_seconds: WholeSeconds | None = Field(default=2700, description="Null means the nearest limit.")
    metadata: dict[str, Any] | None = Field(default=None, description="Comes back as it is.")


class CommandRequest(BaseModel):
    """A command of the agent, as a slash and its name would be in a terminal."""

    model_config = ConfigDict(extra="forbid")

    name: CommandName
    arguments: str = ""


_NO_PROMPT = "no prompt"
"""The default of a prompt that is not there, known by its identity."""


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


class WorkRequest(BaseModel):
    """The fields of every request for work. A null or absent field has the agent's value, else the service's."""

    model_config = ConfigDict(extra="forbid")

    command: CommandRequest | None = Field(
        default=None, description="Runs a command of the repository or the agent in place of a prompt."
    )
    prompt: Prompt = Field(
        default=_NO_PROMPT,
        validate_default=True,
        json_schema_extra=_without_default,
        description="Required without `command`.",
    )
    model: ModelName | None = None
    budget_usd: Dollars | None = None
    timeout_seconds: Seconds | None = None
    idle_timeout_seconds: Seconds | None = None
    priority: Annotated[int, Field(ge=-100, le=100, description="Higher goes first.")] = 0
    metadata: Metadata | None = None
    title: Annotated[str, Field(max_length=200)] | None = None
    output_schema: JsonSchema | None = Field(
        default=None, description="A JSON JsonSchema that the answer has to fit."
    )
    on_interrupt: OnInterrupt | None = Field(
        default=None,
        description="What becomes of it when the service stops under it: `auto` goes on after a planned stop and "
        "stops there after a crash.",
    )
    publish: Literal["none", "branch"] | None = Field(
        default=None, description="`branch` pushes `steadyhand/<id>` to the repository."
    )
    expires_in_seconds: Seconds | None = Field(
        default=None, description="How long it may wait in the queue before it ends as `error`."
    )
    max_turns: Annotated[int, Field(ge=1, le=10_000)] | None = None
    effort: Effort | None = None
    labels: NodeLabels | None = Field(
        default=None, description="The labels that its node must have, beside those that the agent asks for."
    )
    not_on_nodes: NodeNames | None = Field(
        default=None, description="The nodes that it must not run on, beside those of the agent."
    )
    callback_url: CallbackUrlText | None = Field(
        default=None,
        description="Where the service posts the events of the job. Later turns keep it. Its path and its query are "
        "not shown again.",
    )
    callback_events: Annotated[list[CallbackEvent], Field(min_length=1, max_length=8)] | None = Field(
        default=None, description="The events that it is told of; by default `job.ended` alone."
    )
    callback_body: Literal["thin", "full"] | None = Field(
        default=None, description="`thin`, the default, has ids and links; `full` has the whole job."
    )

    @field_validator("callback_events", "callback_body", mode="after")
    @classmethod
    def _needs_callback_url(cls, value: Any, info: ValidationInfo) -> Any:
        """Return the value, or raise if there is no receiver for it."""
        if value is not None and info.data.get("callback_url") is None:
            raise invalid_field("needs a callback_url beside it")
        return value

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_or_command(cls, value: Any, info: ValidationInfo) -> Any:
        """Return the prompt, which is the command's if there is one."""
        command = info.data.get("command")
        if value is not _NO_PROMPT:
            if command is not None:
                raise invalid_field("cannot stand beside a command")
            return value
        if command is not None:
            return SlashCommand(command.name, command.arguments).prompt
        if "command" in info.data:
            raise PydanticCustomError("missing", "is required")
        return value


class UncommittedRequest(BaseModel):
    """Uncommitted changes of the caller's own clone: a commit of them, and the pack of what the repository lacks."""

    model_config = ConfigDict(extra="forbid")

    base: CommitId = Field(description="The newest commit below them that the workspace's repository has.")
    commit: CommitId = Field(description="The commit that holds them; the job works on it.")
    pack: Base64 = Field(
        description="The pack of `git pack-objects`: all objects of `commit` that are not below `base`."
    )


class TurnRequest(WorkRequest):
    """The next turn in a job's session: a new job of the same agent, in the same workspace."""


class JobRequest(WorkRequest):
    """A request for work. A field that is null or absent has the agent's value, else the service's."""

    agent: AgentName | None = None
    workspace: WorkspaceName | None = Field(
        default=None, description="A name; with the scope `workspace:any` also a path or a URL."
    )
    ref: GitRef | None = None
    uncommitted: UncommittedRequest | None = Field(
        default=None, description="Uncommitted changes to work on, in place of a `ref`."
    )
    append_system_prompt: Prompt | None = None
    session: SessionId | None = Field(
        default=None,
        description="The `session_id` of earlier jobs of this key: go on with the newest of them.",
    )


class RetryRequest(BaseModel):
    """A request for a new run. With `after_run` a repeat of the same request changes nothing."""

    model_config = ConfigDict(extra="forbid")

    after_run: Annotated[int, Field(ge=0, le=2**31)] | None = None


class KeyLimitsRequest(BaseModel):
    """The limits of a key; null or absent is no limit. Days and months are those of UTC."""

    model_config = ConfigDict(extra="forbid")

    agents: Annotated[list[AgentName], Field(min_length=1, max_length=1000)] | None = None
    workspaces: Annotated[list[WorkspaceName], Field(min_length=1, max_length=1000)] | None = Field(
        default=None, description="Names, `scratch` for none; with `workspace:any` also paths and URLs."
    )
    requests_per_minute: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="Requests for work in any minute."
    )
    running_jobs: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None, description="Jobs that run at once; others wait."
    )
    queued_jobs: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(
        default=None, description="Jobs that may wait; with 0 only what starts at once is taken."
    )
    budget_usd_per_day: Dollars | None = None
    budget_usd_per_month: Dollars | None = None
    max_budget_usd: Dollars | None = Field(
        default=None, description="The highest budget that a job may ask for."
    )
    max_timeout_seconds: Seconds | None = Field(
        default=None, description="The longest time that a job may ask for."
    )
    models: Annotated[list[ModelName], Field(min_length=1, max_length=1000)] | None = Field(
        default=None, description="The models that a job may name."
    )


class KeyRequest(BaseModel):
    """A request for a new key."""

    model_config = ConfigDict(extra="forbid")

    name: KeyName = Field(description="For people to tell it by.")
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=6)] = Field(
        default=["submit", "read", "cancel"]
    )
    limits: KeyLimitsRequest | None = None
    strict: bool = Field(
        default=False,
        description="Refuse an agent or a workspace that is not known, and a name that another valid key has.",
    )


class RotateRequest(BaseModel):
    """A request for a new secret of a key."""

    model_config = ConfigDict(extra="forbid")

    grace_seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)] = Field(
        default=0, description="For how long the old secret stays good."
    )


class ResumeRequest(BaseModel):
    """A request to go on in the same session and checkout. With `after_run` a repeat of the request changes nothing."""

    model_config = ConfigDict(extra="forbid")

    after_run: Annotated[int, Field(ge=0, le=2**31)] | None = None
    budget_usd: Dollars | None = Field(
        default=None, description="For the job in all, what it has spent included."
    )
    prompt: Prompt | None = Field(default=None, description="Said in place of asking it to go on.")


MAX_STEER_LENGTH = 65_536
"""The characters of a message to a running turn."""


class SteerRequest(BaseModel):
    """A message to the running turn of a job."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[Prompt, Field(max_length=MAX_STEER_LENGTH)]


class ReplayRequest(BaseModel):
    """A request to send a delivery once more; it has no fields."""

    model_config = ConfigDict(extra="forbid")


class EndpointRequest(BaseModel):
    """A request for a new endpoint of callbacks."""

    model_config = ConfigDict(extra="forbid")

    name: EndpointNameText
    url: CallbackUrlText = Field(description="Where the service posts the events of jobs.")
    events: Annotated[list[CallbackEvent], Field(min_length=1, max_length=8)] = Field(
        default=["job.ended"], description="The events that it is told of."
    )
    agents: EndpointAgents = Field(
        default=[], description="The agents of whose jobs it is told; empty for all."
    )
    body: CallbackBody = "thin"


class EndpointChangeRequest(BaseModel):
    """A request to change an endpoint of callbacks; a field that is not there stays as it is."""

    model_config = ConfigDict(extra="forbid")

    url: CallbackUrlText | None = None
    events: Annotated[list[CallbackEvent], Field(min_length=1, max_length=8)] | None = None
    agents: EndpointAgents | None = None
    body: CallbackBody | None = None
    rotate_secret: bool = Field(
        default=False, description="Make a new secret; the former one signs beside it."
    )


class CancelRequest(BaseModel):
    """A request to stop; it has no fields."""

    model_config = ConfigDict(extra="forbid")


class _SelectionFields(BaseModel):
    """A selection of jobs by the filters of their list, for an operation on all of them."""

    model_config = ConfigDict(extra="forbid")

    state: Annotated[list[JobState], Field(min_length=1, max_length=len(State))] | None = Field(
        default=None, description="Any of these states; else those in which the operation makes sense."
    )
    agent: str | None = None
    workspace: str | None = None
    api_key: str | None = Field(
        default=None, description="Jobs of this key; needs `read:all` for others than one's own."
    )
    metadata: StringMetadata | None = Field(
        default=None, description="Jobs whose metadata has each of these values under its name."
    )
    created_after: Time | None = None
    created_before: Time | None = None
    id_prefix: Annotated[str, Field(pattern="^[0-9a-f]{1,12}$")] | None = None
    q: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="Words of the title or the prompt, all of them; a phrase is quoted."
    )
    all: bool = Field(default=False, description="Required for a selection without any filter.")
    limit: Annotated[int, Field(ge=1, le=MAX_BULK_JOBS)] = Field(
        default=MAX_BULK_JOBS, description="The most jobs of this call."
    )
    cursor: str | None = Field(default=None, description="`next_cursor` of the call before.")
    as_of: Time | None = Field(
        default=None,
        description="`as_of` of the call before: jobs that came or were changed since then are left alone.",
    )
    dry_run: bool = Field(default=False, description="Tell which jobs would be changed, and change none.")

    @property
    def filters(self) -> dict[str, Any]:
        """The filters that are there, by their names."""
        not_filters = {"all", "limit", "cursor", "as_of", "dry_run", *ResumeRequest.model_fields}
        return {
            name: value
            for name in type(self).model_fields
            if name not in not_filters and (value := getattr(self, name)) not in (None, {})
        }


class BulkRequest(_SelectionFields):
    """A selection of jobs to cancel or to run again."""


class BulkResumeRequest(_SelectionFields):
    """A selection of jobs to resume; each gets the same budget and prompt, if any."""

    budget_usd: Dollars | None = Field(
        default=None, description="For each job in all, what it has spent included."
    )
    prompt: Prompt | None = Field(default=None, description="Said in place of asking them to go on.")


class ClassicChatMessage(BaseModel):
    """One message of a conversation on the classic chat route."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[dict[str, JsonValue]] | None = None


class ClassicChatRequest(BaseModel):
    """A chat completion in the classic profile: every model's name is taken, nothing is streamed."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(default="", max_length=512)
    messages: Annotated[list[ClassicChatMessage], FailFast(), Field(min_length=1, max_length=10_000)]
    stream: bool | None = None


class ConversationalRequest(BaseModel):
    """A message of a conversation with the agent `chat`. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    message: Prompt
    session_id: SessionName | None = Field(
        default=None, description="A name of the caller's choice; without one a new session begins."
    )
    model: ModelName | None = None
