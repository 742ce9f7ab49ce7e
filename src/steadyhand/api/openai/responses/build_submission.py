"""Build the submission for a request of the Responses API, and the parameters that the response repeats."""

from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.api.openai.client_tools import (
    HOSTED_TOOL_TYPES,
    ClientTools,
    parse_response_tools,
    resolve_choice,
)
from steadyhand.api.openai.input_messages import split_conversation
from steadyhand.api.openai.output_spec import (
    ALLOWED_TOOLS,
    TOOL_CHOICE_ERROR,
    OutputSpec,
    build_output_spec,
    parse_format_schema,
)
from steadyhand.api.openai.request_document import StoredRequest, new_document
from steadyhand.api.openai.responses.input_items import (
    InputItem,
    input_items_json,
    items_after_answer,
    parse_input_items,
)
from steadyhand.api.openai.submission_fields import build_spec
from steadyhand.api.schemas.openai_requests import ResponseRequest
from steadyhand.api.transport.context import ModelAlias
from steadyhand.api.transport.errors import unsupported_parameter
from steadyhand.control import Submission
from steadyhand.errors import InvalidRequest


def reject_unsupported(asked: ResponseRequest) -> None:
    """Raise `InvalidRequest` (`unsupported_parameter`) with the name of a parameter that is not supported."""
    if asked.conversation is not None:
        raise unsupported_parameter(
            "conversation", "conversations are not kept here; send the earlier messages as input"
        )
    if asked.prompt is not None:
        raise unsupported_parameter("prompt", "there are no stored prompts here")
    if asked.top_logprobs:
        raise unsupported_parameter("top_logprobs", "agents have no log probabilities")
    for place, name in enumerate(asked.include or ()):
        if name.endswith("logprobs"):
            raise unsupported_parameter(f"include/{place}", "agents have no log probabilities")
    if asked.background and asked.store is False:
        raise InvalidRequest.at("/store", "a response in the background has to be stored")


def build_submission(asked: ResponseRequest, alias: ModelAlias, items: Sequence[InputItem]) -> Submission:
    """Build the submission for a request with these items as its input; raise `InvalidRequest`."""
    wanted = _build_output_spec(asked, parse_response_tools(asked.tools))
    conversation = split_conversation(parse_input_items(items), "input")
    spec = build_spec(
        asked,
        conversation,
        wanted,
        model=alias.model,
        effort=None if asked.reasoning is None else asked.reasoning.effort,
        instructions=asked.instructions,
        request=new_document(_stored_request(asked, items), wanted.forced_call),
    )
    # A run in the background goes on after the service was stopped; for another one nobody waits then.
    return Submission(spec, agent=alias.agent, on_interrupt="resume" if asked.background else "fail")


def _build_output_spec(body: ResponseRequest, tools: ClientTools) -> OutputSpec:
    schema = None
    if body.text is not None and body.text.format is not None:
        text_format = body.text.format
        schema = parse_format_schema(text_format.get("type"), text_format, "text/format", "schema")
    choice = body.tool_choice
    if isinstance(choice, Mapping) and choice.get("type") not in ("function", ALLOWED_TOOLS):
        raise unsupported_parameter("tool_choice", TOOL_CHOICE_ERROR)
    choice = resolve_choice(choice, tools)
    return build_output_spec(schema, tools.functions, choice, parallel=body.parallel_tool_calls is not False)


# --- what is shown again ---------------------------------------------------------------------------


def later_request(body: ResponseRequest, items: Sequence[InputItem]) -> StoredRequest:
    """Return the part of a follow-up request that a job stores: of its input only the new items."""
    new_items = [item for _, item in items_after_answer(items)]
    return _stored_request(body, new_items)


def _stored_request(body: ResponseRequest, items: Sequence[InputItem]) -> StoredRequest:
    return {
        "model": body.model,
        "instructions": body.instructions,
        "background": bool(body.background),
        "metadata": body.metadata or None,
        "stored": body.store is not False,
        "input": input_items_json(items),
        "echo": _echoed_parameters(body),
    }


def _echoed_parameters(body: ResponseRequest) -> dict[str, Any]:
    """Return the parameters that a response repeats, also those that an agent does not use."""
    reasoning: dict[str, Any] = {"effort": None, "summary": None}
    if body.reasoning is not None:
        reasoning = {"effort": body.reasoning.effort, "summary": body.reasoning.summary}
    text = {} if body.text is None else body.text.model_dump(exclude_none=True)
    return {
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "presence_penalty": _number_or_default(body.presence_penalty, 0.0),
        "frequency_penalty": _number_or_default(body.frequency_penalty, 0.0),
        "temperature": _number_or_default(body.temperature, 1.0),
        "top_p": _number_or_default(body.top_p, 1.0),
        "prompt_cache_key": body.prompt_cache_key,
        "safety_identifier": body.safety_identifier,
        "user": body.user,
        "reasoning": reasoning,
        "store": body.store is not False,
        "text": {"format": _format_json(text.get("format")), "verbosity": text.get("verbosity", "medium")},
        "tool_choice": _choice_json(body.tool_choice),
        "tools": [
            _tool_json(tool) for tool in body.tools or () if isinstance(tool, Mapping) and _is_echoed(tool)
        ],
        "truncation": body.truncation or "disabled",
    }


def _number_or_default(value: float | None, default: float) -> float:
    return default if value is None else value


def _format_json(text_format: Mapping[str, Any] | None) -> dict[str, Any]:
    if text_format is None or text_format.get("type") == "text":
        return {"type": "text"}
    if text_format.get("type") == "json_object":
        return {"type": "json_object"}
    name = text_format.get("name")
    return {
        "type": "json_schema",
        "name": name if isinstance(name, str) else "answer",
        "description": text_format.get("description"),
        "schema": text_format.get("schema", {"type": "object"}),
        "strict": bool(text_format.get("strict")),
    }


def _choice_json(choice: Any) -> Any:
    # OpenAI's types have no namespace here.
    if not isinstance(choice, Mapping):
        return choice or "auto"
    return {key: value for key, value in choice.items() if key != "namespace"}


def _is_echoed(tool: Mapping[str, Any]) -> bool:
    return tool.get("type") not in HOSTED_TOOL_TYPES


def _tool_json(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") == "namespace":
        inner_tools = [_tool_json(inner) for inner in tool["tools"]]
        return {
            "type": "namespace",
            "name": tool["name"],
            "description": tool.get("description") or "",
            "tools": inner_tools,
        }
    return {
        "type": "function",
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("parameters"),
        "strict": tool.get("strict"),
    }
