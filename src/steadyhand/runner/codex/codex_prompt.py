"""The prompt of Codex, which is one text: earlier turns of a conversation stand before it. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.errors import SpawnError
from steadyhand.ports import RunSpec
from steadyhand.runner.process.run_loop import prompt_for

MAX_CHARACTERS = 1 << 20
"""The characters that Codex takes; with more it asks no model (tried with 0.171.0)."""
_SPEAKERS = {"user": "User", "assistant": "Assistant"}


def codex_prompt(spec: RunSpec, *, resumed: bool) -> str:
    """Return the text of the prompt. Raise `SpawnError` if it is empty, too long, or more than text."""
    prompt = prompt_for(spec, resumed=resumed)
    if not prompt.strip():
        raise SpawnError("The prompt is empty.", retryable=False)  # Codex would ask the model all the same
    text = prompt if resumed else _with_history(spec, prompt)
    if len(text) > MAX_CHARACTERS:
        raise SpawnError(f"Codex takes prompts of at most {MAX_CHARACTERS} characters.", retryable=False)
    return text


def _with_history(spec: RunSpec, prompt: str) -> str:
    _text(spec.job.spec.content)
    turns = [f"{_SPEAKERS[turn.role]}: {_text(turn.content)}" for turn in spec.job.spec.history]
    if not turns:
        return prompt
    return "\n\n".join(["The conversation so far:", *turns, "The user's new message:", prompt])


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a turn. Raise `SpawnError` for a block of another kind."""
    if isinstance(content, str):
        return content
    other = next((str(block.get("type")) for block in content if block.get("type") != "text"), None)
    if other is not None:
        raise SpawnError(
            f"Codex takes text alone, and a turn has a block of the type {other}.", retryable=False
        )
    return "\n".join(str(block.get("text", "")) for block in content)
