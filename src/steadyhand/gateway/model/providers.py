"""Model providers: an address, a credential, the allowed routes and the access of the agent.

An agent never has the credential: it has an address that means nothing outside, and a placeholder.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from steadyhand.agents import DEFAULT_PROVIDER
from steadyhand.errors import ConfigError, RunError
from steadyhand.gateway.http_messages import end_to_end_headers
from steadyhand.gateway.model.usage_meter import ResponseFormat
from steadyhand.ports import ModelAccess, ModelApi

_UPSTREAMS: Mapping[ModelApi, str] = {
    "anthropic": "https://api.anthropic.com",
    "openai": "https://api.openai.com",
    "gemini": "https://generativelanguage.googleapis.com",
}
OAUTH_BETA = b"oauth-2025-04-20"
"""The flag that the model's service wants with an OAuth token; a CLI that holds an API key does not send it."""
PLACEHOLDER_CREDENTIAL = "sk-ant-placeholder-the-gateway-adds-the-key"
RUN_HEADER = "x-steadyhand-run"
"""The header that names the run of a request on loopback, for agents that send no usable credential."""

GEMINI_KEY_HEADER = b"x-goog-api-key"

_MODEL = rb"[A-Za-z0-9._~:@%-]{1,300}"
_ID = rb"[A-Za-z0-9._~-]{1,128}"
_MESSAGES = re.compile(rb"/v1/messages(?P<free>/count_tokens)?")
_MODELS = re.compile(rb"/v1/models(/[A-Za-z0-9_:-][A-Za-z0-9_.:-]*)*")
_BEDROCK = re.compile(
    rb"/model/(?P<model>" + _MODEL + rb")/(?:(?P<call>invoke|invoke-with-response-stream)|count-tokens)"
)
_VERTEX = re.compile(
    rb"/v1/projects/(?P<project>" + _ID + rb")/locations/" + _ID + rb"/publishers/anthropic/models/"
    rb"(?P<model>[A-Za-z0-9._~@-]{1,300}):(?:rawPredict|streamRawPredict)"
)
_OPENAI_CALLS: Mapping[bytes, ResponseFormat] = {
    b"/v1/responses": "responses",
    b"/v1/chat/completions": "chat",
}
_OPENAI_VERSION = b"/v1"
_BASE_WITH_VERSION = re.compile(r"/v[0-9]+/?$")
_GEMINI_CALL = re.compile(rb"/v1beta/models/(?P<model>[A-Za-z0-9._-]{1,300}):(?P<call>[A-Za-z]{1,40})")
_GEMINI_MODELS = re.compile(rb"/v1beta/models(?:/[A-Za-z0-9._-]{1,300})?")
# Only these: a query can also name credentials, other headers and another form of the answer.
_GEMINI_CALLS = {
    (b"generateContent", b""),
    (b"generateContent", b"alt=json"),
    (b"streamGenerateContent", b"alt=sse"),
}
_GEMINI_PAGE = re.compile(rb"(?:(?:pageSize|pageToken)=[A-Za-z0-9._~%=-]{0,500}(?:&|$))*")
_COUNT_TOKENS = b"count-tokens"
_ALLOWED_ROUTES: Mapping[ModelApi, str] = {
    "anthropic": "/v1/messages and /v1/models",
    "bedrock": "/model/ID/invoke and /model/ID/invoke-with-response-stream",
    "vertex": "the rawPredict and streamRawPredict of Anthropic's models",
    "openai": "POST /v1/responses, POST /v1/chat/completions and GET /v1/models",
    "gemini": "generateContent and streamGenerateContent?alt=sse of /v1beta/models/ID, and GET /v1beta/models",
}

_DROPPED_HEADERS = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"openai-organization",
        b"openai-project",
        b"cookie",
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"expect",
        b"forwarded",
        b"accept-encoding",
        RUN_HEADER.encode(),
    }
)
"""The headers of an agent that are dropped: credentials and who is billed; framing and encoding are set anew."""
_DROPPED_PREFIXES = (b"x-forwarded-", b"proxy-", b"x-amz-", b"x-goog-")


@dataclass(frozen=True, slots=True)
class Route:
    """A request that may pass: the form of its answer (`none` costs nothing), and the model that its path names."""

    response_format: ResponseFormat
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Credential:
    """The service's own credential; it is on the way to the model and nowhere else.

    `api_key` goes as `x-api-key`, `oauth` (a subscription's token) and `bearer` as a Bearer; with `header` it goes by
    that name as it is. OpenAI's keys are Bearers, and Gemini has a header of its own. With `file` the secret is read
    again when the file changes.
    """

    kind: Literal["api_key", "oauth", "bearer"]
    secret: str = field(repr=False)
    header: str | None = None
    file: Path | None = None

    def reload(self) -> None:
        """Read the file of the secret again with the next use, also if it looks unchanged."""
        cached = None if self.file is None else _secret_cache.get(self.file)
        if cached is not None:
            cached.fingerprint = _NO_FINGERPRINT

    def current_secret(self) -> bytes:
        """Return the current secret."""
        secret = self.secret if self.file is None else _reload_secret(self.file, self.secret)
        return secret.encode("latin-1", "replace")


