"""The items of a Responses input: read as a conversation, looked through for results of calls, and shown again."""

from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.api.openai.client_tool_results import Brought, Result, brought_by
from steadyhand.api.openai.content_parts import Block, Parts
from steadyhand.api.openai.input_messages import Spoken, call_line, result_text, text_in
from steadyhand.api.transport.errors import unsupported
from steadyhand.errors import InvalidRequest

Item = Mapping[str, Any]

_ROLES = frozenset({"user", "assistant", "system", "developer"})
_PASSED_OVER = frozenset({"reasoning", "mcp_list_tools", "mcp_call", "compaction"})
"""Items of earlier answers that a client sends back and that say nothing to an agent of ours."""
REFERENCE = "item_reference"
_OUTPUT = "function_call_output"
_CALL = "function_call"


def items_of(given: Any) -> list[Item]:
    """Give an input's items; text is one message of the user's."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return list(given)


def kind_of(item: Item) -> str | None:
    """Give an item's type: a message need not say what it is, and neither need a reference; null for what is none."""
    kind = item.get("type")
    if kind is not None:
        return kind if isinstance(kind, str) else None
    if "role" in item:
        return "message"
    return REFERENCE if "id" in item and not set(item) - {"id", "type"} else None


def spoken_in(items: Sequence[Item]) -> list[Spoken]:
    """Read items as a conversation. Raises `InvalidRequest` for what cannot be read, by its place."""
    parts = Parts()
    spoken: list[Spoken] = []
    for place, item in enumerate(items):
        where = f"input/{place}"
        kind = kind_of(item)
        if kind == _OUTPUT:
            told = result_text(_text_field(item, "call_id", where), _output(item, where))
            spoken.append(Spoken("user", parts.blocks(told, where)))
        elif kind == _CALL:
            words = (_text_field(item, name, where) for name in ("call_id", "name", "arguments"))
            spoken.append(Spoken("assistant", parts.blocks(call_line(*words), where)))
        elif kind == "message":
            spoken.append(_message(item, where, parts))
        elif kind not in _PASSED_OVER:
            raise unsupported(where, "is no item that can be taken; messages and function calls are")
    return spoken


def _message(item: Item, where: str, parts: Parts) -> Spoken:
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest.at(f"/{where}/role", f"has to be one of {', '.join(sorted(_ROLES))}")
    return Spoken(role, parts.blocks(_parts_of(content, f"{where}/content"), f"{where}/content"))


def _parts_of(content: Any, where: str) -> Any:
    if not isinstance(content, str | list):
        raise InvalidRequest.at(f"/{where}", "has to be text or a list of parts")
    for number, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict):
            raise InvalidRequest.at(f"/{where}/{number}", "has to be a part")
    return content


def _text_field(item: Item, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidRequest.at(f"/{where}/{name}", "has to be text")
    return value


def _output(item: Item, where: str) -> str:
    """Give what came of a call, as text."""
    return _only_text(item.get("output"), f"{where}/output")


def _only_text(content: Any, where: str) -> str:
    blocks = Parts().blocks(_parts_of(content, where), where)
    for place, block in enumerate(blocks):
        if block["type"] != "text":
            raise unsupported(f"{where}/{place}", "only text parts are taken here")
    return text_in(blocks)


# --- results ---------------------------------------------------------------------------------------


def brought_in(items: Sequence[Item]) -> Brought | None:
    """Give the results that an input ends with, if it does; what the user says after them goes with the last.

    Raises `InvalidRequest` as `brought_by`.
    """
    given: list[Result] = []
    said: list[str] = []
    last = last_of(items)
    if not any(kind_of(item) == _OUTPUT for _, item in last):
        return None
    for place, item in last:
        where = f"input/{place}"
        if kind_of(item) == _OUTPUT:
            call_id = _text_field(item, "call_id", where)
            given.append(Result(f"{where}/call_id", call_id, _output(item, where)))
        else:
            said.append(_only_text(item.get("content"), f"{where}/content"))
    if said:
        given[-1] = given[-1]._replace(text="\n\n".join([given[-1].text, "The user says:", *said]))
    return brought_by(given, "input")


def last_of(items: Sequence[Item]) -> list[tuple[int, Item]]:
    """Give what came after the last that the agent said, with its place."""
    first = len(items)
    while first and (
        kind_of(items[first - 1]) == _OUTPUT
        or (kind_of(items[first - 1]) == "message" and items[first - 1].get("role") != "assistant")
    ):
        first -= 1
    return list(enumerate(items))[first:]


def result_among(items: Sequence[Item], call_id: str) -> str | None:
    """Give the result of a call from wherever it stands among the items."""
    for place, item in enumerate(items):
        if kind_of(item) == _OUTPUT and item.get("call_id") == call_id:
            return _output(item, f"input/{place}")
    return None


# --- what is shown again ---------------------------------------------------------------------------


def shown_input(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Give the input's messages and calls as they are listed again: without the bytes of images and files."""
    return [shown for item in items if (shown := _shown(item)) is not None]


def _shown(item: Item) -> dict[str, Any] | None:
    kind = kind_of(item)
    if kind == _CALL:
        told = {name: item.get(name) for name in ("call_id", "name", "arguments")}
        return {"type": _CALL, "status": "completed", **told}
    if kind == _OUTPUT:
        output = item.get("output")
        if not isinstance(output, str):
            output = [_shown_part(part, answer=False) for part in output or ()]
        return {"type": _OUTPUT, "status": "completed", "call_id": item.get("call_id"), "output": output}
    if kind != "message":
        return None
    content = item.get("content")
    blocks: Sequence[Any] = (
        [{"type": "input_text", "text": content}] if isinstance(content, str) else content or ()
    )
    answer = item["role"] == "assistant"
    parts = [_shown_part(part, answer=answer) for part in blocks]
    return {"type": "message", "role": item["role"], "status": "completed", "content": parts}


def _shown_part(part: Block, *, answer: bool) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("input_image", "image_url"):
        return {
            "type": "input_image",
            "detail": part.get("detail", "auto"),
            "image_url": None,
            "file_id": None,
        }
    if kind in ("input_file", "file"):
        return {"type": "input_file", "filename": part.get("filename"), "file_data": None, "file_id": None}
    text = part.get("text") or part.get("refusal") or ""
    if answer:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}
