"""Request bodies. Types are strict: a number is not a string, and a boolean is not a number."""

import json
import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    JsonValue,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from steadyhand.agents import NAME_PATTERN, NAME_RULE, parse_agent_name
from steadyhand.errors import InvalidRequest
from steadyhand.job import Effort, OnInterrupt, SlashCommand
from steadyhand.money import to_micros
from steadyhand.ports import Scope

KIBIBYTE = 1024
MAX_SECONDS = 7 * 24 * 3600
MAX_DOLLARS = 1_000_000
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]+-]{0,199}")
_INVALID_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)")
_SESSION_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_COMMAND_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


def _invalid_field(text: str) -> PydanticCustomError:
    # The template is a constant of ours; what the caller sent is never part of it.
    return PydanticCustomError("invalid_field", text)


def _validate_not_blank(text: str) -> str:
    if not text.strip():
        raise _invalid_field("is empty")
    return text


def is_model_name(text: str) -> bool:
    """Return true for a text that can be a model's name; one that looks like an option cannot."""
    return _MODEL_NAME.fullmatch(text) is not None


def _validate_model_name(text: str) -> str:
    if not is_model_name(text):
        raise _invalid_field("is not a model's name")
    return text


def _validate_agent_name(text: str) -> str:
    if NAME_PATTERN.fullmatch(text) is None:
        raise _invalid_field(f"is not an agent's name: {NAME_RULE}")
    return text


def _validate_agent_name_or_path(text: str) -> str:
    try:
        return parse_agent_name(text)
    except InvalidRequest as error:
        raise _invalid_field(f"is not an agent's name: {NAME_RULE}") from error


def _validate_git_ref(text: str) -> str:
    if not text or text[0] in "-/." or text[-1] in "/." or _INVALID_REF.search(text):
        raise _invalid_field("is not a git ref or commit")
    if text.startswith("refs/steadyhand/"):
        raise _invalid_field("is a ref of the service's own")
    return text


def _validate_workspace(text: str) -> str:
    if not text.strip() or text.startswith("-") or _CONTROL_CHARACTERS.search(text):
        raise _invalid_field("is not a workspace's name, path or URL")
    return text


def _validate_label(text: str) -> str:
    if _CONTROL_CHARACTERS.search(text):
        raise _invalid_field("holds a control character")
    return _validate_not_blank(text)


def _validate_size(kibibytes: int, value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) > kibibytes * KIBIBYTE:
        raise _invalid_field(f"is larger than {kibibytes} KiB")
    return value


def to_positive_micros(dollars: float) -> int:
    """Return an amount in whole micro-dollars; an amount above 0 is never rounded to 0."""
    return max(1, to_micros(Decimal(str(dollars))))


def _string_schema(**keywords: Any) -> WithJsonSchema:
    """Return the schema of a string that a validator here checks, as far as a schema can describe the rule."""
    return WithJsonSchema({"type": "string", "minLength": 1, **keywords})


Prompt = Annotated[str, AfterValidator(_validate_not_blank), _string_schema(pattern=r"\S")]
Dollars = Annotated[float, Field(gt=0, le=MAX_DOLLARS, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]
WholeSeconds = Annotated[int, Field(gt=0, le=MAX_SECONDS)]
Metadata = Annotated[dict[str, JsonValue], AfterValidator(lambda value: _validate_size(16, value))]
JsonSchema = Annotated[dict[str, JsonValue], AfterValidator(lambda value: _validate_size(64, value))]


def _validate_command_name(text: str) -> str:
    if _COMMAND_NAME.fullmatch(text) is None:
        raise _invalid_field("is not a command's name; it stands without its slash")
    return text


def _validate_session_id(value: str) -> str:
    if _SESSION_ID.fullmatch(value) is None:
        raise PydanticCustomError("session_id", "is not a session's id")
    return value


class ExecuteRequest(BaseModel):
    """A request for work by the classic route. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt: Prompt
    agent: Annotated[
        str,
        AfterValidator(_validate_agent_name_or_path),
        _string_schema(),
        Field(description="A name; a path means its last part without `.md`."),
    ]
    max_budget_usd: Dollars | None = Field(default=5.0, description="Null means the nearest limit.")
    timeout_seconds: WholeSeconds | None = Field(default=2700, description="Null means the nearest limit.")
    metadata: dict[str, Any] | None = Field(default=None, description="Comes back as it is.")


ModelName = Annotated[
    str, AfterValidator(_validate_model_name), _string_schema(pattern=f"^{_MODEL_NAME.pattern}$")
]
AgentName = Annotated[
    str, AfterValidator(_validate_agent_name), _string_schema(pattern=f"^{NAME_PATTERN.pattern}$")
]
WorkspaceName = Annotated[
    str,
    AfterValidator(_validate_workspace),
    Field(max_length=2048),
    _string_schema(maxLength=2048, pattern=r"^(?!-)[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$"),
]


class CommandRequest(BaseModel):
    """A command of the agent, as a slash and its name would be in a terminal."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[
        str, AfterValidator(_validate_command_name), _string_schema(pattern=f"^{_COMMAND_NAME.pattern}$")
    ]
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

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_or_command(cls, value: Any, info: ValidationInfo) -> Any:
        """Return the prompt, which is the command's if there is one."""
        command = info.data.get("command")
        if value is not _NO_PROMPT:
            if command is not None:
                raise _invalid_field("cannot stand beside a command")
            return value
        if command is not None:
            return SlashCommand(command.name, command.arguments).prompt
        if "command" in info.data:
            raise PydanticCustomError("missing", "is required")
        return value


