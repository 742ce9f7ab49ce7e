"""The service's settings, from one TOML file, the environment and the command line.

Later sources win: defaults, the file, the environment, the command line. An unknown name is an error that suggests
the closest known name. Secrets are read once, here, and never printed.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from steadyhand.addresses import url_origin
from steadyhand.agents import (
    BUILT_IN_AGENTS,
    CLASSIC_DEFAULT_AGENT,
    DEFAULT_PROVIDER,
    NAME_PATTERN,
    SCRATCH_WORKSPACE,
    Agent,
    Catalog,
    Defaults,
    Limits,
    Workspace,
)
from steadyhand.config.client import default_data_dir
from steadyhand.config.file_schema import AgentTable, Tables, WorkspaceTable
from steadyhand.config.locate import FILE_NAME, named_config_file, read_config_file, user_config_file
from steadyhand.config.providers import ProviderSetting, build_provider_settings
from steadyhand.config.runners import check_runner, check_runner_names
from steadyhand.errors import ConfigError
from steadyhand.money import to_micros
from steadyhand.ports import DEFAULT_PATH
from steadyhand.suggest import closest_name

ENV_PREFIX = "STEADYHAND_"
ENV_ALIASES = {
    "DATABASE_URL": ("service", "database_url"),
    "DATA_DIR": ("service", "data_dir"),
    "CONCURRENCY": ("service", "concurrency"),
    "ISOLATION": ("service", "isolation"),
    "PROFILE": ("service", "profile"),
}
"""Short names of environment variables: STEADYHAND_DATA_DIR is [service] data_dir."""
CLIENT_VARIABLES = frozenset({"URL", "TOKEN", "CONFIG"})
SECRET_VARIABLES = ("STEADYHAND_API_KEY", "API_BEARER_TOKEN", "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN")
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
DEFAULT_WORKSPACE = "default"


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting for `steadyhand config`."""

    name: str
    value: str
    source: str


