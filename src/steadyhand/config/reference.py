"""The reference of all settings, made from the types: `docs/settings.md` and `steadyhand config --template`.

python -m steadyhand.config.reference > docs/settings.md
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from steadyhand.config import file_schema
from steadyhand.config.descriptions import DESCRIPTIONS
from steadyhand.config.settings import ENV_ALIASES, ENV_PREFIX

_SECONDS_BY_UNIT = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
_BYTES_BY_UNIT = (("G", 1024**3), ("M", 1024**2))
_TYPE_NAMES: tuple[tuple[Any, str], ...] = (
    (file_schema.Size, "size"),
    (file_schema.SizeOrNone, "size or `none`"),
    (file_schema.ProcessesOrNone, "number or `none`"),
    (file_schema.Duration, "duration or `never`"),
    (file_schema.Variables, "table of texts"),
    (file_schema.Dollars, "dollars"),
    (file_schema.BindAddress, "address and port"),
    (file_schema.ReceiverUrl, "URL"),
    (bool, "true or false"),
    (int, "number"),
    (float, "number"),
    (str, "text"),
    (Path, "path"),
)
_HEAD = """\
# Settings

Made from the types by `python -m steadyhand.config.reference > docs/settings.md`; a test holds it.

All settings are in one file, `steadyhand.toml`; all of them are optional. `steadyhand init` writes one to begin with,
`steadyhand config --template` prints the file with every setting in it, commented out. `steadyhand config` prints the
value and the source of each.

## The file

The file is that of `--config`, else of `STEADYHAND_CONFIG`, else `steadyhand.toml` in the working directory, else the
user's own, `~/.config/steadyhand/steadyhand.toml`. `serve`, `doctor` and `config` read all of it. The other commands
read `server.host`, `server.port` and `service.data_dir`, to find the service and its key. A file in the working
directory may come from a hostile repository: of it, the other commands take a loopback address, and a data directory
that the user owns. `run` reads no such file for the service that it starts itself: name it by
`steadyhand --config steadyhand.toml run ..`.

A variable of the environment replaces the value of the file, an option of the command line both. A list in a variable
is separated by commas. A size is a number of bytes or such as `512M` and `2G`, a duration such as `90d`, `24h`, `15m`
or `30s`.

## Variables without a setting

| variable | meaning |
|---|---|
| `STEADYHAND_URL` | The service that the command line talks to. |
| `STEADYHAND_TOKEN` | The key that the command line sends; without it, that of the local service. |
| `STEADYHAND_CONFIG` | The file of settings. |
| `STEADYHAND_API_KEY` | A key of the service with all scopes, in place of `admin.key`. |
| `API_BEARER_TOKEN` | A key of the service that may submit, read and cancel. |
| `ANTHROPIC_API_KEY` | The API key of the default provider. |
| `CLAUDE_CODE_OAUTH_TOKEN` | A subscription's token for the default provider. |
| `ANTHROPIC_BASE_URL` | The address of the default provider. |

Each of the secrets can be in a file instead, which the variable with `_FILE` at its end names.
"""
_TEMPLATE_HEAD = "# The settings of Steadyhand. To use a line that begins with `#: `, remove the `#: `.\n"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its dotted name with `*` for a name of the operator's, type, default and description."""

    name: str
    type_text: str
    default: str | None
    """The default as TOML; `None` if nothing is set."""
    required: bool
    description: str
    example: str

    @property
    def table(self) -> str:
        """The table that holds it, `workspaces.*` for example."""
        return self.name.rpartition(".")[0]

    @property
    def variable(self) -> str | None:
        """The environment variable that sets it; `None` inside a named table, and for a name that no variable has."""
        if "*" in self.name or "-" in self.name:
            return None
        path = tuple(self.name.split("."))
        alias = next((short for short, target in ENV_ALIASES.items() if target == path), None)
        return ENV_PREFIX + (alias or "__".join(part.upper() for part in path))


def list_settings() -> Iterator[Setting]:
    """Yield all settings in the order of the file."""
    yield from _settings_of(file_schema.Tables, "")


