"""The programs of the agents, their runners and the environment of their processes."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from steadyhand.agents import Agent
from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError
from steadyhand.ports import DEFAULT_PATH, Checkout, ModelAccess, Runner, Sandbox
from steadyhand.redact import Redactor
from steadyhand.runner.claude import install
from steadyhand.runner.claude.environment import model_environment
from steadyhand.runner.claude.plain import PlainRunner
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.codex.codex_program import find_codex
from steadyhand.runner.codex.codex_runner import CodexRunner
from steadyhand.runner.process.programs import accessible_program

NO_CODEX = "Codex is not installed; run `steadyhand agents install codex`, or set `path` in [runner.codex]."
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
    if codex is not None:
        return {"codex": CodexRunner(codex, sandbox, redactor)}
    for name, agent in settings.build_catalog().agents.items():
        if agent.runner == "codex":
            raise ConfigError(f"agents.{name}.runner: {NO_CODEX}")
    return {}
