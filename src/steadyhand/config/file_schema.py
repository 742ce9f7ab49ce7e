"""The tables of `steadyhand.toml`, as types. A key without a field here is an error."""

import posixpath
import re
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from steadyhand.agents import DEFAULT_PROVIDER, Defaults, TrustLevel, WorkspaceMode
from steadyhand.job import CallbackBody, CallbackEvent, Effort, OnInterrupt, Publish
from steadyhand.money import MICROS_PER_DOLLAR
from steadyhand.placement import LABEL_PATTERN, LABEL_RULE, MAX_LABELS, NODE_NAME_PATTERN, NODE_NAME_RULE
from steadyhand.ports import MissedPolicy, OverlapPolicy
from steadyhand.tool_calls import TOOL_RESULT_SECONDS

_DEFAULTS = Defaults()

_SECONDS_BY_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_BYTES_BY_UNIT = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_RESERVED_PATHS = (
    "/dev",
    "/harvest",
    "/home/agent",
    "/mirror",
    "/opt/steadyhand",
    "/proc",
    "/run/steadyhand",
    "/sys",
    "/var/tmp",  # noqa: S108  # the sandbox's own
    "/workspace",
)
"""Paths of the sandbox itself, where it cannot show a file of this machine."""


def _parse_duration(value: Any) -> Any:
    """Parse `90d`, `24h`, `15m` or `30s`; a bare number is seconds; `never` is `None`."""
    if value in ("never", None):
        return None
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)([smhd]?)", value)):
        return timedelta(seconds=int(match[1]) * _SECONDS_BY_UNIT[match[2] or "s"])
    if isinstance(value, int) and not isinstance(value, bool):
        return timedelta(seconds=value)
    if isinstance(value, timedelta):
        return value
    raise ValueError("is not a duration such as 90d, 24h, 15m or 30s")


def _split_list(value: Any) -> Any:
    """Return a list as it is, and split a string at commas, as environment variables have it."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return value


def _parse_size(value: Any) -> Any:
    """Parse `512M`, `2G` or a number of bytes."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", value)):
        return int(float(match[1]) * _BYTES_BY_UNIT[match[2]])
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("is not a size such as 512M or 2G")


def _parse_size_or_none(value: Any) -> Any:
    """Parse a size; `none` is no limit."""
    return None if value in ("none", None) else _parse_size(value)


def _parse_number_or_none(value: Any) -> Any:
    return None if value == "none" else value


def _validate_secret_path(value: str) -> str:
    """Return the path of a file, which is the same inside the sandbox. Raise `ValueError` if it is reserved there."""
    if not posixpath.isabs(value) or posixpath.normpath(value) != value or "\0" in value or value == "/":
        raise ValueError("is not an absolute path without `..` and `//`")
    for reserved in _RESERVED_PATHS:
        if value == reserved or value.startswith(f"{reserved}/"):
            raise ValueError(f"cannot be below {reserved}, which the sandbox uses itself")
    return value


def _validate_variables(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None:
            raise ValueError(f"{name!r} is not the name of a variable")
        if "\0" in text:
            raise ValueError(f"the value of {name} holds a NUL byte")
    return value


def _validate_home_files(value: dict[str, str]) -> dict[str, str]:
    for path in value:
        if posixpath.isabs(path) or posixpath.normpath(path) != path or path.startswith("..") or "\0" in path:
            raise ValueError(f"{path[:60]!r} is not a path below the home")
    return value


def _validate_hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    if "host" in value and len(value) > 1:
        raise ValueError(
            "is either a list of host names or `host` alone, which shares this machine's network"
        )
    return value


_FETCH_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?", re.IGNORECASE)


def _validate_fetch_hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    for entry in value:
        host, _, port = entry.partition(":")
        if _FETCH_HOST.fullmatch(host) is None or (port and not (port.isdigit() and 0 < int(port) < 65536)):  # noqa: PLR2004
            raise ValueError(f"{entry[:60]!r} is not a host name, with or without a port")
    return value


_BIND_ADDRESS = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<host>[A-Za-z0-9.-]{1,253})):(?P<port>\d{1,5})"
)


