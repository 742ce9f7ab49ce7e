"""The settings of npm and pip on this machine: the registries that they are configured for, and the files they need.

They are asked outside of the sandbox, where they read configuration and nothing of a package.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from steadyhand.errors import InstallError
from steadyhand.text_lines import split_lines

NPM_CONFIG = ("--globalconfig", "/etc/npmrc")
"""The machine's own configuration, in place of one beside the program."""
_QUERY_SECONDS = 60.0
_VARIABLE = re.compile(r"\$\{(\w+)\??\}")
_PIP_SETTINGS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "cert",
    "client-cert",
    "trusted-host",
    "no-index",
    "default-timeout",
)
_DEFAULT_INDEX = (
    "from pip._internal.models.index import PyPI as index\n"
    "print(index.simple_url, 'https://' + index.file_storage_domain)"
)


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """The settings of a client: its variables, the files of this machine that it reads, and its registries' hosts.

    `hosts` are entries of an egress list. A path in `env` is one of this machine.
    """

    env: Mapping[str, str]
    files: tuple[Path, ...]
    hosts: tuple[str, ...]


def read_npm_settings(npm: tuple[str, ...], directory: Path) -> RegistrySettings:
    """Return the settings of npm, which is asked in an empty directory. Raise `InstallError` if it does not answer."""
    try:
        values = json.loads(_ask([*npm, "config", "list", "--json", *NPM_CONFIG], directory))
    except ValueError as error:
        raise InstallError("npm does not tell its configuration as JSON.") from error
    env = {name: value for name, value in os.environ.items() if name.lower().startswith("npm_config_")}
    files = []
    for setting in ("userconfig", "globalconfig", "cafile"):
        path = Path(str(values.get(setting) or ""))
        if path.is_file():
            env[f"npm_config_{setting}"] = str(path)
            files.append(path)
    for path in files:
        # A credential may stand in a variable that the file names.
        names = _VARIABLE.findall(path.read_text("utf-8", "replace"))
        env |= {name: os.environ[name] for name in names if name in os.environ}
    urls = [str(value) for name, value in values.items() if name.split(":")[-1] == "registry"]
    return RegistrySettings(env, tuple(files), _hosts(urls))


def read_pip_settings(directory: Path) -> RegistrySettings:
    """Return the settings of this Python's pip. Raise `InstallError` if there is none."""
    pip = [sys.executable, "-m", "pip"]
    values: dict[str, str] = {}
    for line in split_lines(_ask([*pip, "config", "list"], directory)):
        name, _, value = line.partition("=")
        scope, _, setting = name.rpartition(".")
        if scope in ("global", ":env:"):  # the environment comes first and wins
            values.setdefault(setting, value.strip("'\""))
    chosen = {name: values[name] for name in _PIP_SETTINGS if name in values}
    env = {f"PIP_{name.upper().replace('-', '_')}": value for name, value in chosen.items()}
    words = [word for value in chosen.values() for word in value.replace("\\n", " ").split()]
    paths = [Path(word.removeprefix("file://")) for word in words if word.startswith(("/", "file:///"))]
    urls = [word for word in words if word.startswith(("http://", "https://"))]
    if "index-url" not in chosen:
        urls += _ask([sys.executable, "-c", _DEFAULT_INDEX], directory).split()
    return RegistrySettings(env, tuple(path for path in paths if path.exists()), _hosts(urls))


def _hosts(urls: Iterable[str]) -> tuple[str, ...]:
    found = []
    for url in urls:
        parts = urlsplit(url)
        if parts.hostname is None:
            raise InstallError("The address of a registry in the configuration of npm or pip names no host.")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        found.append(host if parts.port is None else f"{host}:{parts.port}")
    return tuple(dict.fromkeys(found))


def _ask(argv: list[str], directory: Path) -> str:
    try:
        done = subprocess.run(
            argv, cwd=directory, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{argv[0]} could not be asked for its configuration: {error}.") from error
    if done.returncode != 0:
        lines = [line for line in split_lines(done.stderr) if line.strip()]
        raise InstallError(
            f"{' '.join(argv[:3])} could not be asked for its configuration: {lines[-1] if lines else 'no reason'}"
        )
    return done.stdout
