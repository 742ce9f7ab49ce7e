"""The input messages of a conversation, split into system text, history and prompt."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from steadyhand.api.openai.content_parts import ContentBlock, ContentPartParser
from steadyhand.api.schemas.openai_requests import ChatMessage
from steadyhand.api.transport.errors import unsupported_parameter
from steadyhand.errors import InvalidRequest
from steadyhand.job import Turn

CONTINUE_PROMPT = "Continue."
"""The user's turn that is added if a conversation does not end with one."""


class SplitConversation(NamedTuple):
    """A conversation in parts. If the prompt is more than text, `content` holds all its blocks, the text among them."""

    system: str | None
    history: tuple[Turn, ...]
    prompt: str
    content: tuple[ContentBlock, ...] = ()


class ConversationMessage(NamedTuple):
    """One message: its role and its content blocks; `has_calls` if it calls tools of the client."""

    role: str
    blocks: Sequence[ContentBlock]
    has_calls: bool = False


def parse_chat_messages(messages: Sequence[ChatMessage]) -> list[ConversationMessage]:
    """Return the messages of a chat completion."""
    parser = ContentPartParser()
    parsed: list[ConversationMessage] = []
    for index, message in enumerate(messages):
        location = f"messages/{index}"
        blocks = parser.parse(message.content, f"{location}/content")
        role = message.role
        if role in ("tool", "function"):
            # An earlier call of the client: what came of it was told to the model.
            result = call_result_text(message.tool_call_id or "before", blocks_text(blocks))
            role, blocks = "user", parser.parse(result, location)
        elif message.tool_calls:
            blocks = [*blocks, *parser.parse(_earlier_calls_text(message.tool_calls), location)]
        if message.role == "assistant" and message.refusal and not blocks_text(blocks):
            blocks = parser.parse(message.refusal, location)
        parsed.append(
            ConversationMessage(role, blocks, has_calls=role == "assistant" and bool(message.tool_calls))
        )
    return parsed


def _earlier_calls_text(calls: Sequence[Any]) -> str:
    lines = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(call, Mapping) and isinstance(function, Mapping):
            lines.append(call_text(call.get("id"), function.get("name"), function.get("arguments")))
    return "\n".join(lines)


def call_text(call_id: Any, name: Any, arguments: Any) -> str:
    """Return an earlier call of a client's tool as text for an agent."""
    return f"[Call {call_id}: {name}({arguments})]"


def call_result_text(call_id: str, text: str) -> str:
    """Return the result of an earlier call as text for an agent."""
    return f"[The result of the call {call_id}:]\n{text}"


def split_conversation(
    messages: Sequence[ConversationMessage], location: str = "messages"
) -> SplitConversation:
    """Split a conversation. The user's last messages are the prompt; without any the prompt is `CONTINUE_PROMPT`."""
    system = [blocks_text(message.blocks) for message in messages if message.role in ("system", "developer")]
    turns = [message for message in messages if message.role in ("user", "assistant")]
    while turns and turns[-1].role == "assistant" and not _is_filled(turns[-1]):
        turns.pop()
    last_messages: list[ConversationMessage] = []
    while turns and turns[-1].role == "user":
        last_messages.insert(0, turns.pop())
    if not last_messages:
        _check_calls_answered(turns, location)
        if turns or any(text.strip() for text in system):
            last_messages = [
                ConversationMessage("user", ContentPartParser().parse(CONTINUE_PROMPT, location))
            ]
    prompt = join_paragraphs([blocks_text(message.blocks) for message in last_messages])
    blocks = [block for message in last_messages for block in message.blocks if _has_content(block)]
    content = tuple(blocks) if any(block["type"] != "text" for block in blocks) else ()
    if not prompt and not content:
        raise InvalidRequest.at(f"/{location}", "the last message is empty")
    history = tuple(_to_turn(message) for message in turns if _is_filled(message))
    return SplitConversation(join_paragraphs(system) or None, history, prompt or "(no text)", content)


def _check_calls_answered(turns: Sequence[ConversationMessage], location: str) -> None:
    """Refuse a conversation that ends with calls of the client's tools, without their results."""
    for message in reversed(turns):
        if message.role == "user":
            return
        if message.has_calls:
            raise unsupported_parameter(
                location, "the last message has calls of tools, and no results follow"
            )


def _is_filled(message: ConversationMessage) -> bool:
    return any(_has_content(block) for block in message.blocks)


def _to_turn(message: ConversationMessage) -> Turn:
    role: Literal["user", "assistant"] = "assistant" if message.role == "assistant" else "user"
    blocks = [block for block in message.blocks if _has_content(block)]
    if all(block["type"] == "text" for block in blocks):
        return Turn(role, blocks_text(blocks))
    if role == "assistant":
        raise unsupported_parameter("messages", "an assistant's message may hold text only")
    return Turn(role, tuple(blocks))


def _has_content(block: ContentBlock) -> bool:
    return block["type"] != "text" or bool(block["text"].strip())


def blocks_text(blocks: Sequence[ContentBlock]) -> str:
    """Return the text among blocks."""
    return "\n".join(block["text"] for block in blocks if block["type"] == "text")


def join_paragraphs(texts: Sequence[str]) -> str:
    """Join texts with a blank line between them; blank texts are left out."""
    return "\n\n".join(text for text in texts if text.strip())


def parse_text_content(content: str | Sequence[Mapping[str, Any]] | None, location: str) -> str:
    """Return a message's text; raise `InvalidRequest` for parts that are not text."""
    blocks = ContentPartParser().parse(content, location)
    for index, block in enumerate(blocks):
        if block["type"] != "text":
            raise unsupported_parameter(f"{location}/{index}", "only text parts are taken here")
    return blocks_text(blocks)