def _validate_labels(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(value) > MAX_LABELS:
        raise ValueError(f"at most {MAX_LABELS} labels")
    for label in value:
        if LABEL_PATTERN.fullmatch(label) is None:
            raise ValueError(f"{label!r} is not a label: {LABEL_RULE}")
    return tuple(sorted(set(value)))


def _validate_node_names(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(value) > MAX_LABELS:
        raise ValueError(f"at most {MAX_LABELS} nodes")
    for name in value:
        if NODE_NAME_PATTERN.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not a node's name: {NODE_NAME_RULE}")
    return tuple(sorted(set(value)))


def _validate_bind_address(value: str) -> str:
    match = _BIND_ADDRESS.fullmatch(value)
    if match is None or int(match["port"]) > 65_535:  # noqa: PLR2004
        raise ValueError("is not an address and a port such as 127.0.0.1:9464 or [::1]:9464")
    return value


def split_bind_address(value: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port of a checked address such as `[::1]:9464`."""
    host, _, port = value.rpartition(":")
    return host.strip("[]"), int(port)


Size = Annotated[int, BeforeValidator(_parse_size), Field(ge=1024**2, le=1024**5)]
SizeOrNone = Annotated[
    Annotated[int, Field(ge=1024**2, le=1024**5)] | None, BeforeValidator(_parse_size_or_none)
]
Processes = Annotated[int, Field(ge=16, le=4_000_000)]
ProcessesOrNone = Annotated[Processes | None, BeforeValidator(_parse_number_or_none)]
Variables = Annotated[dict[str, str], AfterValidator(_validate_variables)]
Duration = Annotated[timedelta | None, BeforeValidator(_parse_duration)]
StringList = Annotated[tuple[str, ...], BeforeValidator(_split_list)]
SecretPath = Annotated[str, AfterValidator(_validate_secret_path)]
SecretPaths = Annotated[tuple[SecretPath, ...], BeforeValidator(_split_list)]
ModelList = Annotated[StringList, Field(min_length=1)]
HostList = Annotated[StringList, AfterValidator(_validate_hosts)]
FetchHosts = Annotated[StringList, AfterValidator(_validate_fetch_hosts)]
LabelList = Annotated[StringList, AfterValidator(_validate_labels)]
NodeNameList = Annotated[StringList, AfterValidator(_validate_node_names)]
BindAddress = Annotated[str, AfterValidator(_validate_bind_address)]
Dollars = Annotated[Decimal, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
HomeFiles = Annotated[dict[str, str], AfterValidator(_validate_home_files)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServiceTable(_Table):
    """[service]: capacity, data directory, isolation and profile."""

    concurrency: int = Field(default=4, ge=0, le=1_000)
    max_queued: int = Field(default=100, ge=0, le=1_000_000)
    max_waiting_runs: int | None = Field(default=None, ge=0, le=2_000)
    max_waiting_runs_per_key: int = Field(default=16, ge=1, le=2_000)
    drain_seconds: float = Field(default=30, ge=0, le=86_400)
    reattach_seconds: float = Field(default=30, ge=0, le=3_600)
    data_dir: Path | None = None
    database_url: str | None = None
    database_listen_url: str | None = None
    isolation: Literal["none", "bwrap"] = "bwrap"
    profile: Literal["default", "classic"] = "default"
    agent_uid_base: int = Field(default=64_000, ge=1_000, le=2_000_000_000)
    warm_memory: Size = 1024**3
    node: str = "node-1"
    labels: LabelList = ()
    paused: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "text", "json"] = "auto"
    metrics_bind: BindAddress | None = None

    @property
    def waiting_runs(self) -> int:
        """The number of processes that may wait for their clients beside the jobs that run."""
        return 2 * self.concurrency if self.max_waiting_runs is None else self.max_waiting_runs

    @property
    def slots(self) -> int:
        """The number of slots: one for each job that runs, and one for each process that may wait."""
        return self.concurrency + self.waiting_runs


class ServerTable(_Table):
    """[server]: the address on which the service listens, and its public names."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)
    public_url: str | None = None
    allowed_hosts: StringList = ()
    cors_origins: StringList = ()
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1_024, le=1024 * 1024 * 1024)
    max_connections: int | None = Field(default=None, ge=16, le=100_000)
    max_connections_per_address: int | None = Field(default=None, ge=8, le=100_000)


class DefaultsTable(_Table):
    """[defaults]: the values of a job that sets no other."""

    agent: str = _DEFAULTS.agent
    workspace: str | None = None
    budget_usd: Dollars = Decimal(_DEFAULTS.budget_micros) / MICROS_PER_DOLLAR
    timeout_seconds: Seconds = _DEFAULTS.timeout_seconds
    idle_timeout_seconds: Seconds = _DEFAULTS.idle_timeout_seconds
    background_seconds: Seconds = _DEFAULTS.background_seconds
    on_interrupt: OnInterrupt = _DEFAULTS.on_interrupt
    publish: Publish = _DEFAULTS.publish
    memory: SizeOrNone = 4 * 1024**3
    processes: ProcessesOrNone = 1_024
    disk: SizeOrNone = None


class LimitsTable(_Table):
    """[limits]: the limits of a job, and the spending limit of all jobs in a day of UTC."""

    max_budget_usd: Dollars | None = None
    max_timeout_seconds: Seconds | None = None
    service_per_day_usd: Dollars | None = None


class RetentionTable(_Table):
    """[retention]: the time for which files and jobs are kept; `never` keeps them for good."""

    jobs: Duration = timedelta(days=90)
    transcripts: Duration = timedelta(days=30)
    kept_checkouts: Duration = timedelta(days=1)
    max_bytes: int | None = Field(default=None, ge=1_000_000)


class ArtifactsTable(_Table):
    """[artifacts]: the files that jobs leave, where several nodes share them."""

    url: str | None = None
    database_bytes: int = Field(default=8 * 1024**2, ge=0, le=1024**3)
    options: StringList = ()

    @property
    def object_options(self) -> dict[str, str]:
        """The options of the object store by name."""
        return {name: value for name, _, value in (each.partition("=") for each in self.options)}


class GitTable(_Table):
    """[git]: the author of commits, and the service's own access to repositories. Agents never see these files."""

    author_name: str = "Steadyhand"
    author_email: str = "steadyhand@localhost"
    credential_file: Path | None = None
    ssh_key_file: Path | None = None
    ca_file: Path | None = None


ProviderKind = Literal["anthropic", "bedrock", "vertex", "openai", "openai-compatible", "gemini"]


class ProviderTable(_Table):
    """[providers.NAME]: the address of a provider of models, and the credential that the gateway adds."""

    kind: ProviderKind = "anthropic"
    base_url: str | None = None
    api_key_file: Path | None = None
    oauth_token_file: Path | None = None
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] | None = None
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")] | None = None
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9._~-]{1,128}$")] | None = None


