import os
from pathlib import Path

import pytest

from steadyhand.agents import Defaults
from steadyhand.config.client import default_data_dir, load_client_settings
from steadyhand.config.file_schema import AgentTable, Tables
from steadyhand.config.settings import Settings, load_settings
from steadyhand.errors import ConfigError


def read(tmp_path: Path, text: str = "", **environ: str) -> Settings:
    file = tmp_path / "steadyhand.toml"
    file.write_text(text)
    return load_settings(file, environ={"STEADYHAND_DATA_DIR": str(tmp_path / "data"), **environ})


def test_with_nothing_set_everything_has_the_documented_default(tmp_path: Path) -> None:
    settings = load_settings(environ={"HOME": str(tmp_path)}, file=None)
    tables = settings.tables
    assert (tables.service.concurrency, tables.service.max_queued, tables.service.drain_seconds) == (
        4,
        100,
        30,
    )
    assert (tables.server.host, tables.server.port) == ("127.0.0.1", 8080)
    assert tables.defaults.budget_usd == 5
    assert settings.build_catalog().defaults.budget_micros == 5_000_000
    assert set(settings.build_catalog().agents) == {"claude", "chat"}
    assert not settings.classic


def test_the_file_the_environment_and_the_command_line_win_in_this_order(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("[service]\nconcurrency = 2\nmax_queued = 7\ndrain_seconds = 1\n")
    settings = load_settings(
        file,
        {"service.drain_seconds": 9, "server.port": None},
        {"STEADYHAND_CONCURRENCY": "3", "STEADYHAND_SERVICE__DRAIN_SECONDS": "8"},
    )
    service = settings.tables.service
    assert (service.concurrency, service.max_queued, service.drain_seconds) == (3, 7, 9)
    rows = {row.name: row for row in settings.rows()}
    assert rows["service.concurrency"].source == "STEADYHAND_CONCURRENCY"
    assert rows["service.max_queued"].source == "s.toml"
    assert rows["service.drain_seconds"].source == "command line"
    assert rows["server.port"].source == "default"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[service]\nconcurency = 2",
            "service.concurency (steadyhand.toml): there is no such setting; did you mean concurrency",
        ),
        ("[servce]\nx = 2", "did you mean service"),
        (
            "[agents.a]\nmodle = 'x'",
            "agents.a.modle (steadyhand.toml): there is no such setting; did you mean model",
        ),
        (
            "[providers.house]\nbase_url = 'http://127.0.0.1:1'\n[agents.a]\nprovider = 'hous'",
            "agents.a.provider: there is no provider 'hous'; did you mean house?",
        ),
        (
            "[agents.a]\nbudget_usd = 3\nmax_budget_usd = 2\n",
            "agents.a.budget_usd: 3 is above max_budget_usd, which is 2",
        ),
        (
            "[agents.a]\ntimeout_seconds = 90\nmax_timeout_seconds = 60\n",
            "agents.a.timeout_seconds: 90.0 is above max_timeout_seconds",
        ),
        (
            '[agents.a]\nmodel = "opus"\nmodels = ["haiku"]\n',
            "agents.a.model: 'opus' is not one of its models",
        ),
        (
            '[agents.a]\nmodels = ["haiku"]\n[openai.models]\nx = {agent = "a", model = "opus"}\n',
            "openai.models.x.model: 'opus' is not one of the models of 'a'",
        ),
        ("[providers.x]\nkind = 'azure'", "providers.x.kind (steadyhand.toml): Input should be 'anthropic'"),
        ("[providers.x]\nheader = 'a b'", "providers.x.header"),
        (
            "[providers.x]\napi_key_file = '/a'\noauth_token_file = '/b'",
            "providers.x: a provider has an api_key_file or an oauth_token_file, not both",
        ),
        ("[providers.x]\nkind = 'bedrock'", "providers.x: bedrock needs a region or a base_url"),
        ("[providers.x]\nkind = 'vertex'", "providers.x: vertex needs a project"),
        ("[providers.x]\nkind = 'openai-compatible'", "providers.x: openai-compatible needs a base_url"),
        (
            "[providers.x]\nkind = 'gemini'\noauth_token_file = '/a'",
            "providers.x: gemini takes an api_key_file, which holds an API key",
        ),
        (
            "[providers.x]\nkind = 'openai'\n[agents.a]\nprovider = 'x'",
            "agents.a.provider: the runner claude cannot use a provider of the kind openai",
        ),
        ("[providers.x]\napi_key_file = '/nonexistent/key'", "providers.x.api_key_file: /nonexistent/key"),
        ("[retention]\nkept_checkouts = 'long'", "is not a duration such as 90d"),
        ("[agents.a]\negres = ['x']", "did you mean egress"),
        ("[agents.a]\nmemory = 'lots'", "agents.a.memory (steadyhand.toml): is not a size such as 512M"),
        ("[agents.a]\nmemory = 'none'", "is not a size such as 512M"),
        ("[agents.a]\nmemory = 1000", "agents.a.memory (steadyhand.toml): Input should be greater"),
        ("[agents.a]\negress = ['host', 'example.org']", "or `host` alone"),
        ("[agents.a]\nprocesses = 1", "agents.a.processes (steadyhand.toml): Input should be greater"),
        ("[agents.a]\nsecrets = ['key']", "is not an absolute path"),
        ("[agents.a]\nsecrets = ['/a/../b']", "is not an absolute path"),
        ("[agents.a]\nsecrets = ['/workspace/.env']", "cannot be below /workspace"),
        ("[agents.a]\nsecrets = ['/proc/1/environ']", "cannot be below /proc"),
        ('[agents.a]\nenv = { "A=B" = "x" }', "is not the name of a variable"),
        ('[agents.a]\nenv = { A = "x\\u0000--bind" }', "holds a NUL byte"),
        ("[workspaces.w]\nrepository = '/x'\ncaches = ['bun']", "Input should be 'pip'"),
        ("[workspaces.w]\nrepository = '/x'\nsetup = 'x'", "workspaces.w.setup"),
        ("[service]\nconcurrency = -1", "service.concurrency (steadyhand.toml): Input should be greater"),
        ("[service]\nmetrics_bind = '9464'", "is not an address and a port such as 127.0.0.1:9464"),
        ("[service]\nmetrics_bind = '127.0.0.1:99999'", "is not an address and a port"),
        ("[service]\nmetrics_bind = '::1:9464'", "is not an address and a port"),
        ("[service]\nmetrics_bind = 'a b:1'", "is not an address and a port"),
        ("[defaults]\nbudget_usd = nan", "defaults.budget_usd"),
        ("[retention]\njobs = 'soon'", "is not a duration such as 90d"),
        ("[agents.'../x']\nmodel = 'x'", "is not a valid name"),
        ("[agents.a]\nworkspace = 'nowhere'", "there is no workspace 'nowhere'"),
        ("service = 3\n", "service"),
        ("= broken", "could not be read"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_says_which_and_what_is_near(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)


def test_an_unknown_name_in_the_environment_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="STEADYHAND_CONCURENCY is not a setting; did you mean STEADYHAND_CONCURRENCY"
    ):
        read(tmp_path, STEADYHAND_CONCURENCY="3")
    with pytest.raises(ConfigError, match="did you mean concurrency"):
        read(tmp_path, STEADYHAND_SERVICE__CONCURENCY="3")


