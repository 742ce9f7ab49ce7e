"""A process that waits runs nothing of a repository, of an agent's definition or with a secret before its job."""

from pathlib import Path

import pytest

from steadyhand.agents import Agent, AgentDefinition, Workspace
from steadyhand.ports import Checkout, JobPaths
from steadyhand.runner.claude.definitions import parse_definition
from steadyhand.runner.claude.warm import may_initialise, may_kill

HOOKS = "hooks: {SessionStart: [{hooks: [{type: command, command: 'touch /tmp/x'}]}]}"
COMMANDS = {
    "hooks": HOOKS,
    "hooks in quotes": HOOKS.replace("hooks: {S", '"hooks" : {S', 1),
    "hooks with an escape": HOOKS.replace("hooks: {S", '"\\x68ooks": {S', 1),
    "servers": "mcpServers: {files: {command: touch}}",
    "servers as a complex key": "? mcpServers\n: {files: {command: touch}}",
}


def definition(extra: str, *, full_trust: bool) -> AgentDefinition:
    text = f"---\nname: helper\ndescription: Helps.\n{extra}\n---\nBe of help.\n"
    parsed = parse_definition("helper", text, origin="workspace", full_trust=full_trust)
    assert parsed is not None
    return parsed


def checkout(*definitions: AgentDefinition, full_trust: bool = False) -> Checkout:
    paths, here = JobPaths(Path("/x")), Path("/x")
    by_name = {each.name: each for each in definitions}
    return Checkout(
        Workspace("w"), paths, here, here, here, None, None, definitions=by_name, full_trust=full_trust
    )


def test_a_plain_agent_is_initialised_before_its_job_and_may_be_killed_after_it() -> None:
    plain = checkout(definition("model: opus", full_trust=True))
    assert may_initialise(Agent("helper"), plain)
    assert may_kill(plain)


@pytest.mark.parametrize("extra", COMMANDS.values(), ids=COMMANDS.keys())
def test_an_agent_whose_definition_starts_commands_is_not_initialised_and_not_killed(extra: str) -> None:
    with_commands = checkout(definition(extra, full_trust=True))
    assert not may_initialise(Agent("helper"), with_commands)
    assert not may_kill(with_commands)


@pytest.mark.parametrize("extra", COMMANDS.values(), ids=COMMANDS.keys())
def test_below_full_trust_a_definition_has_no_commands(extra: str) -> None:
    assert may_initialise(Agent("helper"), checkout(definition(extra, full_trust=False)))


def test_with_secrets_or_full_trust_nothing_is_initialised() -> None:
    assert not may_initialise(Agent("helper", secrets=("/etc/secret",)), checkout())
    assert not may_initialise(Agent("helper"), checkout(full_trust=True))