class GatewayTable(_Table):
    """[gateway]: the time that it waits for a busy model before the job is parked; the share of `budget.near`."""

    max_wait_seconds: float = Field(default=20, ge=0, le=600)
    max_waits_seconds: float = Field(default=60, ge=0, le=3_600)
    budget_near: float = Field(default=0.8, ge=0.01, le=1)


class ClaudeTable(_Table):
    """[runner.claude]: the path of the CLI."""

    path: Path | None = None


class CodexTable(_Table):
    """[runner.codex]: the path of the program."""

    path: Path | None = None


class KimiTable(_Table):
    """[runner.kimi]: the path of the program, and of Node, which runs it."""

    path: Path | None = None
    node: Path | None = None


class OpencodeTable(_Table):
    """[runner.opencode]: the path of the program."""

    path: Path | None = None


class ClaudeAgentAcpTable(_Table):
    """[runner.claude-agent-acp]: the path of the program, and of Node, which runs it."""

    path: Path | None = None
    node: Path | None = None


class RunnerTable(_Table):
    """[runner]: the settings of runners."""

    claude: ClaudeTable = ClaudeTable()
    codex: CodexTable = CodexTable()
    kimi: KimiTable = KimiTable()
    opencode: OpencodeTable = OpencodeTable()
    claude_agent_acp: ClaudeAgentAcpTable = Field(default=ClaudeAgentAcpTable(), alias="claude-agent-acp")


