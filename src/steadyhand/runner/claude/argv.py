"""The options of both command lines for a job and its agent's profile. Pure."""

import json
from pathlib import Path
from typing import NamedTuple

from steadyhand.agents import Agent
from steadyhand.errors import SpawnError
from steadyhand.job import Job
from steadyhand.json_schema import agent_schema
from steadyhand.money import format_dollars
from steadyhand.ports import AgentPaths, RunSpec
from steadyhand.runner.claude.lean_context import lean_note

MAX_ARGUMENT_BYTES = 100 * 1024
"""The longest argument in bytes: the kernel refuses one of 131,072."""

_UNCOMMITTED_NOTE = (
    "The repository is checked out as its user has it in front of them. A newest commit with the subject "
    "'Uncommitted changes' holds what they have not committed: `git show HEAD` shows it."
)


class SystemPromptFile(NamedTuple):
    """The text appended to the system prompt: the path where the service writes it, the agent's path, and the text."""

    host_path: Path
    agent_path: Path
    content: bytes


def common_options(spec: RunSpec, prompt_file: Path | None, *, with_schema: bool = True) -> list[str]:
    """Return the options; none for a job that sets none. `prompt_file` is appended to the system prompt.

    Raises `SpawnError` if the output schema is too large for an argument.
    """
    job, agent = spec.job, spec.agent
    values: list[tuple[str, str | None]] = [
        ("--model", job.spec.model or agent.model),
        ("--tools", None if agent.tools is None else ",".join(agent.tools)),
        ("--max-turns", _format_number(job.spec.max_turns or agent.max_turns)),
        ("--effort", job.spec.effort or agent.effort),
        ("--json-schema", _format_schema(job) if with_schema else None),
        ("--append-system-prompt-file", None if prompt_file is None else str(prompt_file)),
    ]
    return [word for name, value in values if value is not None for word in format_option(name, value)]


def format_option(name: str, value: str) -> list[str]:
    """Return one option. A value that begins with a dash is joined by `=`, so that it is not read as an option."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def format_budget(micros: int) -> str:
    """Return a budget in dollars as the earlier service wrote it on the command line: `5.0`, `0.5`."""
    return format_dollars(micros, min_places=1)


def system_prompt_file(spec: RunSpec, view: AgentPaths) -> SystemPromptFile | None:
    """Return the file appended to the system prompt: the agent's text, then the job's; None if there is no text."""
    text = system_prompt_text(spec.job, spec.agent)
    if text is None:
        return None
    checkout = spec.checkout
    # The next turn has a copy of this directory and the same session, so the name has the job and the run.
    name = f"append-system-prompt-{spec.job.id}-{spec.number}.md"
    folder = checkout.config_dir or checkout.paths.config_dir
    return SystemPromptFile(folder / name, (view.config_dir or folder) / name, text.encode())


def system_prompt_text(job: Job, agent: Agent) -> str | None:
    """Return the text appended to the system prompt, or None."""
    note = _UNCOMMITTED_NOTE if job.is_on_uncommitted else None
    # What changes comes last: what stands before it is the same for all jobs of the agent.
    texts = (agent.append_system_prompt, note, job.spec.append_system_prompt, lean_note(job, agent))
    parts = [text for text in texts if text]
    return "\n\n".join(parts) or None


def _format_number(value: int | None) -> str | None:
    return None if value is None else str(value)


def _format_schema(job: Job) -> str | None:
    if job.spec.output_schema is None:
        return None
    text = json.dumps(agent_schema(job.spec.output_schema), separators=(",", ":"), ensure_ascii=False)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_ARGUMENT_BYTES:
        raise SpawnError(f"The output schema is larger than {MAX_ARGUMENT_BYTES} bytes.", retryable=False)
    return text
