"""The items of a Responses input: parsed as a conversation, searched for results of calls, and listed again."""

from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.api.openai.client_tool_results import ToolResult, ToolResults, group_tool_results
from steadyhand.api.openai.client_tools import flat_name
from steadyhand.api.openai.content_parts import ContentBlock, ContentPartParser
from steadyhand.api.openai.input_messages import ConversationMessage, blocks_text, call_result_text, call_text
from steadyhand.api.transport.errors import unsupported_parameter
from steadyhand.errors import InvalidRequest
from steadyhand.job import ToolOutput, output_text

InputItem = Mapping[str, Any]

_MESSAGE_ROLES = frozenset({"user", "assistant", "system", "developer"})
_IGNORED_TYPES = frozenset(
    {
        "code_interpreter_call",
        "compaction",
        "file_search_call",
        "image_generation_call",
        "mcp_call",
        "mcp_list_tools",
        "reasoning",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)
"""Items of earlier answers that a client sends back and that contain nothing for an agent."""
ITEM_REFERENCE = "item_reference"
_FUNCTION_CALL_OUTPUT = "function_call_output"
_FUNCTION_CALL = "function_call"


def normalize_input(request_input: Any) -> list[InputItem]:
    """Return an input's items; text is one message of the user."""
    if isinstance(request_input, str):
        return [{"type": "message", "role": "user", "content": request_input}]
    return list(request_input)


def item_type(item: InputItem) -> str | None:
    """Return an item's type, or None if it has none; messages and references may leave their type out."""
    type_ = item.get("type")
    if type_ is not None:
        return type_ if isinstance(type_, str) else None
    if "role" in item:
        return "message"
    return ITEM_REFERENCE if "id" in item and not set(item) - {"id", "type"} else None


def parse_input_items(items: Sequence[InputItem]) -> list[ConversationMessage]:
    """Parse items as a conversation. Raise `InvalidRequest` with the place of an unreadable item."""
    parser = ContentPartParser()
    messages: list[ConversationMessage] = []
    for index, item in enumerate(items):
        location = f"input/{index}"
        type_ = item_type(item)
        if type_ == _FUNCTION_CALL_OUTPUT:
            output = _parse_output(item, location, parser)
            text = call_result_text(_require_text(item, "call_id", location), output_text(output))
            images = [] if isinstance(output, str) else [block for block in output if block["type"] != "text"]
            messages.append(ConversationMessage("user", [*parser.parse(text, location), *images]))
        elif type_ == _FUNCTION_CALL:
            call_id, name, arguments = (
                _require_text(item, key, location) for key in ("call_id", "name", "arguments")
            )
            namespace = item.get("namespace")
            name = flat_name(namespace, name) if isinstance(namespace, str) else name
            blocks = parser.parse(call_text(call_id, name, arguments), location)
            messages.append(ConversationMessage("assistant", blocks, has_calls=True))
        elif type_ == "message":
            messages.append(_parse_message(item, location, parser))
        elif type_ not in _IGNORED_TYPES:
            raise unsupported_parameter(
                location, "is no item that can be taken; messages and function calls are"
            )
    return messages


def _parse_message(item: InputItem, location: str, parser: ContentPartParser) -> ConversationMessage:
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or role not in _MESSAGE_ROLES:
        raise InvalidRequest.at(f"/{location}/role", f"has to be one of {', '.join(sorted(_MESSAGE_ROLES))}")
    return ConversationMessage(
        role, parser.parse(_validate_content(content, f"{location}/content"), f"{location}/content")
    )


def _validate_content(content: Any, location: str) -> Any:
    if not isinstance(content, str | list):
        raise InvalidRequest.at(f"/{location}", "has to be text or a list of parts")
    for number, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict):
            raise InvalidRequest.at(f"/{location}/{number}", "has to be a part")
    return content


