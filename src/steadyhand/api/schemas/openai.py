"""What the OpenAI routes answer, for the OpenAPI document. Answers are built elsewhere and not validated again."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from steadyhand.api.schemas.native import Reply


class Model(Reply):
    """A model of the OpenAI routes: an alias, an agent, or `agent/model`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Reply):
    """Models, as OpenAI's clients expect them."""

    object: Literal["list"]
    data: list[Model]


class Called(Reply):
    """A function and the arguments for it, as JSON."""

    name: str
    arguments: str


class ToolCall(Reply):
    """A call that the client is to make."""

    id: str
    type: Literal["function"]
    function: Called


class Answer(BaseModel):
    """What the agent answered: text, or calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCall] | None = None


class Choice(Reply):
    """The one choice."""

    index: int
    message: Answer
    logprobs: None
    finish_reason: Literal["stop", "tool_calls"]


class PromptTokens(Reply):
    """How many of the prompt's tokens came from the cache."""

    cached_tokens: int


class ChatUsage(Reply):
    """Tokens, cache reads and writes among the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class Completion(Reply):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


class Delta(BaseModel):
    """What a chunk adds: each key only where it adds something."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChunkChoice(Reply):
    """The one choice, piece by piece."""

    index: int
    delta: Delta
    logprobs: None
    finish_reason: Literal["stop", "tool_calls"] | None


class Chunk(BaseModel):
    """A piece of a streamed chat completion. With `include_usage` the last one has the usage, and no choice."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None


class StreamFault(Reply):
    """What ended a stream before its time."""

    message: str
    type: str
    param: str | None
    code: str


class ChunkFault(Reply):
    """The last of a stream whose run failed after it had begun."""

    error: StreamFault


class TokenDetails(Reply):
    """Which of the input's tokens were read from the cache, and which were written to it."""

    cached_tokens: int
    cache_write_tokens: int


class ReasoningDetails(Reply):
    """How many tokens were thought; they are not told apart here."""

    reasoning_tokens: int


class ResponseUsage(Reply):
    """Tokens, cache reads and writes among the input's."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class ResponseFault(Reply):
    """Why a response failed."""

    code: Literal["server_error", "rate_limit_exceeded"]
    message: str


class ResponseObject(Reply):
    """A response; what an agent has no use for is repeated as it was asked."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True, extra="allow")

    id: Annotated[str, Field(pattern="^resp_[0-9a-f]{12}(_[1-9][0-9]*)?$")]
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    background: bool
    error: ResponseFault | None
    incomplete_details: None
    instructions: str | None
    model: str
    output: list[dict[str, Any]] = Field(
        description="Messages, `mcp_call` for what the agent's own tools did, `function_call` for the client to make."
    )
    usage: ResponseUsage | None
    metadata: dict[str, Any]
    previous_response_id: str | None
    store: bool
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    max_output_tokens: int | None
    max_tool_calls: int | None
    reasoning: dict[str, Any]
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    truncation: Literal["auto", "disabled"]
    service_tier: str
    prompt_cache_key: str | None
    safety_identifier: str | None
    user: str | None


class ResponseEvent(Reply):
    """An event of a streamed response; what else it has depends on its `type`."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(pattern="^(response[.]|error$)")]
    sequence_number: int


class ResponseGone(Reply):
    """A response that was forgotten."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputMessage(Reply):
    """A message of the input."""

    id: str
    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    status: Literal["completed"]
    content: list[dict[str, Any]]


class InputCall(Reply):
    """An earlier call that the client made, in the input."""

    id: str
    type: Literal["function_call"]
    status: Literal["completed"]
    call_id: str
    name: str
    arguments: str


class InputOutput(Reply):
    """What came of a call, in the input."""

    id: str
    type: Literal["function_call_output"]
    status: Literal["completed"]
    call_id: str
    output: str | list[dict[str, Any]]


class InputItems(Reply):
    """A stretch of the input."""

    object: Literal["list"]
    data: list[InputMessage | InputCall | InputOutput]
    first_id: str | None
    last_id: str | None
    has_more: bool
