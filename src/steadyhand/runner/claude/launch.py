"""The launch of the CLI in its `stream` mode: its command line, its files, and the prompt as a message. Pure."""

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steadyhand.job import Turn
from steadyhand.ports import Command, RunSpec, Sandbox
from steadyhand.runner.claude.argv import common_options, format_budget, format_option, system_prompt_file
from steadyhand.runner.claude.attachments import attachment_dirs, attachment_files, prepare_turns
from steadyhand.runner.claude.environment import WAITING_ENV, agent_environment, temp_dir
from steadyhand.runner.claude.lean_context import lean_environment, lean_options
from steadyhand.runner.claude.mcp_tools import MCP_CONFIG
from steadyhand.runner.claude.session import (
    config_dir_of,
    resumes_session,
    session_directory,
    session_file,
)
from steadyhand.runner.process.agent_process import LaunchSpec

_TOOL_TIMEOUT_MILLISECONDS = 24 * 60 * 60 * 1000
_HISTORY_TIME = "2026-01-01T00:00:00.000Z"


def stream_argv(
    cli: Path,
    spec: RunSpec,
    session: str,
    prompt_file: Path | None,
    *,
    resumed: bool = False,
    enforce_budget: bool = True,
    details_later: bool = False,
) -> list[str]:
    """Return the command line. `prompt_file` holds the text that is appended to the system prompt.

    With `details_later` it leaves out what `warm.initialize_fields` sets.

    With `budgeted` the CLI enforces the budget by its own estimate; where the gateway enforces it, that could end a run
    too early. Raises `SpawnError` if the output schema is too large for an argument.
    """
    job, agent = spec.job, spec.agent
    argv = [str(cli), "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
    argv += ["--include-partial-messages", "--dangerously-skip-permissions"]
    argv += ["--max-budget-usd", format_budget(job.budget_micros)] if enforce_budget else []
    argv += ["--setting-sources", "user,project,local" if spec.checkout.full_trust else "user"]
    argv += ["--resume" if job.spec.history or resumed else "--session-id", session]
    argv += [] if agent.definition is None else format_option("--agent", agent.definition)
    argv += [*common_options(spec, prompt_file, with_schema=not details_later), *lean_options(agent)]
    return [*argv, "--mcp-config", MCP_CONFIG] if job.spec.tools and not details_later else argv


def render_session(history: Sequence[Turn], directory: str, session: str) -> bytes:
    """Return earlier turns in the CLI's own format of a session, which it then resumes: one model call, true turns."""
    lines = []
    parent: str | None = None
    for index, turn in enumerate(history):
        content: Any = turn.content if isinstance(turn.content, str) else list(turn.content)
        message: dict[str, Any] = {"role": turn.role, "content": content}
        if turn.role == "assistant":
            blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
            message |= {
                "content": blocks,
                "id": f"msg_history_{index}",
                "type": "message",
                "model": "history",
            }
            message |= {"stop_reason": "end_turn", "usage": {"input_tokens": 0, "output_tokens": 0}}
        entry_uuid = str(uuid.uuid5(uuid.UUID(session), str(index)))
        entry: dict[str, Any] = {
            "type": turn.role,
            "message": message,
            "uuid": entry_uuid,
            "parentUuid": parent,
        }
        entry |= {"sessionId": session, "isSidechain": False, "userType": "external", "cwd": directory}
        entry |= {"version": "2.1.332", "timestamp": _HISTORY_TIME}
        lines.append(json.dumps(entry))
        parent = entry_uuid
    return "".join(line + "\n" for line in lines).encode()


def encode_prompt(content: str | list[Mapping[str, Any]], *, verbatim: bool) -> bytes:
    """Return the prompt, text or blocks, as a message.

    If `verbatim`, the CLI expands no `@path` and runs no slash command in it.
    """
    message: dict[str, Any] = {"type": "user", "message": {"role": "user", "content": content}}
    message |= {"parent_tool_use_id": None, "session_id": "default"}
    if verbatim:
        message["client_composed"] = True
    return json.dumps(message).encode() + b"\n"


def build_launch(
    cli: Path,
    spec: RunSpec,
    session: str,
    sandbox: Sandbox,
    *,
    enforce_budget: bool = True,
    details_later: bool = False,
) -> LaunchSpec:
    """Return the launch spec, with its files. With `details_later` it is that of a process that waits for jobs."""
    checkout, view = spec.checkout, sandbox.agent_paths(spec.checkout)
    files: list[tuple[Path, bytes]] = []
    system_prompt = None if details_later else system_prompt_file(spec, view)
    if system_prompt is not None:
        files.append((system_prompt.host_path, system_prompt.content))
    folder, agent_dir = attachment_dirs(checkout, sandbox)
    resumed = resumes_session(spec, sandbox, session)
    if spec.job.spec.history and not resumed:
        directory = session_directory(view, sandbox)
        record = render_session(prepare_turns(spec.job, agent_dir).history, directory, session)
        files.append((session_file(config_dir_of(checkout), directory, session), record))
    waiting = WAITING_ENV if details_later else {}
    env = {**waiting, **lean_environment(spec.job, spec.agent), **agent_environment(spec, view)}
    env |= {"CLAUDE_CODE_SDK_READS_SESSION_STATE": "1"}
    if spec.job.spec.tools or details_later:
        # How long a call may take is the service's to say, not the CLI's.
        env["MCP_TOOL_TIMEOUT"] = str(_TOOL_TIMEOUT_MILLISECONDS)
    prompt_file = None if system_prompt is None else system_prompt.agent_path
    argv = stream_argv(
        cli, spec, session, prompt_file,
        resumed=resumed, enforce_budget=enforce_budget, details_later=details_later,
    )  # fmt: skip
    needs_socket = spec.model_access is not None and spec.model_access.socket is not None
    command = Command(argv, env, view.directory, checkout.uid, needs_model_socket=needs_socket)
    folders = [] if checkout.config_dir is None else [temp_dir(checkout.home)]
    optional_files = [(folder / name, data) for name, data in attachment_files(spec.job, spec.earlier_files)]
    return LaunchSpec(
        sandbox.wrap(command, checkout, spec.agent),
        files=files,
        optional_files=optional_files,
        folders=folders,
        hold=spec.hold,
    )
