"""The programs of the agents, their runners and the environment of their processes."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from steadyhand.agents import DEFAULT_RUNNER, Agent
from steadyhand.config.runners import AcpProgram, acp_programs
from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError
from steadyhand.ports import DEFAULT_PATH, AgentFilesOf, Checkout, ModelAccess, Runner, Sandbox
from steadyhand.redact import Redactor
from steadyhand.runner.acp.acp_runner import AcpRunner
from steadyhand.runner.agent_files import agent_files_by_runner
from steadyhand.runner.claude import install
from steadyhand.runner.claude.environment import model_environment
from steadyhand.runner.claude.plain import PlainRunner
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.codex.codex_program import find_codex
from steadyhand.runner.codex.codex_runner import CodexRunner
from steadyhand.runner.packages.installed import find_installed
from steadyhand.runner.process.programs import accessible_program

_WITHHELD_PREFIXES = ("API_BEARER_TOKEN", "STEADYHAND_")


def create_environment(
    settings: Settings, *, sandboxed: bool, without_gateway: bool
) -> Callable[[Agent, Checkout], Mapping[str, str]]:
    """Return a function for the environment of an agent's process, without the variables of the gateway and the agent.

    It contains a path and a locale. An agent `without_gateway`, in the classic profile, gets the service's own
    environment without its keys, and the model's address and credential.
    """
    if sandboxed:
        base = {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8", "SHELL": "/bin/bash"}
    elif not without_gateway:
        base = {"PATH": settings.path, "LANG": settings.environment.get("LANG", "C.UTF-8")}
    else:
        base = {k: v for k, v in settings.environment.items() if not k.startswith(_WITHHELD_PREFIXES)}
        base |= model_environment(
            ModelAccess(
                base_url=settings.base_url,
                api_key=settings.anthropic_api_key,
                oauth_token=settings.oauth_token,
            )
        )
    return lambda _agent, _place: base


def agent_uid_base(settings: Settings) -> int | None:
    """Return the first uid of agents; `None` if the service is not root and cannot change the uid."""
    return settings.tables.service.agent_uid_base if os.geteuid() == 0 else None


def find_agent_cli(settings: Settings) -> Path:
    """Return the CLI at a path that the agents' user can read. Raise `ConfigError` if there is none."""
    cli_path = install.find_cli(
        settings.tables.runner.claude.path, classic=settings.classic, path_env=settings.path
    )
    return accessible_program(cli_path, install.PROGRAM_NAME, settings.data_dir, agent_uid_base(settings))


def create_runner(
    settings: Settings, cli: Path, sandbox: Sandbox, redactor: Redactor, *, budgeted: bool = True
) -> Runner:
    """Return the runner of the profile; with `budgeted`, the CLI itself enforces the budget."""
    if settings.classic:
        return PlainRunner(cli, sandbox, redactor, enforce_budget=budgeted)
    return ClaudeRunner(cli, sandbox, redactor, enforce_budget=budgeted)


def create_other_runners(settings: Settings, sandbox: Sandbox, redactor: Redactor) -> Mapping[str, Runner]:
    """Return the runners of other agents by their names. Raise `ConfigError` for a program that is not there."""
    codex = find_codex(settings.tables.runner.codex.path, settings.data_dir, agent_uid_base(settings))
    runners: dict[str, Runner] = {} if codex is None else {"codex": CodexRunner(codex, sandbox, redactor)}
    for name, program in acp_programs(settings.tables).items():
        programs = _find_programs(settings, name, program)
        if programs:
            runners[name] = AcpRunner(program.agent, programs, sandbox, redactor)
    for name, agent in settings.build_catalog().agents.items():
        if agent.runner not in {DEFAULT_RUNNER, *runners}:
            raise ConfigError(
                f"agents.{name}.runner: {agent.runner} is not installed; run"
                f" `steadyhand agents install {agent.runner}`, or set `path` in [runner.{agent.runner}]."
            )
    return runners


def create_agent_files(settings: Settings) -> AgentFilesOf:
    """Return the function that finds the files of the agents of a runner."""
    return agent_files_by_runner(
        {name: program.agent for name, program in acp_programs(settings.tables).items()}
    )


def _find_programs(settings: Settings, name: str, program: AcpProgram) -> Sequence[Path]:
    """Return the program of an agent, after Node if that runs it: the configured one, else the installed one.

    Without either it is empty. Raise `ConfigError` for a configured one that is not there.
    """
    if program.path is None:
        installed = find_installed(settings.data_dir, name)
        return [] if installed is None else [Path(word) for word in installed.argv]
    paths: dict[str, Path | None] = {"path": program.path}
    if program.agent.needs_node:
        found = shutil.which("node", path=settings.path)
        paths = {"node": program.node or (None if found is None else Path(found)), **paths}
    for key, path in paths.items():
        if path is None or not path.is_file():
            raise ConfigError(f"{program.setting}.{key}: {path or 'node'} is not a file.")
    uid = agent_uid_base(settings)
    return [
        accessible_program(path.absolute(), path.name, settings.data_dir, uid)
        for path in paths.values()
        if path is not None
    ]
