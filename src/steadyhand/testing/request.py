"""One request to the scripted model, and the facts that can be read from it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from steadyhand.testing import openai_conversation

SCENARIO_MARKER = re.compile(r"\[\[scenario:([A-Za-z0-9_-]+)\]\]")
Wire = Literal["messages", "chat", "responses"]
"""The API by which an answer is asked for: Messages, Chat Completions or Responses."""
_REMINDER = re.compile(r"<(system-reminder|environment_context)>.*?</\1>\s*", re.DOTALL)
_CWD = re.compile(
    r"(?:[Ww]orking directory: |<cwd>|working directory is `)(\S[^\n<`]*)"  # of Claude and opencode, codex, Kimi Code
)
_WIRES: dict[str, Wire] = {
    "/v1/messages": "messages",
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
}


@dataclass(frozen=True)
class ModelRequest:
    """A request as it came in: method, path, headers (names in lower case) and the JSON body."""

    method: str
    path: str
    headers: dict[str, str] = field(repr=False)
    body: dict[str, Any] = field(repr=False)

    @property
    def model(self) -> str:
        """The requested model."""
        return str(self.body.get("model", ""))

    @property
    def wire(self) -> Wire | None:
        """The API by which an answer is asked for, or None if none is."""
        return _WIRES.get(self.path.partition("?")[0]) if self.method == "POST" else None

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as it was sent; what came by a wire of OpenAI's is put in the form of the Messages API."""
        if self.wire == "responses":
            return openai_conversation.responses_messages(self.body)
        if self.wire == "chat":
            return openai_conversation.chat_messages(self.body)
        messages = self.body.get("messages")
        return messages if isinstance(messages, list) else []

    @property
    def system(self) -> str:
        """The system prompt as one text."""
        if self.is_openai:
            return openai_conversation.system_text(self.body, self.messages)
        return text_of(self.body.get("system"))

    @property
    def is_openai(self) -> bool:
        """True for a request by one of OpenAI's wires."""
        return self.wire in ("chat", "responses")

    @property
    def tools(self) -> list[str]:
        """The names of the tools the model may call."""
        return [str(tool.get("name")) for tool in self._tool_tables]

    @property
    def _tool_tables(self) -> list[dict[str, Any]]:
        return openai_conversation.tools(self.body) if self.is_openai else self.body.get("tools") or []

    @property
    def turns(self) -> list[tuple[str, str]]:
        """The conversation as pairs of role and text, tool calls and results left out."""
        return [(str(message.get("role")), text_of(message.get("content"))) for message in self.messages]

    @cached_property
    def prompt(self) -> str:
        """The text of the prompt that is being answered, without the reminders the CLI puts in front of it."""
        at = self._prompt_index
        return prompt_of(self.messages[at].get("content")) if at is not None else ""

    @cached_property
    def turn_index(self) -> int:
        """The number of assistant messages after the last prompt, so the index of the next turn (0 for the first)."""
        at = self._prompt_index
        later = self.messages[at + 1 :] if at is not None else self.messages
        return sum(message.get("role") == "assistant" for message in later)

    @property
    def last_result(self) -> str:
        """The text of the last tool result, or nothing."""
        for message in reversed(self.messages):
            for block in reversed(_blocks(message)):
                if block.get("type") == "tool_result":
                    return text_of(block.get("content"))
        return ""

    @property
    def cwd(self) -> str | None:
        """The working directory of the agent, from the system prompt or the messages."""
        match = _CWD.search(self.system) or _CWD.search("\n".join(text for _, text in self.turns))
        return match[1].strip() if match else None

    @property
    def is_side_request(self) -> bool:
        """True if the CLI asks for itself (a session's title, a probe) and not for the conversation.

        Such a request offers no tools and asks for JSON by ``output_config``, or wants a single token, or a title by
        its system prompt.
        """
        if self.is_openai:
            return not self.tools and "title generator" in self.system
        asks_for_json = bool((self.body.get("output_config") or {}).get("format"))
        return not self.tools and (asks_for_json or self.body.get("max_tokens") == 1)

    def tool_schema(self, name: str) -> dict[str, Any] | None:
        """Return the input schema of an offered tool, or None."""
        for tool in self._tool_tables:
            if tool.get("name") == name:
                schema = tool.get("input_schema")
                return schema if isinstance(schema, dict) else {}
        return None

    def tool_kind(self, name: str) -> str | None:
        """Return the type of an offered tool by its wire, such as ``function`` or ``custom``, or None."""
        return next((str(tool.get("type")) for tool in self._tool_tables if tool.get("name") == name), None)

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """The JSON schema that OpenAI's wires want the answer's text to satisfy, or None."""
        return openai_conversation.output_schema(self.body) if self.is_openai else None

    def has_called(self, name: str) -> bool:
        """Return whether the model has called this tool since the last prompt."""
        at = self._prompt_index
        later = self.messages[at + 1 :] if at is not None else self.messages
        return any(
            block.get("type") == "tool_use" and block.get("name") == name
            for message in later
            for block in _blocks(message)
        )

    @property
    def _session(self) -> list[Any]:
        """The fields by which agents name their session: the first is of Claude, the second of codex and Kimi Code."""
        return [self.body.get("metadata"), self.body.get("prompt_cache_key")]

    @property
    def retry_digest(self) -> str:
        """A digest that a request shares with its retries only."""
        key = json.dumps([*self._session, self.messages], sort_keys=True)
        return hashlib.sha256(key.encode()).hexdigest()

    @property
    def conversation_digest(self) -> str:
        """A digest that all requests of one conversation share, also after it was resumed."""
        prompts = [prompt_of(message.get("content")) for message in self.messages if _is_prompt(message)]
        key = json.dumps([*self._session, prompts[:1]], sort_keys=True)
        return hashlib.sha256(key.encode()).hexdigest()

    @cached_property
    def _prompt_index(self) -> int | None:
        """The index of the prompt: the last user message that names a scenario, else the last without a tool result.

        The CLI adds user messages of its own (after a refusal, or an empty answer), and those name none.
        """
        prompt_indexes = [at for at, message in enumerate(self.messages) if _is_prompt(message)]
        scenario_indexes = [
            at for at in prompt_indexes if SCENARIO_MARKER.search(prompt_of(self.messages[at].get("content")))
        ]
        candidates = scenario_indexes or prompt_indexes
        return candidates[-1] if candidates else None


def text_of(content: Any) -> str:
    """Return the text of a message's content, a string or a list of blocks."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(block.get("text", "")) for block in content if block.get("type") == "text")
    return ""


def prompt_of(content: Any) -> str:
    """Return the text of a user message without the reminders that the CLI puts in front of it."""
    return _REMINDER.sub("", text_of(content))


def _is_prompt(message: dict[str, Any]) -> bool:
    """Return whether a message is the user's: Kimi Code and codex add ones that are a reminder only."""
    content = message.get("content")
    return (
        message.get("role") == "user"
        and all(block.get("type") != "tool_result" for block in _blocks(message))
        and (bool(prompt_of(content)) or not text_of(content))
    )


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else []