_FIELDS_OF_BUILT_IN = frozenset({"warm", "live_seconds", "labels", "not_on_nodes"})
"""Settings that a table may add to a built-in agent; any other one replaces the agent."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of the service, validated. Secrets are in here but never in `rows`."""

    tables: Tables
    data_dir: Path
    sources: Mapping[str, str] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)
    bearer_token: str | None = field(default=None, repr=False)
    anthropic_api_key: str | None = field(default=None, repr=False)
    oauth_token: str | None = field(default=None, repr=False)
    base_url: str | None = None
    providers: tuple[ProviderSetting, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The service's own environment, which agents inherit in the classic profile only."""

    @property
    def classic(self) -> bool:
        """True in the classic profile, which behaves as the earlier service did."""
        return self.tables.service.profile == "classic"

    @property
    def path(self) -> str:
        """The PATH of the service and of its agents."""
        return self.environment.get("PATH", DEFAULT_PATH)

    @property
    def home(self) -> Path:
        """The service's own home."""
        return Path(self.environment.get("HOME", "/"))

    def build_catalog(self) -> Catalog:
        """Return the agents and workspaces that callers can name, with the defaults and limits."""
        tables = self.tables
        agents = dict(BUILT_IN_AGENTS) | {
            name: _build_agent(name, table)
            if name not in BUILT_IN_AGENTS or not table.model_fields_set <= _FIELDS_OF_BUILT_IN
            else replace(
                BUILT_IN_AGENTS[name], **{each: getattr(table, each) for each in _FIELDS_OF_BUILT_IN}
            )
            for name, table in tables.agents.items()
        }
        workspaces = {name: _build_workspace(name, table) for name, table in tables.workspaces.items()}
        workspace = tables.defaults.workspace
        if workspace is None and DEFAULT_WORKSPACE in workspaces:
            workspace = DEFAULT_WORKSPACE
        defaults = Defaults(
            agent=tables.defaults.agent,
            workspace=workspace,
            budget_micros=to_micros(tables.defaults.budget_usd),
            timeout_seconds=tables.defaults.timeout_seconds,
            idle_timeout_seconds=tables.defaults.idle_timeout_seconds,
            background_seconds=tables.defaults.background_seconds,
            publish=tables.defaults.publish,
            on_interrupt=tables.defaults.on_interrupt,
        )
        max_budget = tables.limits.max_budget_usd
        limits = Limits(
            None if max_budget is None else to_micros(max_budget), tables.limits.max_timeout_seconds
        )
        return Catalog(agents, workspaces, defaults, limits)

    def rows(self) -> Iterator[SettingRow]:
        """Return each setting with its value and source; a secret is only shown as set or not set."""
        for name, value in _flatten(self.tables.model_dump(mode="json", by_alias=True), ()):
            text = "" if value is None else str(value)
            if name == "service.data_dir":
                text = str(self.data_dir)
            if name.startswith("callbacks.endpoints.") and name.endswith(".url"):
                text = url_origin(text)
            if name.startswith("notify.") and name.endswith(".url") and text:
                text = f"{text.partition('://')[0]}://(set)"
            yield SettingRow(name, text, self._source(name))
        secrets = (self.api_key, self.bearer_token, self.anthropic_api_key, self.oauth_token)
        for name, secret in zip(SECRET_VARIABLES, secrets, strict=True):
            yield SettingRow(name, "(set)" if secret else "(not set)", self.sources.get(name, "default"))
        yield SettingRow(
            "ANTHROPIC_BASE_URL", self.base_url or "", self.sources.get("ANTHROPIC_BASE_URL", "default")
        )

    def _source(self, name: str) -> str:
        while name:
            if name in self.sources:
                return self.sources[name]
            name = name.rpartition(".")[0]
        return "default"


def _build_agent(name: str, table: AgentTable) -> Agent:
    return Agent(
        name=name,
        description=table.description,
        runner=table.runner,
        provider=table.provider,
        day_micros=None if table.budget_per_day_usd is None else to_micros(table.budget_per_day_usd),
        max_budget_micros=None if table.max_budget_usd is None else to_micros(table.max_budget_usd),
        max_timeout_seconds=table.max_timeout_seconds,
        models=table.models,
        workspace=table.workspace,
        model=table.model,
        budget_micros=None if table.budget_usd is None else to_micros(table.budget_usd),
        timeout_seconds=table.timeout_seconds,
        idle_timeout_seconds=table.idle_timeout_seconds,
        background_seconds=table.background_seconds,
        tools=table.tools,
        max_turns=table.max_turns,
        effort=table.effort,
        append_system_prompt=table.append_system_prompt,
        env=table.env,
        secrets=table.secrets,
        egress=table.egress,
        memory_bytes=table.memory,
        processes=table.processes,
        disk_bytes=table.disk,
        warm=table.warm,
        live_seconds=table.live_seconds,
        labels=table.labels,
        not_on_nodes=table.not_on_nodes,
        lean=table.lean,
    )


def _build_workspace(name: str, table: WorkspaceTable) -> Workspace:
    return Workspace(
        name=name,
        repository=table.repository,
        ref=table.ref,
        mode=table.mode,
        trust=table.trust,
        setup=table.setup,
        setup_secrets=table.setup_secrets,
        setup_egress=table.setup_egress,
        caches=table.caches,
        trusted_refs=table.trusted_refs,
        publish=table.publish,
        submodules=table.submodules,
        lfs=table.lfs,
        fetch_hosts=table.fetch_hosts,
    )


# --- reading -----------------------------------------------------------------------------------


def load_settings(
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    use_working_directory: bool = True,
) -> Settings:
    """Return all settings. `overrides` are those of the command line, by dotted name; `None` means not set.

    Without `file`, the file is STEADYHAND_CONFIG, `steadyhand.toml` in the working directory, or the user's own; a file
    in the working directory is only read with `use_working_directory`. Raise `ConfigError` with all errors in one
    message.
    """
    environ = os.environ if environ is None else environ
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    path = _find_file(file, environ, use_working_directory=use_working_directory)
    if path is not None:
        _merge(merged, read_config_file(path), path.name, sources)
    for name, (key_path, value) in _read_environment(environ).items():
        _set_value(merged, key_path, value, name, sources)
    for setting_name, value in (overrides or {}).items():
        if value is not None:
            _set_value(merged, tuple(setting_name.split(".")), value, "command line", sources)
    _apply_classic_profile(merged, environ, sources)
    tables = _validate(merged, sources)
    _check_references(tables)
    secrets = {name: _read_secret(name, environ, sources) for name in SECRET_VARIABLES}
    providers = build_provider_settings(
        tables.providers,
        api_key=(secrets["ANTHROPIC_API_KEY"], _secret_file("ANTHROPIC_API_KEY", environ)),
        oauth_token=(secrets["CLAUDE_CODE_OAUTH_TOKEN"], _secret_file("CLAUDE_CODE_OAUTH_TOKEN", environ)),
        base_url=environ.get("ANTHROPIC_BASE_URL") or None,
        read_secret=_read_secret_file,
    )
    default = next(each for each in providers if each.name == DEFAULT_PROVIDER)
    if environ.get("ANTHROPIC_BASE_URL"):
        sources["ANTHROPIC_BASE_URL"] = "environment"
    return Settings(
        tables=tables,
        data_dir=(tables.service.data_dir or default_data_dir(environ)).absolute(),
        sources=sources,
        api_key=secrets["STEADYHAND_API_KEY"],
        bearer_token=secrets["API_BEARER_TOKEN"],
        anthropic_api_key=default.secret if default.credential == "api_key" else None,
        oauth_token=default.secret if default.credential == "oauth" else None,
        base_url=default.base_url,
        providers=providers,
        environment=dict(environ),
    )


def _find_file(file: Path | None, environ: Mapping[str, str], *, use_working_directory: bool) -> Path | None:
    named = named_config_file(file, environ)
    if named is not None:
        return named
    local_file = Path(FILE_NAME)
    if use_working_directory and local_file.is_file():
        return local_file
    return user_config_file(environ)


def _read_environment(environ: Mapping[str, str]) -> dict[str, tuple[tuple[str, ...], Any]]:
    values: dict[str, tuple[tuple[str, ...], Any]] = {}
    for name, value in environ.items():
        rest = name.removeprefix(ENV_PREFIX)
        if rest == name or rest in CLIENT_VARIABLES or name.removesuffix("_FILE") in SECRET_VARIABLES:
            continue
        key_path = ENV_ALIASES.get(rest) or tuple(part.lower() for part in rest.split("__"))
        if len(key_path) < 2:  # noqa: PLR2004  # a section and a key
            known_names = [ENV_PREFIX + short for short in (*ENV_ALIASES, *CLIENT_VARIABLES, "API_KEY")]
            raise ConfigError(f"{name} is not a setting{_did_you_mean(name, known_names)}")
        values[name] = (key_path, value)
    return values


def _merge(target: dict[str, Any], new: Mapping[str, Any], source: str, sources: dict[str, str]) -> None:
    for name, value in _leaves(new, ()):
        _set_value(target, name, value, source, sources)


def _leaves(table: Mapping[str, Any], prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        key_path = (*prefix, key)
        if isinstance(value, Mapping) and value and len(key_path) < 3:  # noqa: PLR2004  # section, name, key
            yield from _leaves(value, key_path)
        else:
            yield key_path, value


def _set_value(
    target: dict[str, Any], key_path: tuple[str, ...], value: Any, source: str, sources: dict[str, str]
) -> None:
    for part in key_path[:-1]:
        nested = target.setdefault(part, {})
        if not isinstance(nested, dict):
            raise ConfigError(f"{'.'.join(key_path)} ({source}): {part} is a value, not a table.")
        target = nested
    target[key_path[-1]] = value
    sources[".".join(key_path)] = source


def _apply_classic_profile(
    merged: dict[str, Any], environ: Mapping[str, str], sources: dict[str, str]
) -> None:
    """Apply the earlier service's variables and the classic profile's values where no other value is set."""
    classic = merged.get("service", {}).get("profile") == "classic"
    if classic:
        for key_path, value in {
            ("service", "concurrency"): 1,
            ("service", "max_queued"): 0,
            ("service", "isolation"): "none",
            ("service", "reattach_seconds"): 0,
            ("openai", "default_agent"): CLASSIC_DEFAULT_AGENT,
            # That command line names its session only at its end, so an interrupted run could only start again.
            ("defaults", "on_interrupt"): "fail",
        }.items():
            if key_path[1] not in merged.get(key_path[0], {}):
                _set_value(merged, key_path, value, "classic profile", sources)
    directory = environ.get("WORKSPACE_DIR")
    if directory and DEFAULT_WORKSPACE not in merged.get("workspaces", {}):
        key_path = ("workspaces", DEFAULT_WORKSPACE)
        _set_value(merged, (*key_path, "repository"), directory, "WORKSPACE_DIR", sources)
        if classic:
            _set_value(merged, (*key_path, "mode"), "in_place", "classic profile", sources)
            _set_value(merged, (*key_path, "trust"), "full", "classic profile", sources)


def _validate(merged: dict[str, Any], sources: Mapping[str, str]) -> Tables:
    try:
        return Tables.model_validate(merged)
    except ValidationError as error:
        messages = [_error_message(dict(details), sources) for details in error.errors()]
        raise ConfigError("\n".join(messages)) from error


def _error_message(details: dict[str, Any], sources: Mapping[str, str]) -> str:
    key_path = tuple(str(part) for part in details["loc"])
    dotted = ".".join(key_path)
    source = sources.get(dotted) or next(
        (
            source_text
            for name, source_text in sources.items()
            if name.startswith(dotted) or dotted.startswith(name)
        ),
        "",
    )
    source_text = f" ({source})" if source else ""
    if details["type"] != "extra_forbidden":
        return f"{dotted}{source_text}: {details['msg'].removeprefix('Value error, ')}"
    return f"{dotted}{source_text}: there is no such setting{_did_you_mean(key_path[-1], _known_names(key_path))}"


def _known_names(key_path: tuple[str, ...]) -> list[str]:
    """Return the names that are valid at this place."""
    model: Any = Tables
    for part in key_path[:-1]:
        fields = {field.alias or name: field for name, field in getattr(model, "model_fields", {}).items()}
        if part not in fields:
            continue
        annotation = fields[part].annotation
        model = next(
            (
                argument
                for argument in getattr(annotation, "__args__", ())
                if hasattr(argument, "model_fields")
            ),
            annotation,
        )
    fields = getattr(model, "model_fields", {})
    return [field.alias or name for name, field in fields.items()]


def _check_references(tables: Tables) -> None:
    for kind, names in (
        ("agents", tables.agents),
        ("runners", tables.runners),
        ("workspaces", tables.workspaces),
        ("callbacks.endpoints", tables.callbacks.endpoints),
        ("notify", tables.notify),
        ("schedules", tables.schedules),
    ):
        for name in names:
            if NAME_PATTERN.fullmatch(name) is None:
                raise ConfigError(f"{kind}.{name}: this is not a valid name")
    workspace_references = {
        f"agents.{name}.workspace": agent.workspace for name, agent in tables.agents.items()
    }
    workspace_references["defaults.workspace"] = tables.defaults.workspace
    check_runner_names(tables)
    provider_names = sorted({DEFAULT_PROVIDER, *tables.providers})
    for name, agent in tables.agents.items():
        if agent.provider not in provider_names:
            suggestion = _did_you_mean(agent.provider, provider_names)
            raise ConfigError(f"agents.{name}.provider: there is no provider {agent.provider!r}{suggestion}")
        kind = tables.providers[agent.provider].kind if agent.provider in tables.providers else "anthropic"
        check_runner(f"agents.{name}", agent, kind, tables)
        _check_ceilings(f"agents.{name}", agent)
    for name, alias in tables.openai.models.items():
        models = tables.agents[alias.agent].models if alias.agent in tables.agents else None
        if alias.model is not None and models is not None and alias.model not in models:
            raise ConfigError(
                f"openai.models.{name}.model: {alias.model!r} is not one of the models of {alias.agent!r}"
            )
    for key_path, workspace in workspace_references.items():
        if workspace not in (None, SCRATCH_WORKSPACE) and workspace not in tables.workspaces:
            raise ConfigError(f"{key_path}: there is no workspace {workspace!r}")


def _check_ceilings(key_path: str, agent: AgentTable) -> None:
    """Raise `ConfigError` for a default of an agent that the agent's own ceiling does not allow."""
    defaults_and_ceilings = (
        ("budget_usd", agent.budget_usd, "max_budget_usd", agent.max_budget_usd),
        ("timeout_seconds", agent.timeout_seconds, "max_timeout_seconds", agent.max_timeout_seconds),
    )
    for name, default, ceiling_name, ceiling in defaults_and_ceilings:
        if default is not None and ceiling is not None and default > ceiling:
            raise ConfigError(f"{key_path}.{name}: {default} is above {ceiling_name}, which is {ceiling}")
    if agent.model is not None and agent.models is not None and agent.model not in agent.models:
        raise ConfigError(f"{key_path}.model: {agent.model!r} is not one of its models")


def _read_secret(name: str, environ: Mapping[str, str], sources: dict[str, str]) -> str | None:
    """Return a secret from its variable, or from the file that the variable with `_FILE` names; `None` if empty."""
    if environ.get(name):
        sources[name] = "environment"
        return environ[name]
    if environ.get(name + "_FILE"):
        sources[name] = name + "_FILE"
        return _read_secret_file(Path(environ[name + "_FILE"]), name + "_FILE")
    return None


def _secret_file(name: str, environ: Mapping[str, str]) -> Path | None:
    """Return the file that a secret was read from; `None` for one of a variable."""
    file = environ.get(name + "_FILE")
    return Path(file) if file and not environ.get(name) else None


def _read_secret_file(path: Path, name: str) -> str | None:
    try:
        return path.read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {path} could not be read: {error}") from error


def _flatten(table: Mapping[str, Any], prefix: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, (*prefix, key))
        else:
            yield ".".join((*prefix, key)), value


def _did_you_mean(name: str, known_names: list[str]) -> str:
    closest = closest_name(name, known_names, cutoff=0.5)
    return f"; did you mean {closest}?" if closest else f"; there are: {', '.join(sorted(known_names))}"
