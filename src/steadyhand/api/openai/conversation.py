"""The messages of a chat completion, taken apart."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from steadyhand.api.models import ChatMessage
from steadyhand.api.openai.runs import unsupported
from steadyhand.errors import InvalidRequest
from steadyhand.job import Turn


class Conversation(NamedTuple):
    """A list of messages, taken apart: what stands above all, the earlier turns, and what is asked now."""

    system: str | None
    history: tuple[Turn, ...]
    prompt: str


def taken_apart(messages: Sequence[ChatMessage]) -> Conversation:
    """Take a conversation apart. The last messages have to be the user's: they are what is asked."""
    system: list[str] = []
    turns: list[Turn] = []
    for place, message in enumerate(messages):
        where = f"messages/{place}"
        if message.role in ("tool", "function") or message.tool_calls:
            raise unsupported(where, "tool calls of the client are not built yet")
        text = text_of(message.content, f"{where}/content")
        if message.role in ("system", "developer"):
            system.append(text)
        elif message.role == "user":
            turns.append(Turn("user", text))
        elif said := text or message.refusal:
            turns.append(Turn("assistant", said))
    if not turns or turns[-1].role != "user":
        raise unsupported("messages", "the last message has to be the user's; an answer is not continued")
    asked: list[str] = []
    while turns and turns[-1].role == "user":
        asked.insert(0, str(turns.pop().content))
    prompt = joined(asked)
    if not prompt:
        raise InvalidRequest.at("/messages", "the last message is empty")
    kept = tuple(turn for turn in turns if str(turn.content).strip())
    return Conversation(joined(system) or None, kept, prompt)


def joined(texts: Sequence[str]) -> str:
    """Put texts one below the other; those with nothing in them are left out."""
    return "\n\n".join(text for text in texts if text.strip())


def text_of(content: str | Sequence[Mapping[str, Any]] | None, where: str) -> str:
    """Give a message's text; raises `InvalidRequest` for parts that are not text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for place, part in enumerate(content):
        kind = part.get("type")
        text = part.get("refusal" if kind == "refusal" else "text")
        if kind not in ("text", "refusal"):
            raise unsupported(f"{where}/{place}", "only text parts are built yet")
        if not isinstance(text, str):
            raise InvalidRequest.at(f"/{where}/{place}", "has no text")
        texts.append(text)
    return "\n".join(texts)
