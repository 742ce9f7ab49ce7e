"""The facts of Claude's command line are known to its runner and to a closed list of other modules."""

import re
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "steadyhand"
FACT = re.compile(
    r"CLAUDE|ANTHROPIC_|mcp__|StructuredOutput|\berror_max_|claude_agent_sdk"
    r"|(?<!runner)\.claude(?![-\w])"  # the directory, and not a module or a table of the settings
    r"|\"claude\"|\bclaude (?!import\b)"
)
"""Claude's variables, files, directories, tools, result subtypes, library, program and agent."""
ROOMS = ("runner/claude/", "config/", "testing/")
MODULES = {
    "agents.py": "the default agent and runner",
    "api/examples.py": "the default agent and a repository's definition",
    "cli/demo.py": "starts a service with its documented variables",
    "cli/init.py": "names the documented variable in the next steps",
    "cli/version.py": "finds the program whose version it prints",
    "gateway/model/providers.py": "names the documented variables in an error",
    "job.py": "the default agent",
    "ports/workspace.py": "the default runner",
    "runner/acp/acp_agent.py": "the entry of the adapter of Claude to ACP",
    "runner/agent_files.py": "chooses the files by the runner",
    "serve/gateway_setup.py": "names the documented variables in checks",
    "serve/wiring.py": "wires the runner by its name",
    "workspace/checkout.py": "the runner whose definitions it lists",
}


def modules_with_facts() -> set[str]:
    """Return the modules that name a fact, by their paths below `SOURCE`."""
    return {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if FACT.search(path.read_text("utf-8"))
    }


def test_only_the_listed_modules_name_a_fact_of_claude() -> None:
    found = {module for module in modules_with_facts() if not module.startswith(ROOMS)}
    assert found == set(MODULES)


def test_the_facts_are_found_where_they_are() -> None:
    found = modules_with_facts()
    assert {
        f"runner/claude/{name}.py" for name in ("environment", "install", "messages", "tool_names")
    } <= found
    assert all(any(module.startswith(room) for module in found) for room in ROOMS)