class AcpRunnerTable(_Table):
    """[runners.NAME]: another agent that speaks ACP."""

    path: Path
    node: Path | None = None
    api: Literal["anthropic", "openai", "gemini"] = "openai"
    arguments: StringList = ()
    env: Variables = {}
    files: HomeFiles = {}
    mode: str | None = None
    load_sessions: bool = False


class AliasTable(_Table):
    """One alias in [openai.models]: an agent, perhaps a model for it, and the reasoning that a chat shows."""

    agent: str
    model: str | None = None
    reasoning: Literal["none", "thinking", "tools", "all"] = "none"


class OpenaiTable(_Table):
    """[openai]: the meaning of the model names of the OpenAI routes."""

    default_agent: str | None = None
    tool_result_seconds: Seconds = TOOL_RESULT_SECONDS
    models: dict[str, AliasTable] = {}


class WorkspaceTable(_Table):
    """[workspaces.NAME]: a repository, a ref and a policy."""

    repository: str
    ref: str | None = None
    mode: WorkspaceMode = "checkout"
    trust: TrustLevel = "instructions"
    trusted_refs: StringList = ()
    setup: tuple[str, ...] = ()
    setup_secrets: SecretPaths = ()
    setup_egress: HostList = ()
    publish: Publish | None = None
    caches: Annotated[tuple[Literal["pip", "npm", "cargo", "go"], ...], BeforeValidator(_split_list)] = ()
    submodules: bool = False
    lfs: bool = False
    fetch_hosts: FetchHosts = ()


class AgentTable(_Table):
    """[agents.NAME]: a named way to run."""

    description: str = ""
    runner: str = "claude"
    provider: str = DEFAULT_PROVIDER
    workspace: str | None = None
    model: str | None = None
    budget_usd: Dollars | None = None
    budget_per_day_usd: Dollars | None = None
    max_budget_usd: Dollars | None = None
    max_timeout_seconds: Seconds | None = None
    models: ModelList | None = None
    timeout_seconds: Seconds | None = None
    idle_timeout_seconds: Seconds | None = None
    background_seconds: Seconds | None = None
    tools: StringList | None = None
    max_turns: int | None = Field(default=None, ge=1, le=10_000)
    effort: Effort | None = None
    append_system_prompt: str | None = None
    env: Variables = {}
    secrets: SecretPaths = ()
    egress: HostList = ()
    memory: Size | None = None
    processes: Processes | None = None
    disk: Size | None = None
    warm: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = 0
    live_seconds: float = Field(default=0, ge=0, le=86_400)
    labels: LabelList = ()
    not_on_nodes: NodeNameList = ()
    lean: bool = False


class CallbackEndpointTable(_Table):
    """[callbacks.endpoints.NAME]: a receiver of the events of jobs."""

    url: str
    events: Annotated[tuple[CallbackEvent, ...], BeforeValidator(_split_list), Field(min_length=1)] = (
        "job.ended",
    )
    agents: StringList = ()
    secret_file: Path
    body: CallbackBody = "thin"


