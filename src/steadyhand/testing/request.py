"""One request to the scripted model, and the facts that can be read from it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

SCENARIO_MARKER = re.compile(r"\[\[scenario:([A-Za-z0-9_-]+)\]\]")
_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>\s*", re.DOTALL)
_CWD = re.compile(r"(?:Primary working directory|Working directory): (\S[^\n<]*)")


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
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as it was sent."""
        messages = self.body.get("messages")
        return messages if isinstance(messages, list) else []

    @property
    def system(self) -> str:
        """The system prompt as one text."""
        return text_of(self.body.get("system"))

    @property
    def tools(self) -> list[str]:
        """The names of the tools the model may call."""
        return [str(tool.get("name")) for tool in self.body.get("tools") or []]

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

        Such a request offers no tools and asks for JSON by ``output_config``, or wants a single token.
        """
        asks_for_json = bool((self.body.get("output_config") or {}).get("format"))
        return not self.tools and (asks_for_json or self.body.get("max_tokens") == 1)

    def tool_schema(self, name: str) -> dict[str, Any] | None:
        """Return the input schema of an offered tool, or None."""
        for tool in self.body.get("tools") or []:
            if tool.get("name") == name:
                schema = tool.get("input_schema")
                return schema if isinstance(schema, dict) else {}
        return None

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
    def retry_digest(self) -> str:
        """A digest that a request shares with its retries only."""
        key = json.dumps([self.body.get("metadata"), self.messages], sort_keys=True)
        return hashlib.sha256(key.encode()).hexdigest()

    @property
    def conversation_digest(self) -> str:
        """A digest that all requests of one conversation share, also after it was resumed."""
        prompts = [prompt_of(message.get("content")) for message in self.messages if _is_prompt(message)]
        key = json.dumps([self.body.get("metadata"), prompts[:1]], sort_keys=True)
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
    return message.get("role") == "user" and all(
        block.get("type") != "tool_result" for block in _blocks(message)
    )


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else []
