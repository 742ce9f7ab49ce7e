"""Response bodies and events of the OpenAI routes, as `native_bodies` has those of the other routes."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from steadyhand.api.schemas.native_bodies import NullIfAbsent

FinishReason = Literal["stop", "tool_calls", "content_filter"]
ResponseStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


class Model(TypedDict):
    """A model of the OpenAI routes: an alias, an agent, or `agent/model`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """Models, as OpenAI's clients expect them."""

    object: Literal["list"]
    data: list[Model]


class Called(TypedDict):
    """A function and the arguments for it, as JSON."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call that the client is to make."""

    id: str
    type: Literal["function"]
    function: Called


class Answer(TypedDict):
    """The answer of the agent: text, calls, or the refusal of the model."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: NotRequired[NullIfAbsent[str]]
    tool_calls: NotRequired[NullIfAbsent[list[ToolCall]]]


class Choice(TypedDict):
    """The one choice."""

    index: int
    message: Answer
    logprobs: None
    finish_reason: FinishReason


class PromptTokens(TypedDict):
    """The numbers of the prompt's tokens that were read from the cache, and written to it."""

    cached_tokens: int
    cache_write_tokens: int


class ChatUsage(TypedDict):
    """Tokens, cache reads and writes among the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class Completion(TypedDict):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


class Delta(TypedDict):
    """The addition of a chunk: it has only the keys to which it adds."""

    role: NotRequired[NullIfAbsent[Literal["assistant"]]]
    content: NotRequired[NullIfAbsent[str]]
    refusal: NotRequired[NullIfAbsent[str]]
    reasoning_content: NotRequired[NullIfAbsent[str]]
    tool_calls: NotRequired[NullIfAbsent[list[dict[str, Any]]]]


class ChunkChoice(TypedDict):
    """The one choice, piece by piece."""

    index: int
    delta: Delta
    logprobs: None
    finish_reason: FinishReason | None


class Chunk(TypedDict):
    """A piece of a streamed chat completion. With `include_usage` the last one has the usage, and no choice."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChunkChoice]
    usage: NotRequired[NullIfAbsent[ChatUsage]]


class StreamFault(TypedDict):
    """The error that ended a stream early."""

    message: str
    type: str
    param: str | None
    code: str


class ChunkFault(TypedDict):
    """The last of a stream whose run failed after it had begun."""

    error: StreamFault


class TokenDetails(TypedDict):
    """The numbers of the input's tokens that were read from the cache, and written to it."""

    cached_tokens: int
    cache_write_tokens: int


class ReasoningDetails(TypedDict):
    """The number of tokens of the model's thinking; they are not counted apart here."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Tokens, cache reads and writes among the input's."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class ResponseFault(TypedDict):
    """The reason why a response failed."""

    code: Literal["server_error", "rate_limit_exceeded"]
    message: str


@with_config(ConfigDict(extra="allow"))
class ResponseObject(TypedDict):
    """A response; what an agent has no use for is repeated as it was asked."""

    id: Annotated[str, Field(pattern="^resp_[0-9a-f]{12}(_[1-9][0-9]*)?$")]
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: ResponseStatus
    background: bool
    error: ResponseFault | None
    incomplete_details: None
    instructions: str | None
    model: str
    output: Annotated[
        list[dict[str, Any]],
        Field(
            description="Messages, `reasoning` for thinking, `mcp_call` for tools of the agent, `function_call` for "
            "calls that the client makes."
        ),
    ]
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


@with_config(ConfigDict(extra="allow"))
class ResponseEvent(TypedDict):
    """An event of a streamed response; what else it has depends on its `type`."""

    type: Annotated[str, Field(pattern="^(response[.]|error$)")]
    sequence_number: int


class ResponseGone(TypedDict):
    """A response that was forgotten."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputMessage(TypedDict):
    """A message of the input."""

    id: str
    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    status: Literal["completed"]
    content: list[dict[str, Any]]


class InputCall(TypedDict):
    """An earlier call that the client made, in the input."""

    id: str
    type: Literal["function_call"]
    status: Literal["completed"]
    call_id: str
    name: str
    arguments: str


class InputOutput(TypedDict):
    """The output of a call, in the input."""

    id: str
    type: Literal["function_call_output"]
    status: Literal["completed"]
    call_id: str
    output: str | list[dict[str, Any]]


class InputItems(TypedDict):
    """A stretch of the input."""

    object: Literal["list"]
    data: list[InputMessage | InputCall | InputOutput]
    first_id: str | None
    last_id: str | None
    has_more: bool
