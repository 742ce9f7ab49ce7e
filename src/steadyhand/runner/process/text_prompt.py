"""The prompt of an agent that takes one text: earlier turns of a conversation stand before it. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.errors import SpawnError
from steadyhand.ports import RunSpec
from steadyhand.runner.process.run_loop import prompt_for

_SPEAKERS = {"user": "User", "assistant": "Assistant"}


def text_prompt(spec: RunSpec, program: str, *, resumed: bool, max_characters: int | None = None) -> str:
    """Return the text of the prompt.

    Raise `SpawnError` if it is empty, longer than the program takes, or more than text.
    """
    prompt = prompt_for(spec, resumed=resumed)
    if not prompt.strip():
        raise SpawnError("The prompt is empty.", retryable=False)  # some ask the model all the same
    text = prompt if resumed else _with_history(spec, program, prompt)
    if max_characters is not None and len(text) > max_characters:
        raise SpawnError(f"{program} takes prompts of at most {max_characters} characters.", retryable=False)
    return text


def _with_history(spec: RunSpec, program: str, prompt: str) -> str:
    _text(spec.job.spec.content, program)
    turns = [f"{_SPEAKERS[turn.role]}: {_text(turn.content, program)}" for turn in spec.job.spec.history]
    if not turns:
        return prompt
    return "\n\n".join(["The conversation so far:", *turns, "The user's new message:", prompt])


def _text(content: str | Sequence[Mapping[str, Any]], program: str) -> str:
    """Return the text of a turn. Raise `SpawnError` for a block of another kind."""
    if isinstance(content, str):
        return content
    other = next((str(block.get("type")) for block in content if block.get("type") != "text"), None)
    if other is not None:
        raise SpawnError(
            f"{program} takes text alone, and a turn has a block of the type {other}.", retryable=False
        )
    return "\n".join(str(block.get("text", "")) for block in content)