class CallbacksTable(_Table):
    """[callbacks]: how the service tells receivers of the events of jobs."""

    allow: StringList = ()
    max_in_flight: int = Field(default=16, ge=1, le=256)
    timeout_seconds: float = Field(default=10, gt=0, le=120)
    secret_file: Path | None = None
    endpoints: dict[str, CallbackEndpointTable] = {}


class ScheduleTable(_Table):
    """[schedules.NAME]: a cron expression, and the job that each of its ticks submits."""

    cron: str
    timezone: str = "UTC"
    key: str | None = None
    prompt: str = Field(min_length=1)
    agent: str | None = None
    title: str | None = Field(default=None, max_length=200)
    workspace: str | None = None
    ref: str | None = None
    model: str | None = None
    budget_usd: Dollars | None = None
    timeout_seconds: Seconds | None = None
    idle_timeout_seconds: Seconds | None = None
    expires_in_seconds: Seconds | None = None
    priority: int = Field(default=0, ge=-100, le=100)
    max_turns: int | None = Field(default=None, ge=1, le=10_000)
    effort: Effort | None = None
    append_system_prompt: str | None = None
    publish: Publish | None = None
    on_interrupt: OnInterrupt | None = None
    metadata: dict[str, str] = {}
    labels: LabelList = ()
    not_on_nodes: NodeNameList = ()
    overlap: OverlapPolicy = "skip"
    missed: MissedPolicy = "once"
    max_usd: Dollars | None = None
    max_runs: int | None = Field(default=None, ge=1, le=1_000_000_000)
    max_failures: int | None = Field(default=None, ge=1, le=1_000)


class NotifierTable(_Table):
    """[notify.NAME]: an address that people read, and the rules that choose what it is told."""

    url: str | None = None
    url_file: Path | None = None
    events: Annotated[tuple[CallbackEvent, ...], BeforeValidator(_split_list), Field(min_length=1)] = (
        "job.ended",
        "job.parked",
        "job.needs_results",
        "budget.near",
        "schedule.paused",
    )
    agents: StringList = ()
    keys: StringList = ()
    outcomes: StringList = ()
    quiet_hours: str | None = None
    timezone: str = "UTC"
    in_quiet_hours: Literal["hold", "drop"] = "hold"


def _validate_receiver_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("is not an address such as http://127.0.0.1:4318")
    if parts.username is not None or parts.password is not None:
        raise ValueError("has a user or a password: put credentials into headers_file")
    return value


ReceiverUrl = Annotated[str, AfterValidator(_validate_receiver_url)]


class TelemetryTable(_Table):
    """[telemetry]: the export to a receiver of OpenTelemetry, with the extra `steadyhand[otel]`."""

    endpoint: ReceiverUrl | None = None
    headers_file: Path | None = None
    traces: bool = True
    metrics: bool = True
    content: bool = False
    stop_seconds: float = Field(default=5, ge=0, le=60)


class Tables(_Table):
    """The whole file."""

    service: ServiceTable = ServiceTable()
    server: ServerTable = ServerTable()
    defaults: DefaultsTable = DefaultsTable()
    limits: LimitsTable = LimitsTable()
    retention: RetentionTable = RetentionTable()
    artifacts: ArtifactsTable = ArtifactsTable()
    git: GitTable = GitTable()
    providers: dict[str, ProviderTable] = {}
    gateway: GatewayTable = GatewayTable()
    prices: dict[str, dict[str, Any]] = {}
    runner: RunnerTable = RunnerTable()
    runners: dict[str, AcpRunnerTable] = {}
    openai: OpenaiTable = OpenaiTable()
    callbacks: CallbacksTable = CallbacksTable()
    notify: dict[str, NotifierTable] = {}
    schedules: dict[str, ScheduleTable] = {}
    telemetry: TelemetryTable = TelemetryTable()
    workspaces: dict[str, WorkspaceTable] = {}
    agents: dict[str, AgentTable] = {}
