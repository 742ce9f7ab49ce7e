"""Request bodies of OpenAI's routes: what its clients send beside the known fields is ignored."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, JsonValue, WithJsonSchema

from steadyhand.api.schemas.field_types import Metadata, StringMetadata, invalid_field, validate_not_blank


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
        return validate_not_blank(value)
    if not isinstance(value, list):
        raise invalid_field("has to be a string or a list of items")
    if not 1 <= len(value) <= _MAX_ITEMS:
        raise invalid_field("has to have at least 1 item, and at most 10,000")
    if not all(isinstance(item, dict) for item in value):
        raise invalid_field("has to be a list of objects")
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
    metadata: StringMetadata | None = None
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
