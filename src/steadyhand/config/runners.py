"""The runners that agents may have: those that are built in, and those of the tables `[runners.NAME]`."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from steadyhand.config.file_schema import AgentTable, ProviderKind, Tables
from steadyhand.config.providers import API_PROVIDERS, RUNNER_PROVIDERS
from steadyhand.errors import ConfigError
from steadyhand.runner.acp.acp_agent import BUILT_IN_ACP_AGENTS, AcpAgent
from steadyhand.suggest import closest_name


class AcpProgram(NamedTuple):
    """The program of an agent that speaks ACP, as it is configured."""

    agent: AcpAgent
    setting: str
    """The name of its table."""
    path: Path | None
    node: Path | None


def acp_programs(tables: Tables) -> Mapping[str, AcpProgram]:
    """Return the agents that speak ACP by the names of their runners; `path` is None for one that is not set up."""
    runner, built_in = tables.runner, BUILT_IN_ACP_AGENTS
    programs = {
        "kimi": AcpProgram(built_in["kimi"], "runner.kimi", runner.kimi.path, runner.kimi.node),
        "opencode": AcpProgram(built_in["opencode"], "runner.opencode", runner.opencode.path, None),
        "claude-agent-acp": AcpProgram(
            built_in["claude-agent-acp"],
            "runner.claude-agent-acp",
            runner.claude_agent_acp.path,
            runner.claude_agent_acp.node,
        ),
    }
    for name, table in tables.runners.items():
        agent = AcpAgent(
            name,
            name,
            table.api,
            arguments=table.arguments,
            env=table.env,
            files=table.files,
            mode=table.mode,
            needs_node=table.node is not None,
            loads_sessions=table.load_sessions,
        )
        programs[name] = AcpProgram(agent, f"runners.{name}", table.path, table.node)
    return programs


def check_runner_names(tables: Tables) -> None:
    """Raise `ConfigError` for a table `[runners.NAME]` with the name of a built-in runner."""
    for name in tables.runners:
        if name in RUNNER_PROVIDERS or name in BUILT_IN_ACP_AGENTS:
            raise ConfigError(f"runners.{name}: this runner is built in; see [runner.{name}]")


def check_runner(where: str, agent: AgentTable, kind: ProviderKind, tables: Tables) -> None:
    """Raise `ConfigError` for an agent whose runner is not there, or cannot have what its table grants.

    `kind` is that of its provider.
    """
    programs = acp_programs(tables)
    program = programs.get(agent.runner)
    if program is None and agent.runner not in RUNNER_PROVIDERS:
        names = sorted({*RUNNER_PROVIDERS, *programs})
        closest = closest_name(agent.runner, names, cutoff=0.5)
        text = f"; did you mean {closest}?" if closest else f"; there are: {', '.join(names)}"
        raise ConfigError(f"{where}.runner: there is no runner {agent.runner!r}{text}")
    kinds = RUNNER_PROVIDERS[agent.runner] if program is None else API_PROVIDERS[program.agent.api]
    if kind not in kinds:
        raise ConfigError(
            f"{where}.provider: the runner {agent.runner} cannot use a provider of the kind {kind}"
        )
    if agent.runner == "claude":
        return
    if agent.egress == ("host",):
        raise ConfigError(
            f"{where}.egress: {agent.runner} reaches its model by a port of a network of its own"
        )
    for name in ("tools", "max_turns") if program is None else ("tools", "max_turns", "effort"):
        if getattr(agent, name) is not None:
            raise ConfigError(f"{where}.{name}: {agent.runner} has no such setting")
    if program is not None and program.agent.needs_model and agent.model is None:
        raise ConfigError(f"{where}.model: {agent.runner} needs the name of a model")
