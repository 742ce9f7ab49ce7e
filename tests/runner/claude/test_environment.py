from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from steadyhand.agents import Agent, Workspace
from steadyhand.ports import AgentPaths, Checkout, JobPaths, ModelAccess, RunSpec
from steadyhand.runner.claude.environment import (
    agent_environment,
    model_environment,
)
from steadyhand.runner.process.direct_calls import direct_environment
from steadyhand.testing.contracts.samples import make_job

HEADERS = {"x-steadyhand-run": "token"}
VIEW = AgentPaths(Path("/workspace"), Path("/home/agent"), Path("/home/agent/.claude"))


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        (ModelAccess(), {}),
        (
            ModelAccess(base_url="http://m", api_key="key", oauth_token="token"),
            {
                "ANTHROPIC_BASE_URL": "http://m",
                "ANTHROPIC_API_KEY": "key",
                "CLAUDE_CODE_OAUTH_TOKEN": "token",
            },
        ),
        (
            ModelAccess(base_url="http://m", oauth_token="token", socket="/run/model.sock"),
            {
                "ANTHROPIC_BASE_URL": "http://m",
                "CLAUDE_CODE_OAUTH_TOKEN": "token",
                "ANTHROPIC_UNIX_SOCKET": "/run/model.sock",
            },
        ),
        (
            ModelAccess("bedrock", "http://m", headers=HEADERS, region="eu-central-1"),
            {
                "CLAUDE_CODE_USE_BEDROCK": "1",
                "CLAUDE_CODE_SKIP_BEDROCK_AUTH": "1",
                "ANTHROPIC_BEDROCK_BASE_URL": "http://m",
                "ANTHROPIC_CUSTOM_HEADERS": "x-steadyhand-run: token",
                "AWS_REGION": "eu-central-1",
            },
        ),
        (
            ModelAccess("vertex", "http://m", headers=HEADERS, project="shop-1"),
            {
                "CLAUDE_CODE_USE_VERTEX": "1",
                "CLAUDE_CODE_SKIP_VERTEX_AUTH": "1",
                "ANTHROPIC_VERTEX_BASE_URL": "http://m/v1",
                "ANTHROPIC_CUSTOM_HEADERS": "x-steadyhand-run: token",
                "CLOUD_ML_REGION": "global",
                "ANTHROPIC_VERTEX_PROJECT_ID": "shop-1",
            },
        ),
    ],
)
def test_the_cli_is_told_of_its_model_by_its_own_variables(
    access: ModelAccess, expected: Mapping[str, str]
) -> None:
    assert model_environment(access) == expected


def test_an_agents_own_variables_win_over_the_models_and_those_over_the_services(tmp_path: Path) -> None:
    files = JobPaths(tmp_path)
    checkout = Checkout(
        Workspace("a"), files, files.checkout, files.home, files.config_dir, uid=None, commit=None
    )
    service = {
        "A": "service",
        "ANTHROPIC_API_KEY": "service",
        "ANTHROPIC_BASE_URL": "service",
        "HOME": "service",
    }
    spec = RunSpec(
        make_job(),
        1,
        Agent("a", env={"ANTHROPIC_BASE_URL": "agent", "HOME": "agent"}),
        checkout,
        service,
        lambda _pid, _ticks: None,
        model_access=ModelAccess(base_url="model", api_key="model"),
    )
    environment = agent_environment(spec, VIEW)
    names = ("A", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "HOME")
    assert [environment[name] for name in names] == ["service", "model", "agent", "/home/agent"]
    assert agent_environment(replace(spec, model_access=None), VIEW)["ANTHROPIC_API_KEY"] == "service"


@pytest.mark.parametrize(
    ("env", "access", "expected"),
    [
        ({"HTTP_PROXY": "http://p"}, ModelAccess(base_url="http://127.0.0.1:1"), "127.0.0.1"),
        (
            {"https_proxy": "http://p", "no_proxy": "a.example", "NO_PROXY": "b.example"},
            ModelAccess("bedrock", base_url="http://127.0.0.1:1"),
            "b.example,a.example,127.0.0.1",
        ),
        ({"HTTP_PROXY": ""}, ModelAccess(base_url="http://127.0.0.1:1"), None),
        ({"HTTP_PROXY": "http://p"}, ModelAccess(base_url="https://m.example"), None),
        ({"HTTP_PROXY": "http://p"}, ModelAccess(base_url="http://127.0.0.1:1", socket="/run/s"), None),
        ({"HTTP_PROXY": "http://p"}, ModelAccess(), None),
    ],
)
def test_a_model_on_loopback_is_asked_without_the_proxy_of_an_agent(
    env: Mapping[str, str], access: ModelAccess, expected: str | None
) -> None:
    variables = {} if expected is None else {"NO_PROXY": expected, "no_proxy": expected}
    assert direct_environment(env, access) == variables
