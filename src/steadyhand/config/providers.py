"""The ways to models as they were told: tables of the file, and for the default one the environment."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from steadyhand.config.file_schema import ProviderTable
from steadyhand.errors import ConfigError

DEFAULT_PROVIDER = "default"
TERMS = "https://www.anthropic.com/legal/consumer-terms"
"""What to read before others use a service that runs on a personal subscription."""

ReadSecret = Callable[[Path, str], str | None]
"""Reads a secret from a file, for a setting of that name. Raises `ConfigError`."""


@dataclass(frozen=True, slots=True)
class ProviderSetting:
    """One way to a model, its secret read. `credential` null puts none on; `file` is where the secret came from."""

    name: str
    kind: Literal["anthropic", "bedrock", "vertex"] = "anthropic"
    base_url: str | None = None
    credential: Literal["api_key", "oauth", "bearer"] | None = None
    secret: str | None = field(default=None, repr=False)
    file: Path | None = None
    header: str | None = None
    region: str | None = None
    project: str | None = None


def provider_settings(
    tables: Mapping[str, ProviderTable],
    *,
    api_key: str | None,
    oauth_token: str | None,
    base_url: str | None,
    read: ReadSecret,
) -> tuple[ProviderSetting, ...]:
    """Give every way to a model; `default` is always there. Raises `ConfigError` for one that cannot be.

    The key, token and address of the environment are the default's, where its own table says nothing else.
    """
    found = [_from_table(name, table, read) for name, table in tables.items()]
    default = next((each for each in found if each.name == DEFAULT_PROVIDER), None)
    others = [each for each in found if each is not default]
    table = tables.get(DEFAULT_PROVIDER, ProviderTable())
    made = default or ProviderSetting(DEFAULT_PROVIDER)
    if made.kind == "anthropic":
        made = _with_environment(made, table, api_key, oauth_token, base_url)
    return (made, *others)


def _with_environment(
    made: ProviderSetting, table: ProviderTable, api_key: str | None, oauth_token: str | None, url: str | None
) -> ProviderSetting:
    credential, secret = made.credential, made.secret
    if secret is None and table.api_key_file is None and table.oauth_token_file is None:
        credential, secret = (
            ("api_key", api_key) if api_key else ("oauth" if oauth_token else None, oauth_token)
        )
    return ProviderSetting(
        name=made.name,
        base_url=made.base_url or url,
        credential=credential,
        secret=secret,
        file=made.file,
        header=made.header,
    )


def _from_table(name: str, table: ProviderTable, read: ReadSecret) -> ProviderSetting:
    where = f"providers.{name}"
    if table.api_key_file is not None and table.oauth_token_file is not None:
        raise ConfigError(f"{where}: a provider has an api_key_file or an oauth_token_file, not both")
    if table.kind == "bedrock" and table.base_url is None and table.region is None:
        raise ConfigError(f"{where}: bedrock needs a region or a base_url")
    if table.kind == "bedrock" and table.oauth_token_file is not None:
        raise ConfigError(f"{where}: bedrock takes an api_key_file, which holds a Bedrock API key")
    if table.kind == "vertex" and table.project is None:
        raise ConfigError(f"{where}: vertex needs a project")
    if table.kind == "vertex" and table.api_key_file is not None:
        raise ConfigError(f"{where}: vertex takes an oauth_token_file, which holds an access token")
    file = table.api_key_file or table.oauth_token_file
    setting = "api_key_file" if table.api_key_file is not None else "oauth_token_file"
    secret = None if file is None else read(file, f"{where}.{setting}")
    credential: Literal["api_key", "oauth", "bearer"] | None = None
    if secret is not None:
        credential = "oauth" if table.oauth_token_file is not None else "api_key"
        credential = credential if table.kind == "anthropic" else "bearer"
    return ProviderSetting(
        name=name,
        kind=table.kind,
        base_url=table.base_url,
        credential=credential,
        secret=secret,
        file=file,
        header=table.header,
        region=table.region,
        project=table.project,
    )
