"""The providers of models: tables of the file, and for the default one the environment."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from steadyhand.agents import DEFAULT_PROVIDER
from steadyhand.config.file_schema import ProviderKind, ProviderTable
from steadyhand.errors import ConfigError

CONSUMER_TERMS_URL = "https://www.anthropic.com/legal/consumer-terms"
"""The terms that apply before others use a service that runs on a personal subscription."""

RUNNER_PROVIDERS: Mapping[str, frozenset[ProviderKind]] = {
    "claude": frozenset({"anthropic", "bedrock", "vertex"}),
    "codex": frozenset({"openai", "openai-compatible"}),
}
"""The kinds of providers that a runner's agents can use."""
API_PROVIDERS: Mapping[str, frozenset[ProviderKind]] = {
    "anthropic": frozenset({"anthropic"}),
    "openai": frozenset({"openai", "openai-compatible"}),
    "gemini": frozenset({"gemini"}),
}
"""The kinds of providers that the agents of other runners can use, by the API that they speak."""
_KINDS_WITHOUT_TOKENS: frozenset[ProviderKind] = frozenset({"openai", "openai-compatible", "gemini"})

SecretAndFile = tuple[str | None, Path | None]
"""A secret of the environment, and its file if a variable names one."""
ReadSecret = Callable[[Path, str], str | None]
"""Reads a secret from a file, for a setting of that name. Raises `ConfigError`."""


@dataclass(frozen=True, slots=True)
class ProviderSetting:
    """One provider with its secret. If `credential` is `None`, the gateway adds none; `file` is the secret's source."""

    name: str
    kind: ProviderKind = "anthropic"
    base_url: str | None = None
    credential: Literal["api_key", "oauth", "bearer"] | None = None
    secret: str | None = field(default=None, repr=False)
    file: Path | None = None
    header: str | None = None
    region: str | None = None
    project: str | None = None


def build_provider_settings(
    tables: Mapping[str, ProviderTable],
    *,
    api_key: SecretAndFile,
    oauth_token: SecretAndFile,
    base_url: str | None,
    read_secret: ReadSecret,
) -> tuple[ProviderSetting, ...]:
    """Return all providers; `default` is always there. Raise `ConfigError` for an invalid one.

    The key, token and address of the environment belong to the default provider, unless its table sets others.
    """
    configured = [_from_table(name, table, read_secret) for name, table in tables.items()]
    configured_default = next((each for each in configured if each.name == DEFAULT_PROVIDER), None)
    others = [each for each in configured if each is not configured_default]
    table = tables.get(DEFAULT_PROVIDER, ProviderTable())
    default_provider = configured_default or ProviderSetting(DEFAULT_PROVIDER)
    if default_provider.kind == "anthropic":
        default_provider = _with_environment(default_provider, table, api_key, oauth_token, base_url)
    return (default_provider, *others)


def _with_environment(
    provider: ProviderSetting,
    table: ProviderTable,
    api_key: SecretAndFile,
    oauth_token: SecretAndFile,
    url: str | None,
) -> ProviderSetting:
    credential, secret, file = provider.credential, provider.secret, provider.file
    if secret is None and table.api_key_file is None and table.oauth_token_file is None:
        if api_key[0]:
            credential, (secret, file) = "api_key", api_key
        elif oauth_token[0]:
            credential, (secret, file) = "oauth", oauth_token
    return ProviderSetting(
        name=provider.name,
        base_url=provider.base_url or url,
        credential=credential,
        secret=secret,
        file=file,
        header=provider.header,
    )


def _check_table(table_name: str, table: ProviderTable) -> None:
    """Raise `ConfigError` for a table that lacks a setting of its kind, or has one that its kind has not."""
    if table.api_key_file is not None and table.oauth_token_file is not None:
        raise ConfigError(f"{table_name}: a provider has an api_key_file or an oauth_token_file, not both")
    if table.kind == "bedrock" and table.base_url is None and table.region is None:
        raise ConfigError(f"{table_name}: bedrock needs a region or a base_url")
    if table.kind == "bedrock" and table.oauth_token_file is not None:
        raise ConfigError(f"{table_name}: bedrock takes an api_key_file, which holds a Bedrock API key")
    if table.kind == "vertex" and table.project is None:
        raise ConfigError(f"{table_name}: vertex needs a project")
    if table.kind == "vertex" and table.api_key_file is not None:
        raise ConfigError(f"{table_name}: vertex takes an oauth_token_file, which holds an access token")
    if table.kind in _KINDS_WITHOUT_TOKENS and table.oauth_token_file is not None:
        raise ConfigError(f"{table_name}: {table.kind} takes an api_key_file, which holds an API key")
    if table.kind == "openai-compatible" and table.base_url is None:
        raise ConfigError(f"{table_name}: openai-compatible needs a base_url")


def _from_table(name: str, table: ProviderTable, read_secret: ReadSecret) -> ProviderSetting:
    table_name = f"providers.{name}"
    _check_table(table_name, table)
    file = table.api_key_file or table.oauth_token_file
    setting = "api_key_file" if table.api_key_file is not None else "oauth_token_file"
    secret = None if file is None else read_secret(file, f"{table_name}.{setting}")
    credential: Literal["api_key", "oauth", "bearer"] | None = None
    if secret is not None:
        credential = "oauth" if table.oauth_token_file is not None else "api_key"
        credential = credential if table.kind in ("anthropic", "gemini") else "bearer"
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
