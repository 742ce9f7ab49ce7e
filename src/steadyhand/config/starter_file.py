"""The first `steadyhand.toml` of an operator: the settings that most change, each with its description."""

import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from steadyhand.config.reference import list_settings, toml_value

_WIDTH = 79
_HEAD = """\
# The settings of Steadyhand; `steadyhand init` made this file.
#
# All settings are optional. To use a line that begins with `#: `, remove the
# `#: `. `steadyhand config --template` prints every setting, `steadyhand
# config` the values in use, and `steadyhand doctor` checks them.
"""
_TABLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("service", ("data_dir", "concurrency", "max_queued", "isolation", "drain_seconds", "metrics_bind")),
    ("server", ("host", "port", "public_url")),
    ("defaults", ("workspace", "budget_usd", "timeout_seconds", "on_interrupt", "memory")),
    ("limits", ("max_budget_usd", "service_per_day_usd")),
    ("retention", ("jobs",)),
)
_NAMED_TABLES: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "The model's credential; else ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN of the environment.",
        "providers.default",
        (("api_key_file", '"/etc/steadyhand/anthropic.key"'),),
    ),
    (
        "A repository that callers name as `infra`.",
        "workspaces.infra",
        (
            ("repository", '"https://git.example.org/infra.git"'),
            ("ref", '"main"'),
            ("setup", '["npm ci"]'),
            ("caches", '["npm"]'),
            ("publish", '"branch"'),
        ),
    ),
    (
        "An agent that callers name as `reviewer`.",
        "agents.reviewer",
        (
            ("workspace", '"infra"'),
            ("model", '"sonnet"'),
            ("budget_usd", "2"),
            ("timeout_seconds", "900"),
            ("tools", '["Read", "Grep", "Glob"]'),
            ("egress", '["docs.example.org"]'),
        ),
    ),
)
_EXAMPLES = {
    "server.public_url": '"https://agents.example.org"',
    "defaults.workspace": '"infra"',
    "limits.max_budget_usd": "20",
    "limits.service_per_day_usd": "100",
}


def starter_file(data_dir: Path, host: str, port: int) -> str:
    """Return the file: the address and the data directory are set, all else is commented out. Lines have 79 columns."""
    values = {
        "service.data_dir": toml_value(str(data_dir)),
        "server.host": toml_value(host),
        "server.port": toml_value(port),
    }
    return "\n".join([_HEAD, *_plain_tables(values), *_named_tables()])


def _plain_tables(values: dict[str, str]) -> Iterator[str]:
    settings = {setting.name: setting for setting in list_settings()}
    for table, keys in _TABLES:
        lines = [f"[{table}]"]
        for key in keys:
            setting = settings[f"{table}.{key}"]
            value = values.get(setting.name)
            lines += ["", *_comment(setting.description)]
            lines.append(
                f"#: {key} = {_EXAMPLES.get(setting.name, setting.example)}"
                if value is None
                else f"{key} = {value}"
            )
        yield "\n".join(lines) + "\n"


def _named_tables() -> Iterator[str]:
    descriptions = {setting.name: setting.description for setting in list_settings()}
    for title, table, values in _NAMED_TABLES:
        kind = table.partition(".")[0]
        lines = [*_comment(title), f"#: [{table}]"]
        for key, value in values:
            lines += ["", *_comment(descriptions[f"{kind}.*.{key}"]), f"#: {key} = {value}"]
        yield "\n".join(lines) + "\n"


def _comment(text: str) -> Iterable[str]:
    return (f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2))
