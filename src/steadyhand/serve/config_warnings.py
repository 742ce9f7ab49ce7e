"""Warnings about settings that are valid, but do not do what they seem to do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from steadyhand.config.settings import Settings
from steadyhand.placement import NODE_NAME_PATTERN, NODE_NAME_RULE, combine
from steadyhand.ports import DoctorCheck
from steadyhand.runner.claude.tool_names import ALL_TOOLS, BUILT_IN_TOOLS
from steadyhand.store.database_url import is_postgres_url
from steadyhand.suggest import closest_name
from steadyhand.worker.warm_slot import SLOT_BYTES


@dataclass(frozen=True, slots=True)
class ConfigWarning:
    """A setting, its effect and the remedy."""

    setting: str
    meaning: str
    remedy: str


def log_config_warnings(settings: Settings) -> None:
    """Log a line for each setting that does not do what it seems to do."""
    for warning in [*_missing_files(settings), *_other_warnings(settings)]:
        structlog.get_logger("steadyhand").warning(
            "config.warning", setting=warning.setting, meaning=warning.meaning, remedy=warning.remedy
        )


def check_config(settings: Settings) -> Sequence[DoctorCheck]:
    """Return a check for each such setting. Missing files have checks beside the other grants of their owner."""
    return [
        DoctorCheck(each.setting, ok=True, detail=f"{each.meaning}: {each.remedy}", warning=True)
        for each in _other_warnings(settings)
    ]


def _missing_files(settings: Settings) -> Iterator[ConfigWarning]:
    tables = settings.tables
    files = [
        (f"agents.{name}.secrets", path) for name, agent in tables.agents.items() for path in agent.secrets
    ]
    files += [
        (f"workspaces.{name}.setup_secrets", path)
        for name, workspace in tables.workspaces.items()
        for path in workspace.setup_secrets
    ]
    for setting, path in files:
        yield from _missing_file(setting, Path(path))


def _missing_file(setting: str, path: Path) -> Iterator[ConfigWarning]:
    try:
        is_file = path.is_file()
    except OSError:  # a directory above it is closed
        is_file = False
    if not is_file:
        meaning = f"there is no file {path}, so jobs that need it fail"
        yield ConfigWarning(setting, meaning, "create it, or remove it from the setting")


def _other_warnings(settings: Settings) -> Iterator[ConfigWarning]:
    git = settings.tables.git
    for name, path in (
        ("credential_file", git.credential_file),
        ("ssh_key_file", git.ssh_key_file),
        ("ca_file", git.ca_file),
    ):
        if path is not None:
            yield from _missing_file(f"git.{name}", path)
    for name, agent in settings.tables.agents.items():
        for tool in agent.tools or ():
            yield from _unknown_tool(f"agents.{name}.tools", tool)
    yield from _unused_warm_settings(settings)
    yield from _unfit_agents(settings)
    for name, workspace in settings.tables.workspaces.items():
        works_as_before = settings.classic and workspace.mode == "in_place"
        if workspace.trust == "full" and not workspace.trusted_refs and not works_as_before:
            yield ConfigWarning(
                f"workspaces.{name}.trust",
                "`full` applies to the refs in trusted_refs only, and there are none; it is `instructions`",
                f'set trusted_refs, such as ["{workspace.ref or "main"}"]',
            )


def _unfit_agents(settings: Settings) -> Iterator[ConfigWarning]:
    """Yield a warning for each agent whose jobs the only node cannot run."""
    service = settings.tables.service
    if NODE_NAME_PATTERN.fullmatch(service.node) is None:
        meaning = "nobody can drain this node or exclude it by such a name"
        yield ConfigWarning("service.node", meaning, f"choose another one: {NODE_NAME_RULE}")
    if is_postgres_url(service.database_url or ""):
        return  # other nodes may run them
    for name, agent in settings.build_catalog().agents.items():
        placement = combine((agent.labels, agent.not_on_nodes))
        if not placement.fits(service.node, service.labels):
            yield ConfigWarning(
                f"agents.{name}.{'labels' if agent.labels else 'not_on_nodes'}",
                f"its jobs need {placement.describe()}, and there is only this node, {service.node}, so they wait",
                "remove it, set [service] labels, or add nodes (docs/nodes.md)",
            )


def _unused_warm_settings(settings: Settings) -> Iterator[ConfigWarning]:
    warm_agents = {name: agent.warm for name, agent in settings.tables.agents.items() if agent.warm}
    if warm_agents and settings.classic:
        for name in warm_agents:
            meaning = "no process waits for jobs in the classic profile"
            yield ConfigWarning(f"agents.{name}.warm", meaning, "remove it, or use the default profile")
        return
    room = settings.tables.service.warm_memory // SLOT_BYTES
    wanted = sum(size if isinstance(size, int) else 1 for size in warm_agents.values())
    if wanted > room:
        megabytes = SLOT_BYTES * wanted >> 20
        has_room = f"has room for {room} of the {wanted} processes" if room else "has no room for a process"
        yield ConfigWarning(
            "service.warm_memory",
            f"it {has_room} that `agents.{next(iter(warm_agents))}.warm` asks for; each takes about 100 MB"
            if len(warm_agents) == 1
            else f"it {has_room} that `warm` of {len(warm_agents)} agents asks for; each takes about 100 MB",
            f"set it to at least {megabytes}M, or set a smaller `warm`",
        )


def _unknown_tool(setting: str, tool: str) -> Iterator[ConfigWarning]:
    if tool in BUILT_IN_TOOLS or tool == ALL_TOOLS:
        return
    by_lower_case = {known.lower(): known for known in BUILT_IN_TOOLS}
    closest = closest_name(tool.partition("(")[0].lower(), by_lower_case)
    remedy = f"did you mean {by_lower_case[closest]}?" if closest else "remove it from the setting"
    meaning = f"the agent's CLI has no tool {tool!r}, so the agent does not get it"
    yield ConfigWarning(setting, meaning, remedy)
