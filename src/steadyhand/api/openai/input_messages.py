"""A conversation, taken apart: what stands above all, the earlier turns, and what is asked now."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from steadyhand.api.openai.content_parts import Block, Parts
from steadyhand.api.schemas.requests import ChatMessage
from steadyhand.api.transport.errors import unsupported
from steadyhand.errors import InvalidRequest
from steadyhand.job import Turn


class Conversation(NamedTuple):
    """What is asked now is `prompt`, or when it is more than text, the blocks of `content` with that text in them."""

    system: str | None
    history: tuple[Turn, ...]
    prompt: str
    content: tuple[Block, ...] = ()


class Spoken(NamedTuple):
    """One message: who said it, and what."""

    role: str
    blocks: Sequence[Block]


def spoken_in_chat(messages: Sequence[ChatMessage]) -> list[Spoken]:
    """Give the messages of a chat completion."""
    parts = Parts()
    spoken: list[Spoken] = []
    for place, message in enumerate(messages):
        where = f"messages/{place}"
        blocks = parts.blocks(message.content, f"{where}/content")
        role = message.role
        if role in ("tool", "function"):
            # An earlier call of the client: what came of it was told to the model.
            told = result_text(message.tool_call_id or "before", text_in(blocks))
            role, blocks = "user", parts.blocks(told, where)
        elif message.tool_calls:
            blocks = [*blocks, *parts.blocks(_called(message.tool_calls), where)]
        if message.role == "assistant" and message.refusal and not text_in(blocks):
            blocks = parts.blocks(message.refusal, where)
        spoken.append(Spoken(role, blocks))
    return spoken


def _called(calls: Sequence[Any]) -> str:
    lines = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(call, Mapping) and isinstance(function, Mapping):
            lines.append(call_line(call.get("id"), function.get("name"), function.get("arguments")))
    return "\n".join(lines)


def call_line(call_id: Any, name: Any, arguments: Any) -> str:
    """Give an earlier call of a tool of the client as what an agent is told."""
    return f"[Call {call_id}: {name}({arguments})]"


def result_text(call_id: str, text: str) -> str:
    """Give what came of an earlier call as what an agent is told."""
    return f"[The result of the call {call_id}:]\n{text}"


def taken_apart(spoken: Sequence[Spoken], where: str = "messages") -> Conversation:
    """Take a conversation apart. The last messages have to be the user's: they are what is asked."""
    system = [text_in(each.blocks) for each in spoken if each.role in ("system", "developer")]
    turns = [each for each in spoken if each.role in ("user", "assistant")]
    if not turns or turns[-1].role != "user":
        raise unsupported(where, "the last message has to be the user's; an answer is not continued")
    asked: list[Spoken] = []
    while turns and turns[-1].role == "user":
        asked.insert(0, turns.pop())
    prompt = joined([text_in(each.blocks) for each in asked])
    blocks = [block for each in asked for block in each.blocks if _says(block)]
    content = tuple(blocks) if any(block["type"] != "text" for block in blocks) else ()
    if not prompt and not content:
        raise InvalidRequest.at(f"/{where}", "the last message is empty")
    history = tuple(_turn(each) for each in turns if any(_says(block) for block in each.blocks))
    return Conversation(joined(system) or None, history, prompt or "(no text)", content)


def _turn(spoken: Spoken) -> Turn:
    role: Literal["user", "assistant"] = "assistant" if spoken.role == "assistant" else "user"
    blocks = [block for block in spoken.blocks if _says(block)]
    if all(block["type"] == "text" for block in blocks):
        return Turn(role, text_in(blocks))
    if role == "assistant":
        raise unsupported("messages", "an assistant's message may hold text only")
    return Turn(role, tuple(blocks))


def _says(block: Block) -> bool:
    return block["type"] != "text" or bool(block["text"].strip())


def text_in(blocks: Sequence[Block]) -> str:
    """Give the text among blocks."""
    return "\n".join(block["text"] for block in blocks if block["type"] == "text")


def joined(texts: Sequence[str]) -> str:
    """Put texts one below the other; those with nothing in them are left out."""
    return "\n\n".join(text for text in texts if text.strip())


def text_of(content: str | Sequence[Mapping[str, Any]] | None, where: str) -> str:
    """Give a message's text; raises `InvalidRequest` for parts that are not text."""
    blocks = Parts().blocks(content, where)
    for place, block in enumerate(blocks):
        if block["type"] != "text":
            raise unsupported(f"{where}/{place}", "only text parts are taken here")
    return text_in(blocks)