def test_every_secret_may_come_from_a_file_and_none_is_ever_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cr3t-value\n")
    settings = read(
        tmp_path,
        STEADYHAND_API_KEY_FILE=str(secret),
        API_BEARER_TOKEN="bearer-canary",
        ANTHROPIC_API_KEY_FILE=str(secret),
    )
    assert settings.api_key == "s3cr3t-value"
    assert settings.anthropic_api_key == "s3cr3t-value"
    assert settings.providers[0].file == secret  # so that it is read again when it changes
    shown = repr(settings) + "".join(f"{row.name}{row.value}{row.source}" for row in settings.rows())
    assert "s3cr3t" not in shown
    assert "canary" not in shown


def test_a_secret_file_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="API_BEARER_TOKEN_FILE"):
        read(tmp_path, API_BEARER_TOKEN_FILE=str(tmp_path / "none"))


def test_the_classic_profile_is_one_job_at_a_time_in_place_without_a_queue(tmp_path: Path) -> None:
    settings = read(
        tmp_path, STEADYHAND_PROFILE="classic", WORKSPACE_DIR="/srv/ws", API_BEARER_TOKEN="t" * 20
    )
    assert settings.classic
    assert (settings.tables.service.concurrency, settings.tables.service.max_queued) == (1, 0)
    assert settings.tables.openai.default_agent == "recruiter-triage"
    workspace = settings.build_catalog().workspace("default")
    assert (workspace.repository, workspace.mode) == ("/srv/ws", "in_place")
    assert settings.build_catalog().defaults.workspace == "default"