@dataclass(slots=True)
class _CachedSecret:
    fingerprint: tuple[int, int, int]
    secret: str = field(repr=False)


_NO_FINGERPRINT = (0, 0, 0)
_secret_cache: dict[Path, _CachedSecret] = {}


def _reload_secret(path: Path, fallback: str) -> str:
    """Return the content of a file, read again when it has changed; if it cannot be read, the last content."""
    try:
        stat = os.stat(path)  # noqa: PTH116  # for every request
        fingerprint = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        cached = _secret_cache.get(path)
        if cached is None or cached.fingerprint != fingerprint:
            cached = _secret_cache[path] = _CachedSecret(
                fingerprint, path.read_text("utf-8").strip() or fallback
            )
    except (OSError, UnicodeDecodeError):
        cached = _secret_cache.get(path)
    return fallback if cached is None else cached.secret


@dataclass(frozen=True, slots=True)
class Provider:
    """One model provider. `base_url` None is the vendor's own address; `credential` None adds no credential.

    The CLI needs `region` and `project` for Bedrock and Vertex.
    """

    name: str = DEFAULT_PROVIDER
    kind: ModelApi = "anthropic"
    base_url: str | None = None
    credential: Credential | None = None
    region: str | None = None
    project: str | None = None

    @property
    def url(self) -> str:
        """Return the address of the provider."""
        if self.base_url is not None:
            return self.base_url
        if self.kind == "bedrock":
            return f"https://bedrock-runtime.{self.region}.amazonaws.com"
        if self.kind == "vertex":
            prefix = "" if self.region in (None, "global") else f"{self.region}-"
            return f"https://{prefix}aiplatform.googleapis.com"
        return _UPSTREAMS[self.kind]

    @property
    def missing_credential(self) -> str | None:
        """Return the reason why the provider cannot work, or None: the vendor's own address needs a credential."""
        if self.credential is not None or self.base_url is not None:
            return None
        setting = f"[providers.{self.name}] api_key_file"
        options = (
            f"ANTHROPIC_API_KEY, CLAUDE_CODE_OAUTH_TOKEN or {setting}"
            if self._may_use_environment
            else setting
        )
        return f"The service has no credential for the model: set {options} and start it again."

    @property
    def _may_use_environment(self) -> bool:
        return self.name == DEFAULT_PROVIDER and self.kind == "anthropic"

    @property
    def rate_limit_key(self) -> tuple[str, str]:
        """Return the key of the rate limit: providers with the same address and credential share one."""
        return (self.url, "" if self.credential is None else self.credential.secret)

    @property
    def credential_key(self) -> tuple[str, str]:
        """Return the key of the credential: its address, and its file, or without one its secret."""
        credential = self.credential
        if credential is None:
            return (self.url, "")
        return (self.url, credential.secret if credential.file is None else str(credential.file))

    @property
    def credential_remedy(self) -> str:
        """Return the way to replace the credential."""
        if self.credential is not None and self.credential.file is not None:
            return f"Write a valid one to {self.credential.file}; the service reads it without a restart."
        setting = f"[providers.{self.name}] api_key_file"
        setting += "" if self.kind in ("openai", "gemini") else " or oauth_token_file"
        variables = "ANTHROPIC_API_KEY, CLAUDE_CODE_OAUTH_TOKEN or " if self._may_use_environment else ""
        return f"Set {variables}{setting}, and start the service again."

    def current_secret(self) -> bytes:
        """Return the present secret of the credential; empty without one."""
        return b"" if self.credential is None else self.credential.current_secret()

    @property
    def allowed_routes(self) -> str:
        """Return the allowed routes."""
        return _ALLOWED_ROUTES[self.kind]

    def route(self, method: str, path: bytes, query: bytes = b"") -> Route | None:
        """Return the route of a request by method, path and query, or None if it is not allowed."""
        if self.kind == "anthropic":
            return _messages_route(method, path)
        if self.kind == "openai":
            return _openai_route(method, path)
        if self.kind == "gemini":
            return _gemini_route(method, path, query)
        if method != "POST":
            return None
        if self.kind == "bedrock":
            match = _BEDROCK.fullmatch(path)
            if match is None:
                return None
            return Route("bedrock" if match["call"] else "none", _decode_model_id(match["model"]))
        match = _VERTEX.fullmatch(path)
        if match is None or (self.project is not None and match["project"].decode() != self.project):
            return None
        return Route(
            "none" if match["model"] == _COUNT_TOKENS else "messages", _decode_model_id(match["model"])
        )

    def upstream_target(self, target: bytes) -> bytes:
        """Return the target of a request below the provider's address, which may name the version by itself."""
        if self.kind == "openai" and _BASE_WITH_VERSION.search(self.url):
            return target.removeprefix(_OPENAI_VERSION)
        return target

    def upstream_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the headers of an agent as they are sent to the provider, with the real credential."""
        credential = self.credential
        credential_header = b"" if credential is None else self._credential_header(credential)
        forwarded = [
            (name, value)
            for name, value in end_to_end_headers(headers)
            if name not in _DROPPED_HEADERS
            and name != credential_header
            and not name.startswith(_DROPPED_PREFIXES)
        ]
        # What comes packed has to be unpacked to be metered, and not everything can be.
        forwarded.append((b"accept-encoding", b"identity"))
        if credential is None:
            return forwarded
        secret = credential.current_secret()
        if credential.kind == "oauth":
            forwarded = _with_oauth_beta(forwarded)
        if credential_header != b"authorization":
            return [*forwarded, (credential_header, secret)]
        return [*forwarded, (b"authorization", b"Bearer " + secret)]

    def _credential_header(self, credential: Credential) -> bytes:
        if credential.header is not None:
            return credential.header.lower().encode()
        if self.kind == "gemini":
            return GEMINI_KEY_HEADER
        return b"x-api-key" if credential.kind == "api_key" and self.kind != "openai" else b"authorization"

    def access_at(self, address: str, token: str, socket: str | None = None) -> ModelAccess:
        """Return the access of an agent by the gateway at `address` or `socket`; `token` replaces the credential."""
        if self.kind == "openai":
            return ModelAccess("openai", f"{address}/v1", api_key=token, socket=socket)
        if self.kind == "gemini":
            return ModelAccess("gemini", address, api_key=token, socket=socket)
        if self.kind != "anthropic":
            headers = {RUN_HEADER: token}
            return ModelAccess(
                self.kind, address, headers=headers, socket=socket, region=self.region, project=self.project
            )
        if self.credential is not None and self.credential.kind == "oauth":
            return ModelAccess(base_url=address, oauth_token=token, socket=socket)
        return ModelAccess(base_url=address, api_key=token, socket=socket)


def _messages_route(method: str, path: bytes) -> Route | None:
    match = _MESSAGES.fullmatch(path)
    if match is not None and method in ("GET", "POST"):
        return Route("none" if match["free"] or method == "GET" else "messages")
    return Route("none") if method == "GET" and _MODELS.fullmatch(path) else None


def _openai_route(method: str, path: bytes) -> Route | None:
    if method == "POST":
        response_format = _OPENAI_CALLS.get(path)
        return None if response_format is None else Route(response_format)
    return Route("none") if method == "GET" and _MODELS.fullmatch(path) else None


def _gemini_route(method: str, path: bytes, query: bytes) -> Route | None:
    if method == "GET":
        is_list = _GEMINI_MODELS.fullmatch(path) and _GEMINI_PAGE.fullmatch(query)
        return Route("none") if is_list else None
    match = _GEMINI_CALL.fullmatch(path)
    if method != "POST" or match is None:
        return None
    if match["call"] == b"countTokens" and not query:
        return Route("none", match["model"].decode())
    return Route("gemini", match["model"].decode()) if (match["call"], query) in _GEMINI_CALLS else None


def _decode_model_id(model: bytes) -> str:
    return model.decode("ascii").replace("%3A", ":").replace("%3a", ":")


def _with_oauth_beta(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    flags = [v.strip() for n, value in headers if n == b"anthropic-beta" for v in value.split(b",")]
    if OAUTH_BETA not in flags:
        flags.append(OAUTH_BETA)
    others = [(name, value) for name, value in headers if name != b"anthropic-beta"]
    return [*others, (b"anthropic-beta", b",".join(flag for flag in flags if flag))]


class Providers:
    """The ways to models by their names."""

    def __init__(self, providers: Sequence[Provider]) -> None:
        self._by_name: Mapping[str, Provider] = {each.name: each for each in providers}
        for each in providers:
            if each.kind == "bedrock" and each.base_url is None and each.region is None:
                raise ConfigError(f"providers.{each.name}: bedrock needs a `region` or a `base_url`")

    def __iter__(self) -> Iterator[Provider]:
        """Iterate over all providers."""
        return iter(self._by_name.values())

    def get(self, name: str) -> Provider:
        """Return the provider of this name. Raises `RunError`; the configuration was checked at the start."""
        provider = self._by_name.get(name)
        if provider is None:
            raise RunError(f"There is no provider {name!r}.", code="unknown_provider", retryable=False)
        return provider