def _validate_commit(text: str) -> str:
    if _COMMIT.fullmatch(text) is None:
        raise _invalid_field("is not the whole id of a commit")
    return text


def _validate_base64(text: str) -> str:
    if not text.isascii() or _BASE64.fullmatch(text) is None or len(text) % 4:
        raise _invalid_field("is not base64")
    return text


CommitId = Annotated[str, AfterValidator(_validate_commit), _string_schema(pattern=f"^({_COMMIT.pattern})$")]


class UncommittedRequest(BaseModel):
    """Uncommitted changes of the caller's own clone: a commit of them, and the pack of what the repository lacks."""

    model_config = ConfigDict(extra="forbid")

    base: CommitId = Field(description="The newest commit below them that the workspace's repository has.")
    commit: CommitId = Field(description="The commit that holds them; the job works on it.")
    pack: Annotated[str, AfterValidator(_validate_base64), _string_schema(contentEncoding="base64")] = Field(
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
    ref: (
        Annotated[
            str, AfterValidator(_validate_git_ref), Field(max_length=255), _string_schema(maxLength=255)
        ]
        | None
    ) = None
    uncommitted: UncommittedRequest | None = Field(
        default=None, description="Uncommitted changes to work on, in place of a `ref`."
    )
    append_system_prompt: Prompt | None = None
    session: (
        Annotated[
            str, AfterValidator(_validate_session_id), _string_schema(pattern=f"^{_SESSION_ID.pattern}$")
        ]
        | None
    ) = Field(
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

    name: Annotated[
        str,
        AfterValidator(_validate_label),
        Field(max_length=100),
        _string_schema(maxLength=100, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$"),
    ] = Field(description="For people to tell it by.")
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


class CancelRequest(BaseModel):
    """A request to stop; it has no fields."""

    model_config = ConfigDict(extra="forbid")


class ChatMessage(BaseModel):
    """One message of a conversation: `content` is text or a list of parts."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, JsonValue]] | None = None
    refusal: str | None = None
    tool_calls: list[JsonValue] | None = None
    tool_call_id: str | None = None


class StreamOptions(BaseModel):
    """Options of a stream. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """A chat completion, as OpenAI's clients ask for it. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(max_length=512)
    messages: Annotated[list[ChatMessage], FailFast(), Field(min_length=1, max_length=10_000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    audio: JsonValue = None
    tools: list[JsonValue] | None = None
    tool_choice: JsonValue = None
    parallel_tool_calls: bool | None = None
    functions: list[JsonValue] | None = None
    function_call: JsonValue = None
    response_format: dict[str, JsonValue] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    metadata: Metadata | None = None
    user: Annotated[str, Field(max_length=512)] | None = None


_MAX_ITEMS = 10_000
_INPUT_SCHEMA: dict[str, Any] = {
    "description": "Text, or a list of messages and other items.",
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "maxItems": _MAX_ITEMS, "items": {"type": "object"}},
    ],
}


def _validate_input(value: Any) -> Any:
    if isinstance(value, str):
        return _validate_not_blank(value)
    if not isinstance(value, list):
        raise _invalid_field("has to be a string or a list of items")
    if not 1 <= len(value) <= _MAX_ITEMS:
        raise _invalid_field("has to have at least 1 item, and at most 10,000")
    if not all(isinstance(item, dict) for item in value):
        raise _invalid_field("has to be a list of objects")
    return value


class TextOptions(BaseModel):
    """Options of the text of a response. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    format: dict[str, JsonValue] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(BaseModel):
    """Options of the model's thinking. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseRequest(BaseModel):
    """A response, as OpenAI's clients ask for it. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(max_length=512)
    input: Annotated[JsonValue, AfterValidator(_validate_input), WithJsonSchema(_INPUT_SCHEMA)]
    instructions: str | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: JsonValue = None
    prompt: JsonValue = None
    text: TextOptions | None = None
    tools: list[JsonValue] | None = None
    tool_choice: str | dict[str, JsonValue] | None = None
    reasoning: ReasoningOptions | None = None
    include: list[str] | None = None
    metadata: Annotated[dict[str, str], AfterValidator(lambda value: _validate_size(16, value))] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    parallel_tool_calls: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None


class ResponseCancelRequest(BaseModel):
    """A request to stop a response; it has no fields. Fields in it are ignored."""

    model_config = ConfigDict(extra="ignore")


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
    session_id: (
        Annotated[
            str,
            AfterValidator(_validate_label),
            Field(max_length=128),
            _string_schema(maxLength=128, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$"),
        ]
        | None
    ) = Field(default=None, description="A name of the caller's choice; without one a new session begins.")
    model: (
        Annotated[
            str, AfterValidator(_validate_model_name), _string_schema(pattern=f"^{_MODEL_NAME.pattern}$")
        ]
        | None
    ) = None
