"""The launch of an agent that speaks ACP: its environment, and what of a repository is kept from it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadyhand.agents import Agent, TrustLevel, Workspace
from steadyhand.errors import SpawnError
from steadyhand.job import ClientTool, JobSpec
from steadyhand.ports import BindMount, Checkout, JobPaths, ModelAccess, RunSpec
from steadyhand.runner.acp.acp_agent import BUILT_IN_ACP_AGENTS, AcpAgent
from steadyhand.runner.acp.acp_launch import build_launch
from steadyhand.runner.acp.hidden_paths import hide_paths
from steadyhand.runner.process.launch_spec import LaunchSpec
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.contracts.samples import make_job

ACCESS = ModelAccess(api="openai", base_url="http://127.0.0.1:40001/v1", api_key="token-of-the-run")
KIMI, OPENCODE, CLAUDE = (BUILT_IN_ACP_AGENTS[name] for name in ("kimi", "opencode", "claude-agent-acp"))
PROGRAMS = (Path("/opt/node"), Path("/opt/kimi"))


class Sealed(NoSandbox):
    """A sandbox that leaves commands as they are."""

    level = "bwrap"


def checkout_in(root: Path, trust: TrustLevel = "instructions", *, full_trust: bool = False) -> Checkout:
    paths = JobPaths(root)
    workspace = Workspace("w", trust=trust)
    return Checkout(
        workspace, paths, paths.checkout, paths.home, paths.config_dir, None, None, full_trust=full_trust
    )


def launch(
    agent: AcpAgent = KIMI,
    *,
    access: ModelAccess | None = ACCESS,
    checkout: Checkout | None = None,
    hidden: tuple[BindMount, ...] = (),
    **fields: Any,
) -> LaunchSpec:
    place = checkout or checkout_in(Path("/x"))
    job = replace(make_job(), spec=JobSpec("--help", **{"model": "gpt-5.5", **fields}))
    spec = RunSpec(job, 1, Agent(agent.name), place, {}, lambda _pid, _ticks: None, access)
    return build_launch(agent, PROGRAMS, spec, NoSandbox(), hidden)


def test_the_home_is_the_jobs_own_folder_and_the_prompt_is_no_argument() -> None:
    made = launch()
    assert made.command.argv == ["/opt/node", "/opt/kimi", "acp"]
    assert made.command.env["HOME"] == "/x/config"
    assert made.command.env["KIMI_MODEL_NAME"] == "gpt-5.5"
    assert made.command.env["KIMI_MODEL_BASE_URL"] == ACCESS.base_url
    assert made.command.env["KIMI_MODEL_API_KEY"] == "token-of-the-run"


def test_the_settings_of_opencode_name_the_gateway_alone() -> None:
    config = json.loads(launch(OPENCODE).command.env["OPENCODE_CONFIG_CONTENT"])
    assert config["enabled_providers"] == ["steadyhand"]
    assert config["provider"]["steadyhand"]["options"]["baseURL"] == ACCESS.base_url
    assert config["model"] == config["small_model"] == "steadyhand/gpt-5.5"


def test_files_of_the_home_are_filled_in() -> None:
    agent = AcpAgent("own", "own", "openai", files={".own/config": "url={base_url} {other}"})
    assert launch(agent).replaced_files == [
        (Path("/x/config/.own/config"), b"url=http://127.0.0.1:40001/v1 {other}")
    ]


@pytest.mark.parametrize("model", ['x","mcp":{}', "a b", "{key}", "-x", "x" * 300])
def test_a_model_that_could_be_read_as_more_than_a_name_is_refused(model: str) -> None:
    with pytest.raises(SpawnError, match="name of a model"):
        launch(OPENCODE, model=model)


def test_claude_gets_the_address_of_the_runs_network_and_needs_no_model() -> None:
    access = ModelAccess(
        base_url="http://model.invalid", api_key="k", socket="/s", port_url="http://127.0.0.1:8787"
    )
    env = launch(CLAUDE, access=access, model=None).command.env
    assert env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8787"
    assert "ANTHROPIC_MODEL" not in env
    assert launch(CLAUDE, access=access, model="m").command.env["ANTHROPIC_MODEL"] == "m"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"tools": (ClientTool("find", "Finds.", {}),)}, "tools"),
        ({"output_schema": {"type": "object"}}, "schema"),
        ({"max_turns": 3}, "turns"),
    ],
)
def test_what_the_protocol_has_not_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(SpawnError, match=text):
        launch(**fields)


@pytest.mark.parametrize("access", [None, ModelAccess(api_key="x")], ids=["none", "anthropic"])
def test_without_a_model_on_its_wire_it_does_not_start(access: ModelAccess | None) -> None:
    with pytest.raises(SpawnError, match="openai"):
        launch(access=access)


def test_trust_decides_what_of_a_repository_is_hidden(tmp_path: Path) -> None:
    tree = tmp_path / "checkout"
    (tree / ".opencode").mkdir(parents=True)
    (tree / "AGENTS.md").write_text("x")

    def names(agent: AcpAgent, checkout: Checkout) -> list[str]:
        return [each.target.name for each in hide_paths(agent, checkout, Sealed())]

    assert names(OPENCODE, checkout_in(tmp_path)) == [".opencode"]
    assert names(OPENCODE, checkout_in(tmp_path, "full", full_trust=True)) == []
    assert names(KIMI, checkout_in(tmp_path)) == []
    assert names(KIMI, checkout_in(tmp_path, "none")) == ["AGENTS.md"]
    hidden = hide_paths(KIMI, checkout_in(tmp_path, "none"), Sealed())
    assert hidden[0].source.read_bytes() == b""
    assert not hidden[0].writable


@pytest.mark.parametrize("kind", ["none", "link"])
def test_what_cannot_be_hidden_keeps_the_agent_from_starting(tmp_path: Path, kind: str) -> None:
    tree = tmp_path / "checkout"
    tree.mkdir()
    if kind == "link":
        (tree / ".opencode").symlink_to("/etc")
    else:
        (tree / ".opencode").mkdir()
    with pytest.raises(SpawnError, match="cannot be kept"):
        hide_paths(OPENCODE, checkout_in(tmp_path), NoSandbox() if kind == "none" else Sealed())


def test_git_is_told_to_leave_hidden_paths_alone() -> None:
    argv = launch(hidden=(BindMount(Path("/empty"), Path("/x/checkout/.opencode")),)).command.argv
    assert argv[:2] == ["/bin/sh", "-c"]
    assert "git ls-files -z -- .opencode" in argv[2]
    assert argv[-3:] == ["/opt/node", "/opt/kimi", "acp"]
