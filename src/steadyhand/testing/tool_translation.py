"""Tool calls of scenarios, which name Claude's tools, as calls of the tools that another agent offers."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from steadyhand.testing.request import ModelRequest
from steadyhand.testing.scenario import ModelToolCall
from steadyhand.text_lines import split_lines

Input = dict[str, Any]

_REPLACE = (
    "import pathlib,sys; p=pathlib.Path(sys.argv[1]); p.write_text(p.read_text().replace(*sys.argv[2:4], 1))"
)


def translate(call: ModelToolCall, request: ModelRequest) -> ModelToolCall:
    """Return the call as one of a tool that the request offers; the same if nothing is like it.

    A file tool that the agent does not have becomes a shell command.
    """
    offered = request.tools
    for name in (call.name, call.name.lower()):
        if name in offered:
            return ModelToolCall(name, _with_field_names(call.input, request.tool_schema(name) or {}))
    if call.name == "Write" and "apply_patch" in offered:
        schema = request.tool_schema("apply_patch") or {}
        return ModelToolCall("apply_patch", _with_field_names(_added_file(call.input), schema))
    command = _command(call)
    for name, shell_input in _SHELLS.items():
        if command is not None and name in offered:
            return ModelToolCall(name, shell_input(command))
    return call


def _with_field_names(given: Input, schema: Input) -> Input:
    """Return the input with each field by the name that the tool's schema has for it."""
    known = schema.get("properties") or {}
    return {
        next((name for name in (field, *_FIELD_NAMES.get(field, ())) if name in known), field): value
        for field, value in given.items()
    }


def _command(call: ModelToolCall) -> str | None:
    """Return the shell command that does what the call asks, or None."""
    given = call.input
    path = shlex.quote(str(given.get("file_path", "")))
    match call.name:
        case "Bash":
            return str(given.get("command", ""))
        case "Read":
            return f"cat {path}"
        case "Write":
            return f"printf %s {shlex.quote(str(given.get('content', '')))} > {path}"
        case "Edit":
            old, new = (shlex.quote(str(given.get(name, ""))) for name in ("old_string", "new_string"))
            return f"python3 -c {shlex.quote(_REPLACE)} {path} {old} {new}"
    return None


_SHELLS: dict[str, Callable[[str], Input]] = {
    "Bash": lambda command: {"command": command, "description": "Run a command"},
    "bash": lambda command: {"command": command, "description": "Run a command"},
    "exec_command": lambda command: {"cmd": command},
    "shell_command": lambda command: {"command": command},
    "shell": lambda command: {"command": ["bash", "-lc", command]},
    "local_shell": lambda command: {"type": "exec", "command": ["bash", "-lc", command], "env": {}},
}
"""Shell tools of agents, with the input that runs a command; the first that is offered is called."""

_FIELD_NAMES = {
    "file_path": ("filePath", "path"),
    "old_string": ("oldString",),
    "new_string": ("newString",),
    "input": ("patchText",),
}
"""Fields of Claude's tools and of codex's patch, with the names that other agents have for them."""


def _added_file(given: Input) -> Input:
    """Return a patch in the form of codex that creates a file."""
    lines = "".join(f"+{line}\n" for line in split_lines(str(given.get("content", ""))))
    return {"input": f"*** Begin Patch\n*** Add File: {given.get('file_path')}\n{lines}*** End Patch\n"}