def _require_text(item: InputItem, name: str, location: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidRequest.at(f"/{location}/{name}", "has to be text")
    return value


def _parse_output(item: InputItem, location: str, parser: ContentPartParser | None = None) -> ToolOutput:
    """Return the output of a call: text, or blocks if there are images among them."""
    location = f"{location}/output"
    parser = parser or ContentPartParser()
    blocks = parser.parse(_validate_content(item.get("output"), location), location)
    for index, block in enumerate(blocks):
        if block["type"] not in ("text", "image"):
            reason = "only text and images of at most 3.75 MiB are taken here"
            raise unsupported_parameter(f"{location}/{index}", reason)
    return blocks_text(blocks) if all(block["type"] == "text" for block in blocks) else tuple(blocks)


def _parse_text_content(content: Any, location: str) -> str:
    blocks = ContentPartParser().parse(_validate_content(content, location), location)
    for index, block in enumerate(blocks):
        if block["type"] != "text":
            raise unsupported_parameter(f"{location}/{index}", "only text parts are taken here")
    return blocks_text(blocks)


# --- results ---------------------------------------------------------------------------------------


def tool_results_from_items(items: Sequence[InputItem]) -> ToolResults | None:
    """Return the results at the end of an input, if any; a user's message after them is part of the last result.

    Raise `InvalidRequest` as `group_tool_results`.
    """
    tool_results: list[ToolResult] = []
    user_texts: list[str] = []
    latest_items = items_after_answer(items)
    if not any(item_type(item) == _FUNCTION_CALL_OUTPUT for _, item in latest_items):
        return None
    for index, item in latest_items:
        location = f"input/{index}"
        if item_type(item) == _FUNCTION_CALL_OUTPUT:
            call_id = _require_text(item, "call_id", location)
            tool_results.append(ToolResult(f"{location}/call_id", call_id, _parse_output(item, location)))
        else:
            user_texts.append(_parse_text_content(item.get("content"), f"{location}/content"))
    if user_texts:
        said = "\n\n".join(["The user says:", *user_texts])
        tool_results[-1] = tool_results[-1]._replace(output=_append_text(tool_results[-1].output, said))
    return group_tool_results(tool_results, "input")


def items_after_answer(items: Sequence[InputItem]) -> list[tuple[int, InputItem]]:
    """Return the items after the agent's last item, with their places."""
    start = len(items)
    while start and (
        item_type(items[start - 1]) == _FUNCTION_CALL_OUTPUT
        or (item_type(items[start - 1]) == "message" and items[start - 1].get("role") != "assistant")
    ):
        start -= 1
    return list(enumerate(items))[start:]


def _append_text(output: ToolOutput, text: str) -> ToolOutput:
    return f"{output}\n\n{text}" if isinstance(output, str) else (*output, {"type": "text", "text": text})


def find_tool_result(items: Sequence[InputItem], call_id: str) -> ToolOutput | None:
    """Return the result of a call from any place among the items."""
    for index, item in enumerate(items):
        if item_type(item) == _FUNCTION_CALL_OUTPUT and item.get("call_id") == call_id:
            return _parse_output(item, f"input/{index}")
    return None


# --- what is shown again ---------------------------------------------------------------------------


def input_items_json(items: Sequence[InputItem]) -> list[dict[str, Any]]:
    """Return the input's messages and calls for a list of input items: without the bytes of images and files."""
    return [item_json for item in items if (item_json := _input_item_json(item)) is not None]


def _input_item_json(item: InputItem) -> dict[str, Any] | None:
    type_ = item_type(item)
    if type_ == _FUNCTION_CALL:
        call_fields = {name: item.get(name) for name in ("call_id", "name", "arguments")}
        if isinstance(item.get("namespace"), str):
            call_fields["namespace"] = item["namespace"]
        return {"type": _FUNCTION_CALL, "status": "completed", **call_fields}
    if type_ == _FUNCTION_CALL_OUTPUT:
        output = item.get("output")
        if not isinstance(output, str):
            output = [_input_part_json(part, is_assistant=False) for part in output or ()]
        return {
            "type": _FUNCTION_CALL_OUTPUT,
            "status": "completed",
            "call_id": item.get("call_id"),
            "output": output,
        }
    if type_ != "message":
        return None
    content = item.get("content")
    blocks: Sequence[Any] = (
        [{"type": "input_text", "text": content}] if isinstance(content, str) else content or ()
    )
    is_assistant = item["role"] == "assistant"
    parts = [_input_part_json(part, is_assistant=is_assistant) for part in blocks]
    return {"type": "message", "role": item["role"], "status": "completed", "content": parts}


def _input_part_json(part: ContentBlock, *, is_assistant: bool) -> dict[str, Any]:
    type_ = part.get("type")
    if type_ in ("input_image", "image_url"):
        return {
            "type": "input_image",
            "detail": part.get("detail", "auto"),
            "image_url": None,
            "file_id": None,
        }
    if type_ in ("input_file", "file"):
        return {"type": "input_file", "filename": part.get("filename"), "file_data": None, "file_id": None}
    text = part.get("text") or part.get("refusal") or ""
    if is_assistant:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}
