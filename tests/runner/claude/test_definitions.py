import pytest

from steadyhand.runner.claude.definitions import parse_definition

DEFINITION = """---
name: triage
description: Sorts issues
tools: Read, Bash
model: haiku
hooks:
  Stop: [{hooks: [{type: command, command: "touch /tmp/x"}]}]
mcpServers: {evil: {command: sh}}
---
You sort issues.
"""


def test_below_full_trust_a_definition_keeps_only_what_cannot_run_anything() -> None:
    found = parse_definition("file", DEFINITION, origin="workspace")
    assert found is not None
    assert (found.name, found.description) == ("triage", "Sorts issues")
    assert "hooks" not in found.text
    assert "mcpServers" not in found.text
    assert "tools: Read, Bash" in found.text
    assert found.text.endswith("You sort issues.\n")


def test_at_full_trust_a_definition_is_kept_whole() -> None:
    found = parse_definition("file", DEFINITION, origin="data_dir", full_trust=True)
    assert found is not None
    assert "mcpServers" in found.text


@pytest.mark.parametrize(
    "text",
    ["", "no frontmatter", "---\nname: x\n", "---\n: [\n---\n", "---\n- a\n---\n", "---\nname: ../x\n---\n"],
)
def test_what_is_no_definition_is_passed_over(text: str) -> None:
    assert parse_definition("../up" if "- a" in text else "ok", text, origin="workspace") is None


def test_a_definition_without_a_name_is_called_after_its_file() -> None:
    found = parse_definition("by-file", "---\ndescription: d\n---\nbody\n", origin="workspace")
    assert found is not None
    assert found.name == "by-file"