def _settings_of(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    hints = get_type_hints(model, include_extras=True)
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        dotted, hint = prefix + name, hints[attribute]
        nested = _nested_model(hint)
        if nested is not None:
            is_named = get_origin(hint) is dict
            yield from _settings_of(nested, f"{dotted}.*." if is_named else f"{dotted}.")
        elif name == "prices":
            yield Setting(f"{dotted}.*", "table", None, False, DESCRIPTIONS.get(f"{dotted}.*", ""), "{}")
        else:
            yield _setting(dotted, hint, field)


def _setting(name: str, hint: Any, field: FieldInfo) -> Setting:
    default = None if field.is_required() or field.default is None else toml_value(field.default)
    if _type_name(hint).startswith("size") and isinstance(field.default, int):
        default = _size_text(field.default)
    if field.default is None and _type_name(hint).endswith("`none`"):
        default = '"none"'
    return Setting(
        name,
        _type_name(hint),
        default,
        field.is_required(),
        DESCRIPTIONS.get(name, ""),
        default or _example(name, hint),
    )


def _nested_model(hint: Any) -> type[BaseModel] | None:
    candidates = get_args(hint)[-1:] if get_origin(hint) is dict else (hint,)
    return next((each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)), None)


def _type_name(hint: Any) -> str:
    for known, name in _TYPE_NAMES:
        if hint == known:
            return name
    arguments = [each for each in get_args(hint) if each is not type(None)]
    if get_origin(hint) is Literal:
        return " or ".join(f"`{each}`" for each in arguments)
    if get_origin(hint) is tuple:
        return f"list: {_type_name(arguments[0])}" if get_origin(arguments[0]) is Literal else "list of texts"
    return _type_name(arguments[0])  # an alternative to None, or an annotated type


def _example(setting: str, hint: Any) -> str:
    """Return a value of the type, for a setting that has no default."""
    name = _type_name(hint)
    examples = {
        "size": '"2G"',
        "number": "20",
        "dollars": "2.5",
        "address and port": '"127.0.0.1:9464"',
        "URL": '"http://127.0.0.1:4318"',
        "table of texts": "{}",
        "list of texts": "[]",
    }
    if setting.endswith("_bytes"):
        return "50_000_000_000"
    if setting.endswith(".models"):
        return '["text"]'  # as the example of `model`, which has to be one of them
    if name in examples:
        return examples[name]
    if name.startswith("`"):
        return json.dumps(name.split("`")[1])
    return '"2G"' if name.startswith("size") else '"/a/path"' if name == "path" else '"text"'


def toml_value(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        seconds = int(value.total_seconds())
        return next(f'"{seconds // size}{unit}"' for unit, size in _SECONDS_BY_UNIT if seconds % size == 0)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return "{}" if not value else json.dumps(value)
    if isinstance(value, float):
        return str(int(value)) if value == int(value) else str(value)
    return json.dumps(str(value), ensure_ascii=False) if not isinstance(value, int) else str(value)


def _size_text(value: int) -> str:
    return next(
        (f'"{value // size}{unit}"' for unit, size in _BYTES_BY_UNIT if value % size == 0), str(value)
    )


def settings_page() -> str:
    """Return `docs/settings.md`."""
    lines, table = [_HEAD], ""
    for setting in list_settings():
        if setting.table != table:
            table = setting.table
            title = table.replace("*", "NAME")
            lines.append(
                f"\n## [{title}]\n\n{_introduction(table)}| setting | type | default | meaning |\n|---|---|---|---|\n"
            )
        default = (
            "(required)" if setting.required else "" if setting.default is None else f"`{setting.default}`"
        )
        meaning = setting.description.replace("|", "\\|")
        if setting.variable is not None:
            meaning += f" `{setting.variable}`"
        key = setting.name.rpartition(".")[2].replace("*", "NAME")
        lines.append(f"| `{key}` | {setting.type_text} | {default} | {meaning} |\n")
    return "".join(lines)


def _introduction(table: str) -> str:
    return "" if "*" not in table else "Each table has a name that you choose.\n\n"


def settings_template() -> str:
    """Return a configuration file with each setting commented out, at its default or an example."""
    lines, table = [_TEMPLATE_HEAD], ""
    for setting in list_settings():
        if setting.table != table:
            table = setting.table
            lines.append(f"\n#: [{table.replace('*', 'name')}]\n")
        lines.append(f"\n# {setting.description}\n")
        lines.append(f"#: {setting.name.rpartition('.')[2].replace('*', 'name')} = {setting.example}\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(settings_page())