def test_agents_are_sealed_off_but_in_the_classic_profile_unless_asked_for(tmp_path: Path) -> None:
    settings = read(tmp_path, STEADYHAND_PROFILE="classic")
    assert settings.tables.service.isolation == "none"
    assert read(tmp_path).tables.service.isolation == "bwrap"
    asked = read(tmp_path, STEADYHAND_PROFILE="classic", STEADYHAND_ISOLATION="bwrap")
    assert asked.tables.service.isolation == "bwrap"


def test_the_earlier_service_s_directory_is_mirrored_in_the_default_profile(tmp_path: Path) -> None:
    workspace = read(tmp_path, WORKSPACE_DIR="/srv/ws").build_catalog().workspace("default")
    assert (workspace.repository, workspace.mode, workspace.ref) == ("/srv/ws", "checkout", None)


def test_an_agent_s_table_becomes_its_profile_with_money_in_micro_dollars(tmp_path: Path) -> None:
    text = """
    [workspaces.infra]
    repository = "https://git.example.org/infra.git"
    [agents.recruiter-triage]
    workspace = "infra"
    model = "sonnet"
    budget_usd = 2.25
    timeout_seconds = 900
    tools = ["Read", "Bash"]
    env = { REGION = "eu" }
    """
    agent = read(tmp_path, text).build_catalog().agent("recruiter-triage")
    assert agent.budget_micros == 2_250_000
    assert agent.tools == ("Read", "Bash")
    assert agent.env == {"REGION": "eu"}


def test_what_an_agent_may_take_and_reach_is_in_its_profile(tmp_path: Path) -> None:
    text = """
    [defaults]
    memory = "1.5G"
    processes = "none"
    publish = "branch"
    [agents.a]
    memory = "512M"
    processes = 200
    disk = "2GiB"
    egress = ["levels.example.org", "*.example.net"]
    secrets = ["/run/secrets/key"]
    """
    settings = read(tmp_path, text)
    agent = settings.build_catalog().agent("a")
    assert (agent.memory_bytes, agent.processes, agent.disk_bytes) == (512 * 1024**2, 200, 2 * 1024**3)
    assert agent.egress == ("levels.example.org", "*.example.net")
    assert agent.secrets == ("/run/secrets/key",)
    defaults = settings.tables.defaults
    assert (defaults.memory, defaults.processes, defaults.disk) == (int(1.5 * 1024**3), None, None)
    assert settings.build_catalog().defaults.publish == "branch"


def test_a_workspace_says_how_it_is_made_ready_and_what_becomes_of_commits(tmp_path: Path) -> None:
    text = """
    [workspaces.w]
    repository = "/srv/w"
    setup = ["git-crypt unlock /secrets/key", "make one, two"]
    setup_secrets = ["/secrets/key"]
    setup_egress = ["pypi.example.org"]
    caches = ["pip", "npm"]
    publish = "branch"
    """
    workspace = read(tmp_path, text).build_catalog().workspace("w")
    assert workspace.setup == ("git-crypt unlock /secrets/key", "make one, two")
    assert workspace.setup_secrets == ("/secrets/key",)
    assert workspace.setup_egress == ("pypi.example.org",)
    assert workspace.caches == ("pip", "npm")
    assert workspace.publish == "branch"


def test_the_runner_of_an_agent_s_table_is_that_of_the_agent(tmp_path: Path) -> None:
    table = AgentTable().model_copy(update={"runner": "other"})
    tables = Tables().model_copy(update={"agents": {"a": table, "b": AgentTable()}})
    catalog = Settings(tables, tmp_path).build_catalog()
    assert (catalog.agent("a").runner, catalog.agent("b").runner) == ("other", "claude")


def test_the_defaults_of_the_file_are_those_of_the_catalog(tmp_path: Path) -> None:
    assert read(tmp_path, "").build_catalog().defaults == Defaults()


def test_the_command_line_s_token_falls_to_the_local_admin_key(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("sh_admin_x\n")
    assert load_client_settings({"STEADYHAND_DATA_DIR": str(tmp_path)}).token == "sh_admin_x"
    assert (
        load_client_settings({"STEADYHAND_DATA_DIR": str(tmp_path), "STEADYHAND_TOKEN": "mine"}).token
        == "mine"
    )
    assert load_client_settings({"STEADYHAND_DATA_DIR": str(tmp_path / "none")}).token is None


def test_data_lies_where_agents_can_reach_their_part_of_it() -> None:
    directory = default_data_dir({"HOME": "/home/me"})
    assert str(directory) == (
        "/var/lib/steadyhand" if os.geteuid() == 0 else "/home/me/.local/share/steadyhand"
    )
