"""Tool calls of scenarios as calls of the tools that an agent offers."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from steadyhand.testing.request import ModelRequest
from steadyhand.testing.scenario import ModelToolCall
from steadyhand.testing.tool_translation import translate

EDIT = ModelToolCall("Edit", {"file_path": "/a b", "old_string": "it's red", "new_string": "green"})


def offering(*tools: dict[str, Any]) -> ModelRequest:
    return ModelRequest("POST", "/v1/responses", {}, {"input": "hello", "tools": list(tools)})


def tool(name: str, *fields: str) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": {"properties": {field: {} for field in fields}}}


@pytest.mark.parametrize(
    ("name", "file_path", "old_string"),
    [("Edit", "path", "old_string"), ("edit", "filePath", "oldString"), ("Edit", "file_path", "old_string")],
)
def test_fields_have_the_names_of_the_offered_tool(name: str, file_path: str, old_string: str) -> None:
    call = translate(EDIT, offering(tool(name, file_path, old_string, "newString")))
    assert call == ModelToolCall(name, {file_path: "/a b", old_string: "it's red", "newString": "green"})


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("shell", {"command": ["bash", "-lc", "true"]}),
        ("shell_command", {"command": "true"}),
        ("exec_command", {"cmd": "true"}),
        ("bash", {"command": "true"}),
    ],
)
def test_a_command_is_run_by_the_shell_that_is_offered(name: str, given: dict[str, Any]) -> None:
    request = offering(tool("view_image"), tool(name, "command", "description"))
    call = translate(ModelToolCall("Bash", {"command": "true"}), request)
    assert call == ModelToolCall(name, given)


def test_an_edit_without_a_tool_for_it_is_a_command_that_edits(tmp_path: Path) -> None:
    notes = tmp_path / "it's notes.txt"
    notes.write_text("it's red, red")
    edit = ModelToolCall("Edit", {"file_path": str(notes), "old_string": "it's red", "new_string": "$green"})
    command = translate(edit, offering(tool("exec_command"))).input["cmd"]
    subprocess.run(["bash", "-c", command], check=True, timeout=60)
    assert notes.read_text() == "$green, red"


@pytest.mark.parametrize("field", ["input", "patchText"])
def test_a_new_file_is_a_patch_where_patches_are_offered(field: str) -> None:
    write = ModelToolCall("Write", {"file_path": "/a", "content": "one\ntwo\n"})
    call = translate(write, offering(tool("apply_patch", field), tool("bash")))
    assert call.input == {field: "*** Begin Patch\n*** Add File: /a\n+one\n+two\n*** End Patch\n"}


def test_a_call_of_a_tool_that_nothing_is_like_stays_as_it_is() -> None:
    call = ModelToolCall("mcp__client__get_weather", {"city": "Oslo"})
    assert translate(call, offering(tool("bash"))) == call
